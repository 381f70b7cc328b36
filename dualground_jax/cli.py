"""The flags of all modes, and mistakes in them as one line. Nothing here imports JAX."""

import os
import re
import sys
import textwrap
from collections.abc import Callable, Sequence

from absl import flags
from absl.flags import DEFINE_boolean as SWITCH
from absl.flags import DEFINE_float as FLOAT
from absl.flags import DEFINE_integer as INTEGER
from absl.flags import DEFINE_list as LIST
from absl.flags import DEFINE_multi_string as SEVERAL
from absl.flags import DEFINE_string as TEXT
from ml_collections import ConfigDict, config_flags

from data_pipelines import datasets, video
from data_pipelines.errors import ConfigError, UserError
from dualground_jax import config, nms
from dualground_jax.metrics import official, score
from dualground_jax.metrics.moments import MAX_WINDOWS
from dualground_jax.serve.limits import Limits


def CHOICE(*values: str) -> Callable[[str, str | None, str], None]:
    """A definition of flags that are one of some values."""
    return lambda name, default, text: flags.DEFINE_enum(name, default, values, text)


DATA = datasets.defaults('custom', 'own')
SERVED = Limits()
CONFIG = ('configs/NAME.py or configs/NAME.py:ARGUMENTS; --config.KEY=VALUE changes a value; '
          'a workdir stands for the config of its checkpoint, which evaluate and predict take if '
          'none is given')
