"""Sentences in single videos: in stretches, several at once, by an encoder."""

import numpy as np
import pytest

from data_pipelines import release
from data_pipelines.errors import ConfigError, DataError
from data_pipelines.recipe import Recipe, Stream
from dualground_jax.config import load_config
from dualground_jax.grounding import stretches
from dualground_jax.grounding.encoded import EncodedVideo
from dualground_jax.grounding.predictor import Moments, Predictor
from tests.helpers import fresh_runs

MOST = 12  # clips of a stretch


@pytest.fixture(scope='module', name='workdir')
def fresh_run(tmp_path_factory):
    return fresh_runs.save(tmp_path_factory.mktemp('run'), **{'data.max_clips': MOST})


@pytest.fixture(scope='module', name='predictor')
def fresh_predictor(workdir):
    return Predictor.from_checkpoint(workdir)


@pytest.fixture(name='video')
def random_video():
    return np.random.default_rng(0).normal(size=(31, 96)).astype(np.float32)


@pytest.fixture(name='query')
def random_query():
    return np.random.default_rng(1).normal(size=(5, 64)).astype(np.float32)


def iou(a, b):
    inter = max(min(a[1], b[1]) - max(a[0], b[0]), 0)
    return inter / (a[1] - a[0] + b[1] - b[0] - inter)


def test_a_long_video_is_read_in_stretches(predictor, workdir, video, query):
    """Against a loop that reads one stretch at a time, and suppresses by Python's means."""
    single = Predictor.from_checkpoint(workdir, load_config(workdir, {'evaluate.nms': 2.0}))
    single.predict_step = single.stretch_step
    first, found = stretches.starts(31, MOST), []
    total, count = np.zeros((2, 31))
    assert first == [0, 6, 12, 18, 19]
    for start in first:
        windows, saliency = single.predict(video[start : start + MOST], query)
        total[start : start + MOST] += saliency
        count[start : start + MOST] += 1
        found.append((start, windows, 1 / (1 + np.exp(-saliency.max()))))
    likeliest = max(weight for *_, weight in found)
    rows = [(2 * start + row[0], 2 * start + row[1], row[2] * weight / likeliest)
            for start, windows, weight in found for row in windows.astype(float)]
    kept = []
    for row in sorted(rows, key=lambda row: -row[2]):
        if all(iou(row, other) < 0.7 for other in kept):
            kept.append(row)
    moments = predictor.predict(video, query)
    assert len(moments.windows) == min(len(kept), 10) and len(kept) > 3
    np.testing.assert_allclose(moments.windows, kept[:10], atol=2e-4)
    np.testing.assert_allclose(moments.saliency, total / count, atol=1e-5)
    relevance = moments.relevance
    assert relevance.min() == 0 and relevance.max() == 1
    spread = np.ptp(moments.saliency)
    np.testing.assert_allclose(np.diff(relevance), np.diff(moments.saliency) / spread, atol=1e-5)
    assert Moments(np.zeros((0, 3)), np.array([-3.0])).relevance.tolist() == [1]


def test_a_video_that_fits_is_one_stretch(predictor, video, query, monkeypatch):
    monkeypatch.setattr(predictor, 'stretch_step', None)
    windows, saliency = predictor.predict(video[:MOST], query)
    assert len(saliency) == MOST and windows[:, 1].max() <= 2 * MOST


@pytest.mark.parametrize('n_clips', [7, 31])
def test_several_queries_at_once(predictor, video, query, n_clips):
    """In batches of other sizes they get what each gets alone."""
    queries = [query, query[:3], query[::-1].copy()]
    together = predictor.predict(video[:n_clips], queries)
    assert len(together) == 3
    for own, moments in zip(queries, together):
        alone = predictor.predict(video[:n_clips], own)
        np.testing.assert_allclose(moments.windows, alone.windows, atol=1e-4)
        np.testing.assert_allclose(moments.saliency, alone.saliency, atol=1e-5)
    assert predictor.predict(video, []) == []


def test_batches_are_bounded(predictor, video, query):
    """Six hours of video go through programs of few sizes."""
    sizes = []

    def step(params, batch):
        sizes.append(batch['video'].shape[:2])
        rows, clips = sizes[-1]
        return np.zeros((rows, 3, 3), np.float32), np.zeros((rows, clips), np.float32)

    long = np.resize(video, (6 * 1800, 96))
    bounded = Predictor(predictor.config, {}, None, step, predictor.mesh)
    assert len(bounded.predict(long, query).saliency) == len(long)
    assert predictor.config.evaluate.batch_size == 8
    assert len(set(sizes)) <= 4 and max(sizes) == (8, MOST)


def test_moments_end_with_the_video(predictor, video, query):
    windows, _ = predictor.predict(video, query, duration=41.0)
    assert len(windows) and windows[:, 0].max() < 41 and windows[:, 1].max() <= 41


