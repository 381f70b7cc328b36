"""Reads the data sets' public releases, as users have them, into raw examples.

A release is one annotation file per split (JSON lines), one feature file per video and stream, and
one per query. All errors of these files are raised here, before any device time, as a `DataError`
of one line. What a user must say of a release is in the config node `data`; functions that take
`data` read these attributes of it:

    root            folder that the other paths are relative to
    annotations     split -> annotation file; '' where there is none
    domain          only the records of this domain (TVSum, YouTube Highlights); '': all
    duration_unit   seconds that a 1 in the annotations' field `duration` stands for
    video_dirs, video_dims   folder and width of each video stream
    video_parts     ends of the names of the files whose columns make up a stream; ('',): one file
    text_dir, text_dim       folder and width of the query features
    text_key        name of the query's array in an .npz file
    text_layout     key of tokens.TEXT_LAYOUTS
    normalize_text  whether text rows are scaled to length one (video rows always are)
    saliency        how a clip's label is made: key of saliency.MODES
    segments        whether video ids end in _START_END: queries of one source are no negatives
    max_tokens      rows of a query, start-of-text and [EOS] included; further words are cut
    max_clips, max_windows   a video or query with more is an error
    dtype           of features in memory and batches, 'float32' or 'float16'
    on_error        'raise' or 'skip'
    skip_list       file of records to leave out, see `skip_list`; '' for none
    limit           only the first so many records of a split; 0: all
    cache_gb        features of a split that stay in memory, in 10^9 bytes; the others are read
                    whenever a batch needs them. Negative: all stay
    records         folder of built data to read instead of the files, see `built`; '' for none
    dataset, features   its name and that of its feature release there
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines import annotations, lazy, release, saliency
from data_pipelines.errors import DataError


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What belongs to a data set, whatever the features.

    Attributes:
        annotations: split -> file name in the release.
        clip_length: seconds.
        saliency: how a clip's label is made, see `saliency.clip_labels`.
        max_windows: no query has more.
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
    max_windows: int
    segments: bool = False
    duration_unit: float = 1.0
    selection: tuple[str, ...] = ('MR-full-mAP',)
    round_to_clip: bool = True
    clip_to: tuple[float, float] = (0.0, 150.0)


_WHOLE_VIDEO = 0.0, 50000.0  # as the public post-processing writes it

# docs/datasets.md tells where each comes from, and its traps.
DATASETS = {
    'qvhighlights': Dataset(
        annotations={
            'train': 'highlight_train_release.jsonl',
            'val': 'highlight_val_release.jsonl',
            'test': 'highlight_test_release.jsonl',
        },
        clip_length=2.0,
        saliency='annotators',
        max_windows=30,  # val has 25
        segments=True,
    ),
    'charades_sta': Dataset(
        annotations={
            'train': 'charades_sta_train_tvr_format.jsonl',
            'val': 'charades_sta_test_tvr_format.jsonl',  # there is no third split
            'test': 'charades_sta_test_tvr_format.jsonl',
        },
        clip_length=1.0,
        saliency='window',
        max_windows=1,
        selection=('MR-full-R1@0.5', 'MR-full-R1@0.7'),
    ),
    'tacos': Dataset(
        # The public scripts choose their checkpoints on the test split.
        annotations={'train': 'train.jsonl', 'val': 'val.jsonl', 'test': 'test.jsonl'},
        clip_length=2.0,
        saliency='window',
        max_windows=1,
        selection=('MR-full-R1@0.3',),
        clip_to=_WHOLE_VIDEO,
    ),
    'tvsum': Dataset(
        annotations={
            'train': 'tvsum_train.jsonl',
            'val': 'tvsum_val.jsonl',  # there is no third split
            'test': 'tvsum_val.jsonl',
        },
        clip_length=2.0,
        saliency='grades',
        max_windows=1,  # none, but the batch has a place for them
        duration_unit=2.0,  # `duration` counts clips
        selection=('mAP',),
        clip_to=_WHOLE_VIDEO,
    ),
    'youtube_highlights': Dataset(
        annotations={
            'train': 'youtube_train.jsonl',
            'val': 'youtube_valid.jsonl',  # there is no third split
            'test': 'youtube_valid.jsonl',
        },
        clip_length=1.0,  # as the public scripts say; clips are 50 frames apart
        saliency='binary',
        max_windows=1,
        selection=('mAP',),
        clip_to=_WHOLE_VIDEO,
    ),
    'synthetic': Dataset(
        annotations={'train': 'train.jsonl', 'val': 'val.jsonl', 'test': 'test.jsonl'},
        clip_length=2.0,
        saliency='annotators',
        max_windows=5,
    ),
    'custom': Dataset(  # configs/custom.py reads sizes off the user's files
        annotations={'train': 'train.jsonl', 'val': 'val.jsonl', 'test': 'test.jsonl'},
        clip_length=2.0,
        saliency='windows',
        max_windows=5,
        round_to_clip=False,
    ),
}

_SF_CLIP = dict(
    video_dirs=('slowfast_features', 'clip_features'), video_dims=(2304, 512),
    text_dir='clip_text_features', text_dim=512, text_layout='clip')
_IV2 = dict(video_dims=(768,), text_dim=4096, text_layout='llama')

# Highlight data sets: CLIP rows as they are, titles and domain names of a few words.
_HIGHLIGHTS = dict(text_dim=512, text_layout='clip', normalize_text=False, max_tokens=77)

# (data set, release of features) -> fields of `data`, and `clip_to` of `evaluate`. Limits of clips
# leave room for what releases add to the longest video's duration.
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
    # Widths and limits are those of the generated world.
    ('synthetic', 'planted'): dict(video_dirs=('video',), text_dir='text', text_layout='clip'),
    ('custom', 'own'): dict(
        video_dirs=('video',), text_dir='text', text_layout='clip', max_tokens=40),
}


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
        problems: what was skipped, on purpose or on_error, one message each.
    """

    name: str
    queries: list[annotations.Query]
    videos: Sequence[np.ndarray]
    video_index: np.ndarray
    source_index: np.ndarray
    text: Sequence[np.ndarray]
    roles: list[np.ndarray]
    saliency: list[np.ndarray]
    problems: list[str]


