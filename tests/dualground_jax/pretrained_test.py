"""Pretrained folders: what is loaded is what was saved; damage is named in one line."""

import dataclasses
import json
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
import safetensors.numpy

from data_pipelines import recipe
from data_pipelines.errors import ConfigError, DataError
from dualground_jax import cli, main, pretrained, runs, sharding
from dualground_jax.checkpoints import CheckpointError, Checkpoints
from dualground_jax.config import load_config
from dualground_jax.encoders import encoder as encoders
from dualground_jax.grounding.encoded import known_encoder
from dualground_jax.grounding.predictor import Predictor
from dualground_jax.state import abstract_state
from tests.helpers import clip_folder, command_line, fresh_runs
from tests.helpers.paths import REPO

PREDICT = '''
import sys
import numpy as np
import dualground_jax
inputs = np.load(sys.argv[2])
moments = dualground_jax.Predictor.from_pretrained(sys.argv[1]).predict(
    inputs['video'], list(inputs['queries']))
np.savez(sys.argv[3], *(part for found in moments for part in found))
'''


@pytest.fixture(scope='module', name='workdir')
def averaged_run(tmp_path_factory):
    """A run whose evaluated parameters are not those that were trained last."""
    folder = fresh_runs.save(
        tmp_path_factory.mktemp('run'), **{'data.max_clips': 12, 'optimizer.ema_decay': 0.5})
    run = Checkpoints(folder)
    config = run.config('best')
    state, _ = run.restore('best', abstract_state(config, sharding.one_device()))
    progress = dict(best_step=0, best_value=41.5, best_metrics=dict(
        brief={'MR-full-mAP': 41.5, 'MR-full-R1@0.5': float('nan')}, full={}))
    ema = jax.tree.map(lambda x: x * 1.01, state.ema)
    with config.unlocked():
        config.data.root = '/home/somebody/data/synthetic'
    run.save('best', state.replace(ema=ema), config, progress)
    return folder


@pytest.fixture(scope='module', name='folder')
def saved_folder(workdir, tmp_path_factory):
    folder = tmp_path_factory.mktemp('published') / 'little-model'
    Predictor.from_checkpoint(workdir).save_pretrained(folder, licence='apache-2.0')
    return folder


@pytest.fixture(scope='module', name='inputs')
def random_inputs():
    rng = np.random.default_rng(0)
    return dict(video=rng.normal(size=(9, 96)).astype(np.float32),
                queries=rng.normal(size=(2, 5, 64)).astype(np.float32))


def test_who_may_read_the_card_may_read_the_weights(folder):
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_another_process_predicts_bit_for_bit(workdir, folder, inputs, tmp_path):
    """Against the workdir; the parameters are those that the workdir evaluates."""
    found = Predictor.from_checkpoint(workdir).predict(inputs['video'], list(inputs['queries']))
    np.savez(tmp_path / 'inputs.npz', **inputs)
    done = subprocess.run([sys.executable, '-c', PREDICT, folder, tmp_path / 'inputs.npz',
                           tmp_path / 'found.npz'], cwd=REPO, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    with np.load(tmp_path / 'found.npz') as arrays:
        for number, part in enumerate(part for moments in found for part in moments):
            assert part.size
            np.testing.assert_array_equal(arrays[f'arr_{number}'], part)


def test_sixteen_bit_take_half(workdir, folder, inputs, tmp_path):
    predictor = Predictor.from_pretrained(folder)
    predictor.save_pretrained(tmp_path / 'half', dtype='float16')
    sizes = [(path / pretrained.WEIGHTS).stat().st_size for path in (folder, tmp_path / 'half')]
    assert sizes[1] < 0.6 * sizes[0]
    half = Predictor.from_pretrained(tmp_path / 'half')
    assert {x.dtype for x in jax.tree.leaves(half.params)} == {np.dtype(np.float32)}
    saliency = [one.predict(inputs['video'], inputs['queries'][0]).saliency
                for one in (predictor, half)]
    assert 0 < np.abs(saliency[0] - saliency[1]).max() < 0.01
    predictor.params['token_types'] = predictor.params['token_types'].at[0, 0].set(1e6)
    with pytest.raises(ConfigError, match='token_types: the largest value is 1e.06, .* float16'):
        predictor.save_pretrained(tmp_path / 'large', dtype='float16')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['half']


def test_the_card_tells_what_it_is(folder):
    card = (folder / 'README.md').read_text()
    assert card.startswith('---\nlibrary_name: dualground_jax\nlicense: apache-2.0\n')
    for told in ('# little-model', "from_pretrained('little-model')", 'generated world',
                 '| MR-full-mAP    | 41.5 |', '| MR-full-R1@0.5 |    – |',
                 '## Licence\n\napache-2.0'):
        assert told in card, told
    text = (folder / 'config.json').read_text()
    assert '/home' not in card + text and 'NaN' not in text
    config = load_config(folder)
    assert config.data.root == 'synthetic' and config.evaluate.clip_to == (0, 150)


def edit(change):
    """A damage: changes the content of config.json."""
    def damage(folder):
        path = folder / 'config.json'
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))
    return damage


