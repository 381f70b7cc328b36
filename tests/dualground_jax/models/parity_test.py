"""Agreement with numbers made by the public PyTorch code.

The numbers lie under $GOLDENS_DIR (default: `tests/goldens`, a compact copy); their READMEs say how
they were made. Shapes, heads and layer counts are read from the files.

`dualground_components` are the parts of DualGround's development code (D in dualground.py), so the
options are D's here. Outputs agree to 1e-5 of an array's scale, gradients to 1e-5 of the
component's largest gradient.
"""

import copy
import functools
import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from scipy import optimize

from dualground_jax import losses, matching, spans, state
from dualground_jax.models import (
    cg_detr,
    cross_attention,
    dualground,
    highlight,
    layers,
    phrases,
    tr_detr,
)
from dualground_jax.pytorch import mapping, names
from tests.helpers import golden_models
from tests.helpers.paths import goldens_dir

FOLDER = goldens_dir() / 'dualground_components'
pytestmark = pytest.mark.skipif(
    not (FOLDER / 'meta.json').is_file(), reason=f'no component goldens in {FOLDER}'
)
TOLERANCE = 1e-5


def config():
    return json.loads((FOLDER / 'meta.json').read_text())['config']


class Golden:
    """One component's arrays by prefix: `g.inputs['x']`, `g.out['y']`, ..."""

    def __init__(self, name):
        self.arrays = dict(np.load(FOLDER / f'{name}.npz'))
        self.w, self.inputs, self.out = (self.part(p) for p in ('w', 'in', 'out'))
        self.ct, self.grad_w, self.grad_in = (self.part(p) for p in ('ct', 'grad/w', 'grad/in'))

    def part(self, prefix):
        return {
            k.removeprefix(prefix + '/'): v
            for k, v in self.arrays.items()
            if k.startswith(prefix + '/')
        }


def assert_close(actual, expected, scale=None, name=''):
    scale = np.abs(expected).max() if scale is None else scale
    actual = np.asarray(actual, np.float64)
    assert actual.shape == expected.shape, name
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=TOLERANCE * max(scale, 1e-3), err_msg=name
    )


def names_of(flax_prefix, torch_prefix):
    return mapping.subtable(dualground.TORCH_NAMES, flax_prefix, torch_prefix)


def check_module(golden, module, names, call, diff, unused=()):
    """Outputs, and gradients by weights and inputs, of a module under the golden's cotangents.

    Args:
      golden: the component.
      module: the linen module.
      names: its table of torch names.
      call: (module, inputs) -> dict of the outputs that the golden names.
      diff: inputs to differentiate by.
      unused: torch parameters that have no counterpart on purpose.
    """
    inputs = {k: jnp.asarray(v) for k, v in golden.inputs.items()}

    def run(params, chosen):
        values = {**inputs, **chosen}
        return nn.apply(lambda m: call(m, values), module)({'params': params})

    def start(key):
        return nn.unbox(nn.init(lambda m: call(m, inputs), module)(key)['params'])

    shapes = jax.eval_shape(start, jax.random.key(0))
    params = mapping.from_torch(golden.w, shapes, names, unused=unused)
    chosen = {name: inputs[name] for name in diff}

    @jax.jit
    def both(params, chosen):
        def total(params, chosen):
            out = run(params, chosen)
            return sum((out[k] * golden.ct[k]).sum() for k in out), out

        return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(params, chosen)

    (_, out), (grads, by_input) = both(params, chosen)
    assert set(out) == set(golden.ct), 'every output is compared'
    for name, value in out.items():
        # Cotangents are zero at padded queries, which we may blank; compare where they are not.
        seen = np.broadcast_to(golden.ct[name].any(-1, keepdims=True), golden.out[name].shape)
        assert_close(
            np.where(seen, value, 0),
            np.where(seen, golden.out[name], 0),
            np.abs(golden.out[name]).max(),
            name,
        )
    scale = max(np.abs(g).max() for g in (*golden.grad_w.values(), *golden.grad_in.values()))
    # Parameters that the code never used have no gradient.
    state = {k: golden.grad_w.get(k, np.zeros_like(v)) for k, v in golden.w.items()}
    expected = mapping.from_torch(state, shapes, names, unused=unused)
    jax.tree.map_with_path(
        lambda path, a, b: assert_close(a, b, scale, jax.tree_util.keystr(path)), grads, expected
    )
    for name in diff:
        assert_close(by_input[name], golden.grad_in[name], scale, name)


def stack_size(golden, prefix):
    """Number of layers in a torch state dict."""
    return 1 + max(int(k.split(prefix)[1].split('.')[0]) for k in golden.w if prefix in k)


# Positions and modules ------------------------------------------------------------------------


def test_sine_position():
    golden = Golden('pos_sine')
    width = golden.out['video_raw'].shape[-1]
    for role in ('video', 'word'):
        mask = golden.inputs[f'{role}_valid'].astype(bool)
        for suffix, normalize in (('raw', False), ('normalized', True)):
            found = layers.sine_position(jnp.asarray(mask), width, normalize=normalize)
            assert_close(found, golden.out[f'{role}_{suffix}'], name=f'{role}_{suffix}')
    empty = golden.arrays['edge/out/normalized_all_masked']
    assert_close(layers.sine_position(jnp.zeros(empty.shape[:2], bool), width), empty)


def test_recurrent_phrases():
    golden = Golden('rpg')
    module = phrases.RecurrentPhrases(golden.out['phrases'].shape[1], positions=False)

    def call(m, x):
        phrases, attn = m(x['glob'][:, 0], x['words'], x['word_valid'], deterministic=True)
        return dict(phrases=phrases, attn=attn)

    names = names_of('phrase_encoder/generator', 'phrase_generate.sqan')
    check_module(golden, module, names, call, ('glob', 'words'))


def test_slot_layer():
    golden = Golden('slot_layer')
    module = phrases.SlotLayer(config()['heads'], normalize='inputs')

    def call(m, x):
        phrases, eos, attention = m(
            x['phrases'], x['eos'][:, 0], x['words'], x['word_valid'], deterministic=True
        )
        return dict(phrases=phrases, eos=eos[:, None], slot_sim=attention.mean(1))

    names = names_of('phrase_encoder/slot_{}', 'phrase_generate.phrase_att.{}')
    check_module(golden, module, names, call, ('phrases', 'eos', 'words'))


