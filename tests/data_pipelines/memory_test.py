"""A data set larger than what is kept of it in memory."""

import tracemalloc

import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipelines import datasets, pipeline
from data_pipelines.schedule import Schedule, limits, query_sizes
from tests.helpers.release_files import LINE, make_release, make_rows, write_lines

pytest.importorskip('array_record', reason='array_record has no release for this platform')

N_VIDEOS, N_CLIPS, WIDTH = 100, 50, 1024  # 20 MB


def peak(data) -> tuple[int, int]:
    """Reads each query once; returns (sum of their places, most bytes held meanwhile)."""
    tracemalloc.start()
    split = datasets.load_split(data, 'train')
    plan = Schedule(query_sizes(split), batch_size=2, seed=0, buckets=[limits(data)])
    batches = pipeline.train_batches(split, data, plan, {range(N_VIDEOS // 2): limits(data)})
    total = sum(int(batch['index'].sum()) for batch in batches)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return total, held


def test_more_features_than_memory(tmp_path):
    from data_pipelines import tfds_builders

    data = make_release(tmp_path, video_dirs=('slow',), video_dims=(WIDTH,), max_clips=N_CLIPS,
                        max_spans=2, records=str(tmp_path / 'records'),
                        annotations={'train': 'train.jsonl'})
    for i in range(N_VIDEOS):
        np.save(tmp_path / 'slow' / f'v{i}.npy', make_rows(N_CLIPS, WIDTH, i))
        np.save(tmp_path / 'text' / f'qid{i}.npy', make_rows(4, 8, i))
    (tmp_path / 'text' / 'qid1.npz').unlink()
    write_lines(tmp_path / 'train.jsonl',
                [{**LINE, 'qid': i, 'vid': f'v{i}'} for i in range(N_VIDEOS)])
    tfds_builders.build(ConfigDict(vars(data)))
    size = N_VIDEOS * N_CLIPS * WIDTH * 4
    for records in ('', data.records):
        for cache_gb, most in ((0.0, 0.3), (0.004, 0.5), (-1.0, np.inf)):
            read = ConfigDict(vars(data) | dict(records=records, cache_gb=cache_gb))
            total, held = peak(read)
            assert total == sum(range(N_VIDEOS))
            assert held < most * size, (records, cache_gb)
            assert cache_gb >= 0 or held > size, 'all of it is kept, and counted'
