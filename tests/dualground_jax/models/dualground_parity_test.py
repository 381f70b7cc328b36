"""Agreement of DualGround's components with its authors' development code (D in dualground.py).

The options are D's here.
"""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from dualground_jax import losses, spans
from dualground_jax.models import cross_attention, highlight, layers, phrases
from tests.helpers import dualground_names as names
from tests.helpers.parity import (
    TOLERANCE,
    Component,
    assert_close,
    check_loss,
    check_module,
    params_of,
    part,
)
from tests.helpers.paths import goldens_dir

FOLDER = goldens_dir() / 'dualground_components'
pytestmark = pytest.mark.skipif(
    not (FOLDER / 'meta.json').is_file(), reason=f'no component goldens in {FOLDER}'
)


def component(name):
    return Component(f'dualground_components/{name}')


def config():
    return json.loads((FOLDER / 'meta.json').read_text())['config']


def stack_size(golden, prefix):
    """Number of layers in a torch state dict."""
    return 1 + max(int(k.split(prefix)[1].split('.')[0]) for k in golden.w if prefix in k)


# Positions and modules ------------------------------------------------------------------------


def test_sine_position():
    golden = component('pos_sine')
    width = golden.out['video_raw'].shape[-1]
    for role in ('video', 'word'):
        mask = golden.inputs[f'{role}_valid'].astype(bool)
        for suffix, normalize in (('raw', False), ('normalized', True)):
            found = layers.sine_position(jnp.asarray(mask), width, normalize=normalize)
            assert_close(found, golden.out[f'{role}_{suffix}'], name=f'{role}_{suffix}')
    empty = golden.arrays['edge/out/normalized_all_masked']
    assert_close(layers.sine_position(jnp.zeros(empty.shape[:2], bool), width), empty)


def test_recurrent_phrases():
    golden = component('rpg')
    module = phrases.RecurrentPhrases(golden.out['phrases'].shape[1], positions=False)

    def call(m, x):
        phrases, attn = m(x['glob'][:, 0], x['words'], x['word_valid'], deterministic=True)
        return dict(phrases=phrases, attn=attn)

    check_module(golden, module, names.RECURRENT_PHRASES, call, ('glob', 'words'))


def test_slot_layer():
    golden = component('slot_layer')
    module = phrases.SlotLayer(config()['heads'], normalize='inputs')

    def call(m, x):
        phrases, eos, attention = m(
            x['phrases'], x['eos'][:, 0], x['words'], x['word_valid'], deterministic=True
        )
        return dict(phrases=phrases, eos=eos[:, None], slot_sim=attention.mean(1))

    check_module(golden, module, names.SLOT_LAYER, call, ('phrases', 'eos', 'words'))


def test_phrase_encoder():
    golden = component('phrase_generate')
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

    check_module(golden, module, names.PHRASE_ENCODER, call, ('text',))


def test_phrase_encoder_is_finite_without_words():
    """D gives NaN there; ours gives phrases that do not depend on the padding."""
    golden = component('phrase_generate')
    module = phrases.PhraseEncoder(
        phrases=golden.out['phrases'].shape[1],
        phrase_layers=stack_size(golden, 'phrase_att.'),
        heads=config()['heads'],
    )
    text = jnp.asarray(golden.inputs['text'])
    mask = jnp.zeros(text[:, 1:].shape[:2], bool)
    call = lambda x: module.apply(params, x[:, 0], x[:, 1:], mask, deterministic=True)
    params = jax.jit(
        lambda key: nn.unbox(module.init(key, text[:, 0], text[:, 1:], mask, deterministic=True))
    )(jax.random.key(0))
    out, other = jax.jit(call)(text), jax.jit(call)(text.at[:, 1:].add(1.0))
    for name in ('phrases', 'phrase_eos', 'phrase_attention', 'slot_attention'):
        assert np.isfinite(out[name]).all()
        np.testing.assert_array_equal(out[name], other[name])


def test_phrase_clip_product():
    golden = component('hadamard')

    def call(m, x):
        return dict(context=m(x['phrases'], x['video']))

    module = phrases.PhraseClipProduct()
    check_module(golden, module, names.PHRASE_CLIP_PRODUCT, call, ('phrases', 'video'))


def test_projected_self_attention():
    golden = component('self_attention')
    module = layers.ProjectedAttention(config()['heads'])

    def call(m, x):
        y, attn = m(x['x'], x['x'], x['valid'][:, None, None], deterministic=True)
        plain, plain_attn = m(x['x'], x['x'], None, deterministic=True)
        return dict(y=y, attn=attn.mean(1), y_nomask=plain, attn_nomask=plain_attn.mean(1))

    check_module(golden, module, names.PROJECTED_ATTENTION, call, ('x',))


def test_phrase_context_layer():
    golden = component('phrase_context_layer')
    module = phrases.PhraseContextLayer(config()['heads'], across_phrases=True)

    def call(m, x):
        return dict(context=m(x['context'], x['video_valid'], deterministic=True))

    check_module(golden, module, names.PHRASE_CONTEXT_LAYER, call, ('context',))


