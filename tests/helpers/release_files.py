"""For tests: a small release written here, its raw features, and what errors about it say."""

import json
import types

import numpy as np
import pytest

from data_pipelines import annotations
from data_pipelines.errors import DataError
from tests.helpers.paths import REAL

needs_real_data = pytest.mark.skipif(not REAL.is_dir(), reason='no ../shared/data')

LINE = {
    'qid': 1, 'query': 'a dog runs', 'duration': 10, 'vid': 'v_0.0_10.0',
    'relevant_windows': [[2, 6]], 'relevant_clip_ids': [1, 2],
    'saliency_scores': [[3, 4, 2], [1, 0, 1]],
}  # fmt: skip


def make_rows(n, width, seed=0):
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


def write_lines(path, lines):
    path.write_text('\n'.join(json.dumps(line) for line in lines))


def make_release(root, **changes):
    """Writes a release of three queries on two videos and returns its config node."""
    for folder in ('slow', 'clip', 'text'):
        (root / folder).mkdir(parents=True)
    lines = [LINE, {**LINE, 'qid': 'b', 'vid': 'w'}, {**LINE, 'qid': 3}]
    write_lines(root / 'train.jsonl', lines)
    for seed, vid in enumerate(('v_0.0_10.0', 'w')):
        np.savez(root / 'slow' / f'{vid}.npz', features=make_rows(5 + seed, 4, seed))
        np.save(root / 'clip' / f'{vid}.npy', make_rows(6, 3, 10 + seed))
    np.savez(root / 'text' / 'qid1.npz', last_hidden_state=make_rows(6, 8, 20))
    np.savez(root / 'text' / 'b.npz', last_hidden_state=make_rows(4, 8, 21).astype(np.float16))
    np.save(root / 'text' / 'qid3.npy', make_rows(3, 8, 22))
    data = dict(
        root=str(root), annotations={'train': 'train.jsonl', 'val': 'val.jsonl', 'test': ''},
        video_dirs=('slow', 'clip'), video_dims=(4, 3), text_dir='text', text_dim=8,
        text_layout='clip', clip_length=2.0, max_clips=8, max_tokens=20, max_windows=2,
        dtype='float32', normalize_text=True, saliency='annotators', segments=True,
        on_error='raise', skip_list='', limit=0, domain='', duration_unit=1.0, video_parts=('',),
        text_key='last_hidden_state', cache_gb=-1.0, records='', dataset='tiny', features='raw',
        end_tolerance=1.0, clip_windows=False, empty_windows='refuse',
    )  # fmt: skip
    return types.SimpleNamespace(**{**data, **changes})


def read_lines(tmp_path, lines, skipped=None, **changes):
    path = tmp_path / 'a.jsonl'
    write_lines(path, lines)
    data = annotation_config(**{'max_windows': 2, **changes})
    return annotations.read_annotations(path, data, skipped)


def annotation_config(**changes):
    """What `annotations.read_annotations` reads of a config node."""
    values = dict(limit=0, max_windows=30, domain='', duration_unit=1.0, saliency='annotators',
                  clip_length=2.0, end_tolerance=1.0, clip_windows=False, empty_windows='refuse')
    return types.SimpleNamespace(**{**values, **changes})


def with_value(value):
    rows = make_rows(4, 5)
    rows[2, 3] = value
    rows[3, 0] = value
    return rows


def unit(rows):
    return np.stack([row / (np.sqrt((row**2).sum()) + 1e-5) for row in rows])


def refusal(function, *args, **kwargs):
    """Returns the DataError's message, which must be one line."""
    with pytest.raises(DataError) as info:
        function(*args, **kwargs)
    message = str(info.value)
    assert '\n' not in message
    return message


def assert_parts(message, *parts):
    for part in parts:
        assert str(part) in message, f'{part!r} is not in {message!r}'