def test_phrase_encoder():
    golden = Golden('phrase_generate')
    module = phrases.PhraseEncoder(
        phrases=golden.out['phrases'].shape[1],
        phrase_layers=stack_size(golden, 'phrase_att.'),
        heads=config()['heads'],
        slot_normalize='inputs',
        rpg_positions=False,
    )

    def call(m, x):
        out = m(x['text'][:, 0], x['text'][:, 1:], x['text_valid'][:, 1:], deterministic=True)
        return dict(
            phrases=out['phrases'],
            phrase_attn=out['phrase_attention'],
            slot_sim=out['slot_attention'][:, -1].mean(1),
            eos=out['phrase_eos'],
        )

    check_module(golden, module, names_of('phrase_encoder', 'phrase_generate'), call, ('text',))


def test_phrase_encoder_is_finite_without_words():
    """D gives NaN there; ours gives phrases that do not depend on the padding."""
    golden = Golden('phrase_generate')
    module = phrases.PhraseEncoder(
        phrases=golden.out['phrases'].shape[1],
        phrase_layers=stack_size(golden, 'phrase_att.'),
        heads=config()['heads'],
    )
    text = jnp.asarray(golden.inputs['text'])
    mask = jnp.zeros(text[:, 1:].shape[:2], bool)
    call = lambda x: module.apply(params, x[:, 0], x[:, 1:], mask, deterministic=True)  # noqa: E731
    params = jax.jit(
        lambda key: nn.unbox(module.init(key, text[:, 0], text[:, 1:], mask, deterministic=True))
    )(jax.random.key(0))
    out, other = jax.jit(call)(text), jax.jit(call)(text.at[:, 1:].add(1.0))
    for name in ('phrases', 'phrase_eos', 'phrase_attention', 'slot_attention'):
        assert np.isfinite(out[name]).all()
        np.testing.assert_array_equal(out[name], other[name])


def test_phrase_clip_product():
    golden = Golden('hadamard')

    def call(m, x):
        return dict(context=m(x['phrases'], x['video']))

    names = names_of('phrase_path/product', 'phrase_context.product')
    check_module(golden, phrases.PhraseClipProduct(), names, call, ('phrases', 'video'))


def test_projected_self_attention():
    golden = Golden('self_attention')
    module = layers.ProjectedAttention(config()['heads'])

    def call(m, x):
        y, attn = m(x['x'], x['x'], x['valid'][:, None, None], deterministic=True)
        plain, plain_attn = m(x['x'], x['x'], None, deterministic=True)
        return dict(y=y, attn=attn.mean(1), y_nomask=plain, attn_nomask=plain_attn.mean(1))

    names = names_of('temporal_attention/attention', 't_sa.layers.0.t_att')
    check_module(golden, module, names, call, ('x',))


def test_phrase_context_layer():
    golden = Golden('phrase_context_layer')
    module = phrases.PhraseContextLayer(config()['heads'], across_phrases=True)

    def call(m, x):
        return dict(context=m(x['context'], x['video_valid'], deterministic=True))

    names = names_of('phrase_path/layer_{}', 'phrase_context.layers.{}')
    check_module(golden, module, names, call, ('context',))


def test_temporal_self_attention():
    golden = Golden('t_sa')
    if stack_size(golden, 'layers.') != 1:
        pytest.skip('the model has one such layer')

    def call(m, x):
        return dict(y=m(x['x'], x['valid'], deterministic=True))

    names = names_of('temporal_attention', 't_sa')
    module = layers.SelfAttentionLayer(config()['heads'])
    # norm1 exists in D, and nothing reads it.
    check_module(golden, module, names, call, ('x',), unused=(r'layers\.0\.norm1\..*',))


@pytest.mark.parametrize('name', ['aca_layer', 'aca_stack'])
def test_adaptive_cross_attention(name):
    golden = Golden(name)
    single = name == 'aca_layer'
    module = cross_attention.CrossAttention(
        config()['heads'],
        num_layers=1 if single else stack_size(golden, 'layers.'),
        ffn=next(v for k, v in golden.w.items() if k.endswith('linear1.bias')).shape[0],
    )

    def call(m, x):
        keys = x['text'] + x['pos_text']
        mask = jnp.ones(keys.shape[:2], bool)
        clips, weights = m(
            x['video'], x['pos_video'], keys, x['text'][:, -1:], mask, deterministic=True
        )
        return dict(video=clips, attn=weights.mean((1, 2)), text=x['text'])

    names = names_of('sentence_path/cross_attention', 'transformer.t2v_encoder')
    if single:
        names = {k.replace('{}', '0'): v.replace('layers.{}.', '') for k, v in names.items()}
    diff = ('video', 'text', 'pos_video', 'pos_text')
    diff = tuple(d for d in diff if d in golden.grad_in)
    check_module(golden, module, names, call, diff)


def test_dummy_encoder():
    golden = Golden('dummy_encoder')
    module = layers.Encoder(
        config()['heads'],
        num_layers=stack_size(golden, 'layers.'),
        ffn=next(v for k, v in golden.w.items() if k.endswith('linear1.bias')).shape[0],
    )
    names = names_of('sentence_path/dummy_encoder/encoder', 'txtproj_encoder')

    def call(m, x):
        count = x['dummy_token'].shape[0]
        tokens = jnp.broadcast_to(x['dummy_token'], (len(x['eos']), *x['dummy_token'].shape))
        positions = jnp.pad(x['dummy_pos'], ((0, 1), (0, 0)))
        sequence = jnp.concatenate([tokens, x['eos']], 1)
        mask = jnp.ones(sequence.shape[:2], bool)
        memory = m(sequence, positions, mask, deterministic=True)
        return dict(memory=memory, dummies=memory[:, :count])

    check_module(golden, module, names, call, ('dummy_token', 'dummy_pos', 'eos'))

    # The same layer type encodes clips, there with a mask.
    alt = golden.part('alt/in')
    arguments = alt['video'], alt['pos_video'], alt['video_valid'].astype(bool)
    shapes = jax.eval_shape(
        lambda key: nn.unbox(module.init(key, *arguments, deterministic=True)),
        jax.random.key(0),
    )['params']
    params = mapping.from_torch(golden.w, shapes, names)
    found = jax.jit(
        lambda p: module.apply({'params': p}, *arguments, deterministic=True)
    )(params)
    valid = arguments[2][..., None]
    expected = golden.arrays['alt/out/video']
    assert_close(
        np.where(valid, found, 0), np.where(valid, expected, 0), np.abs(expected).max()
    )


