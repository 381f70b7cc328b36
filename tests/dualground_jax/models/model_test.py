"""What holds for every model, and what DualGround's options do, at tiny sizes."""

import functools
import re
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import qvh
from data_pipelines.errors import ConfigError
from data_pipelines.tokens import EOS, PADDING, START, WORD
from dualground_jax import models
from dualground_jax.models import cg_detr, dualground

CLIPS, WORDS, WINDOWS = 11, 5, 2
VIDEO_DIM, TEXT_DIM = 7, 6
LENGTHS, WORD_COUNTS = (11, 7, 1, 4), (5, 2, 3, 0)
TINY = dict(
    width=16, heads=2, ffn=16, dropout=0.0, input_dropout=0.0, t2v_layers=1, enc_layers=1,
    dummies=3, dummy_layers=1, dummy_heads=2, phrases=2, phrase_layers=1, context_layers=1,
    mlp_layers=2, dec_layers=2, queries=4, strides=(1, 4), prompts=5, used_prompts=2,
)
# Every model, with options that bring all of its parts in.
CASES = [
    ('dualground', dict(across_phrases=True)),
    ('dualground', dict(head='detr')),
    ('flash_vtg', {}),
    ('cg_detr', {}),
    ('tr_detr', {}),
]
CASES += [(name, {}) for name in models.MODELS if name not in dict(CASES)]
every_case = pytest.mark.parametrize('name, options', CASES, ids=str)
every_model = pytest.mark.parametrize('name', models.MODELS)


def roles(words, padding=0):
    """Token roles of a query: start-of-text, words, [EOS], padding."""
    return np.int32([START, *[WORD] * words, EOS, *[PADDING] * padding])


def make_batch(seed=0):
    """A batch with junk in its padding: an odd length, a 1-clip video, a query without words."""
    rng = np.random.default_rng(seed)
    size = len(LENGTHS)
    video_mask = np.arange(CLIPS) < np.array(LENGTHS)[:, None]
    windows = np.array([[[2, 8], [12, 16]], [[0, 14], [0, 0]], [[0, 2], [0, 0]], [[2, 4], [0, 0]]])
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return dict(
        video=normal(size, CLIPS, VIDEO_DIM),
        video_mask=video_mask,
        source_id=np.arange(size, dtype=np.int32),
        text=normal(size, 2 + WORDS, TEXT_DIM),
        text_role=np.stack([roles(n, WORDS - n) for n in WORD_COUNTS]),
        duration=np.float32(LENGTHS) * 2,
        clip_length=np.full(size, 2, np.float32),
        windows=windows.astype(np.float32),
        windows_mask=np.array([[1, 1], [1, 0], [1, 0], [1, 0]], bool),
        spans=rng.uniform(0.2, 0.5, (size, WINDOWS, 2)).astype(np.float32),
        spans_mask=np.array([[1, 1], [1, 0], [1, 0], [1, 0]], bool),
        saliency=rng.integers(0, 13, (size, CLIPS)).astype(np.float32) * video_mask,
        relevant=(rng.random((size, CLIPS)) < 0.5) & video_mask,
        pos_clips=np.zeros((size, 2), np.int32),
        neg_clips=np.array([[3, 4], [2, 2], [0, 0], [1, 3]], np.int32),
        pairs_mask=np.ones(size, bool),
        graded=np.ones(size, bool),
    )


def tiny(name, **options):
    """A tiny model of that name."""
    fields = models.defaults(name)
    return models.MODELS[name].Model(**{k: v for k, v in TINY.items() if k in fields} | options)


def make(batch, name='dualground', **options):
    """A model with random parameters; drawn here, since compiling its own draws takes longer."""
    model = tiny(name, **options)
    shapes = jax.eval_shape(lambda: nn.unbox(model.init(jax.random.key(0), batch, train=True)))
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        around = 1.0 if path[-1].key in ('scale', 'level_scale') else 0.0
        fan_in = leaf.shape[-2] if leaf.ndim > 1 else 25
        return (around + rng.normal(size=leaf.shape) / np.sqrt(fan_in)).astype(np.float32)

    return model, jax.tree.map_with_path(draw, shapes)


