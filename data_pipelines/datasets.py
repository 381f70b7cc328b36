"""The data sets, their public releases, and `load_split`, which reads a split of one.

A release is one annotation file per split (JSON lines), one feature file per video and stream, and
one per query. All errors of these files are raised here, before any device time, as a `DataError`
of one line. What a user can say of a release is the config's section `data` (`defaults`), which
functions take as `data`.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines import annotations, lazy, progress, recipe, release, saliency
from data_pipelines.errors import DataError
from data_pipelines.features import TEXT_KEY


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What belongs to a data set, whatever the features.

    Attributes:
        annotations: split -> file name in the release.
        clip_length: seconds.
        saliency: how a clip's label is made, see `saliency.clip_labels`.
        max_windows: no query has more; where there are none, the batch has a place for one.
        segments: whether video ids end in _START_END, and so name their source before that.
        duration_unit: seconds that a 1 in the annotations' field `duration` stands for.
        selection: the best checkpoint has the highest mean of these metrics.
        round_to_clip: whether predicted windows are rounded to multiples of clip_length.
        clip_to: seconds that predicted windows are clipped to; a release of features can say
            otherwise.
    """

    annotations: Mapping[str, str]
    clip_length: float
    saliency: str
    max_windows: int = 1
    segments: bool = False
    duration_unit: float = 1.0
    selection: tuple[str, ...] = ('MR-full-mAP',)
    round_to_clip: bool = True
    clip_to: tuple[float, float] = (0.0, 150.0)


_WHOLE_VIDEO = 0.0, 50000.0  # as the public post-processing writes it


def _files(train: str, val: str, test: str = '') -> dict[str, str]:
    """Split -> annotation file; val is also test where there is no third split."""
    return {'train': train, 'val': val, 'test': test or val}


_BY_SPLIT = _files('train.jsonl', 'val.jsonl', 'test.jsonl')

# docs/datasets.md tells where each comes from, and its traps.
DATASETS = {
    'qvhighlights': Dataset(
        _files('highlight_train_release.jsonl', 'highlight_val_release.jsonl',
               'highlight_test_release.jsonl'),
        clip_length=2.0, saliency='annotators', segments=True,
        max_windows=30),  # val has 25
    'charades_sta': Dataset(
        _files('charades_sta_train_tvr_format.jsonl', 'charades_sta_test_tvr_format.jsonl'),
        clip_length=1.0, saliency='window', selection=('MR-full-R1@0.5', 'MR-full-R1@0.7')),
    'tacos': Dataset(
        _BY_SPLIT,  # the public scripts choose their checkpoints on the test split
        clip_length=2.0, saliency='window', selection=('MR-full-R1@0.3',), clip_to=_WHOLE_VIDEO),
    'tvsum': Dataset(
        _files('tvsum_train.jsonl', 'tvsum_val.jsonl'),
        clip_length=2.0, saliency='grades', selection=('mAP',), clip_to=_WHOLE_VIDEO,
        duration_unit=2.0),  # `duration` counts clips
    'youtube_highlights': Dataset(
        _files('youtube_train.jsonl', 'youtube_valid.jsonl'),
        clip_length=1.0,  # as the public scripts say; clips are 50 frames apart
        saliency='binary', selection=('mAP',), clip_to=_WHOLE_VIDEO),
    'synthetic': Dataset(_BY_SPLIT, clip_length=2.0, saliency='annotators', max_windows=5),
    'custom': Dataset(  # configs/custom.py reads sizes off the user's files
        _BY_SPLIT, clip_length=2.0, saliency='windows', max_windows=5, round_to_clip=False),
}

_SF_CLIP = dict(
    video_dirs=('slowfast_features', 'clip_features'), video_dims=(2304, 512),
    text_dir='clip_text_features', text_dim=512, text_layout='clip')
_IV2 = dict(video_dims=(768,), text_dim=4096, text_layout='llama')

# Highlight data sets: CLIP rows as they are, titles and domain names of a few words.
_HIGHLIGHTS = dict(text_dim=512, text_layout='clip', normalize_text=False, max_tokens=77)

