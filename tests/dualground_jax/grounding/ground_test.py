"""Mode `predict` on single videos: files that it writes, and what it refuses."""

import json
import types

import numpy as np
import pytest

from data_pipelines import video
from data_pipelines.errors import ConfigError, DataError
from dualground_jax.grounding import ground
from dualground_jax.grounding.encoded import EncodedVideo
from dualground_jax.grounding.predictor import Moments
from tests.helpers import fresh_runs


@pytest.fixture(scope='module', name='workdir')
def fresh_run(tmp_path_factory):
    return fresh_runs.save(tmp_path_factory.mktemp('run'), **{'data.max_clips': 12})


@pytest.fixture(name='values')
def flags(workdir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.savez('video.npz', features=rng.normal(size=(31, 96)))
    np.savez('query.npz', last_hidden_state=rng.normal(size=(5, 64)))
    return types.SimpleNamespace(
        workdir=str(workdir), video=[], query=[], video_features=['video.npz'],
        query_features='query.npz', output=None, top=10, save_plot=None, encoder=None)


def test_a_line_for_a_query_and_a_video(values, capsys):
    values.top = 2
    ground.run(values, None)
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (row['video'], row['query'], row['clip_length']) == ('video.npz', 'query.npz', 2)
    assert len(row['windows']) == 2 and row['duration'] == 62
    assert len(row['saliency']) == len(row['relevance']) == 31
    values.output, values.save_plot = 'a.json,a.csv', 'plots'
    ground.run(values, None)
    assert not capsys.readouterr().out
    assert json.load(open('a.json')) == [row]
    assert len(open('a.csv').readlines()) == 3
    assert open('plots/video_1.png', 'rb').read(4) == b'\x89PNG'


def test_what_is_missing_is_told_first(values):
    values.output = 'a.edl'
    with pytest.raises(ConfigError, match='a cut list needs --video=FILE'):
        ground.run(values, None)
    values.query = ['']
    with pytest.raises(DataError, match='a query is empty'):
        ground.run(values, None)
    values.query = ['a dog']
    with pytest.raises(ConfigError, match='--video and --query need --encoder=clip=FOLDER'):
        ground.run(values, None)


class FakePredictor:
    """Finds one moment in every video but those that are damaged."""

    config = types.SimpleNamespace(data=types.SimpleNamespace(clip_length=2.0))

    def require_encoder(self):
        return types.SimpleNamespace(encode_text=list)

    def encode_video(self, path):
        if 'bad' in path:
            raise DataError(f'{path}: ends after 3 of 8 s')
        return EncodedVideo([], 8.0)

    def predict(self, encoded, queries):
        return [Moments(np.array([[2, 6, 0.5]], np.float32), np.arange(4, dtype=np.float32))
                for _ in queries]


def test_a_damaged_video_leaves_the_others_their_moments(values, monkeypatch, capsys):
    monkeypatch.setattr(ground.Predictor, 'from_checkpoint', lambda *_: FakePredictor())
    monkeypatch.setattr(video, 'probe', lambda path: types.SimpleNamespace(frame_rate=25.0))
    values.video, values.query = ['a.mp4', 'bad.mp4', 'c.mp4'], ['a dog', 'the sun']
    values.video_features, values.query_features, values.encoder = [], None, 'clip=X'
    values.output = 'a.csv,a.edl,a.ffconcat'
    with pytest.raises(DataError, match=r'^1 of 3 videos failed, the first: bad.mp4: ends after'):
        ground.run(values, None)
    assert 'error: bad.mp4: ends' in capsys.readouterr().err
    lines = open('a.csv').read().splitlines()
    assert lines[1:] == [f'{path},{query},1,2.0,6.0,0.5' for path in ('a.mp4', 'c.mp4')
                         for query in ('a dog', 'the sun')]
    assert open('a.edl').read().count('FROM CLIP NAME') == 4
    assert open('a.ffconcat').read().count('\nfile ') == 4
