"""Names of the shared layers in the public PyTorch code, from which models build TORCH_NAMES.

See `dualground_jax.convert` for how a table is read.
"""

import numpy as np

from dualground_jax.pytorch.mapping import nest

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
# In every checkpoint, and read by nothing: text has no positions.
UNUSED = (r'txt_position_embed\..*',)
# Pattern of torch names -> index that gives our value the axes of length one that torch has.
AXES = {
    r'.*\.activation\.weight': np.s_[None],  # PReLU: a slope in a vector
    r'(class|conf)_head\.convs\.\d+\.weight': np.s_[:, :, None],  # Conv2d
    r'.*\.conv1d\.weight|.*\.cqa_linear\..*\.weight': np.s_[..., None],  # Conv1d of width 1
    r'global_rep_pos|.*\.w4mlu': np.s_[None],
    r'x': np.s_[0],  # here a vector, there a number
    r'.*\.w4[CQ]|.*\.weighted_pool\.weight': np.s_[0, :, None],  # a matrix times its right
}
# Field of a model -> name in the options that a public checkpoint carries.
OPTIONS = dict(
    width='hidden_dim',
    heads='nheads',
    ffn='dim_feedforward',
    dropout='dropout',
    input_dropout='input_dropout',
    input_layers='n_input_proj',
)
# Entry of a config's `loss` section -> name there, for the losses of moment queries.
SET_LOSS = {
    'weights/span': 'span_loss_coef',
    'weights/giou': 'giou_loss_coef',
    'weights/query_label': 'label_loss_coef',
    'detr_cost/span': 'set_cost_span',
    'detr_cost/giou': 'set_cost_giou',
    'detr_cost/label': 'set_cost_class',
}


def no_fields(state) -> dict:
    """For models whose options tell all: no field follows from a state dict."""
    return {}
