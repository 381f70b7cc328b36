"""features.json: read, compared, refused, and what configs take from it."""

import dataclasses
import json

import numpy as np
import pytest

from configs import charades, custom, qvh
from data_pipelines import datasets, recipe, release
from data_pipelines.errors import ConfigError, DataError
from dualground_jax import runs as runs_lib
from dualground_jax.checkpoints import CheckpointError
from tests.helpers.release_files import LINE, assert_parts, make_release, make_rows, write_lines

SLOW = recipe.Stream('slow', 'slowfast', 'sha256:aa', 4, 224)
CLIP = recipe.Stream('clip', 'clip', 'sha256:bb', 3, 224)
TEXT = recipe.Stream('text', 'clip', 'sha256:bb', 8, layout='clip')
BOTH = recipe.Recipe(2.0, 'middle', (SLOW, CLIP), TEXT)


def test_what_is_written_is_read(tmp_path):
    assert recipe.read(tmp_path) is None
    BOTH.write(tmp_path)
    assert recipe.read(tmp_path) == recipe.parse(BOTH.to_json()) == BOTH
    assert json.loads((tmp_path / 'features.json').read_text())['streams'][0]['folder'] == 'slow'
    assert recipe.parse('') is None


@pytest.mark.parametrize('change, told', [
    (dict(rule='legacy'), ['rule: middle there, legacy here']),
    (dict(clip_length=1.0), ['clip_length: 2.0 there, 1.0 here']),
    (dict(normalization='unit'), ['normalization: none there, unit here']),
    (dict(streams=(CLIP, SLOW)), ['streams: slowfast + clip there, clip + slowfast here']),
    (dict(streams=(CLIP,)), ['streams: slowfast + clip there, clip here']),
    (dict(streams=(SLOW, dataclasses.replace(CLIP, weights='sha256:cc'))),
     ['clip.weights: sha256:bb there, sha256:cc here']),
    (dict(streams=(SLOW, dataclasses.replace(CLIP, weights='sha256:cc', source='vit'))),
     ['clip.weights: sha256:bb there, sha256:cc (vit) here']),
    (dict(streams=(SLOW, dataclasses.replace(CLIP, source='vit'))), []),
    (dict(text=dataclasses.replace(TEXT, options='cleaned')),
     ['text.options:  there, cleaned here']),
    (dict(streams=(dataclasses.replace(SLOW, folder='a'), CLIP), text=None), []),
])
def test_differences_are_in_words(change, told):
    other = dataclasses.replace(BOTH, **change)
    assert recipe.differences(BOTH, other) == told
    if not told:
        recipe.check(BOTH, other, 'DIR')
    else:
        with pytest.raises(DataError) as info:
            recipe.check(BOTH, other, 'DIR')
        assert '\n' not in str(info.value)
        assert_parts(str(info.value), 'DIR', *told, '--config.evaluate.any_recipe=True')
    recipe.check(None, other, 'DIR')
    recipe.check(BOTH, None, 'DIR')


@pytest.mark.parametrize('text', [
    '', '{', '[]', '"x"', '{"streams": [3]}', '{"streams": [], "rule": "middle"}',
    BOTH.to_json().replace('"rule"', '"rules"'), b'\xff\xfe'])
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / 'features.json').write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(DataError) as info:
        recipe.read(tmp_path)
    assert str(info.value).startswith(f'{tmp_path}/features.json: ') and '\n' not in str(info.value)


def test_a_config_has_the_recipe_of_its_own_streams(tmp_path):
    data = make_release(tmp_path)
    assert datasets.recipe_of(data) is None
    BOTH.write(tmp_path)
    assert datasets.recipe_of(data) == BOTH
    data.video_dirs = ('clip', 'slow')
    assert [stream.encoder for stream in datasets.recipe_of(data).streams] == ['clip', 'slowfast']
    data.video_dirs = ('clip',)
    assert datasets.recipe_of(data) == dataclasses.replace(BOTH, streams=(CLIP,))
    data.video_dirs = ('other',)
    assert datasets.recipe_of(data) is None


def test_clips_of_another_length_are_refused(tmp_path):
    data = make_release(tmp_path, clip_length=1.0)
    BOTH.write(tmp_path)
    with pytest.raises(DataError, match=r'features.json: clips of 2.0 s, expected 1.0'):
        release.ReleaseSplit(data, 'train')


def test_feature_files_are_of_the_recipe_beside_them(tmp_path):
    BOTH.write(tmp_path)
    found = recipe.of_files([tmp_path / 'clip' / 'v.npz'])
    assert recipe.differences(dataclasses.replace(BOTH, streams=(CLIP,)), found) == []
    assert recipe.of_files([tmp_path / 'clip' / 'deeper' / 'v.npz']) is None


def test_configs_of_own_features_are_of_features_json(tmp_path):
    with pytest.raises(ConfigError, match='no features.json.*--mode=extract'):
        qvh.get_config(f'features=own,root={tmp_path}')
    dataclasses.replace(BOTH, clip_length=1.5).write(tmp_path)
    config = charades.get_config(f'features=own,root={tmp_path},model=cg_detr')
    assert (config.data.video_dirs, config.data.video_dims) == (('slow', 'clip'), (4, 3))
    assert (config.data.text_dir, config.data.text_dim, config.data.text_layout) == (
        'text', 8, 'clip')
    assert config.data.clip_length == config.evaluate.round_to == 1.5
    assert config.data.max_clips == 134 and config.optimizer.learning_rate == 2e-4


def test_custom_configs_need_no_more_than_features_json(tmp_path):
    make_release(tmp_path)
    write_lines(tmp_path / 'val.jsonl', [{**LINE, 'qid': 4}])
    with pytest.raises(ConfigError, match='needs the arguments layout=.*clip_length='):
        custom.get_config(f'root={tmp_path}')
    BOTH.write(tmp_path)
    data = custom.get_config(f'root={tmp_path}').data
    assert (data.video_dirs, data.video_dims, data.text_dir) == (('slow', 'clip'), (4, 3), 'text')
    assert (data.text_layout, data.clip_length, data.text_dim) == ('clip', 2.0, 8)
    assert custom.get_config(f'root={tmp_path},video=clip').data.video_dims == (3,)


def test_a_run_goes_on_by_its_recipe_alone(tmp_path):
    """`check_same_run` names what of a recipe has changed."""
    saved = qvh.get_config()
    saved.data.recipe = BOTH.to_json()
    other = saved.copy_and_resolve_references()
    other.data.recipe = dataclasses.replace(BOTH, rule='start').to_json()
    with pytest.raises(CheckpointError, match=r'\(data.recipe.rule: middle there, start here\)'):
        runs_lib.check_same_run(tmp_path, saved, other)
    assert runs_lib.check_same_run(tmp_path, saved, saved) == []


def test_built_data_keep_the_recipe(tmp_path):
    tfds_builders = pytest.importorskip('data_pipelines.tfds_builders')
    pytest.importorskip('array_record')
    data = make_release(tmp_path, records=str(tmp_path / 'records'), max_spans=2)
    data.annotations = dict(train='train.jsonl')
    for vid in ('v_0.0_10.0', 'w'):
        np.savez(tmp_path / 'slow' / f'{vid}.npz', features=make_rows(5, 4))
    BOTH.write(tmp_path)
    from ml_collections import ConfigDict

    tfds_builders.build(ConfigDict(vars(data)))
    (tmp_path / 'features.json').unlink()
    assert datasets.recipe_of(data) == BOTH
