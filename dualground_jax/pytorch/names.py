"""What the public PyTorch codes call the modules, fields and losses of our models.

A table of names maps flax module paths to torch module paths; `state_dict` says how it is read.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from dualground_jax.state_dict import nest


@dataclasses.dataclass(frozen=True)
class PublicCode:
    """How the public code of a model names what ours has.

    Attributes:
        names: flax module path -> torch module path.
        options: key of our config -> name among the options that a checkpoint carries.
        unused: patterns of torch names that nothing reads.
        derived: state dict -> values by key of our config, where no option tells them.
    """

    names: Mapping[str, str]
    options: Mapping[str, str]
    unused: tuple[str, ...]
    derived: Callable[[Mapping[str, np.ndarray]], dict] = lambda state: {}


# Layers that several models have
ATTENTION = {'query': 'in_proj#q', 'key': 'in_proj#k', 'value': 'in_proj#v', 'out': 'out_proj'}
FEED_FORWARD = {name: name for name in ('linear1', 'activation', 'linear2')}
ENCODER_LAYER = {
    **nest('attention', 'self_attn', ATTENTION),
    **nest('feed_forward', '', FEED_FORWARD),
    'norm1': 'norm1',
    'norm2': 'norm2',
}
CROSS_LAYER = {
    'out': 'self_attn.out_proj',
    **nest('feed_forward', '', FEED_FORWARD),
    'norm1': 'norm1',
    'norm2': 'norm2',
}
PROJECTION = {'norm_{}': '{}.LayerNorm', 'linear_{}': '{}.net.1'}
SALIENCY_HEAD = {'clip': 'saliency_proj1', 'video': 'saliency_proj2'}
DUMMY_ENCODER = {
    'tokens': 'dummy_rep_token',
    'positions': 'dummy_rep_pos',
    **nest('encoder/layer_{}', 'txtproj_encoder.layers.{}', ENCODER_LAYER),
}
TEXT_GUIDED_ENCODER = {
    **nest('dummy_encoder', '', DUMMY_ENCODER),
    **nest('cross_attention/layer_{}', 'transformer.t2v_encoder.layers.{}', CROSS_LAYER),
    **nest('encoder/layer_{}', 'transformer.encoder.layers.{}', ENCODER_LAYER),
}
PROJECTIONS = {
    **nest('text_projection', 'input_txt_proj', PROJECTION),
    **nest('video_projection', 'input_vid_proj', PROJECTION),
}
INPUTS = {**PROJECTIONS, 'token_types': 'token_type_embeddings.weight'}
_SCORE_HEAD = {'conv_{}': 'convs.{}', 'mlp/linear_{}': 'fc.layers.{}'}
PYRAMID_HEAD = {
    # A block of the reference's chain is [permute, conv, permute, norm, ReLU].
    **{f'pyramid/level_{{}}_conv_{k}': f'pyramid.blocks.{{}}.{5 * k + 1}' for k in range(8)},
    **{f'pyramid/level_{{}}_norm_{k}': f'pyramid.blocks.{{}}.{5 * k + 3}' for k in range(8)},
    **nest('class_head', 'class_head', _SCORE_HEAD),
    **nest('score_head', 'conf_head', _SCORE_HEAD),
    'boundary_head/conv_0': 'coord_head.module.1',
    'boundary_head/conv_1': 'coord_head.module.3',
    'mix': 'x',
    'level_scale': 'coef',
}
DECODER_LAYER = {
    'self_query_content': 'sa_qcontent_proj',
    'self_query_position': 'sa_qpos_proj',
    'self_key_content': 'sa_kcontent_proj',
    'self_key_position': 'sa_kpos_proj',
    'self_value': 'sa_v_proj',
    'self_out': 'self_attn.out_proj',
    'cross_query_content': 'ca_qcontent_proj',
    'cross_query_position': 'ca_qpos_proj',
    'cross_query_sine': 'ca_qpos_sine_proj',
    'cross_key_content': 'ca_kcontent_proj',
    'cross_key_position': 'ca_kpos_proj',
    'cross_value': 'ca_v_proj',
    'cross_out': 'cross_attn.out_proj',
    **nest('feed_forward', '', FEED_FORWARD),
    **{name: name for name in ('norm1', 'norm2', 'norm3')},
}
DECODER = {
    **nest('layer_{}', 'transformer.decoder.layers.{}', DECODER_LAYER),
    'norm': 'transformer.decoder.norm',
    'position_mlp/linear_{}': 'transformer.decoder.ref_point_head.layers.{}',
    'scale_mlp/linear_{}': 'transformer.decoder.query_scale.layers.{}',
    'width_mlp/linear_{}': 'transformer.decoder.ref_anchor_head.layers.{}',
    'refine_mlp/linear_{}': 'transformer.decoder.bbox_embed.layers.{}',
    'span_head/linear_{}': 'span_embed.layers.{}',
    'class': 'class_embed',
    'anchors': 'query_embed.weight',
}
FUSER = {
    'score_clip/kernel': 'cq_attention.w4C',
    'score_word/kernel': 'cq_attention.w4Q',
    'score_product': 'cq_attention.w4mlu',
    'attended': 'cq_attention.cqa_linear.conv1d',
    'pooling': 'cq_concat.weighted_pool',
    'joined': 'cq_concat.conv1d.conv1d',
}
# In every checkpoint, and read by nothing: text has no positions.
_UNUSED = (r'txt_position_embed\..*',)
# Pattern of torch names -> index that gives our value the axes of length one that torch has.
AXES = {
    r'.*\.activation\.weight': np.s_[None],  # PReLU: a slope in a vector
    r'(class|conf)_head\.convs\.\d+\.weight': np.s_[:, :, None],  # Conv2d
    r'.*\.conv1d\.weight|.*\.cqa_linear\..*\.weight': np.s_[..., None],  # Conv1d of width 1
    r'global_rep_pos|.*\.w4mlu': np.s_[None],
    r'x': np.s_[0],  # here a vector, there a number
    r'.*\.w4[CQ]|.*\.weighted_pool\.weight': np.s_[0, :, None],  # a matrix times its right
}


# Options that several models have
_OPTIONS = {
    'model.width': 'hidden_dim',
    'model.heads': 'nheads',
    'model.ffn': 'dim_feedforward',
    'model.dropout': 'dropout',
    'model.input_dropout': 'input_dropout',
    'model.input_layers': 'n_input_proj',
    'loss.weights.saliency': 'lw_saliency',
    'loss.margin': 'saliency_margin',
}
_TEXT_GUIDED_OPTIONS = {
    'model.dummies': 'num_dummies',
    'model.dummy_layers': 'dummy_layers',
    'model.t2v_layers': 't2v_layers',
    'model.enc_layers': 'enc_layers',
    'loss.attn': 'lw_wattn',
}
_DECODER_OPTIONS = {
    'model.enc_layers': 'enc_layers',
    'model.dec_layers': 'dec_layers',
    'model.queries': 'num_queries',
    'loss.weights.span': 'span_loss_coef',
    'loss.weights.giou': 'giou_loss_coef',
    'loss.weights.query_label': 'label_loss_coef',
    'loss.detr_cost.span': 'set_cost_span',
    'loss.detr_cost.giou': 'set_cost_giou',
    'loss.detr_cost.label': 'set_cost_class',
}


# The public codes


def _flash_vtg_strides(state: Mapping[str, np.ndarray]) -> dict:
    """A level of stride 2^n has a chain of n convolutions."""
    convs = [name for name, value in state.items() if value.ndim == 3]
    chains = [
        sum(name.startswith(f'pyramid.blocks.{level}.') for name in convs)
        for level in range(len(state['coef']))
    ]
    return {'model.strides': tuple(2**n for n in chains)}


def _summary_encoder(token: str, encoder: str) -> dict[str, str]:
    return {
        'token': f'{token}_rep_token',
        'position': f'{token}_rep_pos',
        **nest('encoder/layer_{}', f'{encoder}.layers.{{}}', ENCODER_LAYER),
    }


FLASH_VTG = PublicCode(
    names={
        **INPUTS,
        **nest('encoder', '', TEXT_GUIDED_ENCODER),
        **nest('saliency_head', '', SALIENCY_HEAD),
        **nest('pyramid_head', '', PYRAMID_HEAD),
        'pooling': 'pooling.att',
    },
    options={
        **_OPTIONS,
        **_TEXT_GUIDED_OPTIONS,
        'model.kernel': 'kernel_size',
        'model.conv_layers': 'num_conv_layers',
        'model.mlp_layers': 'num_mlp_layers',
        'loss.weights.reg': 'lw_reg',
        'loss.weights.cls': 'lw_cls',
        'loss.weights.sal': 'lw_sal',
        'loss.weights.label': 'label_loss_coef',
    },
    unused=_UNUSED,
    derived=_flash_vtg_strides,
)

CG_DETR = PublicCode(
    names={
        **INPUTS,
        **TEXT_GUIDED_ENCODER,
        **nest('saliency_head', '', SALIENCY_HEAD),
        **nest('decoder', '', DECODER),
        **nest('sentence_encoder', '', _summary_encoder('sent', 'scls_encoder')),
        **nest('moment_encoder', '', _summary_encoder('moment', 'transformer.mcls_encoder')),
        'prompt_tokens': 'global_rep_token',
        'summary_position': 'global_rep_pos',
    },
    options={
        **_OPTIONS,
        **_TEXT_GUIDED_OPTIONS,
        **_DECODER_OPTIONS,
        'model.sentence_layers': 'sent_layers',
        'model.moment_layers': 'moment_layers',
        'model.prompts': 'total_prompts',
        'model.used_prompts': 'num_prompts',
        'loss.weights.align': 'lw_ms_align',
        'loss.weights.distill': 'lw_distill',
        'loss.weights.orthogonal': 'lw_distill',
        'loss.detr_background': 'eos_coef',
    },
    unused=(*_UNUSED, r'txt_proj_linear\..*'),
)

TR_DETR = PublicCode(
    names={
        **PROJECTIONS,
        **nest('fuser', 'fuser', FUSER),
        **nest('cross_attention/layer_{}', 'transformer.t2v_encoder.layers.{}', ENCODER_LAYER),
        **nest('encoder/layer_{}', 'transformer.encoder.layers.{}', ENCODER_LAYER),
        **nest('decoder', '', DECODER),
        'saliency_head/clip': 'saliency_proj1',
        'moment_refinement/gru/input/kernel': 'gru_extractor.gru.weight_ih_l0',
        'moment_refinement/gru/input/bias': 'gru_extractor.gru.bias_ih_l0',
        'moment_refinement/gru/hidden/kernel': 'gru_extractor.gru.weight_hh_l0',
        'moment_refinement/gru/hidden/bias': 'gru_extractor.gru.bias_hh_l0',
    },
    options={
        **_OPTIONS,
        **_DECODER_OPTIONS,
        'loss.weights.vtc': 'VTC_loss_coef',
        'loss.weights.ctc': 'CTC_loss_coef',
    },
    unused=_UNUSED,
)

# By the name of our model.
CODES = dict(flash_vtg=FLASH_VTG, cg_detr=CG_DETR, tr_detr=TR_DETR)
