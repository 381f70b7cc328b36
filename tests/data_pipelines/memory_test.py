"""A data set larger than the memory that its process may have."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.helpers.paths import REPO
from tests.helpers.release_files import LINE, make_release, make_rows, write_lines

pytest.importorskip('array_record', reason='array_record has no release for this platform')
pytest.importorskip('resource', reason='needs a limit on the memory of a process')

N_VIDEOS, N_CLIPS, WIDTH = 240, 50, 3072  # 147 MB

# Lets a process have 40 MB more than it has after its first batches, then reads all.
SCRIPT = '''
import json, resource, sys, types
from data_pipelines import datasets, pipeline

def lap(data):
    split = datasets.load_split(data, 'train')
    batches = pipeline.train_batches(split, data, batch_size=2, seed=0, first_step=0, last_step=60)
    return sum(int(batch['index'].sum()) for batch in batches)

def memory():
    lines = open('/proc/self/status').read().split('\\n')
    return next(int(line.split()[1]) for line in lines if line.startswith('VmData:')) * 1024

data = types.SimpleNamespace(**json.loads(sys.argv[1]))
for folder in ('', data.records):
    lap(types.SimpleNamespace(**vars(data) | dict(records=folder, cache_gb=0.0, limit=4)))
limit = memory() + 40_000_000
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
for folder in ('', data.records):
    for cache in (0.0, 0.008, -1.0):
        read = types.SimpleNamespace(**vars(data) | dict(records=folder, cache_gb=cache))
        try:
            print(lap(read))
        except MemoryError:
            print('too large')
'''


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
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
    result = subprocess.run(
        [sys.executable, '-c', SCRIPT, json.dumps(vars(data))], cwd=REPO, text=True,
        env=os.environ | dict(MALLOC_ARENA_MAX='1'), capture_output=True, check=True)
    sums = result.stdout.split('\n')
    assert sums[:6] == [sums[0], sums[0], 'too large', sums[0], sums[0], 'too large']
