"""Exported programs: what they say without this package is what the workdir says, bit for bit."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax import export as jax_export

from configs import synthetic
from data_pipelines.errors import ConfigError
from data_pipelines.schedule import Bucket
from dualground_jax import cli, main, pretrained, sharding
from dualground_jax.grounding.predictor import Predictor
from dualground_jax.models import MODELS
from dualground_jax.publishing import export
from dualground_jax.publishing.run import Model
from dualground_jax.state import abstract_state
from tests.helpers import command_line, fresh_runs

# Sizes [clips, text rows] of videos and texts, and their seconds.
SIZES = [(3, 4, None), (8, 5, 15.5), (12, 7, 23.0), (11, 11, None)]
ALONE = '''
import sys
sys.modules.update(dict.fromkeys(('dualground_jax', 'data_pipelines', 'configs', 'flax')))
import numpy as np
from run import Model
model, inputs, found = Model('.'), np.load('../inputs.npz'), {}
for name in map(str, range(int(inputs['count']))):
    for part, value in zip(('windows', 'saliency'), model.predict(
            [inputs['video' + name]], inputs['text' + name], *inputs['seconds' + name])):
        found[part + name] = value
np.savez('../found.npz', **found)
'''


@pytest.fixture(scope='module', name='workdir')
def fresh_run(tmp_path_factory):
    return fresh_runs.save(tmp_path_factory.mktemp('run'), **{
        'data.max_clips': 12, 'data.max_tokens': 8, 'model.paths': 'both'})


@pytest.fixture(scope='module', name='folder')
def exported(workdir, tmp_path_factory):
    folder = tmp_path_factory.mktemp('exported') / 'model'
    with pytest.MonkeyPatch.context() as monkeypatch:
        command_line.start(monkeypatch, ['main', '--mode=export', f'--workdir={workdir}',
                                         f'--output={folder}'])
        main.main(cli.parse(sys.argv))
    return folder


def inputs_of(clips, rows, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(clips, 96)).astype(np.float32),
            rng.normal(size=(rows, 64)).astype(np.float32))


def test_it_predicts_bit_for_bit_without_this_package(workdir, folder):
    """Also of texts that are cut, with zeros behind them, and videos of other lengths."""
    given, expected = dict(count=len(SIZES)), []
    predictor = Predictor.from_checkpoint(workdir)
    for name, (clips, rows, seconds) in enumerate(SIZES):
        video, text = inputs_of(clips, rows, seed=name)
        text = np.pad(text, ((0, name), (0, 0)))
        given |= {f'video{name}': video, f'text{name}': text,
                  f'seconds{name}': [] if seconds is None else [seconds]}
        expected.append(predictor.predict(video, text, seconds))
    np.savez(folder.parent / 'inputs.npz', **given)
    done = subprocess.run([sys.executable, '-c', ALONE], cwd=folder, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    with np.load(folder.parent / 'found.npz') as found:
        for name, moments in enumerate(expected):
            assert len(moments.windows) and len(moments.saliency) == SIZES[name][0]
            np.testing.assert_array_equal(found[f'windows{name}'], moments.windows)
            np.testing.assert_array_equal(found[f'saliency{name}'], moments.saliency)


def test_what_is_written(folder):
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*pretrained.FILES, 'export.json', 'programs', 'run.py'])
    assert sorted(path.name for path in (folder / 'programs').iterdir()) == ['12x8.bin', '8x8.bin']
    program = jax_export.deserialize(bytearray((folder / 'programs' / '12x8.bin').read_bytes()))
    assert program.platforms == ('cpu', 'cuda', 'tpu')
    shapes = {str(shape.shape) for shape in program.in_avals}
    assert {'(b, 12, 96)', '(b, 8, 64)', '(b,)'} <= shapes
    assert 'import dualground' not in (folder / 'run.py').read_text()
    assert Predictor.from_pretrained(folder).params  # it is a pretrained folder, too


def test_what_it_cannot_take_is_refused(folder, workdir):
    model = Model(folder)
    video, text = inputs_of(13, 3)
    for streams, rows, message in (
            ([video], text, r'13 clips; expected \[96\], 64, 1 to 12'),
            ([video[:5, :90]], text, r'widths \(\[90\], 64\)'),
            ([video[:5]] * 2, text, r'widths \(\[96, 96\], 64\)'),
            ([video[:5]], text * 0, '0 text rows, expected more than 1'),
            ([video[:5] * np.nan], text, 'not finite')):
        with pytest.raises(ValueError, match=message):
            model.predict(streams, rows)
    with pytest.raises(ConfigError, match='model: is there already'):
        export.export(Predictor.from_checkpoint(workdir), folder)


@pytest.mark.parametrize('layout, normalize', [('words', True), ('glove', False)])
def test_texts_without_a_sentence_token(layout, normalize, tmp_path, monkeypatch):
    """What reaches the program is what the pipeline makes of the text."""
    from data_pipelines import tokens

    told = tokens.TEXT_LAYOUTS[layout]
    (tmp_path / 'export.json').write_text(json.dumps(dict(
        video_dims=[96], text_dim=64, max_clips=12, max_tokens=6, shortest=8, clip_length=2.0,
        dtype='float32', start=told.start, has_eos=told.has_eos, padded=told.padded,
        normalize_text=normalize)))
    monkeypatch.setattr('dualground_jax.publishing.run.load_file', lambda path: {})
    model, seen = Model(tmp_path), {}

    def program(params, inputs):
        seen.update(inputs)
        return np.zeros((1, 1, 3)), np.zeros((1, 12))

    monkeypatch.setattr(model, 'program', lambda *sizes: program)
    video, text = inputs_of(5, 9)
    text[-2:] = 0
    model.predict([video], text)
    expected, _ = tokens.label_tokens(text, told, 6, normalize=normalize)
    np.testing.assert_array_equal(seen['text'][0], expected)
    assert seen['rows'] == [6] and seen['duration'] == [10]


@pytest.mark.parametrize('name', sorted(set(MODELS) - {'dualground'}))
def test_every_model_takes_any_number_of_samples(name):
    config = synthetic.get_config(f'model={name},runlocal')
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
                          abstract_state(config, sharding.one_device()).params)
    flat = export.flax.traverse_util.flatten_dict(params, sep='/')
    program = jax_export.export(jax.jit(export.program(config)), platforms=export.PLATFORMS)(
        flat, export.inputs(config.data, Bucket(8, 8)))
    assert [str(shape.shape[0]) for shape in program.out_avals] == ['b', 'b']
