"""Your own data: annotation files and features as docs/own_data.md describes them.

Widths, the numbers of clips and windows, and how clips are labelled are read off the files.
"""

import collections
import math
import pathlib

from ml_collections import ConfigDict

from configs import common
from data_pipelines import annotations, features, recipe, saliency, tokens
from data_pipelines.errors import ConfigError, DataError

SAMPLE = 9  # feature files of a folder of which the commonest width is taken


def get_config(arg: str | None = None) -> ConfigDict:
    """Arguments: those below and of `common.ARGUMENTS`.

    Raises:
        ConfigError: root, layout or clip_length is missing, or files that sizes are read off.
    """
    args = common.parse_arg(
        arg,
        features='own',
        # These say what features.json does not, if there is one.
        layout='',  # of the text rows: a key of tokens.TEXT_LAYOUTS
        clip_length=0.0,  # seconds
        video='',  # folder or HDF5 file of the video features (video); of several streams: a+b
        text='',  # folder or HDF5 file of the query features (text)
        val='val',  # split that checkpoints are chosen on, of `data.annotations`
        **common.ARGUMENTS,
    )
    expected = dict(
        root='folder of the features and annotations',
        layout=f'what the rows of a query are: {", ".join(tokens.TEXT_LAYOUTS)}',
        clip_length='seconds of a clip',
    )
    if args['root'] and not pathlib.Path(args['root']).is_dir():
        raise ConfigError(f'root={args["root"]}: no such folder')
    made = recipe.read(args['root']) if args['root'] else None
    known = made.data() if made else {}
    if missing := [f'{name}=... ({meaning})' for name, meaning in expected.items()
                   if not args[name] and dict(layout='text_layout').get(name, name) not in known]:
        raise ConfigError(f'configs/custom.py needs the arguments {"; ".join(missing)}')
    if args['layout'] not in ('', *tokens.TEXT_LAYOUTS) or args['clip_length'] < 0:
        raise ConfigError(f'layout={args["layout"]}, clip_length={args["clip_length"]}: expected '
                          f'{", ".join(tokens.TEXT_LAYOUTS)} and seconds above 0')
    config = common.base('custom', args)
    data, root = config.data, pathlib.Path(args['root'])
    given = dict(
        video_dirs=args['video'] and tuple(args['video'].split('+')), text_dir=args['text'],
        text_layout=args['layout'], clip_length=args['clip_length'])
    data.update({key: value for key, value in given.items() if value})
    if args['val'] not in data.annotations:
        raise ConfigError(f'val={args["val"]}: expected one of {", ".join(data.annotations)}')
    data.annotations.val = data.annotations[args['val']]
    data.video_dims = tuple(width(root / name, features.VIDEO_KEY) for name in data.video_dirs)
    data.text_dim = width(root / data.text_dir, features.TEXT_KEY)
    measure(config)
    return common.small(config) if args['runlocal'] else config


def width(folder: pathlib.Path, key: str) -> int:
    """The commonest width of some feature files in a folder."""
    widths, lengths, problem, files = collections.Counter(), set(), '', []
    try:
        files = features.all_files(folder)
    except DataError as error:
        problem = f': {error}'
    for path in files[:: math.ceil(len(files) / SAMPLE) or 1]:
        try:
            length, found = features.read_features(path, key).shape
            widths[found] += 1
            lengths.add(length)
        except DataError as error:
            problem = f', but: {error}'
    if len(lengths) == 1 and 2 * len(widths) > widths.total() > 3:
        raise ConfigError(f'{folder}: files of {length} rows, of widths '
                          f'{", ".join(map(str, sorted(widths)))}: transposed? expected [n, width]')
    if not widths:
        raise ConfigError(
            f'{folder}: expected feature files, {" or ".join(features.SUFFIXES)}, or an HDF5 file, '
            f'to read their width; found {len(files)}{problem} (arguments root, video, text)')
    return widths.most_common(1)[0][0]


def measure(config: ConfigDict) -> None:
    """Sets what follows from the annotations; bad queries are left to those who read the data."""
    data = config.data
    data.max_windows = 10**6  # for now, none is too many
    paths = annotations.annotation_files(data)
    queries = {}
    for split, path in paths.items():
        if path.is_file():
            queries[split] = annotations.read_annotations(path, data, skipped=[])
        elif split == 'test':
            data.annotations.test = ''
        else:
            way_on = ', or val=train chooses checkpoints on the training queries' * (split == 'val')
            raise ConfigError(f'{path}: no such file (arguments root, annotations); --mode=import '
                              f'makes it of a table{way_on}')
    found = [query for part in queries.values() for query in part]
    if not found:
        raise ConfigError(f'{paths["train"]}: no record is as expected, see docs/own_data.md')
    longest = max(query.duration for query in found)
    data.max_windows = max(1, *(len(query.windows) for query in found))
    data.max_spans = min(data.max_windows, data.max_spans)
    # Encoders differ in whether they round the number of clips up.
    data.max_clips = math.ceil(longest / data.clip_length) + 2
    if any(saliency.is_graded(query, 'annotators') for query in queries['train']):
        data.saliency = 'annotators'
    config.evaluate.clip_to = (0.0, longest)