def test_saliency_head_is_the_references_on_unpadded_samples():
    """The reference averages over padding, so only each sample cut to its clips can agree."""
    golden = Golden('saliency_proj')
    names = names_of('saliency_head', 'saliency_proj')
    x, valid = golden.inputs['x'], golden.inputs['valid'].astype(bool)
    class Head(highlight.SaliencyHead):
        @nn.compact
        def __call__(self, x, mask):
            return super().__call__(x, losses.masked_mean(x, mask[..., None], axis=1))

    module = Head()
    shapes = jax.eval_shape(lambda: nn.unbox(module.init(jax.random.key(0), x, valid)))['params']
    params = mapping.from_torch(golden.w, shapes, names)
    full = [b for b in range(len(x)) if valid[b].all()]
    assert full, 'no unpadded sample to compare'

    @jax.jit
    def both(params, x):
        def total(params, x):
            scores = module.apply({'params': params}, x, jnp.asarray(valid))
            return (scores * golden.ct['scores'])[np.array(full)].sum(), scores

        return jax.value_and_grad(total, argnums=1, has_aux=True)(params, x)

    (_, scores), by_x = both(params, x)
    scale = np.abs(golden.grad_in['x']).max()
    for b in full:
        assert_close(scores[b], golden.out['scores'][b])
        assert_close(by_x[b], golden.grad_in['x'][b], scale)
    # A padded sample equals itself without padding.
    for b in set(range(len(x))) - set(full):
        n = valid[b].sum()
        alone = module.apply({'params': params}, x[b : b + 1, :n], valid[b : b + 1, :n])
        np.testing.assert_allclose(scores[b, :n], alone[0], atol=1e-5)


# Losses ---------------------------------------------------------------------------------------


def check_loss(function, inputs, expected, gradients, keep=None):
    """A scalar loss and its gradient by the named inputs; `keep` picks rows to compare."""
    value, found = jax.jit(jax.value_and_grad(function))(
        {k: jnp.asarray(inputs[k], jnp.float32) for k in gradients}
    )
    np.testing.assert_allclose(value, expected, rtol=TOLERANCE, atol=1e-6)
    scale = max(np.abs(g).max() for g in gradients.values())
    for name, gradient in gradients.items():
        actual = np.asarray(found[name])
        if keep is not None:
            actual, gradient = actual[keep], gradient[keep]
        assert_close(actual, gradient, scale, name)


def test_phrase_diversity():
    golden = Golden('loss_dqa')
    for name, value in (('sqan_att', 'loss_phrase_sqan'), ('slot_att', 'loss_phrase_slot')):
        mask = jnp.ones(len(golden.inputs[name]), bool)
        check_loss(
            lambda x, name=name, mask=mask: losses.phrase_diversity(
                attention=x[name], mask=mask, r=float(golden.inputs['r'])
            ),
            golden.inputs,
            golden.out[value],
            {name: golden.arrays[f'grad/{value}/{name}']},
        )


def test_eos_margin_is_over_matched_pairs():
    """D broadcasts to all pairs (`as_called`); ours is the golden's `matched_pairs`."""
    golden = Golden('loss_eos')
    mask = jnp.ones(len(golden.inputs['eos_slot']), bool)
    check_loss(
        lambda x: losses.cosine_margin(
            x['eos_slot'], x['eos_emb'], mask=mask, margin=float(golden.inputs['margin'])
        ),
        golden.inputs,
        golden.out['matched_pairs'],
        {k: golden.arrays[f'grad/matched_pairs/{k}'] for k in ('eos_slot', 'eos_emb')},
    )


@pytest.mark.parametrize('value, margin', [('loss', 0.2), ('loss_margin1', 1.0)])
def test_margin_ranking(value, margin):
    golden = Golden('loss_margin_ranking')
    x = golden.inputs
    check_loss(
        lambda y: losses.margin_ranking(
            scores=y['scores'], pos_clips=x['pos_indices'], neg_clips=x['neg_indices'],
            mask=jnp.ones(len(x['scores']), bool), margin=margin,
        ),
        x,
        golden.out[value],
        {'scores': golden.arrays[f'grad/{value}/scores']},
    )


@pytest.mark.parametrize(
    'value, labels',
    [
        ('loss', 'labels'),
        ('loss_labels_max3', 'labels_max3'),
        ('loss_first_row_no_positive', 'labels_first_row_zero'),
    ],
)
def test_rank_contrastive(value, labels):
    golden = Golden('loss_ranking_contrastive')
    x = golden.inputs
    check_loss(
        lambda y: losses.rank_contrastive(
            scores=y['scores'], labels=x[labels], mask=x['mask'].astype(bool)
        ).mean(),
        x,
        golden.out[value],
        {'scores': golden.arrays[f'grad/{value}/scores']},
    )


def saliency_terms(golden):
    """Our saliency terms; a row without a real negative pair has none in D's rank terms."""
    x = golden.inputs
    real = x['real_neg_mask'].astype(bool)
    mask, labels = x['video_valid'].astype(bool), x['saliency_all_labels']
    every = jnp.ones(len(real), bool)
    pairs = dict(pos_clips=x['pos_indices'], neg_clips=x['neg_indices'])
    margin = float(x['saliency_margin'])

    def terms(scores, scores_neg, weights, weights_neg):
        rank = lambda own, other: losses.rank_with_negatives(  # noqa: E731
            scores=own[real], scores_neg=other, labels=labels[real], mask=mask[real],
            real_neg=every[real],
        )
        return dict(
            margin_sal=losses.margin_ranking(scores=scores, mask=every, margin=margin, **pairs),
            margin_attn=losses.margin_ranking(scores=weights, mask=every, margin=margin, **pairs),
            rank_sal=rank(scores, scores_neg),
            rank_attn=rank(weights, weights_neg),
            neg_pair_sal=losses.negative_pair(
                logits=scores_neg, mask=mask[real], real_neg=every[real]
            ),
            neg_pair_attn=losses.attention_absence(
                weights=weights_neg, mask=mask[real], real_neg=every[real]
            ),
        )

    inputs = [
        jnp.asarray(x[k])
        for k in ('saliency_scores', 'saliency_scores_neg', 't2vattnvalues', 't2vattnvalues_neg')
    ]
    return terms, inputs