def loss_of(name, model, config):
    """(params, batch) -> (loss, losses by name)."""

    def loss(params, batch):
        out = model.apply(params, batch, train=True, rngs={'dropout': jax.random.key(1)})
        return models.MODELS[name].loss_fn(out, batch, config)

    return loss


def default_loss(name):
    return ConfigDict(models.MODELS[name].LOSS)


class Programs(NamedTuple):
    """What the tests of a tiny model share, as compiling it takes most of their time.

    Attributes:
      predict: batch -> (what the model puts out without `train`, windows, saliency).
      loss_and_grads: batch -> ((loss, losses by name), gradients by the parameters of `make`).
    """

    predict: Callable
    loss_and_grads: Callable


@functools.cache
def compiled(name='dualground', **options):
    """The programs of `tiny(name, **options)`; each is compiled once per shape of a batch."""
    model, params = make(make_batch(), name, **options)
    loss = loss_of(name, model, default_loss(name))

    def predict(params, batch):
        out = model.apply(params, batch, train=False)
        return out, *models.MODELS[name].decode(out, batch)

    functions = predict, jax.value_and_grad(loss, has_aux=True)
    return Programs(*(functools.partial(jax.jit(f), params) for f in functions))


def trimmed(batch, b):
    """Sample b alone, without padding."""
    n, w = LENGTHS[b], WORD_COUNTS[b]
    one = {k: v[b : b + 1] for k, v in batch.items()}
    for key in ('video', 'video_mask', 'saliency', 'relevant'):
        one[key] = one[key][:, :n]
    for key in ('text', 'text_role'):
        one[key] = one[key][:, : 2 + w]
    return one


@every_case
def test_a_sample_does_not_depend_on_padding_or_batch_mates(name, options):
    batch = make_batch()
    run = compiled(name, **options).predict
    out, windows, saliency = run(batch)
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
    for b in (0, 2, 3):  # the longest one, one clip, no words
        alone, alone_windows, alone_saliency = run(trimmed(batch, b))
        close(saliency[b, : LENGTHS[b]], alone_saliency[0])
        for key, value in alone.items():
            # Layers come before samples in what a decoder predicts; padding comes last.
            row = out[key][:, b : b + 1] if key.startswith('pred_') else out[key][b : b + 1]
            if key in ('logits', 'offsets'):
                row = row[:, out['points_mask'][b]]
            if key not in ('points', 'points_mask'):
                close(row[tuple(slice(n) for n in value.shape)], value)
        found = windows[b][windows[b, :, 2] >= 0]
        # Rows of one clip can tie, and then come in any order.
        order = lambda w: w[np.lexsort((np.round(w[:, 0], 3), np.round(w[:, 2], 4)))]
        expected = alone_windows[0][alone_windows[0, :, 2] >= 0]
        close(order(found), order(expected))
    assert (np.diff(windows[..., 2], axis=1) <= 0).all(), 'best first'
    if 'points' in out:
        assert [(w[:, 2] >= 0).sum() for w in windows] == [11 + 2, 7 + 1, 1, 4 + 1]


LONGER = 'video', 'video_mask', 'saliency', 'relevant', 'text', 'text_role'


def padded(batch, count, size, more):
    """The first samples of a batch, empty rows, and junk behind clips (more) and words (more)."""
    rng = np.random.default_rng(3)
    rows = {}
    for key, value in batch.items():
        longer = more * (key in LONGER)
        ends = [(0, size - count)] + [(0, longer), (0, 0)][: value.ndim - 1]
        rows[key] = np.pad(value[:count], ends)
        if longer and value.ndim == 3:
            rows[key][:, -longer:] = rng.normal(size=rows[key][:, -longer:].shape)
    rows['clip_length'][:] = 2
    return rows


