"""Generated data of a config: a world in pixels, read by a small CLIP and by the loader."""

import shutil

import numpy as np
import pytest

from configs import pixels
from data_pipelines import datasets, film, recipe, world
from data_pipelines.errors import UserError
from dualground_jax import sweep, worlds
from dualground_jax.encoders import clip
from tests.helpers import clip_folder


@pytest.fixture(scope='module', name='encoder')
def small_clip(tmp_path_factory):
    return clip_folder.write(tmp_path_factory.mktemp('encoder') / 'clip')


@pytest.fixture(name='config')
def small_config(encoder, tmp_path):
    config = pixels.get_config(f'runlocal,encoder={encoder},root={tmp_path / "world"}')
    config.world.update(train_queries=3, val_queries=2, test_queries=1, attribute_swaps=0.5)
    return config


def test_features_are_the_encoders_of_rendered_frames(config, encoder):
    worlds.prepare(config)
    split = datasets.load_split(config.data, 'train')
    own = clip.load(encoder)
    drawn = {one.name: one for one in world.videos(world.read(config.world))}
    assert len(split.queries) == 3
    for i, query in enumerate(split.queries):
        one = drawn[query.vid]
        frames = film.frames(one, film.middles(len(one.visible)), own.size)
        rows = own.encode_frames(frames)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        np.testing.assert_allclose(split.videos[split.video_index[i]], rows, atol=2e-3)
        [text] = own.encode_text([query.query])
        text = text / np.linalg.norm(text, axis=1, keepdims=True)
        np.testing.assert_allclose(split.text[i], text, atol=2e-3)
    assert recipe.read(config.data.root).streams[0].weights == own.weights_hash


def test_a_world_is_known_by_its_encoders_weights(config, encoder, tmp_path):
    worlds.prepare(config)
    moved = shutil.copytree(encoder, tmp_path / 'moved')
    config.world.encoder = str(moved)
    worlds.prepare(config)
    shutil.rmtree(moved)
    clip_folder.write(moved, seed=1)
    with pytest.raises(UserError, match=r'holds other data, .*recipe\.clip\.weights'):
        worlds.prepare(config)


def test_a_sweep_over_encoders_has_a_world_of_each(config, encoder, monkeypatch):
    monkeypatch.chdir(encoder.parent)
    config_of = lambda arguments: pixels.get_config(f'encoder={arguments["encoder"]},root=own')
    shutil.copytree(encoder, 'clip_b', dirs_exist_ok=True)
    _, runs = sweep.plan(config_of(dict(encoder='clip')), 'runs', [
        f'{sweep.ARGUMENT}encoder=clip,clip_b', 'world.seed=1,2'], config_of)
    roots = [one.config.data.root for one in runs]
    assert roots == [f'own{of_encoder},world.seed={seed}'
                     for of_encoder in ('', ',world.encoder=clip_b') for seed in (1, 2)]
    assert [one.changes['data.root'] for one in runs] == roots


def test_mistakes_are_told_in_a_line(config, tmp_path):
    with pytest.raises(UserError, match='nowhere: no such folder'):
        pixels.get_config(f'encoder={tmp_path / "nowhere"}')
    config.world.attribute_swaps = 2.0
    with pytest.raises(UserError, match='world.attribute_swaps is 2.0, expected 0 to 1'):
        worlds.prepare(config)
    assert not (tmp_path / 'world').exists()