def test_saliency_terms():
    golden = Golden('loss_saliency')
    terms, inputs = saliency_terms(golden)
    found = jax.jit(terms)(*inputs)
    for name, value in found.items():
        np.testing.assert_allclose(value, golden.out[name], rtol=TOLERANCE, err_msg=name)


def test_saliency_total_and_gradient():
    """The sum of all terms as the model takes it, with D's mean of the cross entropy over padding
    exchanged for ours in the expected value; gradients where that mean has no part."""
    golden = Golden('loss_saliency')
    terms, inputs = saliency_terms(golden)
    x = golden.inputs
    mask = x['video_valid'].astype(bool)
    cross_entropy = losses.attention_cross_entropy(
        weights=inputs[2], labels=x['saliency_all_labels'], mask=mask
    )
    target = np.clip(x['saliency_all_labels'], 0, 1).astype(np.float64)
    weights = x['t2vattnvalues'].astype(np.float64)
    entries = -(target * np.log(weights) + (1 - target) * np.log(1 - weights))
    np.testing.assert_allclose(cross_entropy, entries[mask].mean(), rtol=TOLERANCE)
    np.testing.assert_allclose(golden.out['bce_attn'], entries.mean(), rtol=1e-4)

    weight = float(x['lw_wattn'])

    def total(inputs):
        t = terms(*inputs)
        saliency = t['margin_sal'] + t['rank_sal'] + t['neg_pair_sal']
        return saliency + weight * (t['margin_attn'] + t['rank_attn'] + t['neg_pair_attn'])

    value, grads = jax.jit(jax.value_and_grad(total))(inputs)
    expected = golden.out['total'] - weight * golden.out['bce_attn']
    np.testing.assert_allclose(value, expected, rtol=TOLERANCE)
    for name, found in zip(
        ('saliency_scores', 'saliency_scores_neg', 't2vattnvalues_neg'),
        (grads[0], grads[1], grads[3]),
        strict=True,
    ):
        assert_close(found, golden.arrays[f'grad/total/{name}'], name=name)


def test_saliency_loss_is_the_sum_of_its_terms_when_all_pairs_are_real():
    golden = Golden('loss_saliency')
    x = golden.inputs
    real = x['real_neg_mask'].astype(bool)
    batch = dict(
        saliency=x['saliency_all_labels'][real], video_mask=x['video_valid'].astype(bool)[real],
        pos_clips=x['pos_indices'][real], neg_clips=x['neg_indices'][real],
        pairs_mask=np.ones(real.sum(), bool),
    )
    out = dict(saliency=x['saliency_scores'][real], saliency_neg=x['saliency_scores_neg'],
               real_neg=np.ones(real.sum(), bool))
    config = ConfigDict(dict(margin=float(x['saliency_margin']), margin_weight=1.0,
                             absence_weight=1.0))
    found = highlight.saliency_loss(out, batch, config)
    margin = losses.margin_ranking(
        scores=out['saliency'], pos_clips=batch['pos_clips'], neg_clips=batch['neg_clips'],
        mask=batch['pairs_mask'], margin=config.margin,
    )
    np.testing.assert_allclose(
        found, margin + golden.out['rank_sal'] + golden.out['neg_pair_sal'], rtol=TOLERANCE
    )


def test_sampled_nce():
    golden = Golden('loss_sampled_nce')
    x = golden.inputs
    for value, pos_clips in (('loss_sal', x['pos_indices'][:, 0]),
                             ('both_second_pos', x['pos_indices'][:, 1])):
        gradient = golden.arrays[f'grad/{value}/sim_score']
        # Where a clip is excluded in all samples the reference's gradient is NaN, ours 0.
        excluded = np.isnan(gradient)
        check_loss(
            lambda y, pos_clips=pos_clips: losses.sampled_nce(
                similarity=y['sim_score'], labels=x['saliency'], pos_clips=pos_clips,
                mask=x['video_msk'].astype(bool), pairs_mask=jnp.ones(len(pos_clips), bool),
                temperature=float(x['temperature']),
            ),
            x,
            golden.out[value],
            {'sim_score': np.where(excluded, 0, gradient)},
        )


def test_label_alignment_scales_over_valid_clips():
    """The reference also takes padding into the extremes and the mean, so: an unpadded batch."""
    golden = Golden('loss_labels')
    x = golden.inputs
    labels = x['saliency_all_labels']
    check_loss(
        lambda y: losses.label_alignment(
            logits=y['out_class'][:, : labels.shape[1], 0], labels=labels,
            mask=jnp.ones(labels.shape, bool),
        ),
        x,
        golden.out['loss'],
        {'out_class': golden.arrays['grad/loss/out_class']},
    )


def test_distribution_focal():
    golden = Golden('loss_dfl')
    x = golden.inputs
    check_loss(
        lambda y: losses.distribution_focal(logits=y['logits'], labels=x['label']).mean(),
        x,
        golden.out['mean'],
        {'logits': golden.arrays['grad/mean/logits']},
    )
    found = losses.distribution_focal(logits=x['logits'], labels=x['label'])
    assert_close(found, golden.out['none'])


def test_quality_focal():
    golden = Golden('loss_qfl')
    x = golden.inputs
    arguments = dict(labels=x['label'] > 0, mask=np.ones(x['label'].shape, bool))
    check_loss(
        lambda y: losses.quality_focal(logits=y['logits'], quality=y['score'], **arguments),
        x,
        golden.out['mean'],
        {k: golden.arrays[f'grad/mean/{k}'] for k in ('logits', 'score')},
    )


def test_point_targets_and_their_losses():
    golden = Golden('loss_targets_cls_reg')
    x = golden.inputs
    windows = x['boundary'] * x['fps'][:, None, None]
    exists = np.isfinite(windows).all(-1)
    positive, offsets = jax.vmap(
        lambda w, m: losses.assign_points(
            jnp.asarray(x['point']), w, m, radius=float(x['sample_radius'])
        )
    )(np.where(exists[..., None], windows, 0.0), exists)
    target = golden.out['cls_tgt'] > 0
    np.testing.assert_array_equal(positive, target)
    assert_close(np.asarray(offsets)[target], golden.out['reg_tgt'][target])

    valid, logits = x['pymid_msk'].astype(bool), x['out_class'][..., 0]
    found = losses.focal(logits=logits, labels=target, mask=valid, gamma=float(x['gamma']))
    np.testing.assert_allclose(found, golden.out['loss_cls'], rtol=TOLERANCE)
    found = losses.boundary_l1(offsets=x['out_coord'], targets=offsets, mask=target)
    np.testing.assert_allclose(found, golden.out['loss_reg_l1'], rtol=TOLERANCE)
    sides = np.float32([-1, 1])
    overlap = spans.iou(x['out_coord'] * sides, golden.out['reg_tgt'] * sides)
    assert_close(np.asarray(overlap)[target], golden.out['iou'][target])
    # D clamps at the last bin in float32 to 2.999 of 3, as we do.
    bins = int(x['num_bins'])
    found = losses.boundary_bins(
        logits=x['out_coord_dfl'].reshape(*target.shape, 2, bins), targets=offsets, mask=target,
        radius=float(x['sample_radius']),
    )
    np.testing.assert_allclose(found, golden.out['loss_reg_dfl'], rtol=1e-4)


