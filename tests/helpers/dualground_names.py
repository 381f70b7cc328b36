"""What DualGround's development code calls what our components have.

Its final form, and so a whole checkpoint, is not public: only the parity tests need these names.
"""

from dualground_jax.pytorch.names import ATTENTION, CROSS_LAYER, ENCODER_LAYER
from dualground_jax.state_dict import nest

_PROJECTIONS = {'query': 'q_proj', 'key': 'k_proj', 'value': 'v_proj', 'norm': 'norm'}
PROJECTED_ATTENTION = {**_PROJECTIONS, **nest('attention', 'att', ATTENTION)}
RECURRENT_PHRASES = {
    'query_{}': 'global_emb_fn.{}',
    'guide': 'guide_emb_fn.0',
    'key': 'att_fn.key2att',
    'word': 'att_fn.feat2att',
    'score': 'att_fn.to_alpha',
}
SLOT_LAYER = {
    **nest('words_attention', '', _PROJECTIONS),
    **nest('words_attention/attention', 'slot_att', ATTENTION),
    **nest('self_attention', 'self_att', ATTENTION),
    'self_norm': 'norm_s',
    'feed_forward/linear': 'linear1',
    'feed_forward/norm': 'norm1',
}
PHRASE_ENCODER = {
    **nest('generator', 'sqan', RECURRENT_PHRASES),
    **nest('slot_{}', 'phrase_att.{}', SLOT_LAYER),
    'phrase_eos': 'cls_token',
}
PHRASE_CLIP_PRODUCT = {
    'phrase': 'fc_1',
    'clip': 'fc_2',
    'context': 'fc_3',
    'norm1': 'norm',
    'norm2': 'norm1',
}
PHRASE_CONTEXT_LAYER = {
    **nest('time/attention', 't_att', PROJECTED_ATTENTION),
    'time/feed_forward/linear': 'fc_t.0',
    'time/feed_forward/norm': 'norm_t',
    **nest('phrases/attention', 'n_att', PROJECTED_ATTENTION),
    'phrases/feed_forward/linear': 'fc_n.0',
    'phrases/feed_forward/norm': 'norm_n',
}
TEMPORAL_ATTENTION = {
    **nest('attention', 'layers.0.t_att', PROJECTED_ATTENTION),
    'feed_forward/linear': 'layers.0.linear',
    'feed_forward/norm': 'layers.0.norm',
}
CROSS_ATTENTION_LAYER = nest('layer_0', '', CROSS_LAYER)
CROSS_ATTENTION = nest('layer_{}', 'layers.{}', CROSS_LAYER)
ENCODER = nest('layer_{}', 'layers.{}', ENCODER_LAYER)
SALIENCY_HEAD = {'clip': 'proj1', 'video': 'proj2'}