@every_case
def test_losses_and_gradients_do_not_depend_on_padding(name, options):
    """Of clips, words and rows. After the last sample comes the first, not an empty row."""
    batch = make_batch()
    batch['source_id'] = np.array([0, 1, 2, 0], np.int32)  # the last one has no negative
    run = compiled(name, **options).loss_and_grads
    for count in (4, 3, 1):
        pairs = zip(*(run(padded(batch, count, *sizes)) for sizes in ((4, 0), (6, 5))),
                    (2e-5, 1e-4), (1e-6, 2e-6), strict=True)
        for expected, found, rtol, atol in pairs:  # losses, gradients
            for (path, x), y in zip(
                jax.tree.leaves_with_path(expected), jax.tree.leaves(found), strict=True
            ):
                np.testing.assert_allclose(y, x, rtol, atol, err_msg=f'{count} {path}')


def test_reversed_batch_gives_reversed_output():
    batch = make_batch()
    run = lambda b: compiled('dualground', across_phrases=True).predict(b)[0]['saliency']
    flipped = run({k: v[::-1] for k, v in batch.items()})
    np.testing.assert_allclose(run(batch), flipped[::-1], atol=1e-6)


@every_model
@pytest.mark.parametrize(
    'tokens, ignored, seen', [('eos', WORD, EOS), ('words', EOS, WORD)]
)
def test_a_role_that_is_off_is_not_seen(name, tokens, ignored, seen):
    batch = make_batch()
    run = lambda b: compiled(name, tokens=tokens).predict(b)[0]
    out = run(batch)
    change = lambda role: np.float32(batch['text_role'] == role)[..., None]
    other = run({**batch, 'text': batch['text'] + change(ignored)})
    for key, value in out.items():
        # A model may hand out each token, with a mask of those that it sees.
        seen_part = np.asarray(out['text_mask']) if key == 'text' else ...
        np.testing.assert_array_equal(value[seen_part], other[key][seen_part], err_msg=key)
    other = run({**batch, 'text': batch['text'] * (1 - 2 * change(seen))})
    assert np.abs(out['saliency'] - other['saliency']).max() > 1e-4
    if name == 'dualground' and tokens == 'words':
        assert not out['text_weight'].any()
    if name == 'dualground' and tokens == 'eos':
        assert not out['phrase_attention'].any()


@pytest.mark.parametrize('name, options', [
    ('dualground', dict(across_phrases=True)), ('flash_vtg', {}), ('cg_detr', {})])
def test_negative_pairs_are_the_next_samples_queries(name, options):
    batch = make_batch()
    batch['source_id'] = np.array([0, 1, 1, 2], np.int32)
    model, params = make(batch, name, **options)
    out = jax.jit(lambda b: model.apply(params, b, train=True))(batch)
    text = ('text', 'text_role')
    rolled = {k: np.roll(v, -1, 0) if k in text else v for k, v in batch.items()}
    expected, *_ = compiled(name, **options).predict(rolled)
    np.testing.assert_allclose(out['saliency_neg'], expected['saliency'], atol=1e-5)
    np.testing.assert_allclose(out['text_weight_neg'], expected['text_weight'], atol=1e-5)
    np.testing.assert_array_equal(out['real_neg'], [True, False, True, True])


def test_saliency_token_of_one_clip_is_its_context():
    """The clip differs from the mean clip by nothing; its gradient stays moderate."""
    clips, prompts = jnp.ones((1, 1, 4)), jnp.eye(3, 4)

    def token(clips, importance):
        return cg_detr.saliency_token(
            clips=clips, context=jnp.ones((1, 4)), importance=importance, prompts=prompts, used=2
        )

    np.testing.assert_array_equal(token(clips, jnp.zeros((1, 1))), np.ones((1, 4)))
    np.testing.assert_allclose(
        token(clips, jnp.full((1, 1), 0.3)), [[4 / 3, 4 / 3, 1, 1]], rtol=1e-6
    )
    grads = jax.jacobian(token)(clips, jnp.ones((1, 1)))
    assert np.abs(grads).max() <= 1


