"""Public PyTorch checkpoints become workdirs that predict the goldens' windows, and back."""

import json
import re
import sys
import types

import jax
import numpy as np
import pytest
from absl import flags
from scipy import optimize

from configs import qvh
from data_pipelines import torch_file
from dualground_jax import checkpoints, cli, main, models, sharding, state, state_dict
from dualground_jax.grounding.predictor import Predictor
from dualground_jax.pytorch import checkpoint, mapping, names
from dualground_jax.pytorch import content as content_lib
from tests.helpers import command_line, golden_models, torch_writer
from tests.helpers.paths import REPO

FOLDERS = golden_models.folders()
goldens_found = pytest.mark.parametrize('folder', FOLDERS)
# What the public scripts of QVHighlights pass beside the models' own options.
TRAINING = dict(
    dset_name='hl', seed=2018, lr=2e-4, wd=1e-3, grad_clip=0.1, bsz=16, n_epoch=200, eval_epoch=5,
    max_q_l=32, max_v_l=75, max_windows=5, clip_length=2, no_norm_vfeat=False, no_norm_tfeat=False,
    v_feat_dirs=['../features/slowfast_features', '../features/clip_features/'],
    t_feat_dir='../features/clip_text_features/', v_feat_dim=2818, t_feat_dim=512, a_feat_dir=None,
    ctx_mode='video_tef', position_embedding='sine', use_txt_pos=False, pre_norm=False,
    span_loss_type='l1', contrastive_align_loss=False, nms_thd=-1,
)


def content(golden, weights=None, **changes):
    """What the public training code saves: the golden's weights and options."""
    values = dict(TRAINING, **golden.options)
    values.pop('device')
    strides = values.pop('strides', None)
    nested = {} if strides is None else dict(cfg=dict(strides=tuple(strides)))
    values |= changes
    return dict(
        model=golden.state if weights is None else weights,
        optimizer=dict(state={0: dict(step=np.ones((), np.float32))}, param_groups=[]),
        lr_scheduler=dict(step_size=400, base_lrs=[1e-4]),
        epoch=7,
        opt=torch_writer.options(values, **nested),
    )


def golden_config(golden):
    """A config for the golden's data; every window is kept as it is."""
    config = qvh.get_config(f'model={golden.name},features=sf_clip')
    config.data.update(
        video_dirs=('video',), video_dims=(golden.options['v_feat_dim'] - 2,),
        text_dim=golden.options['t_feat_dim'],
    )
    config.evaluate.update(nms=2.0, round_to=0.0, clip_to=(0.0, 1e9))
    return config


def restored(workdir):
    """(config, parameters) of a workdir, as numpy."""
    predictor = Predictor.from_checkpoint(workdir)
    return predictor.config, jax.device_get(predictor.params)