# Who reads it -> kind of flag, name, default, help and limits.
FLAGS = {
    'train, evaluate, predict, sweep, study, analyse, convert, publish, export, '
    'serve, train-encoder': [
        (TEXT, 'workdir', None, 'folder of the run: checkpoints, metrics, predictions; evaluate, '
         'predict, publish, export, serve: also of a published model'),
    ],
    'train, evaluate, predict, extract, train-encoder': [
        (TEXT, 'coordinator', None, 'several processes: HOST:PORT of the first one, or auto on TPU '
         'pods, Slurm and Open MPI'),
        (INTEGER, 'num_processes', None, 'with --coordinator=HOST:PORT: how many'),
        (INTEGER, 'process_id', None, 'with --coordinator=HOST:PORT: which one, from 0 on'),
    ],
    'evaluate, predict, inspect-text': [
        (TEXT, 'split', None, 'split of the data; default: evaluate.split'),
    ],
    'predict': [
        (SEVERAL, 'video', [], 'video file; given several times: several'),
        (SEVERAL, 'query', [], 'sentence; given several times: several'),
        (LIST, 'video_features', [], 'in place of --video: feature file of one video, or '
         'a.npz,b.npz of two streams'),
        (TEXT, 'query_features', None, 'in place of --query: feature file of one query'),
        (TEXT, 'save_plot', None, 'folder for a picture of each video and query'),
        (INTEGER, 'top', MAX_WINDOWS, 'best moments of each query that are written',
         dict(lower_bound=1)),
    ],
    'sweep': [
        (SEVERAL, 'sweep', [], 'key=value,value,... with a key of the config, or with :name for an '
         'argument of its file; given several times: all combinations; default: config.sweep'),
    ],
    'sweep, study': [
        (SWITCH, 'commands', False, 'only print a command for each run that is not finished'),
        (SWITCH, 'collect', False, 'only tabulate the runs that are finished'),
    ],
    'analyse, render': [
        (LIST, 'splits', ['train', 'val'], 'splits'),
        (INTEGER, 'limit', 0, 'first queries of each split; 0: all', dict(lower_bound=0)),
    ],
    'render': [
        (CHOICE(*video.WRITTEN), 'container', 'mp4', 'of the videos: mp4 (H.264) or webm (VP9)'),
    ],
    'analyse': [
        (INTEGER, 'examples', 3, 'queries of each split with pictures', dict(lower_bound=0)),
        (TEXT, 'tokenizer', '', "the text encoder's Hugging Face tokenizer, folder or name; tells "
         'marks from words'),
    ],
    'predict, score, compile, verify-data, convert, import, import-csv, extract, render, '
    'publish, export, serve, probe': [
        (TEXT, 'output', None, 'predict: files for the moments, a.json, a.csv, a.ffconcat, a.edl '
         'or several: a.csv,a.edl; score, compile, verify-data: JSON file for the report; convert: '
         'PyTorch checkpoint to write; import: folder for the annotation files; extract: folder '
         'for the features; render: folder for videos and annotation files; probe: folder for '
         'the tables; '
         'publish, export: new folder for the model; serve: folder for uploads and features, by '
         'default WORKDIR/served'),
    ],
    'score, extract': [
        (TEXT, 'annotations', None, '.jsonl[.gz] file of the true answers; extract: files of '
         'queries to encode, a.jsonl,b.jsonl, whose videos are the ones wanted'),
    ],
    'score': [
        (LIST, 'predictions', [], '.jsonl[.gz] files; of several, mean and std'),
        (LIST, 'compare', [], 'two prediction files, differences second - first'),
        (CHOICE(*official.PROTOCOLS), 'dataset', None, 'protocol, of '
         + ', '.join(official.PROTOCOLS) + '; default: that of --config, else qvhighlights'),
        (SWITCH, 'count_missing', False, 'queries without a prediction count as misses, instead of '
         'being refused'),
        (TEXT, 'nms', None, 'suppress overlaps first: KIND:THRESHOLD, kinds are '
         + ', '.join(nms.KINDS)),
        (INTEGER, 'bootstrap', None, 'resamples for confidence intervals; default: none, with '
         f'--compare {score.COMPARE_RESAMPLES}', dict(lower_bound=0)),
        (SWITCH, 'breakdown', False, 'also by query and by window length'),
    ],
    'convert': [
        (TEXT, 'checkpoint', None, 'file of a public PyTorch training code'),
        (TEXT, 'model', None, 'what --checkpoint is of'),
        (TEXT, 'options', None, 'JSON file of options, for a --checkpoint without or with others'),
        (LIST, 'streams', [], "video streams in the order of --checkpoint, where its folders' "
         'names do not tell it: a,b'),
    ],
    'compile': [
        (TEXT, 'topology', None, 'TPU slice, v5e:4x4, v4:4x4x4, ..., or cpu:8'),
        (SWITCH, 'largest_batch', False, 'also search the largest power of two a chip that '
         'train.batch_size can be; takes a few compilations'),
    ],
    'word-vectors': [(TEXT, 'vectors', None, 'file of GloVe vectors')],
    'verify-data': [
        (TEXT, 'skip_list', None, 'file for the records that training must leave out, to be named '
         'by data.skip_list'),
        (SWITCH, 'recheck', False, 'also read files that seem unchanged since they were verified'),
    ],
    'score, import, import-csv, extract': [
        (FLOAT, 'clip_length', None, 'seconds of a clip: of own data that are scored, in '
         '--durations=FOLDER, or to extract (default: 2)', dict(lower_bound=1e-3)),
    ],
    'import, import-csv': [
        (LIST, 'table', [], 'table of video, start, end, sentence, or annotations of ActivityNet '
         'Captions, DiDeMo, Ego4D NLQ, Charades-STA; of several: train=a.csv,val=b.csv'),
        (LIST, 'durations', [], 'tables of video, duration; or a folder or HDF5 file of video '
         'features, whose clips are counted'),
        (FLOAT, 'val_share', 0.1, 'share of the videos for validation, if there are no splits in '
         'the table', dict(lower_bound=0, upper_bound=0.9)),
        (FLOAT, 'end_tolerance', DATA['end_tolerance'], 'seconds that a window may end after its '
         'video', dict(lower_bound=0)),
        (SWITCH, 'clip_windows', DATA['clip_windows'], 'cut what of a window is after its video'),
        (CHOICE('raise', 'skip'), 'on_error', DATA['on_error'], 'raise: write nothing if anything '
         'is wrong; skip: leave it out'),
    ],
    'publish': [
        (TEXT, 'hub', '', 'OWNER/NAME on the Hugging Face hub, to push the model to'),
        (TEXT, 'licence', '', "of the model, for its card, as in apache-2.0"),
    ],
    'publish, export': [
        (CHOICE('float32', 'float16'), 'weights_dtype', 'float32', 'of the parameters in files'),
    ],
    'predict, extract, publish, serve': [
        (TEXT, 'encoder', None, 'clip=FOLDER, slowfast=FILE, or both in the order in which a model '
         'reads them; CLIP may be a name on the Hugging Face hub'),
    ],
    'extract, serve': [
        (TEXT, 'videos', None, 'folder of videos, or text file with a path on each line; serve: '
         'folder whose videos may be chosen in place of an upload'),
        (INTEGER, 'decoders', 0, 'processes that decode; 0: one for each CPU',
         dict(lower_bound=0)),
    ],
    'extract': [
        (CHOICE(*video.RULES), 'rule', 'middle', 'which frame stands for a clip, of '
         + ', '.join(video.RULES)),
        (INTEGER, 'clip_frames', 0, 'clips of so many frames, in place of --clip_length',
         dict(lower_bound=0)),
        (CHOICE('float32', 'bfloat16'), 'encoder_dtype', 'float32', 'that encoders compute in, '
         'float32 or bfloat16'),
        (SWITCH, 'dry_run', False, 'only count'),
    ],
    'serve': [
        (TEXT, 'host', '127.0.0.1', 'address to listen on; 0.0.0.0 lets other machines in'),
        (INTEGER, 'port', 8000, 'port to listen on; 0: any that is free',
         dict(lower_bound=0, upper_bound=65535)),
        (TEXT, 'token_file', None, 'file of the token that clients must send'),
        (FLOAT, 'upload_mb', SERVED.upload_mb, 'megabytes of an upload at most',
         dict(lower_bound=0)),
        (FLOAT, 'video_minutes', SERVED.video_minutes, 'minutes of a video at most',
         dict(lower_bound=0)),
        (FLOAT, 'store_gb', SERVED.store_gb, 'gigabytes of uploads and features at most; the least '
         'recently used ones give way', dict(lower_bound=0)),
        (INTEGER, 'queue', SERVED.queue, 'sentences, and videos, that may wait at most',
         dict(lower_bound=1)),
        (FLOAT, 'rate', SERVED.rate, 'requests a second that a client may make, twice as many at '
         'once; 0: any number', dict(lower_bound=0)),
        (FLOAT, 'timeout', SERVED.timeout, 'seconds that an answer may take, an upload may stall, '
         'or a picture may take to decode', dict(lower_bound=0.1)),
        (FLOAT, 'grace', SERVED.grace, 'seconds after SIGTERM for videos that are being encoded; '
         'the next start goes on with those that are not done', dict(lower_bound=0)),
    ],
    'build, extract': [
        (TEXT, 'beam', '', 'options of Apache Beam, as in '
         'runner=DirectRunner,direct_num_workers=4'),
    ],
}