def tensors(change):
    """A damage: changes the tensors."""
    def damage(folder):
        path = str(folder / 'model.safetensors')
        found = safetensors.numpy.load_file(path)
        change(found)
        safetensors.numpy.save_file(found, path)
    return damage


def altered(found):
    found['token_types'] = found['token_types'] * 2


DAMAGES = {
    'no config': (lambda folder: (folder / 'config.json').unlink(),
                  'config.json: no such file, expected a folder that --mode=publish'),
    'no weights': (lambda folder: (folder / 'model.safetensors').unlink(),
                   'model.safetensors: no such file'),
    'cut config': (lambda folder: (folder / 'config.json').write_text('{"seed": 1,'),
                   "config.json: can't be read as JSON"),
    'cut weights': (lambda folder: (folder / 'model.safetensors').write_bytes(b'\x08' * 300),
                    'model.safetensors: damaged or cut short'),
    'a pointer of Git LFS': (
        lambda folder: (folder / 'model.safetensors').write_text(
            'version https://git-lfs.github.com/spec/v1\n'), 'a pointer of Git LFS'),
    'another model': (edit(lambda c: (c.clear(), c.update(model_type='clip'))),
                      'config.json: pretrained is None, expected a folder that'),
    'no section': (edit(lambda c: c.pop('data')), 'config.json: data is None'),
    'unknown model': (edit(lambda c: c['model'].update(name='x')),
                      "config.json: model.name is 'x', known are: dualground"),
    'unknown key': (edit(lambda c: c['model'].update(wings=2)),
                    "config.json: model has a key 'wings', which this version"),
    'unknown release': (edit(lambda c: c['data'].update(features='x')), "'x'], which this version"),
    'another type': (edit(lambda c: c['model'].update(width='16')),
                     "config.json: model.width is '16', expected a int"),
    'no value': (edit(lambda c: c['evaluate'].pop('nms')),
                 'evaluate.nms is None, expected a float'),
    'bad recipe': (edit(lambda c: c['data'].update(recipe='x')),
                   'config.json: data.recipe: no recipe of features'),
    'another size': (edit(lambda c: c['model'].update(width=32)),
                     r'is float32\[.*16.*, expected float32 or float16\[.*32.* by config.json'),
    'missing tensor': (tensors(lambda t: t.pop('token_types')),
                       'model.safetensors: token_types is missing; expected'),
    'another tensor': (tensors(lambda t: t.update(x=t['token_types'])),
                       'model.safetensors: x is not of this model'),
    'another dtype': (tensors(lambda t: t.update(token_types=t['token_types'].astype(np.float64))),
                      r'token_types is float64\[2, 16\], expected float32 or float16\[2, 16\]'),
    'altered tensor': (tensors(altered),
                       r'altered bytes: the checksum .* \(config.json: pretrained.weights\)'),
}