def assert_equal_trees(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


# From PyTorch


@goldens_found
def test_converted_checkpoint_predicts_the_goldens_windows(folder, tmp_path):
    golden = golden_models.golden_model(folder)
    path = torch_writer.save(tmp_path / 'model_best.ckpt', content(golden))
    checkpoint.import_checkpoint(path, golden.name, tmp_path / 'run', golden_config(golden))
    predictor = Predictor.from_checkpoint(tmp_path / 'run')
    assert_equal_trees(jax.device_get(predictor.params), golden.params['params'])
    assert models.build(predictor.config.model) == golden.model
    assert predictor.config.loss.to_dict() == golden.loss.to_dict()
    if not (golden.folder / 'outputs_eval.npz').is_file():
        return
    batch = golden.batch('inputs.npz')
    for b, duration in enumerate(batch['duration']):
        one = golden_models.trimmed(batch, b)
        stored = golden.evaluated(b)
        found, saliency = predictor.predict(one['video'][0, :, :-2], one['text'][0], duration)
        wanted = golden_models.windows_of(stored, duration)
        wanted[:, :2] = wanted[:, :2].clip(0, duration)
        assert len(found) == min(10, len(wanted))
        scores = np.sort(wanted[:, 2])[::-1][: len(found)]
        np.testing.assert_allclose(found[:, 2], scores, atol=1e-4)
        distance = np.abs(found[:, None] - wanted).max(-1)
        rows, columns = optimize.linear_sum_assignment(distance)
        np.testing.assert_allclose(distance[rows, columns], 0, atol=1e-3)
        np.testing.assert_allclose(
            saliency, stored['saliency_scores'][0], rtol=1e-3,
            atol=1e-3 * np.abs(stored['saliency_scores']).max(),
        )


def qvh_state(video, text):
    """The two weights that tell the widths of the features."""
    return {
        'input_vid_proj.0.LayerNorm.weight': np.zeros(video + 2),
        'input_txt_proj.0.LayerNorm.weight': np.zeros(text),
    }


# The public options of CG-DETR's models.
CG_DETR = dict(
    TRAINING, hidden_dim=256, nheads=8, dim_feedforward=1024, dropout=0.1, input_dropout=0.5,
    n_input_proj=2, num_dummies=45, dummy_layers=2, sent_layers=1, moment_layers=1, t2v_layers=2,
    enc_layers=3, dec_layers=3, num_queries=10, total_prompts=10, num_prompts=1, span_loss_coef=10,
    giou_loss_coef=1, label_loss_coef=4, set_cost_span=10, set_cost_giou=1, set_cost_class=4,
    lw_saliency=4.0, lw_wattn=1.0, lw_ms_align=1.0, lw_distill=0.5, eos_coef=0.1,
    saliency_margin=0.2,
)


def test_config_follows_the_options():
    config = checkpoint.make_config('cg_detr', CG_DETR, qvh_state(2816, 512))
    assert config.is_locked
    assert (config.model.name, config.model.enc_layers, config.model.dummies) == ('cg_detr', 3, 45)
    assert (config.loss.weights.saliency, config.loss.weights.distill) == (4.0, 0.5)
    assert (config.seed, config.optimizer.learning_rate) == (2018, 2e-4)
    assert (config.optimizer.weight_decay, config.train.batch_size) == (1e-3, 16)
    assert config.data.video_dirs == ('slowfast_features', 'clip_features')
    assert (config.data.max_clips, config.data.max_tokens) == (75, 32)
    assert config.evaluate.nms > 1 and config.evaluate.selection == ('MR-full-mAP',)

    # CG-DETR's demo model sees CLIP features alone.
    changes = dict(v_feat_dirs=['x/clip_features'], v_feat_dim=514, nms_thd=0.6, no_norm_tfeat=True)
    config = checkpoint.make_config('cg_detr', CG_DETR | changes, qvh_state(512, 512))
    assert (config.data.video_dirs, config.data.video_dims) == (('clip_features',), (512,))
    assert config.evaluate.nms == 0.6 and not config.data.normalize_text

    # Charades-STA has no limit of clips.
    changes = dict(dset_name='charadesSTA', clip_length=1, max_v_l=-1)
    config = checkpoint.make_config('cg_detr', CG_DETR | changes, qvh_state(2816, 512))
    assert (config.data.clip_length, config.data.max_clips) == (1.0, 200)
    assert config.data.video_dims == (2304, 512) and config.evaluate.round_to == 1.0


@pytest.mark.parametrize('changes, widths, parts', [
    (dict(dset_name='nlq'), (2816, 512), ["dset_name is 'nlq'", 'charadesSTA', '--config=']),
    (dict(v_feat_dim=768), (768, 512),
     ['widths 768 (video) and 512 (text)', 'sf_clip (2304 + 512, 512)']),
    (dict(pre_norm=True), (2816, 512), ['option pre_norm is True, only False']),
    (dict(ctx_mode='video'), (2816, 512), ["option ctx_mode is 'video', only 'video_tef'"]),
    (dict(a_feat_dir='audio'), (2816, 512), ["option a_feat_dir is 'audio', only None"]),
    (dict(enc_layers='three'), (2816, 512), ['an option is of another type', 'three']),
])
def test_options_that_do_not_fit(changes, widths, parts):
    with pytest.raises(state_dict.ConvertError) as info:
        checkpoint.make_config('cg_detr', CG_DETR | changes, qvh_state(*widths))
    assert all(part in str(info.value) for part in parts), info.value
    assert '\n' not in str(info.value)


def streams_of(folders, config=None, order=()):
    options = CG_DETR | dict(v_feat_dirs=folders)
    return checkpoint.make_config(
        'cg_detr', options, qvh_state(2816, 512), config, order).data.video_dirs


SF_CLIP = ('slowfast_features', 'clip_features')


@pytest.mark.parametrize('config', [None, 'model=cg_detr,features=sf_clip'])
@pytest.mark.parametrize('folders, order, expected', [
    (['/ssd2/clip_features', '/ssd2/slowfast_features'], (), SF_CLIP[::-1]),
    (['features/tacos/clip', 'features/tacos/slowfast'], (), SF_CLIP[::-1]),
    (['a/slowfast/feats', 'a/clip/feats'], (), SF_CLIP),
    (['D:\\vid_clip\\', 'D:\\SF'], (), SF_CLIP[::-1]),
    (['stream_a', 'clip_b32'], (), SF_CLIP),
    (['a', 'b'], ('clip_features', 'slowfast_features'), SF_CLIP[::-1]),
    (['slowfast', 'clip'], ['clip', 'slowfast'], SF_CLIP[::-1]),
])
def test_streams_are_in_the_order_of_the_weights(config, folders, order, expected):
    found = streams_of(folders, config and qvh.get_config(config), order)
    assert found == expected


@pytest.mark.parametrize('config', [None, 'model=cg_detr,features=sf_clip'])
@pytest.mark.parametrize('folders', [
    ['a', 'b'], ['clips/a', 'clips/b'], ['my_clip/a', 'my_clip/b'], ['slowfast_clip', 'all'],
    ['slowfast', 'slowfast'], ['joined'], 'joined', [], None,
])
def test_an_order_that_nothing_tells_is_asked_for(config, folders):
    with pytest.raises(state_dict.ConvertError) as info:
        streams_of(folders, config and qvh.get_config(config))
    for order in (SF_CLIP, SF_CLIP[::-1]):
        assert f'--streams={",".join(order)}' in str(info.value)


def test_three_streams_and_equal_widths():
    config = qvh.get_config('model=cg_detr,features=sf_clip')
    config.data.update(video_dirs=('clip', 'intern_video2', 'pann'), video_dims=(512, 512, 1792))
    folders = ['x/pann_audio', 'x/internvideo2_6b', 'x/clip']
    found = checkpoint.make_config(
        'cg_detr', CG_DETR | dict(v_feat_dirs=folders), qvh_state(2816, 512), config).data
    assert found.video_dirs == ('pann', 'intern_video2', 'clip')
    assert found.video_dims == (1792, 512, 512)


@pytest.mark.parametrize('prefix', ['', 'module.', '_orig_mod.', 'model.', 'module._orig_mod.'])
@pytest.mark.parametrize('key', ['model', 'state_dict', 'model_state_dict', ''])
def test_weights_under_other_names(prefix, key, tmp_path):
    weights = {prefix + name: value for name, value in qvh_state(3, 4).items()}
    found = {key: weights, 'epoch': 3} if key else weights
    state, options, ema = content_lib.read(torch_writer.save(tmp_path / 'a.pth', found))
    assert_equal_trees(state, qvh_state(3, 4))
    assert options is None and ema is None


def test_averaged_weights(tmp_path):
    weights = qvh_state(3, 4)
    average = {f'module.{name}': value + 1 for name, value in weights.items()}
    found = dict(model=weights, model_ema=average | {'n_averaged': np.ones(())})
    state, _, ema = content_lib.read(torch_writer.save(tmp_path / 'a.pth', found))
    assert_equal_trees(state, weights)
    assert_equal_trees(ema, {name: value + 1 for name, value in weights.items()})


def stub(**fields):
    found = type('Record', (torch_file.Stub,), dict(kind=fields.pop('kind', 'a.B')))(
        *fields.pop('args', ()))
    found.fields.update(fields)
    return found


@pytest.mark.parametrize('options', [
    dict(lr=0.1, v_feat_dirs=['a', 'b']),
    stub(lr=0.1, v_feat_dirs=('a', 'b'), device=stub()),
    stub(_fields=dict(lr=0.1, v_feat_dirs=('a', 'b')), _locked=True),  # ConfigDict
    stub(_parent=None, _content=dict(lr=stub(_val=0.1), v_feat_dirs=stub(  # DictConfig
        _content=[stub(_val='a'), stub(_val='b')]))),
    dict(lr=0.1, v_feat_dirs=[stub(kind='pathlib.PosixPath', args=('a',)), 'b']),
])
@pytest.mark.parametrize('key', ['opt', 'args', 'hyper_parameters'])
def test_options_of_all_kinds(options, key, monkeypatch):
    found = {'model': qvh_state(3, 4), key: options}
    monkeypatch.setattr(torch_file, 'read_checkpoint', lambda path: found)
    read = content_lib.read('a.ckpt').options
    assert (read['lr'], list(read['v_feat_dirs'])) == (0.1, ['a', 'b'])
    assert set(read) == {'lr', 'v_feat_dirs'}


def test_options_of_a_file(tmp_path):
    path = torch_writer.save(tmp_path / 'a.pth', qvh_state(2816, 512))
    with pytest.raises(state_dict.ConvertError, match='a.pth: weights without options; give --opt'):
        checkpoint.import_checkpoint(path, 'cg_detr', tmp_path / 'run')
    file = tmp_path / 'opt.json'
    file.write_text(json.dumps(CG_DETR))
    found = content_lib.read(path, file)
    assert checkpoint.make_config('cg_detr', found.options, found.state).data.max_tokens == 32
    for text, message in (('{', "can't be read as JSON"), ('[1]', r'holds \[1\], expected')):
        file.write_text(text)
        with pytest.raises(state_dict.ConvertError, match=f'opt.json: {message}.*--options'):
            content_lib.read(path, file)


def run_main(monkeypatch, *arguments):
    """Runs the command line in this process."""
    monkeypatch.chdir(REPO)
    argv = ['main', '--mode=convert', *arguments]
    command_line.start(monkeypatch, argv)
    try:
        main.main(cli.parse(argv))
    finally:
        flags.FLAGS.unparse_flags()


@pytest.mark.parametrize('model', names.CODES)
def test_command_line(model, tmp_path, monkeypatch, capsys):
    """Without goldens: random weights of a small model, under the names that torch has."""
    code = names.CODES[model]
    config = qvh.get_config(f'model={model},features=sf_clip,runlocal')
    abstract, rng = state.abstract_state(config, sharding.one_device()), np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), abstract.params)
    tensors = state_dict.to_torch(params, code.names, names.AXES)
    tensors['txt_position_embed.LayerNorm.bias'] = np.zeros(32)  # read by nothing
    options = TRAINING | mapping.public_options(code, config)
    average = {f'module.{name}': np.asarray(value / 2) for name, value in tensors.items()}
    found = dict(model=tensors, model_ema=average, opt=torch_writer.options(options))
    path = torch_writer.save(tmp_path / 'model_best.ckpt', found)
    arguments = [f'--checkpoint={path}', f'--model={model}', f'--workdir={tmp_path / "run"}']
    run_main(monkeypatch, *arguments)
    assert 'the optimizer starts fresh' in capsys.readouterr().out
    assert [p.name for p in (tmp_path / 'run').iterdir()] == ['checkpoints']
    for kind in ('latest', 'best'):
        assert checkpoints.Checkpoints(tmp_path / 'run').step(kind) == 0
    written, restored_params = restored(tmp_path / 'run')
    halves = jax.tree.map(lambda x: np.asarray(x) / 2, params)  # the average is what counts
    assert_equal_trees(restored_params, halves)
    assert written.model.to_dict() == config.model.to_dict()
    assert written.data.video_dims == (2304, 512)
    assert written.loss.to_dict() == config.loss.to_dict()
    with pytest.raises(SystemExit, match='error: .*holds a run; use another --workdir'):
        run_main(monkeypatch, *arguments)


