"""Attention by role: pooling, statistics against scipy, and what each model returns."""

import types

import jax
import numpy as np
import pytest
import scipy.stats

from configs import qvh
from data_pipelines.errors import UserError
from data_pipelines.tokens import DUMMY, EOS, MEAN, P_EOS, PADDING, PHRASE, PUNCTUATION, START, WORD
from dualground_jax import models
from dualground_jax.analysis import attention
from dualground_jax.analysis.attention import POOLINGS, STUDIED
from tests.dualground_jax.models.model_test import make, make_batch


def random_out(seed, samples=4, clips=9, keys=6, layers=2, heads=3):
    """Attention over keys of random roles; the last sample has no words."""
    rng = np.random.default_rng(seed)
    roles = rng.choice([PADDING, START, EOS, WORD, WORD, DUMMY], (samples, keys)).astype(np.int32)
    roles[:-1, 0], roles[:, 1] = WORD, EOS
    roles[-1][roles[-1] == WORD] = PADDING
    attn = rng.random((samples, layers, heads, clips, keys)).astype(np.float32)
    return dict(attn=attn, attn_roles=roles)


def test_pooled_keys_equal_loops():
    out = random_out(0)
    found = jax.device_get(jax.jit(attention.observe)(out))
    pools = dict(sum=np.sum, mean=np.mean, max=np.max)
    for b, roles in enumerate(out['attn_roles']):
        for r, role in enumerate(STUDIED):
            keys = np.flatnonzero(roles == role)
            assert found['present'][b, r] == (len(keys) > 0)
            for p, pooling in enumerate(POOLINGS):
                if len(keys):
                    expected = pools[pooling](out['attn'][b].mean((0, 1))[:, keys], axis=1)
                    np.testing.assert_allclose(found['roles'][b, r, p], expected, rtol=1e-6)
        for which, role in enumerate((EOS, WORD)):
            keys = np.flatnonzero(roles == role)
            assert found['heads_present'][b, which] == (len(keys) > 0)
            for p, pooling in enumerate(POOLINGS):
                if len(keys):
                    expected = pools[pooling](out['attn'][b][..., keys], axis=-1)
                    np.testing.assert_allclose(
                        found['heads'][b, :, :, which, p], expected, rtol=1e-6)