def test_every_component_is_covered():
    covered = {
        'pos_sine', 'rpg', 'slot_layer', 'phrase_generate', 'hadamard', 'self_attention',
        'phrase_context_layer', 't_sa', 'aca_layer', 'aca_stack', 'dummy_encoder',
        'saliency_proj', 'loss_dqa', 'loss_eos', 'loss_margin_ranking',
        'loss_ranking_contrastive', 'loss_saliency', 'loss_sampled_nce', 'loss_labels',
        'loss_dfl', 'loss_qfl', 'loss_targets_cls_reg',
    }
    assert {path.stem for path in FOLDER.glob('*.npz')} == covered


# Parts of CG-DETR ------------------------------------------------------------------------------


def component(name):
    """The arrays of a component golden."""
    path = goldens_dir() / 'components' / f'{name}.npz'
    if not path.is_file():
        pytest.skip(f'no component golden {path}')
    return dict(np.load(path))


def test_moment_alignment():
    """The reference's mean over clips counts padding; all else is as in ours."""
    x = component('cgdetr_losses')
    names = ('memory_moment', 'nmmemory_moment', 'sentence_txt', 'sentence_dummy', 'src_vid')
    mask = x['video_mask'] > 0

    def loss(y):
        over = lambda mask: cg_detr.moment_alignment(  # noqa: E731
            **dict(zip(('moment', 'non_moment', 'sentence', 'dummy_sentence', 'clips'),
                       (y[name] for name in names))),
            labels=x['relevant_clips'] > 0, mask=mask,
        )
        without_clips = over(np.zeros_like(mask))
        return without_clips + (over(mask) - without_clips) * mask.mean()

    check_loss(loss, x, x['loss_ms_align'], {k: x[f'grad_ms_align/{k}'] for k in names})


def test_moment_alignment_is_finite_where_the_probability_saturates():
    """Against torch's rule: logs cut at -100, and no gradient through p = 0 and p = 1."""
    logits = np.float32([-1000, -90, -20, -3, 0, 3, 16, 20, 1000])
    for label in (0.0, 1.0):
        each = jax.vmap(jax.value_and_grad(cg_detr.saturating_cross_entropy), (0, None))
        values, slopes = each(logits, jnp.float32(label))
        with np.errstate(over='ignore', divide='ignore'):
            p = np.float32(1) / (1 + np.exp(-logits))
            expected = -np.maximum(np.log(p if label else 1 - p), -100)
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-8)
        assert not np.asarray(slopes)[(p == 0) | (p == 1)].any()
        usual = np.abs(logits) <= 16
        np.testing.assert_allclose(slopes[usual], (p - label)[usual], rtol=1e-5, atol=1e-6)


def test_attention_distillation():
    """Over all columns, as the reference has it; ours leaves out padded words (model_test.py)."""
    x = component('cgdetr_losses')
    weights = 'cate_attn_weights'
    check_loss(
        lambda y: cg_detr.distillation(
            similarity=x['moment2txt_similarity'], weights=y[weights],
            column_mask=np.ones(x['txt_mask'].shape, bool), mask=x['relevant_clips'] > 0,
        ),
        x,
        x['loss_distill'],
        {weights: x[f'grad_distill/{weights}']},
    )


def test_overlap_of_dummies_and_prompts():
    x = component('cgdetr_losses')
    names = ('dummy_tokens', 'global_rep_tokens')
    check_loss(
        lambda y: sum(cg_detr.overlap(y[name]) for name in names),
        x,
        x['loss_orthogonal_dummy'],
        {name: x[f'grad_orthogonal_dummy/{name}'] for name in names},
    )
    assert cg_detr.overlap(x['dummy_tokens'][:, :1]) == 0, 'a single dummy is like no other'


def test_matching_of_moment_queries():
    """Costs, the least total cost, the three losses and their gradients."""
    x = component('hungarian_cgdetr')
    names = dict(pred_logits='logits', pred_spans_cxw='spans')
    targets, weights = x['target_spans_cxw'], dict(span=10.0, giou=1.0, label=4.0)
    mask = np.arange(targets.shape[1]) < x['num_targets'][:, None]
    foreground = jax.nn.softmax(x['pred_logits'])[..., 0]
    for b, count in enumerate(x['num_targets']):
        cost = matching.matching_cost(x['pred_spans_cxw'][b], foreground[b], targets[b], **weights)
        expected = x[f'cost_matrix/s{b}']
        assert_close(cost[:, :count], expected)
        matched = np.asarray(matching.match(cost, mask[b]))[:count]
        assert len(set(matched.tolist())) == count
        np.testing.assert_allclose(
            expected[matched, np.arange(count)].sum(),
            expected[x[f'src_idx/s{b}'], x[f'tgt_idx/s{b}']].sum(),
            rtol=TOLERANCE,
        )

    def parts(y):
        return losses.set_prediction(
            **{ours: y[theirs] for theirs, ours in names.items()},
            target_spans=targets, targets_mask=mask, cost=weights,
        )

    expected = dict(span=x['loss_span'], giou=x['loss_giou'], query_label=x['loss_label'])
    for name, value in parts(x).items():
        np.testing.assert_allclose(value, expected[name], rtol=TOLERANCE, err_msg=name)
    weigh = lambda y: 10 * y['span'] + y['giou'] + 4 * y['query_label']  # noqa: E731
    check_loss(
        lambda y: weigh(parts(y)), x, weigh(expected),
        {name: x[f'grad_weighted_{name.removesuffix("_cxw")}'] for name in names},
    )