def damaged(golden):
    """Name of the damage -> (what the file holds, parts of the message)."""
    weights = golden.state
    norm = 'input_vid_proj.0.LayerNorm.weight'
    linear = 'input_vid_proj.0.net.1.weight'
    packed = next(name for name in weights if name.endswith('in_proj_bias'))
    without = lambda name: {k: v for k, v in weights.items() if k != name}
    other_options = content(golden)
    del other_options['opt'].hidden_dim, other_options['opt'].nheads
    return {
        'state dict alone, of another size': (weights, ['weights do not fit', 'and ', ' more']),
        'a list': ([1], ['holds a list, expected weights by name']),
        'no weights': (dict(epoch=3), ["holds epoch, expected weights, as in 'model'"]),
        'options that are none': (dict(content(golden), opt=3), ['its options are 3']),
        'weights beside their own average': (
            dict(content(golden), model_ema=[1]), ['not a state dict of tensors']
        ),
        'options of other weights': (
            content(golden, v_feat_dim=99), ['option v_feat_dim is 99, the weights are for ']
        ),
        'whole module': (
            dict(content(golden), model=torch_writer.options({})), ['not a state dict of tensors']
        ),
        'missing tensor': (
            content(golden, without(linear)),
            [f'looked for {linear!r}', 'video_projection/linear_0/kernel'],
        ),
        'weights of another model': (
            content(golden, without(norm)), [f'the weights lack {norm}; is --model the right one?']
        ),
        'unknown tensor': (
            content(golden, weights | {'adapter.weight': np.ones(3)}),
            ['adapter.weight: nothing uses it'],
        ),
        'other shape': (
            content(golden, weights | {linear: weights[linear][:, :-1]}), ['shape', linear]
        ),
        'not three thirds': (
            content(golden, weights | {packed: weights[packed][:-1]}), ['shape', packed]
        ),
        'other width': (
            content(golden, weights | {norm: np.ones(7, np.float32)}, v_feat_dim=5),
            ['widths 5 (video)', 'data.video_dims'],
        ),
        'missing options': (other_options, ['options of the checkpoint lack hidden_dim, nheads']),
    }


