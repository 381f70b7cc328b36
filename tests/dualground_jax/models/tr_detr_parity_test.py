"""Agreement of TR-DETR and its parts with its public PyTorch code."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dualground_jax import losses
from dualground_jax.models import highlight, tr_detr
from dualground_jax.pytorch import names
from tests.helpers.model_parity import ModelParity, golden_folders, queries_of_reference
from tests.helpers.parity import assert_close, check_loss, component, params_of, part


@golden_folders('tr_detr')
class TestTRDETR(ModelParity):
    losses = dict(
        span='loss_span', giou='loss_giou', query_label='loss_label', saliency='loss_saliency',
        vtc='loss_VTC', ctc='loss_CTC',
    )

    @staticmethod
    def forward(out):
        return dict(
            queries_of_reference(out),
            saliency_scores=out['saliency'],
            src_vid_ed=out['clips'],
            src_txt_ed=out['text'],
            src_vid_cls_ed=out['clips_mean'],
            src_txt_cls_ed=out['text_mean'],
        )

    @staticmethod
    def as_reference(out):
        return out | dict(text_mean=out['text'].mean(1))


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
    x = component('components/trdetr_mr2hd')
    size, length, _ = x['memory'].shape
    assert length == x['video_length']
    pad = lambda y: np.pad(y, ((0, 0), (0, padding), (0, 0)), constant_values=9)
    mask = np.arange(length + padding) < np.full((size, 1), length)
    features, rest = (pad(x['memory']), pad(x['src_vid_ed'])), (x['pred_logits'], x['pred_spans'])
    module = RefinedSaliency()
    params = params_of(part(x, 'w'), module, names.TR_DETR.names, *features, *rest, mask)

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
    x = component('components/trdetr_fuser')
    inputs = (x['vid'], x['vid_mask'] > 0, x['txt'], x['txt_mask'] > 0)
    module, how = tr_detr.Fuser(), dict(deterministic=True)
    params = params_of(part(x, 'w'), module, names.FUSER, *inputs, **how)
    assert_close(jax.jit(lambda *y: module.apply(params, *y, **how))(*inputs), x['out'])


def test_video_text_alignment():
    x = component('components/trdetr_losses')
    everyone = jnp.ones(len(x['vtc_vid']), bool)
    check_loss(
        lambda y: tr_detr.video_text_alignment(videos=y['vid'], texts=y['txt'], mask=everyone),
        {'vid': x['vtc_vid'], 'txt': x['vtc_txt']},
        x['loss_vtc'],
        {'vid': x['grad_vtc_vid'], 'txt': x['grad_vtc_txt']},
    )


def test_clip_text_alignment_is_over_valid_clips():
    """The reference counts log 2 for each padded clip."""
    x = component('components/trdetr_losses')
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
    x = component('components/trdetr_losses')
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