@pytest.mark.parametrize('name', DAMAGES)
def test_damage_is_told_in_a_line(folder, name, tmp_path):
    damage, message = DAMAGES[name]
    copy = tmp_path / 'copy'
    shutil.copytree(folder, copy)
    damage(copy)
    with pytest.raises((CheckpointError, DataError), match=message) as caught:
        Predictor.from_pretrained(copy)
    assert '\n' not in str(caught.value) and str(copy) in str(caught.value)


def test_where_there_is_nothing(tmp_path, folder, workdir):
    with pytest.raises(CheckpointError, match='no config.json, expected a folder that'):
        Predictor.from_pretrained(workdir)
    with pytest.raises(CheckpointError, match='nowhere: no such folder$'):
        Predictor.from_pretrained(tmp_path / 'nowhere')
    with pytest.raises(ConfigError, match='is there already, expected a new or empty folder'):
        Predictor.from_pretrained(folder).save_pretrained(folder)


def start(monkeypatch, *arguments):
    command_line.start(monkeypatch, ['main', *arguments])
    main.main(cli.parse(sys.argv))


def test_a_folder_is_published_and_predicts_as_its_workdir(
        workdir, inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    start(monkeypatch, '--mode=publish', f'--workdir={workdir}', '--output=mine')
    assert 'wrote mine: config.json, model.safetensors, README.md' in capsys.readouterr().out
    np.savez('video.npz', features=inputs['video'])
    np.savez('query.npz', last_hidden_state=inputs['queries'][0])
    told = []
    for source in (workdir, 'mine'):
        start(monkeypatch, '--mode=predict', f'--workdir={source}', '--video_features=video.npz',
              '--query_features=query.npz', '--top=3')
        told.append(json.loads(capsys.readouterr().out))
    assert [row.pop('model') for row in told] == [str(workdir), 'mine']
    assert told[0]['windows'] and told[0] == told[1]
    assert sorted(path.name for path in (tmp_path / 'mine').iterdir()) == sorted(pretrained.FILES)
    for arguments, message in (
            (['--mode=publish'], 'needs --output=FOLDER or --hub'),
            (['--mode=publish', '--output=mine'], 'mine: is there already'),
            (['--mode=publish', '--output=x', '--config=mine'], 'changes nothing'),
            (['--mode=predict', '--video=a.mp4', '--query=a'], 'need --encoder=clip=FOLDER')):
        with pytest.raises(SystemExit, match=f'error: .*{message}'):
            start(monkeypatch, '--workdir=mine', *arguments)


def test_training_starts_from_a_folder_but_not_in_it(workdir, folder):
    config = load_config(folder)
    fresh, _ = Checkpoints(workdir).restore('best', abstract_state(config, sharding.one_device()))
    state = runs.start_from(folder, fresh)
    for found, expected in ((state.params, fresh.ema), (state.ema, fresh.ema)):
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    with pytest.raises(CheckpointError, match='little-model: holds a pretrained model; use'):
        runs.Run(config, folder, None, (), '').check(())


# The encoder


@pytest.fixture(scope='module', name='demo')
def model_with_encoder(tmp_path_factory):
    """Folder of an encoder, and of a run whose features it made."""
    folder = tmp_path_factory.mktemp('demo')
    clip_folder.write(folder / 'encoder')
    made = encoders.load(f'clip={folder / "encoder"}').recipe
    fresh_runs.save(folder / 'run', **{
        'data.max_clips': 12, 'data.video_dims': (12,), 'data.text_dim': 16,
        'data.recipe': made.to_json()})
    return folder


def test_a_model_finds_the_encoder_that_it_names(demo, tmp_path):
    encoder = f'clip={demo / "encoder"}'
    predictor = Predictor.from_checkpoint(demo / 'run')
    pictures = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    with pytest.raises(ConfigError, match="encoder='clip=FOLDER'"):
        predictor.encode_video(pictures)
    clip_folder.write(tmp_path / 'other', seed=1)
    with pytest.raises(DataError, match='the encoder: .*clip.weights'):
        predictor.save_pretrained(tmp_path / 'x', encoder=f'clip={tmp_path / "other"}')
    predictor.save_pretrained(demo / 'model', encoder=encoder)
    moved = tmp_path / 'elsewhere'
    shutil.copytree(demo, moved)
    loaded = Predictor.from_pretrained(moved / 'model')
    assert loaded.known_encoder == f'clip={moved / "encoder"}'
    assert '| text (text, clip) ' in (moved / 'model' / 'README.md').read_text()
    sighted = Predictor.from_checkpoint(demo / 'run', encoder=encoder)
    told = [one.predict(one.encode_video(pictures), 'a man runs') for one in (loaded, sighted)]
    np.testing.assert_array_equal(told[0].saliency, told[1].saliency)
    loaded.save_pretrained(tmp_path / 'again' / 'model')
    again = Predictor.from_pretrained(tmp_path / 'again' / 'model')
    assert again.known_encoder == loaded.known_encoder
    shutil.rmtree(moved / 'encoder')
    blind = Predictor.from_pretrained(moved / 'model')
    assert blind.known_encoder == ''
    with pytest.raises(ConfigError, match=r'from_pretrained; not found: \.\./encoder$'):
        blind.require_encoder()


def test_an_encoder_of_the_hub_is_named_so(demo):
    made = encoders.load(f'clip={demo / "encoder"}').recipe
    assert [stream.source for stream in (*made.streams, made.text)] == ['encoder'] * 2
    streams = tuple(dataclasses.replace(stream, source='openai/clip') for stream in made.streams)
    named = dataclasses.replace(made, streams=streams)
    assert known_encoder(named.to_json(), demo) == 'clip=openai/clip'
    assert known_encoder('', demo) == known_encoder(recipe.Recipe(2.0, 'x', ()).to_json(), '') == ''


class FakeHub:
    """Keeps what is uploaded in a folder."""

    def __init__(self, folder):
        self.folder, self.calls = folder, []

    def HfApi(self, **how):
        return types.SimpleNamespace(
            create_repo=lambda name, **how: self.calls.append((name, how)),
            upload_folder=self.upload)

    def upload(self, *, repo_id, folder_path, revision, commit_message):
        shutil.copytree(folder_path, self.folder / repo_id)
        return f'https://hub/{repo_id}/commit/1'

    def snapshot_download(self, name, revision):
        if not (self.folder / name).is_dir():
            raise FileNotFoundError(f'404 {name}\n at {revision}')
        return str(self.folder / name)


def test_the_hub_gives_back_what_is_pushed(folder, demo, tmp_path, monkeypatch):
    hub = FakeHub(tmp_path)
    monkeypatch.setattr(pretrained, 'hub', lambda: hub)
    predictor = Predictor.from_pretrained(folder)
    assert predictor.push_to_hub('me/model', private=True) == 'https://hub/me/model/commit/1'
    assert hub.calls == [('me/model', dict(private=True, exist_ok=True))]
    assert '\n# me/model\n' in (tmp_path / 'me' / 'model' / 'README.md').read_text()
    found = Predictor.from_pretrained('me/model')
    jax.tree.map(np.testing.assert_array_equal, found.params, predictor.params)
    with pytest.raises(CheckpointError, match='me/x: no such folder here, .* hub: 404 me/x at v1$'):
        Predictor.from_pretrained('me/x', revision='v1')
    with pytest.raises(ConfigError, match='expected a model of the Hugging Face hub'):
        predictor.push_to_hub('me/model', encoder=f'clip={demo / "encoder"}')
    with pytest.raises(ConfigError, match='me/model: the Hugging Face hub does not take it: '):
        predictor.push_to_hub('me/model')  # the folder is there