@goldens_found
def test_errors_name_the_culprit_and_leave_nothing(folder, tmp_path):
    golden, workdir = golden_models.golden_model(folder), tmp_path / 'run'
    for damage, (found, parts) in damaged(golden).items():
        path = torch_writer.save(tmp_path / 'a.ckpt', found)
        with pytest.raises(state_dict.ConvertError) as info:
            checkpoint.import_checkpoint(path, golden.name, workdir, golden_config(golden))
        message = str(info.value)
        assert message.startswith(f'{path}: ') and '\n' not in message, damage
        assert all(part in message for part in parts), message
        assert not workdir.exists(), damage


@pytest.mark.parametrize('arguments, message', [
    ([], 'needs --checkpoint=FILE --model=NAME --workdir=DIR, or'),
    (['--checkpoint=none.ckpt', '--model=flash_vtg'], "none.ckpt: can't be read: No such file"),
    (['--checkpoint=none.ckpt', '--model=bert'], "'bert' has no public PyTorch code, known are: "),
    (['--checkpoint=none.ckpt', '--model=dualground'], "'dualground' has no public PyTorch code"),
    (['--checkpoint=README.md', '--model=flash_vtg'], 'README.md: not a PyTorch file'),
    (['--checkpoint=tests/data_pipelines/torch_files/checkpoint.ckpt', '--model=flash_vtg'],
     'checkpoint.ckpt: options of the checkpoint lack conv_layers|checkpoint.ckpt: .* lack '),
])
def test_mistakes_on_the_command_line(arguments, message, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=message):
        run_main(monkeypatch, f'--workdir={tmp_path / "run"}', *arguments)
    assert not (tmp_path / 'run').exists()


