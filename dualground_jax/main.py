"""Command line: `python -m dualground_jax.main --mode=MODE ...`; see README.md."""

import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from data_pipelines.errors import ConfigError, UserError
from data_pipelines.own_data import import_csv, verify
from dualground_jax import cli, runtime, sweep
from dualground_jax.metrics import score
from dualground_jax.tpu import compile

MODES = ('train', 'evaluate', 'predict', 'sweep', 'analyse', 'score', 'convert', 'compile',
         'simulate', 'word-vectors', 'inspect-text', 'verify-data', 'import-csv', 'build')
# Orbax tells a dozen lines about each save, fontTools about each letter of a PDF, JAX of TPUs that
# are not there, tfds of downloads where there are none.
QUIET = ('orbax', 'fontTools', 'xla_bridge', 'tensorflow_datasets')
NEED_WORKDIR = ('train', 'evaluate', 'predict', 'sweep', 'analyse')
SEVERAL_PROCESSES = ('train', 'evaluate', 'predict')
NEED_CONFIG = ('train', 'sweep', 'compile', 'simulate', 'word-vectors', 'inspect-text',
               'verify-data', 'build')

flags.DEFINE_enum('mode', 'train', MODES, 'what to do')
flags.DEFINE_string('workdir', None, 'folder of the run: checkpoints, metrics, predictions')
flags.DEFINE_string('split', None, 'split to evaluate or predict; default: evaluate.split')
flags.DEFINE_list('video_features', [], 'predict: feature file of each stream of one video')
flags.DEFINE_string('query_features', None, 'predict: feature file of one query')
flags.DEFINE_string('checkpoint', None, 'convert: file of a public PyTorch training code')
flags.DEFINE_string('model', None, 'convert: what --checkpoint is of')
flags.DEFINE_string('vectors', None, 'word-vectors: file of GloVe vectors')
flags.DEFINE_list('splits', ['train', 'val'], 'analyse: splits')
flags.DEFINE_string(
    'beam', '', 'build: options of Apache Beam, as in runner=DirectRunner,direct_num_workers=4',
)
flags.DEFINE_integer('limit', 0, 'analyse: first queries of each split; 0: all', lower_bound=0)
flags.DEFINE_integer('examples', 3, 'analyse: queries of each split with pictures', lower_bound=0)
flags.DEFINE_string(
    'tokenizer', '',
    "analyse: the text encoder's Hugging Face tokenizer, folder or name; tells marks from words",
)
config_flags.DEFINE_config_file(
    'config', None, 'configs/NAME.py[:ARGUMENTS]; default: that of the checkpoint in --workdir'
)
for module in (score, sweep, runtime, compile, verify, import_csv):
    module.define_flags()
    flags.adopt_module_key_flags(module)  # in --help


def load_config(values):
    """The locked config of the command line, or else of the checkpoint in the workdir."""
    config = values.config
    if config is None:
        if values.mode in NEED_CONFIG:
            raise ConfigError(f'--mode={values.mode} needs --config=configs/NAME.py')

        from dualground_jax import checkpoints

        config = checkpoints.Checkpoints(values.workdir).config('best')
    if values.split:
        config.evaluate.split = values.split
    return config.lock()


def run(values, files) -> None:
    """Runs the mode; each imports what it needs, since TensorFlow alone takes seconds."""
    if values.mode == 'score':
        return score.run(values, files)
    if files:
        raise UserError(f'unexpected arguments {files}')
    if values.mode == 'import-csv':
        return import_csv.run(values)
    if values.mode == 'convert':
        from dualground_jax.pytorch import checkpoint

        return checkpoint.run(values)
    if bool(values.video_features) != bool(values.query_features):
        raise ConfigError('one video and query need both --video_features and --query_features')
    if values.mode in NEED_WORKDIR and not values.workdir:
        raise ConfigError(f'--mode={values.mode} needs --workdir=DIR')
    if values.coordinator and values.mode not in SEVERAL_PROCESSES:
        raise ConfigError(f'--mode={values.mode} runs in one process, without --coordinator; '
                          f'several can {", ".join(SEVERAL_PROCESSES)}')
    runtime.join_processes(values)
    if values.workdir:
        runtime.keep_compiled(values.workdir)
        runtime.keep_memory()
    if values.mode == 'analyse':
        from dualground_jax.analysis import analyse

        return analyse.run(values)
    config = load_config(values)
    if values.mode == 'compile':
        compile.run(values, config)
        return
    if config.world and values.mode != 'predict':
        from data_pipelines import world

        runtime.first_alone(lambda: world.generate(config.world, config.data.root))
    if values.mode == 'train':
        from dualground_jax import train

        train.train(config, values.workdir)
    elif values.mode == 'sweep':
        sweep.run(config, values.workdir, values.sweep)
    elif values.mode == 'predict' and values.query_features:
        from dualground_jax import predict

        predict.predict_files(values.workdir, values.video_features, values.query_features)
    elif values.mode in ('evaluate', 'predict'):
        from dualground_jax import evaluate

        evaluate.evaluate(config, values.workdir)
    elif values.mode == 'verify-data':
        verify.run(config, values)
    elif values.mode == 'simulate':
        from data_pipelines import simulate

        print(f'stand-in features in {simulate.simulate_data(config.data, config.seed)}')
    elif values.mode == 'word-vectors':
        from data_pipelines.own_data import word_vectors

        if not values.vectors:
            raise ConfigError('--mode=word-vectors needs --vectors=FILE')
        print(word_vectors.write_rows(config.data, values.vectors))
    elif values.mode == 'build':
        from data_pipelines import tfds_builders

        print(tfds_builders.report(tfds_builders.build(config.data, values.beam)))
    else:
        from data_pipelines.own_data import text_rows

        print(text_rows.text_similarity(config.data, config.evaluate.split))


def main(argv) -> None:
    sys.path.insert(0, str(pathlib.Path.cwd()))
    logging.get_absl_handler().addFilter(
        lambda record: record.levelno > 20
        or not any(name in record.pathname for name in QUIET)
    )
    try:
        run(flags.FLAGS, argv[1:])
    except UserError as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    app.run(main, flags_parser=cli.parse)
