"""The generated world in pixels: features are what an encoder makes of rendered videos.

`config.world` has the parameters of the world: how many concepts a query names, distractors, those
that exchange attributes, and so on.
"""

from ml_collections import ConfigDict

from configs import common, synthetic
from dualground_jax import demo
from dualground_jax.encoders import clip, clip_weights


def get_config(arg: str | None = None) -> ConfigDict:
    """Arguments: the encoder, and those of `common.ARGUMENTS`.

    Raises:
        DataError: the encoder can't be read.
    """
    args = common.parse_arg(
        arg,
        encoder='dualground_jax/demo/encoder',  # folder of a CLIP, or name on the hub
        **common.ARGUMENTS)
    weights = clip_weights.read(demo.find(args['encoder']))
    vision, text = clip.Vision(**weights.vision), clip.Text(**weights.text)
    return synthetic.of_world(
        args, 'pixels', args['encoder'], video_dims=(vision.projected,), text_dim=text.width,
        max_tokens=text.context)