def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    if not FOLDERS:
        pytest.skip('no goldens of a whole model')
    golden = golden_models.golden_model(FOLDERS[0])
    path = torch_writer.save(tmp_path / 'a.ckpt', content(golden))
    save = checkpoints.Checkpoints.save

    def fail_at_second(self, kind, *rest):
        if kind == 'latest':
            raise OSError('disk full')
        save(self, kind, *rest)

    monkeypatch.setattr(checkpoints.Checkpoints, 'save', fail_at_second)
    with pytest.raises(OSError, match='disk full'):
        checkpoint.import_checkpoint(
            path, golden.name, tmp_path / 'run', golden_config(golden)
        )
    assert not list((tmp_path / 'run').iterdir())


# To PyTorch


def test_export_without_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch', None)
    with pytest.raises(SystemExit, match=re.escape("pip install -e '.[torch]'")):
        run_main(monkeypatch, f'--workdir={tmp_path}', f'--output={tmp_path / "model.ckpt"}')
    assert not list(tmp_path.iterdir())


@goldens_found
def test_export_converts_again(folder, tmp_path, monkeypatch):
    """With a stand-in for torch, which few have beside jax."""
    torch = types.SimpleNamespace(
        from_numpy=lambda value: value, save=lambda value, path: torch_writer.save(path, value)
    )
    monkeypatch.setitem(sys.modules, 'torch', torch)
    golden, output = golden_models.golden_model(folder), tmp_path / 'model.ckpt'
    path = torch_writer.save(tmp_path / 'model_best.ckpt', content(golden))
    checkpoint.import_checkpoint(path, golden.name, tmp_path / 'run', golden_config(golden))
    run_main(monkeypatch, f'--workdir={tmp_path / "run"}', f'--output={output}',
             f'--checkpoint={path}')
    state, options, _ = content_lib.read(output)
    assert_equal_trees(state, golden.state)
    assert options['v_feat_dirs'] == ['video']
    config = checkpoint.make_config(golden.name, options, state, golden_config(golden))
    assert models.build(config.model) == golden.model
    assert config.loss.to_dict() == golden.loss.to_dict()