# (data set, release of features) -> fields of `data`:
#
#     video_dirs, video_dims   folder and width of each video stream
#     text_dir, text_dim       folder and width of the query features
#     text_layout   what the rows of a query are: key of tokens.TEXT_LAYOUTS
#     max_clips     a video with more is an error; leaves room for what releases add to the longest
#                   video's duration
#     max_tokens    rows of a query, start-of-text and [EOS] included; further words are cut
#
# and those of `defaults` and of the data set's row that are otherwise in this release.
FEATURES = {
    ('qvhighlights', 'sf_clip'): dict(**_SF_CLIP, max_clips=75, max_tokens=40),
    ('qvhighlights', 'iv2'): dict(
        **_IV2, video_dirs=('qvhighlight_6b',), text_dir='qvhighlight_llama_text_feature',
        max_clips=75, max_tokens=40),
    # The longest video of Charades-STA has 194.33 s.
    ('charades_sta', 'sf_clip'): dict(**_SF_CLIP, max_clips=200, max_tokens=32),
    ('charades_sta', 'iv2'): dict(
        **_IV2, video_dirs=('charade_sta_6b',), text_dir='charade_sta_llama_text_feature',
        max_clips=200, max_tokens=23),
    # Six rows a second; rows of the sentences are made by --mode=word-vectors.
    ('charades_sta', 'vgg'): dict(
        video_dirs=('vgg_features/rgb_features',), video_dims=(4096,), text_dir='glove_features',
        text_dim=300, text_layout='glove', clip_length=0.166666, clip_to=(0.0, 360.0),
        max_clips=1200, max_tokens=32),
    # 1402.18 s, 64 words
    ('tacos', 'sf_clip'): dict(**_SF_CLIP, max_clips=710, max_tokens=77),
    # 323 and 741 labelled clips
    ('tvsum', 'sf_clip'): dict(
        **_HIGHLIGHTS, video_dirs=('vid_slowfast', 'vid_clip'), video_dims=(2304, 512),
        text_dir='txt_clip', max_clips=400),
    ('tvsum', 'i3d'): dict(
        **_HIGHLIGHTS, video_dirs=('video_features',), video_dims=(2048,),
        video_parts=('_rgb', '_opt'), text_dir='query_features', text_key='token', max_clips=400),
    ('youtube_highlights', 'sf_clip'): dict(
        **_HIGHLIGHTS, video_dirs=('vid_clip', 'vid_slowfast'), video_dims=(512, 2304),
        text_dir='txt_clip', max_clips=800),
    # Made by mode extract; configs/common.py takes the rest from their features.json.
    ('qvhighlights', 'own'): dict(text_layout='clip', max_clips=75, max_tokens=40),
    ('charades_sta', 'own'): dict(text_layout='clip', max_clips=200, max_tokens=32),
    ('tacos', 'own'): dict(text_layout='clip', max_clips=710, max_tokens=77),
    ('tvsum', 'own'): dict(
        text_layout='clip', normalize_text=False, max_clips=400, max_tokens=77),
    ('youtube_highlights', 'own'): dict(
        text_layout='clip', normalize_text=False, max_clips=800, max_tokens=77),
    # Widths and limits are those of the generated world, and of the encoder of its pictures.
    ('synthetic', 'planted'): dict(video_dirs=('video',), text_dir='text', text_layout='clip'),
    ('synthetic', 'pixels'): dict(video_dirs=('clip',), text_dir='text', text_layout='clip'),
    ('custom', 'own'): dict(
        video_dirs=('video',), text_dir='text', text_layout='clip', max_tokens=40),
}


def defaults(dataset: str, features: str) -> dict:
    """The section `data` of the config for a data set and a release of its features.

    Those of the release are described at `FEATURES`.
    """
    row = DATASETS[dataset]
    release = {name: value for name, value in FEATURES[dataset, features].items()
               if name != 'clip_to'}
    return dict(
        dataset=dataset,
        features=features,  # the release
        root=f'data/{dataset}',  # folder that the other paths are relative to
        annotations=dict(row.annotations),  # split -> annotation file; '' where there is none
        domain='',  # only the queries of this domain (TVSum, YouTube Highlights); '': all
        limit=0,  # only the first so many queries of a split; 0: all
        skip_list='',  # file of queries to leave out, as mode verify-data writes it
        on_error='raise',  # or 'skip': leave out what cannot be used
        clip_length=row.clip_length,  # seconds
        end_tolerance=1.0,  # seconds that a true window may end after its video
        clip_windows=False,  # cut what of a true window is after its video
        empty_windows='refuse',  # true windows without length, to train; or 'drop' them
        duration_unit=row.duration_unit,  # seconds that a 1 in the field `duration` stands for
        segments=row.segments,  # video ids end in _START_END: one source's queries, no negatives
        saliency=row.saliency,  # how a clip's label is made: key of saliency.MODES
        max_windows=row.max_windows,  # a query with more is an error
        max_spans=min(row.max_windows, 5),  # as many as the references' moment queries see
        video_parts=('',),  # ends of the names of the files whose columns make up a stream
        text_key=TEXT_KEY,  # name of the query's array in an .npz file
        normalize_text=True,  # scale text rows to length one (video rows always are)
        dtype='float32',  # of features in memory and batches; 'float16' halves both
        records='',  # folder of built data (mode build) to read instead of the files, see `built`
        recipe='',  # how the features were made that a model was trained on, see `recipe_of`
        # Features of a split that stay in memory, in 10^9 bytes; the others are read whenever a
        # batch needs them. Negative: all stay.
        cache_gb=-1.0,
        resident=False,  # training features on the device, as bfloat16
    ) | release


def recipe_of(data: Any) -> recipe.Recipe | None:
    """How the features were made that a config names; None: there is no features.json to tell.

    Training keeps it as `data.recipe`, a text, which is saved with the model.

    Raises:
        DataError: features.json can't be read, or there are no built data where they should be.
    """
    if data.records:
        from data_pipelines import built  # takes TensorFlow, for seconds

        return recipe.parse(built.read_metadata(built.folder_of(data)).get('recipe', ''))
    found = recipe.read(data.root)
    return found.of(data.video_dirs, data.text_dir) if found else None


