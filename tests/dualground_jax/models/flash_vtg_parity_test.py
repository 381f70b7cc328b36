"""Agreement of FlashVTG with its public PyTorch code."""

from tests.helpers.model_parity import ModelParity, golden_folders


@golden_folders('flash_vtg')
class TestFlashVTG(ModelParity):
    losses = dict(
        reg='loss_reg', cls='loss_cls', sal='loss_sal', saliency='loss_saliency',
        label='loss_label',
    )

    @staticmethod
    def forward(out):
        return dict(
            saliency_scores=out['saliency'],
            t2vattnvalues=out['text_weight'],
            saliency_scores_neg=out['saliency_neg'],
            t2vattnvalues_neg=out['text_weight_neg'],
            point=out['points'],
            out_class=out['logits'][..., None],
            out_coord=out['offsets'],
            video_emb=out['clips'],
            query_emb=out['query'][:, None],
        )