@goldens_found
def test_export_loads_in_torch(folder, tmp_path, monkeypatch):
    torch = pytest.importorskip('torch')
    golden, run = golden_models.golden_model(folder), f'--workdir={tmp_path / "run"}'
    path = torch_writer.save(tmp_path / 'model_best.ckpt', content(golden))
    checkpoint.import_checkpoint(path, golden.name, tmp_path / 'run', golden_config(golden))
    unused = state_dict.matching(golden.state, golden.code.unused)
    assert unused
    for template, expected in (([], golden.state.keys() - unused),
                            ([f'--checkpoint={path}'], golden.state.keys())):
        run_main(monkeypatch, run, f'--output={tmp_path / "model.ckpt"}', *template)
        found = torch.load(tmp_path / 'model.ckpt', weights_only=True)
        assert found['model'].keys() == expected
        for name, value in found['model'].items():
            np.testing.assert_array_equal(value.numpy(), golden.state[name])
            assert value.shape == golden.state[name].shape
        # And the file converts again.
        again = tmp_path / f'again_{len(expected)}'
        checkpoint.import_checkpoint(
            tmp_path / 'model.ckpt', golden.name, again, golden_config(golden)
        )
        config, params = restored(again)
        assert_equal_trees(params, golden.params['params'])
        assert models.build(config.model) == golden.model

    other = content(golden, golden.state | {'more.weight': np.ones(3, np.float32)})
    torch_writer.save(path, other)
    with pytest.raises(SystemExit, match='other tensors than ours: more.weight'):
        run_main(monkeypatch, run, f'--output={tmp_path / "b.ckpt"}', f'--checkpoint={path}')
    assert not list(tmp_path.glob('b.ckpt*'))


def test_goldens_of_whole_models_are_there():
    assert FOLDERS