def load_split(data: Any, split: str) -> Split:
    """Reads a split, each video once, and keeps as much of it in memory as data.cache_gb says.

    All files are read and checked, whatever is kept. Of built data (data.records), which were
    checked when they were built, videos are checked only with data.on_error = 'skip'.

    Raises:
        DataError: the config or a folder is wrong, the split has no annotation file, nothing usable
            is left, or a record or one of its files is bad. With data.on_error = 'skip', bad
            records are left out instead and reported in `problems`.
    """
    problems = annotations.problem_list(data)
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

    records, roles = [], []
    for record in store.queries(problems):
        if (query := annotations.attempt(problems, store.query, record.qid)) is not None:
            memory.keep(('text', record.qid), query[0])
            records.append(record)
            roles.append(query[1])
    lengths = {}
    for vid, uses in collections.Counter(record.vid for record in records).items():
        n_clips = annotations.attempt(problems, store.n_clips, vid, read_clips)
        if n_clips is None:
            problems[-1] += f' (skipped records: {uses})'
        else:
            lengths[vid] = n_clips
    kept = [i for i, record in enumerate(records) if record.vid in lengths]
    if not kept:
        reason = f'; the first of {len(problems)} problems: {problems[0]}' if problems else ''
        raise DataError(f'{store.name}: no usable record{reason}')
    records, roles = [records[i] for i in kept], [roles[i] for i in kept]
    places = {vid: place for place, vid in enumerate(lengths)}
    sources = [r.vid.rsplit('_', 2)[0] if data.segments else r.vid for r in records]
    # In memory they are lists, which can also be changed.
    collect = list if memory.unlimited else lambda rows: rows
    return Split(
        name=split,
        queries=records,
        videos=collect(lazy.Rows(read_clips, lengths)),
        video_index=np.array([places[record.vid] for record in records], np.int32),
        source_index=np.unique(sources, return_inverse=True)[1].astype(np.int32),
        text=collect(lazy.Rows(read_text, [record.qid for record in records])),
        roles=roles,
        saliency=[saliency.clip_labels(record, lengths[record.vid], data.saliency)
                  for record in records],
        problems=[*store.left_out, *(problems or [])],
    )