def test_cross_attention_to_nothing():
    """One token whose keys are all masked, as the saliency token passes it."""
    x = component('t2v_layer')
    hidden = len(x['w/linear1.bias'])
    module = cross_attention.CrossAttentionLayer(int(x['nhead']), hidden)
    token, position = (np.swapaxes(x[name][:1], 0, 1) for name in ('src', 'pos'))
    text = np.swapaxes(x['src'][int(x['video_length']) :], 0, 1)
    inputs = token, position, text, text, np.zeros(text.shape[:2], bool)
    params = reference_params(x, module, names.CROSS_LAYER, *inputs, deterministic=True)
    found, weights = module.apply(params, *inputs, deterministic=True)
    assert_close(found, np.swapaxes(x['out_single_token_no_keys'], 0, 1))
    assert not weights.any()


# Parts of TR-DETR ------------------------------------------------------------------------------


def reference_params(arrays, module, names, *inputs, **how):
    """A component's weights as the parameters of `module`."""
    weights = {k.removeprefix('w/'): v for k, v in arrays.items() if k.startswith('w/')}
    shapes = jax.eval_shape(lambda: nn.unbox(module.init(jax.random.key(0), *inputs, **how)))
    return {'params': mapping.from_torch(weights, shapes['params'], names)}


class RefinedSaliency(nn.Module):
    """What the reference calls MR2HD."""

    @nn.compact
    def __call__(self, memory, clips, pred_logits, pred_spans, mask):
        refined = tr_detr.MomentRefinement(name='moment_refinement')(
            memory, clips, pred_logits, pred_spans, mask
        )
        return highlight.SaliencyHead(name='saliency_head')(refined)


@pytest.mark.parametrize('padding', [0, 3])
def test_moments_refine_saliency(padding):
    """Moments that start before the video, end behind it, or are empty; with and without padding
    of large values behind the clips."""
    x = component('trdetr_mr2hd')
    size, length, _ = x['memory'].shape
    assert length == x['video_length']
    pad = lambda y: np.pad(y, ((0, 0), (0, padding), (0, 0)), constant_values=9)  # noqa: E731
    mask = np.arange(length + padding) < np.full((size, 1), length)
    features, rest = (pad(x['memory']), pad(x['src_vid_ed'])), (x['pred_logits'], x['pred_spans'])
    module = RefinedSaliency()
    params = reference_params(x, module, tr_detr.TORCH_NAMES, *features, *rest, mask)

    @jax.jit
    def run(features):
        scores = module.apply(params, *features, *rest, mask)
        return scores[:, :length].sum(), scores

    (_, scores), grads = jax.value_and_grad(run, has_aux=True)(features)
    assert_close(scores[:, :length], x['saliency_refined'])
    for found, name in zip(grads, ('memory', 'src_vid_ed'), strict=True):
        assert_close(found[:, :length], x[f'grad_sum_{name}'], name=name)
        assert not found[:, length:].any()

    best = x['pred_spans'][np.arange(size), x['top_query']]
    taken = jax.vmap(tr_detr.moment_clips, (0, 0, None))(best, features[1], length)
    for b, (start, end) in enumerate(x['start_end'].astype(int)):
        wanted = x['src_vid_ed'][b, start : end + 1]
        assert len(wanted) == x['slice_python_len'][b]
        np.testing.assert_array_equal(taken[b, : len(wanted)], wanted)
        assert not taken[b, len(wanted) :].any()


def test_fuser():
    x = component('trdetr_fuser')
    inputs = (x['vid'], x['vid_mask'] > 0, x['txt'], x['txt_mask'] > 0)
    module, how = tr_detr.Fuser(), dict(deterministic=True)
    names = mapping.subtable(tr_detr.TORCH_NAMES, 'fuser', 'fuser')
    params = reference_params(x, module, names, *inputs, **how)
    assert_close(jax.jit(lambda *y: module.apply(params, *y, **how))(*inputs), x['out'])


def test_video_text_alignment():
    x = component('trdetr_losses')
    everyone = jnp.ones(len(x['vtc_vid']), bool)
    check_loss(
        lambda y: tr_detr.video_text_alignment(videos=y['vid'], texts=y['txt'], mask=everyone),
        {'vid': x['vtc_vid'], 'txt': x['vtc_txt']},
        x['loss_vtc'],
        {'vid': x['grad_vtc_vid'], 'txt': x['grad_vtc_txt']},
    )


def test_clip_text_alignment_is_over_valid_clips():
    """The reference counts log 2 for each padded clip."""
    x = component('trdetr_losses')
    mask = x['ctc_vid_mask'] > 0
    padded = 1 - mask.mean()
    check_loss(
        lambda y: tr_detr.clip_text_alignment(
            clips=y['vid'], words=y['txt'], words_mask=x['ctc_txt_mask'] > 0,
            relevant=x['ctc_pos_mask'] > 0, mask=mask,
        ) * (1 - padded) + np.log(2) * padded,
        {'vid': x['ctc_vid'], 'txt': x['ctc_txt']},
        x['loss_ctc'],
        {'vid': x['grad_ctc_vid'], 'txt': x['grad_ctc_txt']},
    )


def test_focal_labels_of_moment_queries():
    """Targets that are the matched queries' own spans make the matching the golden's."""
    x = component('trdetr_losses')
    is_matched = x['label_matched']
    size, queries = is_matched.shape
    spans_of = np.random.default_rng(0).uniform(0.1, 0.9, (size, queries, 2)).astype(np.float32)
    check_loss(
        lambda y: losses.set_prediction(
            logits=y['logits'], spans=spans_of, target_spans=spans_of, targets_mask=is_matched,
            cost=dict(span=1.0, giou=0.0, label=0.0), label='focal',
        )['query_label'],
        {'logits': x['label_pred_logits']},
        x['loss_label_focal'],
        {'logits': x['grad_label']},
    )


# Whole models ---------------------------------------------------------------------------------
#
# Parity is with the reference on batches without padding and on single samples without padding.
# Losses agree to 1e-5, gradients to 1e-4 of each parameter's scale. What rounding can turn over in
# training (kinks, matchings, slices) is compared in float64.


def queries_of_reference(out):
    """The moment queries under the references' names: the last layer apart from the others."""
    last, found = len(out['pred_logits']) - 1, {}
    for name in ('pred_logits', 'pred_spans'):
        found |= {f'aux_outputs.{i}.{name}': out[name][i] for i in range(last)}
        found[name] = out[name][last]
    return found


