"""Apache Beam, which modes `build` and `extract` run on where they are asked to."""

from typing import TYPE_CHECKING

from data_pipelines.errors import ConfigError

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions


def options(text: str) -> 'PipelineOptions':
    """The options in 'runner=DirectRunner,direct_num_workers=2'; ConfigError if it is missing."""
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise ConfigError("--beam needs Apache Beam: pip install 'dualground_jax[beam]'") from error
    return PipelineOptions(flags=[f'--{option}' for option in text.split(',')])