def define_flags(modes: Sequence[str]) -> None:
    """Defines all flags of these modes."""
    flags.DEFINE_enum('mode', 'train', modes, 'what to do')
    config_flags.DEFINE_config_file('config', None, CONFIG)
    flags.FLAGS['config'].parser = _ConfigParser()
    for readers, entries in FLAGS.items():
        for define, name, default, text, *limits in entries:
            define(name, default, f'{readers}: {text}', **dict(*limits))
    flags.register_multi_flags_validator(
        list(ONE),
        lambda given: [sum(map(bool, map(given.get, names))) for names in (ONE[:2], ONE[2:])] in (
            [0, 0], [1, 1]),
        'mode predict needs one of --video and --video_features, and one of --query and '
        '--query_features; mode extract takes --videos')


class _ConfigParser(flags.ArgumentParser):
    """Reads a config and checks the keys that are overridden.

    ml_collections would do both, but without saying which keys there are.
    """

    def parse(self, argument: str) -> ConfigDict:
        is_workdir = os.path.isdir(argument)
        several = any(other.lstrip('-').startswith('coordinator') for other in sys.argv)
        if several and (is_workdir or re.search('[:,]init=', argument)):
            # Reading a checkpoint starts JAX, before it could join the other processes.
            raise ConfigError(f'--config={argument}: a workdir gives a config in one process alone')
        found = config.load_config(argument) if is_workdir else config.read_file(argument)
        for key in overrides():
            config.check_key(found, key)
        return found.lock()


def overrides() -> list[str]:
    """Keys of the config that the command line overrides."""
    found = (re.match(r'--?(?:no)?config\.([^=]+)', argument) for argument in sys.argv)
    return [key[1] for key in found if key]


# What evaluation and prediction read of a config beside the checkpoint; of one video and query.
READ = ('model', 'data', 'evaluate', 'mesh')
ONE = 'video', 'video_features', 'query', 'query_features'  # flags that ask for the latter
READ_OF_ONE = (
    'model', *(f'data.{key}' for key in (
        'video_dirs', 'video_dims', 'video_parts', 'text_dim', 'text_key', 'text_layout',
        'normalize_text', 'max_tokens', 'max_clips', 'clip_length', 'dtype')),
    'evaluate.nms', 'evaluate.nms_kind', 'evaluate.round_to', 'evaluate.any_recipe',
    'evaluate.batch_size')


def check_effect(values: flags.FlagValues) -> None:
    """Raises ConfigError for what is given to `evaluate` or `predict` and would change nothing."""
    of_one = values.mode == 'serve' or any(values[name].value for name in ONE)
    read = READ_OF_ONE if of_one else READ
    if values.mode == 'serve':  # which has sizes of its own
        read = tuple(key for key in read if key != 'evaluate.batch_size')
    for key in overrides():
        if not any(key == known or key.startswith(f'{known}.') for known in read):
            raise ConfigError(f'--config.{key} changes nothing in this --mode={values.mode}, which '
                              f'reads {", ".join(read)}')
    if of_one and values.split:
        raise ConfigError(f'--split={values.split} changes nothing for a single video and query')
    for name in ('output', 'top', 'save_plot', 'encoder'):
        if values[name].present and not of_one:
            raise ConfigError(f'--{name}={values[name].value} changes nothing for a split')


def parse(argv: list[str]) -> list[str]:
    """Parses the flags as `absl.app.run` would; exits with a one-line message on a mistake."""
    if {'-h', '-help', '--help'} & set(argv):
        print(usage())
        sys.exit()
    try:
        return flags.FLAGS(argv)
    except (flags.Error, UserError) as error:
        sys.exit('error: ' + ' '.join(str(error).split()))


def usage() -> str:
    """The text of --help: the flags, below the modes that read them."""
    modes = ', '.join(flags.FLAGS['mode'].parser.enum_values)
    first = {'all': [(TEXT, 'mode', 'train', f'what to do, of {modes}'),
                     (TEXT, 'config', None, CONFIG)]}
    lines = ['usage: dualground --mode=MODE ...; see docs/commands.md']
    for readers, entries in (first | FLAGS).items():
        lines += ['', f'{readers}:']
        for _, name, default, text, *_ in entries:
            given = f' (default: {default})' if default else ''
            lines += textwrap.wrap(f'--{name}: {text}{given}', 98, initial_indent='  ',
                                   subsequent_indent='      ')
    return '\n'.join(lines)