# The places where padded words enter the references' losses, and not ours.
AS_REFERENCE = dict(
    cg_detr=lambda out: out | dict(column_mask=jnp.ones_like(out['column_mask'])),
    tr_detr=lambda out: out | dict(text_mean=out['text'].mean(1)),
)
FORWARD = dict(
    flash_vtg=lambda out: dict(
        saliency_scores=out['saliency'],
        t2vattnvalues=out['text_weight'],
        saliency_scores_neg=out['saliency_neg'],
        t2vattnvalues_neg=out['text_weight_neg'],
        point=out['points'],
        out_class=out['logits'][..., None],
        out_coord=out['offsets'],
        video_emb=out['clips'],
        query_emb=out['query'][:, None],
    ),
    cg_detr=lambda out: dict(
        queries_of_reference(out),
        saliency_scores=out['saliency'],
        t2vattnvalues=out['text_weight'],
        saliency_scores_neg=out['saliency_neg'],
        t2vattnvalues_neg=out['text_weight_neg'],
        cate_attn_weights=out['attn'].mean((1, 2)),
        memory_moment=out['moment'],
        nmmemory_moment=out['non_moment'],
        src_vid=out['moment_clips'],
        sentence_txt=out['sentence'],
        sentence_dummy=out['dummy_sentence'],
        moment2txt_similarity=out['word_similarity'],
        dummy_tokens=out['dummies'],
        global_rep_tokens=out['prompts'],
    ),
    tr_detr=lambda out: dict(
        queries_of_reference(out),
        saliency_scores=out['saliency'],
        src_vid_ed=out['clips'],
        src_txt_ed=out['text'],
        src_vid_cls_ed=out['clips_mean'],
        src_txt_cls_ed=out['text_mean'],
    ),
)
LOSSES = dict(
    flash_vtg=dict(
        reg='loss_reg', cls='loss_cls', sal='loss_sal', saliency='loss_saliency',
        label='loss_label',
    ),
    cg_detr=dict(
        span='loss_span', giou='loss_giou', query_label='loss_label', saliency='loss_saliency',
        align='loss_ms_align', distill='loss_distill', orthogonal='loss_orthogonal_dummy',
    ),
    tr_detr=dict(
        span='loss_span', giou='loss_giou', query_label='loss_label', saliency='loss_saliency',
        vtc='loss_VTC', ctc='loss_CTC',
    ),
)
models_found = pytest.mark.parametrize('folder', golden_models.folders())


def loss_and_out(golden, params, batch):
    out = golden.model.apply(params, batch, train=True)
    out = AS_REFERENCE.get(golden.name, dict)(out)
    loss, parts = golden.module.loss_fn(out, batch, golden.loss)
    return loss, (parts, out)


def expected_losses(golden, individual):
    """Golden values by our names; ours are sums over the decoder's layers."""
    return {
        ours: sum(v for k, v in individual.items() if re.fullmatch(rf'{theirs}(_\d+)?', k))
        for ours, theirs in LOSSES[golden.name].items()
    }


@models_found
def test_training_batch(folder):
    """Outputs and every loss on a batch without padding."""
    golden = golden_models.golden_model(folder)
    step = loss_and_grads(folder, 'float32')
    (loss, (parts, out)), _ = step(golden.params, golden.train_batch)
    expected = golden.arrays('full/outputs_train.npz')
    for name, value in FORWARD[golden.name](out).items():
        seen = np.isfinite(expected[name])
        np.testing.assert_array_equal(np.isfinite(value), seen)
        assert_close(np.where(seen, value, 0), np.where(seen, expected[name], 0), name=name)
    numbers = golden.json('full/losses.json')['main']
    individual = expected_losses(golden, numbers['individual'])
    assert set(parts) == set(individual)
    for name, value in individual.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(loss, numbers['total'], rtol=1e-5)


def moment_windows(stored, duration):
    """What the references make of the last layer's predictions for one sample, in any order."""
    logits, (centre, width) = stored['pred_logits'][0], stored['pred_spans'][0].T
    score = 1 / (1 + np.exp(logits[:, 1] - logits[:, 0]))
    return np.stack([(centre - width / 2) * duration, (centre + width / 2) * duration, score], 1)


# Prefix of the stored single samples, and the windows [N, 3] that a sample's entries stand for.
EVALUATED = dict(
    flash_vtg=('trim', lambda stored, _: stored['boundary']),
    cg_detr=('single_trim', moment_windows),
    tr_detr=('single_trim', moment_windows),
)


def assert_same_rows(found, wanted, tolerance=1e-4):
    """The same rows in any order: rows of almost equal scores swap places by rounding."""
    assert found.shape == wanted.shape
    distance = np.abs(found[:, None] - wanted) / (1 + np.abs(wanted))
    rows, columns = optimize.linear_sum_assignment(distance.max(-1))
    np.testing.assert_allclose(found[rows], wanted[columns], rtol=tolerance, atol=tolerance)


@models_found
def test_single_samples(folder):
    """Each sample alone as in the official evaluation, and the same inside a padded batch."""
    golden = golden_models.golden_model(folder)
    if not (golden.folder / 'outputs_eval.npz').is_file():
        pytest.skip('no evaluation outputs in this folder')
    expected = golden.arrays('outputs_eval.npz')
    prefix, windows_of = EVALUATED[golden.name]
    # As in a batch: a sample's own scores may all be small differences of large terms.
    scale = max(
        np.abs(v).max() for k, v in expected.items()
        if re.fullmatch(rf'{prefix}/s\d+/saliency_scores', k)
    )

    @jax.jit
    def predict(batch):
        out = golden.model.apply(golden.params, batch, train=False)
        return golden.module.decode(out, batch)

    batch = golden.batch('inputs.npz')
    together = predict(batch)
    for b in range(len(batch['video'])):
        one = golden_models.trimmed(batch, b)
        clips = one['video'].shape[1]
        start = f'{prefix}/s{b}/'
        stored = {k.removeprefix(start): v for k, v in expected.items() if k.startswith(start)}
        sample = jax.tree.map(lambda x: x[b : b + 1], together)  # noqa: B023
        for windows, saliency in (predict(one), sample):
            assert_close(saliency[:, :clips], stored['saliency_scores'], scale, start)
            found = windows[0][windows[0, :, 2] >= 0]
            assert (np.diff(found[:, 2]) <= 0).all()
            assert_same_rows(found, windows_of(stored, one['duration'][0]))
        # In the reference's own batch some samples come out as alone.
        alone = 'pred_spans' in stored and np.allclose(
            stored['pred_spans'][0], expected['pred_spans'][b], atol=1e-6
        )
        if alone:
            found = np.concatenate([found[:, :2].clip(0, one['duration'][0]), found[:, 2:]], 1)
            assert_same_rows(found, expected['decoded_windows_sorted'][b])