def test_an_encoder_is_asked_for(predictor, video, query, tmp_path):
    with pytest.raises(ConfigError, match="encoder='clip=FOLDER'"):
        predictor.predict(video, 'a dog runs')
    with pytest.raises(ConfigError, match="encoder='clip=FOLDER'"):
        predictor.encode_video('beach.mp4')
    with pytest.raises(ConfigError, match="encoder='clip=FOLDER'"):
        predictor.predict('beach.mp4', query)
    for blank in ('', [' ']):
        with pytest.raises(DataError, match='a query is empty, expected a sentence'):
            predictor.predict(video, blank)
    with pytest.raises(DataError, match='nowhere/a.npz: no such folder'):
        EncodedVideo([video], 2.0).save(tmp_path / 'nowhere' / 'a.npz')


class FakeEncoder:
    """Pictures are their rows already; a sentence's rows are drawn by its letters."""

    def __init__(self, **changes):
        stream = dict(folder='clip', encoder='clip', weights='abc', width=96)
        text = Stream('text', 'clip', 'abc', 64, layout='clip')
        self.recipe = Recipe(**dict(clip_length=2.0, rule='middle', text=text, streams=(
            Stream(**stream),)) | changes)

    def encode_video(self, video):
        return [np.stack(list(video))]

    def encode_text(self, sentences):
        return [np.random.default_rng(list(text.encode())).normal(size=(len(text), 64))
                for text in sentences]

    def encode_sentences(self, sentences):
        return np.stack([np.random.default_rng(len(text)).normal(size=96) for text in sentences])


@pytest.fixture(name='sighted')
def with_encoder(workdir):
    return Predictor.from_checkpoint(workdir, encoder=FakeEncoder())


@pytest.mark.parametrize('n_clips', [9, 31])
def test_sentences_are_grounded_in_encoded_videos(sighted, predictor, video, n_clips, tmp_path):
    sentences = ['a dog', 'the sun sets']
    encoded = sighted.encode_video(iter(video[:n_clips]))
    assert encoded.duration == 2 * n_clips and encoded.recipe == sighted.encoder.recipe
    encoded.save(tmp_path / 'video.npz')
    loaded = EncodedVideo.load(tmp_path / 'video.npz')
    assert loaded.duration == encoded.duration and loaded.recipe == encoded.recipe
    np.testing.assert_array_equal(loaded.streams, encoded.streams)
    together = sighted.predict(loaded, sentences)
    for sentence, moments in zip(sentences, together, strict=True):
        alone = sighted.predict(encoded, sentence)
        np.testing.assert_allclose(alone.windows, moments.windows, atol=1e-4)
        rows, = sighted.encoder.encode_text([sentence])
        blind = predictor.predict(video[:n_clips], rows)
        np.testing.assert_allclose(alone.saliency, blind.saliency, atol=1e-5)
        if n_clips <= MOST:
            np.testing.assert_array_equal(alone.windows, blind.windows)


def test_stretches_are_weighted_by_cosines(sighted, video):
    encoded = sighted.encode_video(video)
    clips = video / np.linalg.norm(video, axis=1, keepdims=True)
    sentence, = sighted.encoder.encode_sentences(['a dog'])
    cosines = clips @ sentence / np.linalg.norm(sentence)
    weights = [cosines[start : start + MOST].max() for start in (0, 6, 12, 18, 19)]
    rows, = sighted.encoder.encode_text(['a dog'])
    text = release.label_query(sighted.config.data, rows.astype(np.float32), 'query')
    windows, saliency = (x[0] for x in sighted.read_stretches(clips, [text], 62.0))
    expected = sighted.fuse(windows, saliency, 31, np.array(weights))
    found = sighted.predict(encoded, 'a dog')
    np.testing.assert_allclose(found.windows, expected.windows, atol=1e-4)
    unweighted = sighted.fuse(windows, saliency, 31, np.ones(5))
    assert np.abs(found.windows[:, 2] - unweighted.windows[:, 2]).max() > 0.01


@pytest.mark.parametrize('changes, message', [
    (dict(clip_length=1.0), 'clip_length is 1.0, the model was trained on 2.0'),
    (dict(streams=(Stream('clip', 'clip', 'abc', 512),)), r'video_dims is \(512,\), .* \(96,\)'),
    (dict(text=Stream('text', 'clip', 'abc', 64, layout='llama')), 'text_layout is llama, .* clip'),
])
def test_another_encoder_is_refused(workdir, changes, message):
    with pytest.raises(DataError, match=message):
        Predictor.from_checkpoint(workdir, encoder=FakeEncoder(**changes))


def test_features_by_another_recipe_are_refused(sighted, video):
    with sighted.config.unlocked():
        sighted.config.data.recipe = sighted.encoder.recipe.to_json()
    other = FakeEncoder(rule='legacy').recipe
    with pytest.raises(DataError, match='video: .*rule: middle there, legacy here'):
        sighted.predict(EncodedVideo([video], 62.0, other), 'a dog')


@pytest.mark.parametrize('content', [b'', b'no numpy file', None])
def test_what_is_no_encoded_video_is_refused(content, tmp_path):
    path = tmp_path / 'video.npz'
    if content is None:
        np.savez(path, features=np.zeros((3, 4)))
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match="video.npz: can't be read.*what EncodedVideo.save wrote"):
        EncodedVideo.load(path)