def test_temporal_self_attention():
    golden = component('t_sa')
    if stack_size(golden, 'layers.') != 1:
        pytest.skip('the model has one such layer')

    def call(m, x):
        return dict(y=m(x['x'], x['valid'], deterministic=True))

    module = layers.SelfAttentionLayer(config()['heads'])
    # norm1 exists in D, and nothing reads it.
    unused = (r'layers\.0\.norm1\..*',)
    check_module(golden, module, names.TEMPORAL_ATTENTION, call, ('x',), unused=unused)


@pytest.mark.parametrize('name', ['aca_layer', 'aca_stack'])
def test_adaptive_cross_attention(name):
    golden = component(name)
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

    table = names.CROSS_ATTENTION_LAYER if single else names.CROSS_ATTENTION
    diff = ('video', 'text', 'pos_video', 'pos_text')
    diff = tuple(d for d in diff if d in golden.grad_in)
    check_module(golden, module, table, call, diff)


def test_dummy_encoder():
    golden = component('dummy_encoder')
    module = layers.Encoder(
        config()['heads'],
        num_layers=stack_size(golden, 'layers.'),
        ffn=next(v for k, v in golden.w.items() if k.endswith('linear1.bias')).shape[0],
    )

    def call(m, x):
        count = x['dummy_token'].shape[0]
        tokens = jnp.broadcast_to(x['dummy_token'], (len(x['eos']), *x['dummy_token'].shape))
        positions = jnp.pad(x['dummy_pos'], ((0, 1), (0, 0)))
        sequence = jnp.concatenate([tokens, x['eos']], 1)
        mask = jnp.ones(sequence.shape[:2], bool)
        memory = m(sequence, positions, mask, deterministic=True)
        return dict(memory=memory, dummies=memory[:, :count])

    check_module(golden, module, names.ENCODER, call, ('dummy_token', 'dummy_pos', 'eos'))

    # The same layer type encodes clips, there with a mask.
    alt = part(golden.arrays, 'alt/in')
    arguments = alt['video'], alt['pos_video'], alt['video_valid'].astype(bool)
    params = params_of(golden.w, module, names.ENCODER, *arguments, deterministic=True)
    found = jax.jit(lambda p: module.apply(p, *arguments, deterministic=True))(params)
    valid = arguments[2][..., None]
    expected = golden.arrays['alt/out/video']
    assert_close(
        np.where(valid, found, 0), np.where(valid, expected, 0), np.abs(expected).max()
    )


def test_saliency_head_is_the_references_on_unpadded_samples():
    """The reference averages over padding, so only each sample cut to its clips can agree."""
    golden = component('saliency_proj')
    x, valid = golden.inputs['x'], golden.inputs['valid'].astype(bool)

    class Head(highlight.SaliencyHead):
        @nn.compact
        def __call__(self, x, mask):
            return super().__call__(x, losses.masked_mean(x, mask[..., None], axis=1))

    module = Head()
    params = params_of(golden.w, module, names.SALIENCY_HEAD, x, valid)
    full = [b for b in range(len(x)) if valid[b].all()]
    assert full, 'no unpadded sample to compare'

    @jax.jit
    def both(params, x):
        def total(params, x):
            scores = module.apply(params, x, jnp.asarray(valid))
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
        alone = module.apply(params, x[b : b + 1, :n], valid[b : b + 1, :n])
        np.testing.assert_allclose(scores[b, :n], alone[0], atol=1e-5)


# Losses ---------------------------------------------------------------------------------------


def test_phrase_diversity():
    golden = component('loss_dqa')
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
    golden = component('loss_eos')
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
    golden = component('loss_margin_ranking')
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
    golden = component('loss_ranking_contrastive')
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
        rank = lambda own, other: losses.rank_with_negatives(
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
    golden = component('loss_saliency')
    terms, inputs = saliency_terms(golden)
    found = jax.jit(terms)(*inputs)
    for name, value in found.items():
        np.testing.assert_allclose(value, golden.out[name], rtol=TOLERANCE, err_msg=name)


def test_saliency_total_and_gradient():
    """The sum of all terms as the model takes it, with D's mean of the cross entropy over padding
    exchanged for ours in the expected value; gradients where that mean has no part."""
    golden = component('loss_saliency')
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
    golden = component('loss_saliency')
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
    golden = component('loss_sampled_nce')
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
    golden = component('loss_labels')
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
    golden = component('loss_dfl')
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
    golden = component('loss_qfl')
    x = golden.inputs
    arguments = dict(labels=x['label'] > 0, mask=np.ones(x['label'].shape, bool))
    check_loss(
        lambda y: losses.quality_focal(logits=y['logits'], quality=y['score'], **arguments),
        x,
        golden.out['mean'],
        {k: golden.arrays[f'grad/mean/{k}'] for k in ('logits', 'score')},
    )


def test_point_targets_and_their_losses():
    golden = component('loss_targets_cls_reg')
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