@pytest.fixture(name='float64')
def double_precision(monkeypatch):
    """All in float64, also what the models have in float32 whatever their dtype."""
    monkeypatch.setattr(jnp, 'float32', jnp.float64)
    with jax.enable_x64(True):
        yield lambda tree: jax.tree.map(
            lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, tree
        )


@functools.cache
def loss_and_grads(folder, dtype):
    """Compiled once for the tests of a folder.

    (params, batch) -> ((loss, (losses by name, what the model puts out)), gradients).
    """
    golden = copy.copy(golden_models.golden_model(folder))
    golden.model = golden.model.clone(dtype=dtype)
    return jax.jit(jax.value_and_grad(lambda p, b: loss_and_out(golden, p, b), has_aux=True))


def float32_gradients(folder, moves=3):
    """Gradients in float32: as they are, and with the weights moved by one unit in the last place,
    up or down, `moves` times."""
    golden = golden_models.golden_model(folder)
    rng = np.random.default_rng(0)

    def move(x):
        towards = np.where(rng.random(x.shape) < 0.5, -np.inf, np.inf).astype(x.dtype)
        return np.nextafter(x, towards)

    trees = [golden.params] + [jax.tree.map(move, golden.params) for _ in range(moves)]
    step = loss_and_grads(folder, 'float32')
    return [jax.device_get(step(tree, golden.train_batch)[1]) for tree in trees]


@pytest.fixture(name='float32_run')
def gradients_before_double_precision(folder):
    """Must be asked for before `float64`."""
    return float32_gradients(folder)


@models_found
def test_gradients(folder, float32_run, float64):
    """Of the weighted total by every parameter, on a batch without padding.

    To 1e-4 of each parameter's scale, or three times what one unit in the last place of the weights
    does to it. The stored gradients were rounded on their way, which their README quantifies: so
    far, but no more than 1e-3 of the scale, a parameter may be off as well. The nearer of ours in
    float32 and in float64 counts.
    """
    golden = golden_models.golden_model(folder)
    stored = stored_arrays(golden, 'full/grads.npz')
    _, grads = loss_and_grads(folder, 'float64')(
        float64(golden.params), float64(golden.train_batch)
    )
    # What gets no gradient there is not in the file.
    state = {k: stored.get(k, np.zeros_like(v)) for k, v in golden.state.items()}
    expected = {'params': golden.from_torch(state)}
    norm = np.sqrt(sum((np.float64(g) ** 2).sum() for g in stored.values()))
    stated = golden.gradient_rounding() * norm
    # What is zero in exact arithmetic (softmax does not see key biases) is noise in the file.
    noise = 1e-8 * norm
    base, *moved = float32_run

    def compare(path, double, wanted, single, *others):
        # The least of several moves: some turn a kink over.
        rounding = 3 * min(np.abs(single - other).max() for other in others)
        scale = np.abs(wanted).max()
        off = min(np.abs(found - wanted).max() for found in (single, double))
        allowed = max(1e-4 * scale, rounding, min(1e-3 * scale, stated))
        allowed = noise if scale < noise else allowed
        assert off <= allowed, f'{jax.tree_util.keystr(path)}: {off / scale} of its scale'

    jax.tree.map_with_path(compare, grads, expected, base, *moved)


def stored_arrays(golden, name):
    """A file of the golden's folder; the compact copy lacks the large ones."""
    if not (golden.folder / name).is_file():
        pytest.skip(f'{golden.folder} has no {name}')
    return golden.arrays(name)


def train_on_trajectory(golden, step, convert_tree=lambda tree: tree):
    """The total loss before each recorded optimiser step: float[S]."""
    steps = len(golden.arrays('trajectory/losses.npz')['float32_total'])
    config = ConfigDict(
        dict(
            learning_rate=golden.learning_rate(), weight_decay=1e-4, clip_norm=0.1,
            schedule='constant', warmup_steps=0,
        )
    )
    tx = state.make_optimizer(config, steps)
    count = len(list((golden.folder / 'trajectory').glob('batch*.npz')))
    batches = [convert_tree(golden.batch(f'trajectory/batch{i}.npz')) for i in range(count)]

    @jax.jit
    def update(params, opt_state, grads):
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    params, found = convert_tree(golden.params), []
    opt_state = tx.init(params)
    for i in range(steps):
        (loss, _), grads = step(params, batches[i % count])
        params, opt_state = update(params, opt_state, grads)
        found.append(float(loss))
    return np.array(found)


@models_found
def test_trajectory(folder, float64):
    """The loss over all recorded optimiser steps, from the recorded weights and batches."""
    golden = golden_models.golden_model(folder)
    expected = stored_arrays(golden, 'trajectory/losses.npz')['float64_total']
    found = train_on_trajectory(golden, loss_and_grads(folder, 'float64'), float64)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@models_found
def test_trajectory_in_float32(folder):
    """The same as it runs by default, as far as rounding lets the reference itself be compared.

    Its own runs, moved by rounding alone, say how far apart curves may drift (three times that and
    1e-4), and from where on single values say nothing: where they differ by more than 1e-5.
    """
    golden = golden_models.golden_model(folder)
    curves = stored_arrays(golden, 'trajectory/losses.npz')
    base = curves['float32_total']
    # A float64 run that saturates where float32 does differs by rounding alone, a plain one not.
    exact = 'float64sat_total' if 'float64sat_total' in curves else 'float64_total'
    apart = np.maximum(*(np.abs(curves[k] - base) / base for k in (exact, 'float32ulp_total')))
    apart = np.maximum.accumulate(apart)
    comparable = apart <= 1e-5
    found = train_on_trajectory(golden, loss_and_grads(folder, 'float32'))
    off = np.abs(found - base) / base
    assert (off <= 3 * apart + 1e-4)[comparable].all(), off[comparable]
    # Later the level is left to compare.
    last = slice(-len(base) // 6, None)
    np.testing.assert_allclose(found[last].mean(), base[last].mean(), rtol=0.02)