OPTIONS = [
    ('dualground', dict(fusion='hadamard', slot_normalize='inputs', rpg_positions=False,
                        across_phrases=True)),
    ('dualground', dict(fusion='gate', tokens='words', head='detr', dtype='bfloat16')),
    ('dualground', dict(fusion='concat', tokens='eos', bins=4, dropout=0.1)),
    ('flash_vtg', dict(tokens='words', dtype='bfloat16', dropout=0.1)),
    ('cg_detr', dict(tokens='words', dtype='bfloat16', dropout=0.1)),
    ('tr_detr', dict(tokens='words', dtype='bfloat16', dropout=0.1)),
]


def parts_of(name, options):
    """Names of the losses of a model."""
    if name != 'dualground':
        return set(models.MODELS[name].LOSS['weights'])
    on_head = dict(pyramid={'cls', 'reg', 'label'}, detr={'span', 'giou', 'query_label'})
    named = {'sal', 'saliency'} | on_head[options.get('head', 'pyramid')]
    return named | (set() if options.get('paths') == 'sentence' else {'phrase', 'eos'})


OPTIONS += [(name, {}) for name in models.MODELS if name not in dict(OPTIONS)]
OPTIONS += [pytest.param('dualground', options, marks=pytest.mark.slow)
            for options in (dict(paths='sentence'), dict(paths='phrase', head='detr'))]


@pytest.mark.parametrize('name, options', OPTIONS, ids=str)
def test_loss_and_gradient_are_finite_on_awkward_samples(name, options):
    """No words, one clip, no positive clip, all-equal saliency, no real negative pair at all."""
    batch = make_batch()
    batch['saliency'][:] = 0
    batch['pairs_mask'][:] = False
    batch['source_id'][:] = 0
    config = default_loss(name)
    if options.get('bins'):
        config.update(dict(regression='dfl', classification='quality'))
    if options.get('paths') == 'phrase':
        config.eos_form = 'margin'
    model, params = make(batch, name, **options)
    both = jax.jit(jax.value_and_grad(loss_of(name, model, config), has_aux=True))
    for samples in (batch, make_batch()):
        (loss, parts), grads = both(params, samples)
        assert np.isfinite(loss) and all(np.isfinite(v) for v in parts.values())
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    # Whatever it computes in, what it learns is in float32.
    assert {x.dtype for x in jax.tree.leaves((loss, params, grads))} == {jnp.dtype('float32')}
    assert set(parts) == parts_of(name, options)
    np.testing.assert_allclose(
        loss, sum(config.weights[k] * v for k, v in parts.items()), rtol=1e-5
    )


# A bias that is added to all logits of a softmax has no gradient; nor has what the first decoder
# layer computes of its queries' contents, which are 0, or of their attention to equal values.
NO_GRADIENT = r'(key|score|key_content|key_position)/bias|decoder/layer_0/self_(query|key)_.*|' + (
    r'decoder/layer_0/self_value/kernel'
)


@every_case
def test_every_parameter_gets_a_gradient(name, options):
    _, grads = compiled(name, **options).loss_and_grads(make_batch())
    for path, g in jax.tree_util.tree_leaves_with_path(grads['params']):
        where = '/'.join(key.key for key in path)
        assert np.abs(g).max() > 1e-9 or re.search(f'({NO_GRADIENT})$', where), where


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(fusion='add'), "model.fusion='add'.*'sum'"),
        (dict(paths='none'), "model.paths='none'.*'both'"),
        (dict(tokens='all'), "model.tokens='all'.*'full'"),
        (dict(head='mlp'), "model.head='mlp'.*'pyramid'"),
        (dict(slot_normalize='rows'), "normalize='rows'"),
    ],
)
def test_bad_options_are_named(options, message):
    batch = make_batch()
    model = tiny('dualground', **options)

    def trace():
        rngs = dict(params=jax.random.key(0), dropout=jax.random.key(0))
        out, _ = model.init_with_output(rngs, batch, train=True)
        return dualground.loss_fn(out, batch, qvh.get_config().loss)

    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(trace)


def test_config_sections_build_their_model():
    section = qvh.get_config().model
    model = models.build(section)
    assert {k: getattr(model, k) for k in section if k != 'name'} == {
        k: v for k, v in section.items() if k != 'name'
    }
