"""The world in pixels: frames, what is bound to what, features of an encoder, video files."""

import dataclasses
import json
import re

import numpy as np
import pytest

from data_pipelines import film, pictures, recipe, render, scenes, sentences, video, world
from data_pipelines.errors import ConfigError, UserError
from tests.helpers import videos

PIXELS = world.World(encoder='somewhere', train_queries=12, val_queries=4, test_queries=1,
                     min_concepts=6)
NOUN = '|'.join(sentences.LEXICON['actor'] + sentences.LEXICON['object'])
ATTRIBUTE = '|'.join(sentences.LEXICON['attribute'])


class Colours:
    """In place of an encoder: a picture's mean colour and position, the lengths of words."""

    def __init__(self, weights='0', size=24):
        self.recipe = recipe.Recipe(
            2.0, 'middle', (recipe.Stream('clip', 'clip', weights, 4, size),),
            recipe.Stream('text', 'clip', weights, 1, layout='clip'))

    def encode_video(self, pictures):
        return [np.stack([[*p.mean((0, 1)), i] for i, p in enumerate(pictures)])]

    def encode_text(self, sentences):
        return [np.array([[len(word)] for word in sentence.split()]) for sentence in sentences]


@pytest.fixture(scope='module', name='drawn')
def draw_videos():
    return list(world.videos(PIXELS))


def test_a_frame_hangs_on_its_time_alone(drawn):
    times = [0.0, 0.5, 3.0, 7.25]
    together = film.frames(drawn[0], times)
    assert together.shape == (4, 64, 64, 3) and together.dtype == np.uint8
    for time, frame in zip(times, together, strict=True):
        np.testing.assert_array_equal(film.frames(drawn[0], [time])[0], frame)
    assert not np.array_equal(together[0], together[1])
    assert not np.array_equal(together[0], film.frames(drawn[1], [0.0])[0])


def test_figures_keep_their_places_in_a_scene_and_move(drawn):
    inside, across = [], []
    for one in drawn[:4]:
        ends = [2 * scene.end for scene in one.scenes]
        times = np.arange(0, ends[-1], 0.5)
        shown = film.frames(one, times, noise=0).astype(float)
        change = np.abs(np.diff(shown, axis=0)).mean((1, 2, 3))
        cuts = np.isin(times[1:], ends)
        inside += change[~cuts].tolist()
        across += change[cuts].tolist()
        assert cuts.sum() == len(ends) - 1
    assert np.median(inside) > 0 and max(inside) < 0.8 * min(across)


def test_each_scene_has_a_background_and_each_frame_its_grain(drawn):
    twice = [dataclasses.replace(drawn[0].scenes[0], start=i, end=i + 1) for i in range(2)]
    one = dataclasses.replace(drawn[0], scenes=twice, visible=np.zeros_like(drawn[0].visible))
    first, later, other = film.frames(one, [0, 1, 2], noise=0)
    np.testing.assert_array_equal(first, later)
    assert not np.array_equal(first, other)
    grain = film.frames(one, [0, 1], noise=8).astype(float) - first
    assert np.corrcoef(*grain.reshape(2, -1))[0, 1] < 0.1
    np.testing.assert_allclose(grain.std((1, 2, 3)), 8, rtol=0.1)


def test_frames_show_a_scenes_figures_by_their_strengths(drawn):
    """What a frame shows beside its background is what `visible` says."""
    one = drawn[0]
    scene = one.scenes[0]
    dark = dataclasses.replace(one, visible=np.zeros_like(one.visible))
    faint = dataclasses.replace(one, visible=one.visible / 2)
    empty, half, full = (film.frames(v, [1.0], noise=0)[0].astype(float)
                         for v in (dark, faint, one))
    assert np.abs(full - empty).mean() > 1.8 * np.abs(half - empty).mean() > 5
    shown = pictures.bind(scene.concepts) + pictures.bind(scene.extras)
    assert 22 ** 2 > (np.abs(full - empty).max(2) > 20).sum() / len(shown) > 10 ** 2


