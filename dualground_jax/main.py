"""The command line: `dualground --mode=MODE ...`, also `python -m dualground_jax.main`.

docs/commands.md has a section for each mode.
"""

import errno
import importlib
import os
import sys
from collections.abc import Sequence

from absl import app, flags

from data_pipelines import progress
from data_pipelines.errors import ConfigError, UserError
from dualground_jax import cli, config, demo, runtime, worlds

# Mode -> module with `run(values, config)`, imported for this mode alone, and what it needs.
# saved: the config of the checkpoint in the workdir, if none is given. world: generated data are
# made on first use. processes: may be several. files: arguments that are no flags.
MODES = {
    'train': ('dualground_jax.train', 'workdir config world processes'),
    'evaluate': ('dualground_jax.evaluate', 'workdir saved world processes'),
    'predict': ('dualground_jax.grounding.ground', 'workdir saved processes'),
    'publish': ('dualground_jax.publishing.publish', 'workdir'),
    'export': ('dualground_jax.publishing.export', 'workdir output'),
    'sweep': ('dualground_jax.sweep', 'workdir config'),
    'study': ('dualground_jax.study', 'workdir config'),
    'analyse': ('dualground_jax.analysis.analyse', 'workdir'),
    'score': ('dualground_jax.metrics.score', 'files'),
    'convert': ('dualground_jax.pytorch.checkpoint', ''),
    'compile': ('dualground_jax.tpu.compile', 'config'),
    'simulate': ('data_pipelines.simulate', 'config world'),
    'word-vectors': ('data_pipelines.own_data.word_vectors', 'config world'),
    'inspect-text': ('data_pipelines.own_data.text_rows', 'config world'),
    'verify-data': ('data_pipelines.own_data.verify', 'config world'),
    'import': ('data_pipelines.own_data.import_moments', ''),
    'import-csv': ('data_pipelines.own_data.import_moments', ''),
    'extract': ('dualground_jax.extract', 'output processes'),
    'render': ('data_pipelines.render', 'config output'),
    'serve': ('dualground_jax.serve.server', 'workdir saved'),
    'train-encoder': ('dualground_jax.train_encoder', 'workdir config processes'),
    'probe': ('dualground_jax.analysis.probes', 'config output'),
    'build': ('data_pipelines.tfds_builders', 'config world'),
}
# What a system says that has no room for a file.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
cli.define_flags(tuple(MODES))


def run(values: flags.FlagValues, files: Sequence[str]) -> None:
    """Runs the mode with what it needs."""
    module, needs = MODES[values.mode]
    if files and 'files' not in needs:
        raise UserError(f'unexpected arguments {files}')
    values.video = list(map(demo.find, values.video))
    if not (values.workdir or values.config) and (values.mode == 'serve' or values.mode == 'predict'
                                                  and values.video):
        values.workdir = demo.find('dualground_jax/demo/model')
        progress.say(f'no --workdir: the model is {values.workdir}, which knows drawn scenes alone')
    for name, example in dict(workdir='DIR', config='configs/NAME.py', output='FOLDER').items():
        if name in needs and not values[name].value:
            raise ConfigError(f'--mode={values.mode} needs --{name}={example}')
    if values.coordinator and 'processes' not in needs:
        raise ConfigError(f'--mode={values.mode} runs in one process, without --coordinator')
    if 'workdir' in needs or 'processes' in needs:
        runtime.prepare(values)
    chosen = values.config
    if 'saved' in needs:
        cli.check_effect(values)
        chosen = chosen or config.load_config(values.workdir)
    if chosen and ('data' in chosen) == (values.mode == 'train-encoder'):
        raise ConfigError(f'--mode={values.mode}: --config is of the other kind; train-encoder '
                          'takes that of an encoder, configs/tiny_clip.py, others that of a model')
    if chosen and values.split:
        chosen.evaluate.split = values.split
    if 'world' in needs:
        worlds.prepare(chosen)
    arguments = [files] * ('files' in needs)
    importlib.import_module(module).run(values, chosen, *arguments)


def main(argv: Sequence[str]) -> None:
    """Runs the mode of the parsed flags; a mistake becomes one line on stderr."""
    runtime.quiet()
    try:
        run(flags.FLAGS, argv[1:])
    except UserError as error:
        sys.exit(f'error: {error}')
    except OSError as error:
        if error.errno not in FULL:
            raise
        sys.exit(f'error: {error.filename}: {error.strerror}; what was written before is whole: '
                 'make room and run the same command again')
    except RuntimeError as error:
        runtime.leave_others(error)
        raise


def start() -> None:
    """The console script."""
    sys.path.append(os.getcwd())  # a config may import its neighbours, which hide nothing of ours
    app.run(main, flags_parser=cli.parse)


if __name__ == '__main__':
    start()
