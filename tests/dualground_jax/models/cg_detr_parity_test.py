"""Agreement of CG-DETR and its parts with its public PyTorch code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dualground_jax import losses, matching
from dualground_jax.models import cg_detr, cross_attention
from dualground_jax.pytorch import names
from tests.helpers.model_parity import ModelParity, golden_folders, queries_of_reference
from tests.helpers.parity import TOLERANCE, assert_close, check_loss, component, params_of, part


@golden_folders('cg_detr')
class TestCGDETR(ModelParity):
    losses = dict(
        span='loss_span', giou='loss_giou', query_label='loss_label', saliency='loss_saliency',
        align='loss_ms_align', distill='loss_distill', orthogonal='loss_orthogonal_dummy',
    )

    @staticmethod
    def forward(out):
        return dict(
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
        )

    @staticmethod
    def as_reference(out):
        return out | dict(column_mask=jnp.ones_like(out['column_mask']))


def test_moment_alignment():
    """The reference's mean over clips counts padding; all else is as in ours."""
    x = component('components/cgdetr_losses')
    names = ('memory_moment', 'nmmemory_moment', 'sentence_txt', 'sentence_dummy', 'src_vid')
    mask = x['video_mask'] > 0

    def loss(y):
        over = lambda mask: cg_detr.moment_alignment(
            **dict(zip(('moment', 'non_moment', 'sentence', 'dummy_sentence', 'clips'),
                       (y[name] for name in names))),
            labels=x['relevant_clips'] > 0, mask=mask,
        )
        without_clips = over(np.zeros_like(mask))
        return without_clips + (over(mask) - without_clips) * mask.mean()

    check_loss(loss, x, x['loss_ms_align'], {k: x[f'grad_ms_align/{k}'] for k in names})


@pytest.mark.parametrize('count', [1, 3])
def test_moment_alignment_of_a_partial_batch(count):
    """Of a sample alone the public code wants the non-moment's column: it is the second one."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=(5, *shape)).astype(np.float32)
    inputs = dict(
        moment=draw(4), non_moment=draw(4), sentence=draw(4), dummy_sentence=draw(4),
        clips=draw(6, 4), labels=draw(6) > 0, mask=np.ones((5, 6), bool))
    inputs['mask'][count:] = False
    alone = {name: x[:count] for name, x in inputs.items()}
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    total = 0.0
    for name, targets in (('sentence', range(count)), ('dummy_sentence', [1] + [0] * (count - 1))):
        logits = np.concatenate([
            unit(alone[x]) @ unit(alone[name]).T for x in ('moment', 'non_moment')], 1)
        total += np.mean([np.log(np.exp(row).sum()) - row[k] for row, k in zip(logits, targets)])
    p = 1 / (1 + np.exp(-np.einsum('bd,btd->bt', alone['moment'], alone['clips'])))
    total += np.mean(-np.log(np.where(alone['labels'], p, 1 - p)))
    found = cg_detr.moment_alignment(**inputs, rows=inputs['mask'].any(1))
    np.testing.assert_allclose(found, total, rtol=1e-5)


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
    x = component('components/cgdetr_losses')
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
    x = component('components/cgdetr_losses')
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
    x = component('components/hungarian_cgdetr')
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
    weigh = lambda y: 10 * y['span'] + y['giou'] + 4 * y['query_label']
    check_loss(
        lambda y: weigh(parts(y)), x, weigh(expected),
        {name: x[f'grad_weighted_{name.removesuffix("_cxw")}'] for name in names},
    )


def test_cross_attention_to_nothing():
    """One token whose keys are all masked, as the saliency token passes it."""
    x = component('components/t2v_layer')
    module = cross_attention.CrossAttentionLayer(int(x['nhead']), ffn=len(x['w/linear1.bias']))
    token, position = (np.swapaxes(x[name][:1], 0, 1) for name in ('src', 'pos'))
    text = np.swapaxes(x['src'][int(x['video_length']) :], 0, 1)
    inputs = token, position, text, text, np.zeros(text.shape[:2], bool)
    params = params_of(part(x, 'w'), module, names.CROSS_LAYER, *inputs, deterministic=True)
    found, weights = module.apply(params, *inputs, deterministic=True)
    assert_close(found, np.swapaxes(x['out_single_token_no_keys'], 0, 1))
    assert not weights.any()