@dataclasses.dataclass
class Split:
    """A split; query i has `videos[video_index[i]]`, `text[i]` and so on.

    `videos` and `text` may read from disk whenever they are indexed (data.cache_gb): lengths are
    those of `saliency` and `roles`, which are in memory.

    Attributes:
        name: of the split.
        queries: list of N.
        videos: data.dtype[T_i, sum of video_dims] of each video, once.
        video_index: int32[N].
        source_index: int32[N], equal for videos that are cut from the same one.
        text: N of data.dtype[L_i, text_dim], token by token.
        roles: N of int32[L_i], see `tokens`.
        saliency: N of float32[T_i], the clips' labels.
        skipped: what was left out, on purpose or on_error, one message each.
        notes: what was read though it is not as it should be, a message for each kind.
    """

    name: str
    queries: list[annotations.Query]
    videos: Sequence[np.ndarray]
    video_index: np.ndarray
    source_index: np.ndarray
    text: Sequence[np.ndarray]
    roles: list[np.ndarray]
    saliency: list[np.ndarray]
    skipped: list[str]
    notes: list[str] = dataclasses.field(default_factory=list)


def load_split(data: Any, split: str, *, training: bool = False) -> Split:
    """Reads a split, each video once, and keeps as much of it in memory as data.cache_gb says.

    All files are read and checked, whatever is kept. Of built data (data.records), which were
    checked when they were built, videos are checked only with data.on_error = 'skip'.

    Args:
        data: the config node.
        split: its name.
        training: whether to train on it, and so to treat windows without length as
            data.empty_windows says.

    Raises:
        DataError: the config or a folder is wrong, the split has no annotation file, nothing usable
            is left, or a record or one of its files is bad. With data.on_error = 'skip', bad
            records are skipped instead and reported in `skipped`.
    """
    skipped = annotations.skipped_list(data)
    if data.records:
        from data_pipelines import built  # takes TensorFlow, for seconds

        store = built.BuiltSplit(data, split)
    else:
        store = release.ReleaseSplit(data, split)
    memory = lazy.Memory(data.cache_gb)

    def read_text(qid: int | str) -> np.ndarray:
        return memory.get(('text', qid), lambda: store.query(qid)[0])

    def read_clips(vid: str) -> np.ndarray:
        return memory.get(('video', vid), lambda: store.video(vid))

    queries, roles, lengths = [], [], {}
    found, left_out = store.queries(skipped), []
    if training:
        found, left_out = annotations.for_training(found, store.name, data, skipped)
    with progress.Bar(f'reading texts of {split}', len(found), 'queries') as bar:
        for query in found:
            if (rows := annotations.attempt(skipped, store.query, query.qid)) is not None:
                memory.keep(('text', query.qid), rows[0])
                queries.append(query)
                roles.append(rows[1])
            bar.advance()
    uses = collections.Counter(query.vid for query in queries)
    with progress.Bar(f'reading videos of {split}', len(uses), 'videos') as bar:
        for vid in uses:
            n_clips = annotations.attempt(skipped, store.n_clips, vid, read_clips)
            if n_clips is None:
                skipped[-1] += f' (skipped records: {uses[vid]})'
            else:
                lengths[vid] = n_clips
            bar.advance()
    kept = [i for i, query in enumerate(queries) if query.vid in lengths]
    if not kept:
        reason = f'; the first of {len(skipped)} problems: {skipped[0]}' if skipped else ''
        raise DataError(f'{store.name}: no usable record{reason}')
    queries, roles = [queries[i] for i in kept], [roles[i] for i in kept]
    places = {vid: place for place, vid in enumerate(lengths)}
    sources = [query.vid.rsplit('_', 2)[0] if data.segments else query.vid for query in queries]
    # In memory they are lists, which can also be changed.
    collect = list if memory.unlimited else lambda rows: rows
    return Split(
        name=split,
        queries=queries,
        videos=collect(lazy.Rows(read_clips, lengths)),
        video_index=np.array([places[query.vid] for query in queries], np.int32),
        source_index=np.unique(sources, return_inverse=True)[1].astype(np.int32),
        text=collect(lazy.Rows(read_text, [query.qid for query in queries])),
        roles=roles,
        saliency=[saliency.clip_labels(query, lengths[query.vid], data.saliency)
                  for query in queries],
        skipped=[*store.skipped, *left_out, *(skipped or [])],
        notes=_notes(store, queries, data),
    )


def _notes(store: Any, queries: Sequence[annotations.Query], data: Any) -> list[str]:
    """What `Split.notes` says of a split's queries and videos."""
    notes = []
    for kind, title in annotations.ODDITIES.items():
        if odd := [query for query in queries if kind in query.oddities]:
            notes.append(f'records with {title}: {len(odd)}, the first: '
                         f'{store.name}:{odd[0].line}: {odd[0].oddities[kind]}')
    if store.cut:
        vid, n_clips = next(iter(store.cut.items()))
        notes.append(f'videos cut to {data.max_clips} clips (data.max_clips): {len(store.cut)}, '
                     f'the first: {vid} of {n_clips}')
    return notes