def test_features_of_pictures_beside_the_planted_worlds_annotations(tmp_path):
    noisy = dataclasses.replace(PIXELS, camera_noise=60)
    planted = world.generate(dataclasses.replace(PIXELS, encoder=''), tmp_path / 'planted')
    seen = world.generate(noisy, tmp_path / 'seen', Colours())
    drawn = {one.name: one for one in world.videos(noisy)}
    for split in world.SPLITS:
        assert (planted / f'{split}.jsonl').read_bytes() == (seen / f'{split}.jsonl').read_bytes()
    rows = [json.loads(line) for line in (seen / 'train.jsonl').read_text().splitlines()]
    for row in rows:
        found = np.load(seen / 'clip' / f'{row["vid"]}.npz')['features']
        middles = 2 * np.arange(row['duration'] // 2) + 1 - 1 / 8
        expected = film.frames(drawn[row['vid']], middles, 24, 60).mean((1, 2))
        np.testing.assert_allclose(found[:, :3], expected, atol=0.1)
        text = np.load(seen / 'text' / f'qid{row["qid"]}.npz')['last_hidden_state']
        assert text[:, 0].tolist() == [len(word) for word in row['query'].split()]
    assert recipe.read(seen) == Colours().recipe
    assert world.generate(dataclasses.replace(noisy, encoder='moved'), seen, Colours()) == seen
    with pytest.raises(UserError, match="holds other data.*: recipe.clip.weights '0', asked for"):
        world.generate(noisy, seen, Colours('1'))


def bound(words):
    """What a sentence says, read by a pattern: nouns with their attributes, other concepts."""
    pairs = re.findall(rf'(?:({ATTRIBUTE}) )?\b({NOUN})\b', ' '.join(words))
    return {*pairs, *(w for w in words if sentences.WORD_CLASS.get(w, 'attribute') not in (
        'attribute', 'actor', 'object'))}


def test_scenes_with_exchanged_attributes_are_no_answer():
    swapping = dataclasses.replace(PIXELS, train_queries=60, attribute_swaps=1.0)
    alike, exchanged = 0, 0
    for one in world.videos(swapping):
        for record, _ in one.queries:
            words = record['query'].split()
            windows = []
            for scene in one.scenes:
                shown = [sentences.CONCEPTS[i] for i in scene.concepts]
                same = sorted(shown) == sorted(w for w in words if w in sentences.WORD_CLASS)
                alike += same
                if same and bound(shown) == bound(words):
                    windows.append([2 * scene.start, 2 * scene.end])
                exchanged += same and bound(shown) != bound(words)
            assert windows and record['relevant_windows'] == windows
    assert exchanged > 20 and alike > exchanged
    for value, encoder in ((0.5, ''), (1.5, 'x')):
        with pytest.raises(UserError, match='world.attribute_swaps is .*, expected 0 to'):
            world.World(encoder=encoder, attribute_swaps=value)


@pytest.mark.parametrize('ending, codec', [('mp4', 'h264'), ('webm', 'vp9')])
def test_rendered_files_are_the_videos(ending, codec, tmp_path):
    """Their middle frames, read back, are those that features are made of."""
    small = dataclasses.replace(PIXELS, train_queries=1, val_queries=4, min_clips=13,
                                max_clips=13, camera_noise=2.0, shared_videos=1.0)
    folder = render.render(small, tmp_path / 'r', ['val'], 1, ending)
    generated = world.generate(dataclasses.replace(small, encoder=''), tmp_path / 'w')
    lines = (folder / 'val.jsonl').read_text().splitlines()
    assert lines == (generated / 'val.jsonl').read_text().splitlines()[:1]
    drawn = {one.name: one for one in world.videos(small)}
    names = {json.loads(line)['vid'] for line in lines}
    assert {path.stem for path in (folder / 'videos').iterdir()} == names
    for name in names:
        path = folder / 'videos' / f'{name}.{ending}'
        probed = video.probe(path)
        assert (probed.codec, probed.duration, probed.frame_rate) == (codec, 26.0, 8.0)
        found = np.stack(list(video.clip_frames(path, clip_length=2, rule='middle', size=64)))
        expected, later = (film.frames(drawn[name], film.middles(13) + shift, noise=0)
                           for shift in (0, 1))
        error, other = (np.abs(found.astype(float) - x).mean() for x in (expected, later))
        assert error < 6 and error < 0.6 * other
    made = path.stat().st_mtime_ns
    assert render.render(small, folder, ['val'], 1, ending) == folder
    assert path.stat().st_mtime_ns == made
    with pytest.raises(UserError, match='holds other data.*limit 1, asked for 2'):
        render.render(small, folder, ['val'], 2, ending)


def test_a_written_video_is_what_ffmpeg_reads(tmp_path):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (5, 6, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    video.write(tmp_path / 'a.mp4', iter(frames), 4)
    found = videos.read(tmp_path / 'a.mp4', 48, shape=(64, 48))
    assert [float(time) for time in found.times] == [0, 0.25, 0.5, 0.75, 1]
    expected = frames[:, :, 8:56]
    assert np.abs(found.pictures.astype(float) - expected).mean() < 12
    with pytest.raises(ConfigError, match=r'b.gif: expected a name that ends in .mp4 or .webm'):
        video.write(tmp_path / 'b.gif', frames, 4)
    assert [path.name for path in tmp_path.iterdir()] == ['a.mp4']


def test_a_video_ends_with_its_last_scene(drawn):
    for one in drawn:
        assert [scene.start for scene in one.scenes] == [0, *(s.end for s in one.scenes)][:-1]
        assert len(one.visible) == len(one.planted) == one.scenes[-1].end
        assert one.queries[0][0]['duration'] == scenes.CLIP_SECONDS * len(one.visible)
