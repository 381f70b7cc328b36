"""Mode `publish`: the best checkpoint of a run becomes a pretrained folder, here or on the hub."""

from absl.flags import FlagValues
from ml_collections import ConfigDict

from data_pipelines.errors import ConfigError
from dualground_jax import pretrained
from dualground_jax.grounding.predictor import Predictor


def run(values: FlagValues, config: ConfigDict | None) -> None:
    """Publishes as the flags workdir, output, hub, encoder, licence and weights_dtype say.

    Raises:
        ConfigError: nothing says where to, or it can't be written there.
        UserError: as `Predictor.save_pretrained` and `push_to_hub`.
    """
    if config:
        raise ConfigError('--config changes nothing in --mode=publish: a model is published with '
                          'the config of its run')
    if not values.output and not values.hub:
        raise ConfigError('--mode=publish needs --output=FOLDER or --hub=OWNER/NAME')
    if values.output:
        pretrained.check_new(values.output)
    predictor = Predictor.from_checkpoint(values.workdir)
    how = dict(dtype=values.weights_dtype, encoder=values.encoder or '', licence=values.licence)
    if values.output:
        predictor.save_pretrained(values.output, name=values.hub, **how)
        print(f'wrote {values.output}: {", ".join(pretrained.FILES)}')
    if values.hub:
        print(f'pushed {values.hub}: {predictor.push_to_hub(values.hub, **how)}')