def make_split(n=11, clips=9):
    """Batches' worth of samples with windows and masks, to be cut anywhere."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(3, clips + 1, n)
    start = rng.integers(0, 5, n)
    batch = dict(
        index=np.arange(n),
        video_mask=np.arange(clips) < lengths[:, None],
        clip_length=np.full(n, 2.0, np.float32),
        windows=np.stack([np.stack([start, start + 6], -1), np.zeros((n, 2))], 1) * 1.0,
        windows_mask=np.array([[True, False]] * n),
    )
    return random_out(2, n, clips), batch


def study_of(out, batch, cuts):
    """The study of a split that comes in batches [cuts_i, cuts_i+1), each with an empty row."""
    study, rows = attention.AttentionStudy(2, 3), []
    observed = jax.device_get(attention.observe(out))
    for start, end in zip(cuts, cuts[1:]):
        def cut(x, start=start, end=end):
            return np.concatenate([x[start:end], x[:1]])
        part = {name: cut(x) for name, x in batch.items()}
        part['index'][-1] = -1
        rows += study.add({name: cut(x) for name, x in observed.items()}, part)
    return study, rows


@pytest.mark.parametrize('cuts', [(0, 11), (0, 1, 4, 11), (0, 5, 6, 10, 11)])
def test_statistics_equal_scipy_however_batches_are_cut(cuts):
    out, batch = make_split()
    study, rows = study_of(out, batch, cuts)
    found = study.results({})
    mean = out['attn'].astype(np.float64).mean((1, 2))
    pooled, values = ([], []), []
    for b in range(10):  # the last sample has no words
        clips, roles = batch['video_mask'][b], out['attn_roles'][b]
        eos = mean[b][clips][:, roles == EOS].max(1)
        words = mean[b][clips][:, roles == WORD].max(1)
        values.append((scipy.stats.pearsonr(eos, words)[0], scipy.stats.spearmanr(eos, words)[0]))
        pooled[0].extend(eos)
        pooled[1].extend(words)
        assert rows[b]['pearson_eos_words_max'] == pytest.approx(values[-1][0], abs=1e-6)
    row = found['correlation']['eos']['words']['max']
    assert row == found['correlation']['words']['eos']['max']
    assert (row['n'], row['n_constant']) == (10, 0)
    expected = dict(
        pearson=np.mean(values, 0)[0], spearman=np.mean(values, 0)[1],
        pearson_pooled=scipy.stats.pearsonr(*pooled)[0],
        spearman_pooled=scipy.stats.spearmanr(*pooled)[0])
    assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert rows[10]['pearson_eos_words_max'] == ''

    layer, head = 1, 2
    values = [scipy.stats.pearsonr(*(
        out['attn'][b, layer, head][batch['video_mask'][b]][:, out['attn_roles'][b] == role].mean(1)
        for role in (EOS, WORD)))[0] for b in range(10)]
    by_head = found['correlation_by_head']['mean']['pearson']
    assert np.shape(by_head) == (2, 3)
    assert by_head[layer][head] == pytest.approx(np.mean(values), abs=1e-6)
    x, y = study.sample(EOS, WORD, 'max', 5)
    assert len(x) == len(y) == 5 and set(np.round(x, 6)) <= set(np.round(pooled[0], 6))


def test_auc_is_that_of_all_pairs_of_clips():
    out, batch = make_split()
    study, rows = study_of(out, batch, (0, 4, 11))
    mean = out['attn'].astype(np.float64).mean((1, 2))
    expected = []
    for b in range(11):
        clips = np.flatnonzero(batch['video_mask'][b])
        start, end = batch['windows'][b, 0]
        inside = np.array([start <= 2 * t + 1 < end for t in clips])
        series = mean[b][clips][:, out['attn_roles'][b] == EOS].mean(1)
        if inside.any() and not inside.all():
            first, second = series[inside][:, None], series[~inside]
            auc = ((first > second) + 0.5 * (first == second)).mean()
            expected.append(auc)
            assert rows[b]['auc_eos_mean'] == pytest.approx(auc, abs=1e-6)
        else:
            assert rows[b]['auc_eos_mean'] == ''
    bins = dict(few=np.arange(11) < 3, none=np.zeros(11, bool))
    found = study.results(bins)
    assert found['alignment']['eos']['mean']['n'] == len(expected)
    assert found['alignment']['eos']['mean']['auc'] == pytest.approx(np.mean(expected), abs=1e-6)
    of_few = [rows[b]['auc_words_mean'] for b in range(3) if rows[b]['auc_words_mean'] != '']
    assert found['alignment_by_query_length']['few']['words'] == pytest.approx(
        np.mean(of_few), abs=1e-6)
    assert 'none' not in found['alignment_by_query_length']


# Models ---------------------------------------------------------------------------------------

CASES = [
    ('dualground', {}, {EOS, WORD, PUNCTUATION, MEAN}, {DUMMY, EOS, WORD, PHRASE, P_EOS}),
    ('dualground', dict(paths='sentence', head='detr'), {EOS, MEAN}, {DUMMY, EOS}),
    ('dualground', dict(paths='phrase'), {WORD, PUNCTUATION}, {WORD, PHRASE, P_EOS}),
    ('dualground', dict(tokens='eos'), {EOS, MEAN}, {DUMMY, EOS}),
    ('flash_vtg', {}, {START, WORD, PUNCTUATION, EOS}, {DUMMY, START, WORD, EOS}),
    ('flash_vtg', dict(tokens='words'), {WORD, PUNCTUATION}, {DUMMY, WORD}),
    ('cg_detr', dict(tokens='eos'), {EOS, MEAN}, {DUMMY, EOS}),
    ('tr_detr', {}, {START, WORD, PUNCTUATION, EOS}, {START, WORD, EOS}),
]


@pytest.mark.parametrize('name, options, seen, keys', CASES, ids=str)
def test_what_a_model_returns(name, options, seen, keys):
    """Weights where there is a token, none where there is not, each key with its role."""
    config = qvh.get_config(f'model={name},runlocal')
    config.model.update(options)
    assert attention.seen_roles(config) == seen
    batch = make_batch()
    model, params = make(batch, name, **options)

    @jax.jit
    def run(batch):
        out = model.apply(params, batch, train=False)
        return {key: out[key] for key in ('attn', 'attn_roles')}

    out = run(batch)
    layers, heads = attention.check_attention(out, batch, name)
    roles, attn = np.array(out['attn_roles']), np.array(out['attn'])
    assert attn.shape[1:3] == (layers, heads) and set(roles.ravel()) - {PADDING} == keys
    by_key = attn * batch['video_mask'][:, None, None, :, None]
    assert not by_key.swapaxes(1, 4)[roles == PADDING].any()
    assert (by_key.swapaxes(1, 4)[np.isin(roles, (EOS, WORD))] >= 0).all()
    if name != 'dualground':
        text = (roles != PADDING).any(1)
        np.testing.assert_allclose(attn.sum(-1)[text], 1, rtol=1e-5)
    else:
        text_part = np.isin(roles, (DUMMY, EOS))
        if options.get('paths') != 'phrase':
            total = (attn * text_part[:, None, None, None]).sum(-1)
            np.testing.assert_allclose(total, 1, rtol=1e-5)
    # A role that is removed from the text is gone from the attention.
    for role in seen & {EOS, WORD}:
        changed = batch | dict(text_role=np.where(batch['text_role'] == role, PADDING,
                                                  batch['text_role']))
        assert role not in np.array(run(changed)['attn_roles'])


def test_a_model_without_attention_is_told_what_to_return(monkeypatch):
    batch = make_batch()
    clips = batch['video_mask'].shape
    shape = types.SimpleNamespace
    good = dict(attn=shape(shape=(clips[0], 2, 3, clips[1], 5)), attn_roles=shape(shape=(4, 5)))
    assert attention.check_attention(good, batch, 'mine') == (2, 3)
    for change, found in (
        (dict(attn=None), r"returns no out\['attn'\]"),
        (dict(attn_roles=None), r"returns no out\['attn_roles'\]"),
        (dict(attn=shape(shape=(4, 3, clips[1], 5))), r'attn of shape \(4, 3, 11, 5\)'),
        (dict(attn_roles=shape(shape=(4, 6))), r'attn_roles of shape \(4, 6\)'),
    ):
        bad = {name: value for name, value in (good | change).items() if value is not None}
        with pytest.raises(UserError, match=f"model 'mine'.*{found}") as error:
            attention.check_attention(bad, batch, 'mine')
        assert "expected out['attn'] float32[B, layers, heads, T, K]" in str(error.value)
    config = qvh.get_config('model=flash_vtg,runlocal')
    original = models.MODELS['flash_vtg'].Model.__call__

    def without(self, batch, *, train):
        return {k: v for k, v in original(self, batch, train=train).items() if k != 'attn'}

    monkeypatch.setattr(models.MODELS['flash_vtg'].Model, '__call__', without)
    with pytest.raises(UserError, match="'flash_vtg' returns no"):
        attention.seen_roles(config)
