"""Real training runs on a tiny world: results, determinism, resume after a kill, errors."""

import contextlib
import io
import json
import math
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest

from configs import synthetic as synthetic_config
from data_pipelines import datasets, files, world
from data_pipelines.errors import ConfigError, UserError
from data_pipelines.schedule import Bucket, Schedule, limits, query_sizes
from dualground_jax import checkpoints, evaluate, models, predict, runtime, sharding, train
from dualground_jax import runs as runs_lib
from dualground_jax import state as state_lib
from dualground_jax.config import load_config
from dualground_jax.grounding import ground
from dualground_jax.grounding.predictor import Predictor
from dualground_jax.metrics import official
from tests.helpers.paths import REPO

# As command-line overrides, so that the killed process runs the very same config.
OVERRIDES = dict(
    # One path: half the time to compile.
    model=dict(paths='sentence', width=16, heads=2, ffn=16, phrases=2, input_layers=1, mlp_layers=1,
               strides=(1,)),
    optimizer=dict(ema_decay=0.5),
    train=dict(epochs=3, log_every=1),
    evaluate=dict(pictures=1),
    data=dict(limit=30),
)
STEPS = 12  # 3 epochs of 4, of which the last has 6 samples and 2 empty rows


def make_config(root):
    config = synthetic_config.get_config(f'runlocal,root={root}')
    for section, values in OVERRIDES.items():
        config[section].update(values)
    world.generate(config.world, config.data.root)
    return config.lock()


@pytest.fixture(scope='module', name='config')
def tiny_config(tmp_path_factory):
    return make_config(tmp_path_factory.mktemp('data') / 'world')


@pytest.fixture(scope='module', name='finished')
def finished_run(config, tmp_path_factory):
    """An uninterrupted run: workdir, how often its functions were traced, stderr, its result."""
    workdir = tmp_path_factory.mktemp('runs') / 'finished'
    with counted_traces() as traces, contextlib.redirect_stderr(io.StringIO()) as told:
        found = train.train(config, str(workdir))
    return workdir, traces, told.getvalue(), found


@contextlib.contextmanager
def counted_traces():
    """Gives name -> how often that function of the model is traced."""
    traces = dict(loss_fn=0, decode=0)
    with pytest.MonkeyPatch.context() as patch:
        for name in traces:
            original = getattr(models.MODELS['dualground'], name)

            def counted(*args, name=name, original=original):
                traces[name] += 1
                return original(*args)

            patch.setattr(models.MODELS['dualground'], name, counted)
        yield traces


def restored(workdir, config, kind='latest'):
    mesh = sharding.make_mesh(config.mesh)
    return checkpoints.Checkpoints(str(workdir)).restore(
        kind, state_lib.abstract_state(config, mesh)
    )


def assert_same_state(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def test_a_run_leaves_its_results(finished, config):
    workdir = finished[0]
    result = json.loads((workdir / 'results.json').read_text())
    assert {'MR-full-mAP', 'MR-full-R1@0.5', 'HL-min-VeryGood-Hit1'} <= result['brief'].keys()
    assert result['seed'] == config.seed and 'jax' in result['versions']
    assert result['config'] == json.loads(config.to_json())
    state, _ = restored(workdir, config)
    assert result['parameters'] == sum(x.size for x in jax.tree.leaves(state.params))
    assert int(state.step) == 12
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    assert [r['step'] for r in rows if 'train/loss' in r] == list(range(1, 13))
    assert [r['step'] for r in rows if 'val/MR-full-mAP' in r] == [4, 8, 12]
    assert (workdir / 'training.png').stat().st_size > 1000
    assert len(list(workdir.glob('grounding_*.png'))) == 1
    assert list(workdir.glob('events.out.tfevents*'))


def test_loss_falls(finished):
    rows = [json.loads(line) for line in (finished[0] / 'metrics.jsonl').read_text().splitlines()]
    losses = [row['train/loss'] for row in rows if 'train/loss' in row]
    assert np.mean(losses[-4:]) < np.mean(losses[:4])


def test_best_step_is_the_best_evaluation(finished, config):
    rows = [json.loads(line) for line in (finished[0] / 'metrics.jsonl').read_text().splitlines()]
    values = {row['step']: row['val/MR-full-mAP'] for row in rows if 'val/MR-full-mAP' in row}
    result = json.loads((finished[0] / 'results.json').read_text())
    assert values[result['best_step']] == max(values.values())
    state, progress = restored(finished[0], config, 'best')
    assert int(state.step) == result['best_step'] == progress['best_step']


def test_train_and_predict_steps_are_traced_once(finished):
    """The train step decodes as well: it tells whether predictions are finite."""
    assert finished[1] == dict(loss_fn=1, decode=2)


def test_what_a_run_tells_and_returns(finished):
    workdir, _, told, found = finished
    assert found['brief'] == json.loads((workdir / 'results.json').read_text())['brief']
    for step in ('train', 'predict'):
        assert len(re.findall(rf'^compiling the {step} step: [\d.]+ s$', told, re.M)) == 1
    assert re.findall(r'^step (\d+), val: MR-full-mAP [\d.]+, ', told, re.M) == ['4', '8', '12']
    assert 'INFO' not in told and 'absl' not in told


def test_a_killed_run_resumes_to_the_same_parameters(finished, config, tmp_path):
    """Bit for bit; so the same seed gives the same parameters, in another process as well."""
    workdir = tmp_path / 'killed'
    overrides = [
        f'--config.{section}.{key}={value}'
        for section, values in OVERRIDES.items()
        for key, value in values.items()
    ]
    process = subprocess.Popen(
        [
            sys.executable, '-m', 'dualground_jax.main', f'--workdir={workdir}',
            f'--config=configs/synthetic.py:runlocal,root={config.data.root}', *overrides,
        ],
        cwd=REPO,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    history = workdir / 'metrics.jsonl'
    deadline = time.time() + 300
    # Steps 5 to 7 lie in the middle of the second epoch, after the checkpoint of step 4.
    while process.poll() is None and time.time() < deadline:
        if history.exists() and '"step": 6' in history.read_text():
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = checkpoints.Checkpoints(str(workdir)).step('latest')
    assert step in (4, 8), 'the run was to be killed between two checkpoints'
    assert not (workdir / 'results.json').exists()

    train.train(config, str(workdir))
    assert_same_state(restored(finished[0], config)[0], restored(workdir, config)[0])
    strip = lambda text: [
        json.loads(line) for line in text.splitlines()
    ]
    assert strip(history.read_text()) == strip((finished[0] / 'metrics.jsonl').read_text())


def changed(config, **values):
    """The config with values of dotted keys, in which __ stands for a dot."""
    other = config.copy_and_resolve_references()
    with other.unlocked():
        other.update_from_flattened_dict({k.replace('__', '.'): v for k, v in values.items()})
    return other.lock()


def test_a_finished_run_is_not_trained_further(finished, config, monkeypatch, capsys):
    """Nor does it say other than what it was trained and evaluated by."""
    monkeypatch.setattr(runtime.Step, 'prepare', lambda *_: pytest.fail('compiles for nothing'))
    read = lambda: (files.load_jsonl(finished[0] / 'metrics.jsonl'),
                    json.loads((finished[0] / 'results.json').read_text()))
    before = read()
    train.train(changed(config, evaluate__nms=0.3, evaluate__split='test', train__log_every=7),
                str(finished[0]))
    assert read() == before
    assert 'evaluate.nms: 0.7 there, 0.3 here' in capsys.readouterr().err


def test_results_tell_how_long_the_run_was_trained(finished, config, tmp_path):
    """Be its best checkpoint of a shorter training, which was extended."""
    workdir = shutil.copytree(finished[0], tmp_path / 'run')
    longer = changed(config, train__epochs=9, train__max_steps=12)
    train.train(longer, str(workdir))
    assert checkpoints.Checkpoints(workdir).config('best').train.epochs == config.train.epochs
    result = json.loads((workdir / 'results.json').read_text())
    assert result['config'] == json.loads(longer.to_json())
    with pytest.raises(checkpoints.CheckpointError,
                       match='run: holds a run of 12 steps, 11 are asked for; use another'):
        train.train(changed(config, train__max_steps=11), str(workdir))
    with pytest.raises(ConfigError, match='train.epochs=0, train.max_steps=0: expected 1 or more'):
        train.train(changed(config, train__epochs=0), str(workdir))


@pytest.mark.parametrize('values, message', [
    (dict(seed=7), 'seed: 2024 there, 7 here'),
    (dict(optimizer__learning_rate=1.0, loss__weights__cls=2.0),
     'loss.weights.cls: 5.0 there, 2.0 here; optimizer.learning_rate: 0.0015 there, 1.0 here'),
    (dict(train__batch_size=4, train__epochs=9), 'train.batch_size: 8 there, 4 here'),
    (dict(train__drop_last=True), 'train.drop_last: False there, True here'),
    (dict(data__dtype='float16'), 'data.dtype: float32 there, float16 here'),
    (dict(model__phrases=3), 'model.phrases: 2 there, 3 here'),
])
def test_a_workdir_goes_on_by_its_own_config(finished, config, values, message, monkeypatch):
    """What changes results is refused, all in one line, before the device has anything to do."""
    monkeypatch.setattr(checkpoints.Checkpoints, 'restore', None)
    with pytest.raises(checkpoints.CheckpointError, match=rf'another config \({re.escape(message)}'
                       r'\); use another --workdir$'):
        train.train(changed(config, **values), str(finished[0]))


def test_what_a_run_may_go_on_with(config):
    values = dict(train__epochs=9, train__eval_every=2, evaluate__batch_size=1, mesh__fsdp=2,
                  data__cache_gb=0.5)
    told = runs_lib.check_same_run('run', config, changed(config, **values))
    assert sorted(text.partition(':')[0] for text in told) == sorted(
        key.replace('__', '.') for key in values)
    assert not runs_lib.is_evaluated_anew(told)
    told = runs_lib.check_same_run('run', config, changed(config, evaluate__selection=('mAP',)))
    assert runs_lib.is_evaluated_anew(told)
    dropping = changed(config, train__drop_last=True, seed=1)
    runs_lib.check_same_run('run', config, changed(config, seed=1), compared='model.')
    with pytest.raises(checkpoints.CheckpointError, match=r'\(seed: 2024 there, 1 here\)'):
        runs_lib.check_same_run('run', config, dropping, unused=('train.drop_last',))


def test_other_training_data_are_refused(config):
    """Files can change where the config does not."""
    split = datasets.load_split(config.data, 'train')
    here = dict(training_data=runs_lib.fingerprint(split))
    runs_lib.check_same_data('run', {}, here)  # saved before there were fingerprints
    split.saliency[3] = split.saliency[3] + 1
    there = dict(training_data=runs_lib.fingerprint(split))
    with pytest.raises(checkpoints.CheckpointError, match='30 queries, .* there, 30 queries'):
        runs_lib.check_same_data('run', there, here)


def test_runs_saved_before_a_key_existed_count_as_what_they_did(config, tmp_path):
    old = config.copy_and_resolve_references()
    with old.unlocked():
        del old.train.drop_last, old.train.buckets, old.train.like_lengths
        del old.model.fusion, old.loss.radius, old.data.dtype
    state = state_lib.TrainState(np.int32(1), {'w': np.zeros(2, np.float32)}, {}, None)
    checkpoints.Checkpoints(tmp_path).save('latest', state, old, {})
    found = checkpoints.Checkpoints(tmp_path).config('latest')
    assert found == changed(config, train__drop_last=True, train__buckets=1)


@pytest.mark.parametrize('steps', [1, 3])
def test_a_loss_that_is_not_finite_stops_with_step_and_queries(steps, tmp_path):
    history = runs_lib.History(tmp_path, 4, 0, lambda step: [f'q{step}a', f'q{step}b'])
    fine, bad = np.ones(steps, np.float32), np.ones(steps, np.float32)
    bad[-1] = np.nan
    shaped = (lambda x: x) if steps > 1 else np.squeeze
    rows = np.ones((steps, 2), bool)
    add = lambda step, loss, rows: history.add(
        step, dict(loss=shaped(loss), sal=shaped(fine), is_finite=shaped(rows)))
    add(steps, fine, rows)
    last = 2 * steps
    for lost, named in (([], f"of the batch: ['q{last}a', 'q{last}b']"),
                        ([1], f"with such predictions: ['q{last}b']")):
        rows = rows.copy()
        rows[-1, lost] = False
        add(last, bad, rows)
        message = re.escape(f'step {last}: loss not finite; qids {named}')
        with pytest.raises(runs_lib.TrainingError, match=message):
            history.flush()
        history.pending.pop()


def test_resident_features_and_several_steps_in_one_program(
        finished, config, tmp_path, monkeypatch, capsys):
    """The same steps, up to the rounding of features to bfloat16; no evaluation is a number."""
    fast = config.copy_and_resolve_references()
    with fast.unlocked():
        fast.data.resident = True
        fast.train.steps_per_call = 4
    monkeypatch.setattr(evaluate, 'selection_value', lambda *_: math.nan)
    with counted_traces() as traces:
        train.train(fast, str(tmp_path))
    assert traces == finished[1], 'a program that was compiled ahead is not used'
    assert json.loads((tmp_path / 'results.json').read_text())['best_step'] == STEPS
    assert capsys.readouterr().err.count('MR-full-mAP is no number: this checkpoint is kept') == 3
    rows = {folder: files.load_jsonl(folder / 'metrics.jsonl')
            for folder in (tmp_path, finished[0])}
    losses = [{row['step']: row['train/loss'] for row in found if 'train/loss' in row}
              for found in rows.values()]
    assert sorted(losses[0]) == [4, 8, 12], 'logged where a call ends'
    for last in losses[0]:
        mean = np.mean([losses[1][step] for step in range(last - 3, last + 1)])
        np.testing.assert_allclose(losses[0][last], mean, rtol=0.01)


def test_a_call_ends_where_an_evaluation_is_due(config):
    """Of the four steps between two evaluations three go in one call, then one."""
    mesh = sharding.make_mesh(config.mesh)
    split, _ = train.load_splits(config)

    def batches(steps_per_call):
        changed = config.copy_and_resolve_references()
        with changed.unlocked():
            changed.train.steps_per_call = steps_per_call
        schedule, = Schedule.of(split, changed.data, changed.train, changed.seed)
        calls = train.planned_calls([schedule], changed.train, range(1, 10), 4)
        return list(train.device_batches(split, changed, mesh, [schedule], calls))

    found, single = batches(3), iter(batches(1))
    assert [count for count, _ in found] == [3, 3, 1, 1, 1]  # 2-4, 5-7, 8, 9, 10
    for count, batch in found:
        steps = [next(single)[1] for _ in range(count)]
        expected = jax.tree.map(lambda *x: np.stack(x), *steps) if count > 1 else steps[0]
        assert_same_state(batch, expected)


@pytest.mark.slow
def test_buckets_train_the_same(config):
    """20 steps padded to the limits, and to one of two sizes: two more programs, equal values."""
    plain = changed(config, train__batch_size=2)
    mesh = sharding.one_device()
    split, _ = train.load_splits(plain)
    tx = state_lib.make_optimizer(plain.optimizer, 20)
    abstract = state_lib.abstract_state(plain, mesh, 20)
    step = train.make_train_step(plain, mesh, 20, abstract)
    fresh = jax.device_get(state_lib.fresh_state(plain, tx, abstract))
    sizes, found = query_sizes(split), []
    largest = Bucket(*sizes.max(0).tolist())
    for buckets in ([limits(plain.data)], [Bucket(largest.clips - 4, largest.tokens), largest]):
        state = jax.device_put(fresh, jax.tree.map(lambda x: x.sharding, abstract))
        schedule = Schedule(sizes, 2, plain.seed, buckets=buckets)
        calls = train.planned_calls([schedule], plain.train, range(20), 20)
        for _, batch in train.device_batches(split, plain, mesh, [schedule], calls):
            state, _ = step(state, batch, dict(seed=np.uint32(0)), {})
        found.append((step._cache_size(), jax.device_get(state.params)))
    assert [programs for programs, _ in found] == [1, 3]
    params = [jax.tree_util.tree_leaves_with_path(params) for _, params in found]
    for (path, a), (_, b) in zip(*params, strict=True):
        # What all logits of a softmax share has no gradient but rounding.
        if not jax.tree_util.keystr(path).endswith("['key']['bias']"):
            np.testing.assert_allclose(a, b, atol=1e-5, err_msg=str(path))


def test_parameters_of_another_model_are_not_evaluated(finished, config):
    other = config.copy_and_resolve_references()
    with other.unlocked():
        other.model.width *= 2
    with pytest.raises(checkpoints.CheckpointError, match=r'another model \(width: \d+ there, \d+'):
        predict.restore_best(str(finished[0]), other, sharding.one_device())


def test_evaluate_writes_an_official_submission(finished, config, capsys):
    workdir = finished[0]
    evaluate.evaluate(config, str(workdir))
    rows = files.load_jsonl(workdir / 'val_predictions.jsonl')
    truth = files.load_jsonl(pathlib.Path(config.data.root) / 'val.jsonl')
    assert [row['qid'] for row in rows] == [row['qid'] for row in truth]
    for row, record in zip(rows, truth, strict=True):
        assert set(row) == {'qid', 'query', 'vid', 'pred_relevant_windows', 'pred_saliency_scores'}
        windows = np.array(row['pred_relevant_windows'])
        assert 1 <= len(windows) <= 10 and (np.diff(windows[:, 2]) <= 0).all()
        assert (windows[:, 0] <= windows[:, 1]).all() and windows[:, 0].min() >= 0
        assert windows[:, 1].max() <= record['duration'] and not (windows[:, :2] % 2).any()
        assert len(row['pred_saliency_scores']) == record['duration'] / 2
    found = json.loads((workdir / 'val_metrics.json').read_text())
    assert found == official.evaluate(rows, truth)
    assert found['brief'] == json.loads((workdir / 'results.json').read_text())['brief']
    assert 'MR-full-mAP' in capsys.readouterr().out


def test_a_split_without_labels_is_predicted_not_evaluated(finished, config, tmp_path, capsys):
    workdir, root = tmp_path / 'run', tmp_path / 'world'
    shutil.copytree(finished[0] / 'checkpoints', workdir / 'checkpoints')
    shutil.copytree(config.data.root, root)
    rows = files.load_jsonl(root / 'val.jsonl')
    for row in rows:
        row['relevant_windows'] = []
        row.pop('saliency_scores'), row.pop('relevant_clip_ids')
    files.write_jsonl(root / 'val.jsonl', rows)
    blind = config.copy_and_resolve_references()
    with blind.unlocked():
        blind.data.root = str(root)
    with pytest.raises(datasets.DataError, match="split 'val': .*--mode=predict"):
        evaluate.evaluate(blind, str(workdir))
    values = types.SimpleNamespace(workdir=str(workdir), video=[], video_features=[])
    ground.run(values, blind)
    found, expected = ((folder / 'val_predictions.jsonl').read_text()
                       for folder in (workdir, finished[0]))
    assert found == expected and not (workdir / 'val_metrics.json').exists()


def test_the_config_of_a_run_is_loaded(finished, config):
    assert load_config(finished[0]) == config
    assert load_config(finished[0], {'train.epochs': 5}).train.epochs == 5


def test_predictor_agrees_with_batched_evaluation(finished, config):
    predictor = Predictor.from_checkpoint(str(finished[0]))
    rows = files.load_jsonl(finished[0] / 'val_predictions.jsonl')
    root = pathlib.Path(config.data.root)
    for row in rows[:3]:
        video = np.load(root / 'video' / f'{row["vid"]}.npz')['features']
        query = np.load(root / 'text' / f'qid{row["qid"]}.npz')['last_hidden_state']
        windows, saliency = predictor.predict(video, query)
        np.testing.assert_allclose(windows, row['pred_relevant_windows'], atol=1.1e-4)
        np.testing.assert_allclose(saliency, row['pred_saliency_scores'], atol=1e-4)
    end = float(windows[:, 1].max()) / 2
    short, _ = predictor.predict(video, query, duration=end)
    assert len(short) and (short[:, 0] < short[:, 1]).all() and short[:, 0].max() < end
    for duration in (0, -1, float('nan')):
        with pytest.raises(datasets.DataError, match=f'duration is {duration}, expected seconds'):
            predictor.predict(video, query, duration=duration)
    limit = predictor.config.data.max_clips
    longer = np.resize(video, (2 * limit, video.shape[1]))
    roomy = load_config(
        finished[0], {'data.max_clips': 2 * limit, 'evaluate.clip_to': (0.0, limit / 2)})
    windows, saliency = Predictor.from_checkpoint(finished[0], roomy).predict(longer, query)
    assert len(saliency) == 2 * limit
    assert windows[:, 1].max() > limit / 2  # the bounds of the data set's videos are not its own
    with pytest.raises(datasets.DataError, match='query_features: width 3, expected 64'):
        predictor.predict(video, np.zeros((4, 3)))
    with pytest.raises(datasets.DataError, match='2 video streams, expected 1'):
        predictor.predict([video, video], query)
    with pytest.raises(datasets.DataError, match='nan in row 0'):
        predictor.predict(np.full_like(video, np.nan), query)


def test_a_run_starts_from_the_best_parameters_of_another(
        finished, config, tmp_path, capsys, monkeypatch):
    """By the program of `finished`, which is compiled already."""
    own = config.copy_and_resolve_references()
    with own.unlocked():
        own.train.init_from = str(finished[0])
    best, starts = jax.device_get(Predictor.from_checkpoint(finished[0]).params), []

    def start_from(workdir, fresh, original=runs_lib.start_from):
        starts.append(jax.device_get(original(workdir, fresh)))
        return original(workdir, fresh)

    monkeypatch.setattr(runs_lib, 'start_from', start_from)
    train.train(own, str(tmp_path / 'run'))
    state, = starts
    assert int(state.step) == 0 and not any(x.any() for x in jax.tree.leaves(state.opt_state))
    for params in (state.params, state.ema):
        jax.tree.map(np.testing.assert_array_equal, params, best)
    assert f'starting from the best checkpoint of {finished[0]}' in capsys.readouterr().err
    first, fresh = (json.loads((folder / 'metrics.jsonl').read_text().splitlines()[0])
                    for folder in (tmp_path / 'run', finished[0]))
    assert first['step'] == fresh['step'] == 1 and first['train/loss'] != fresh['train/loss']

    def refuse(message, **values):
        other = own.copy_and_resolve_references()
        with other.unlocked():
            other.update_from_flattened_dict(values)
        with pytest.raises(checkpoints.CheckpointError, match=message):
            train.train(other, str(tmp_path / 'other'))

    refuse(r'train.init_from=.*: holds another model \(paths: sentence there, both here',
           **{'model.paths': 'both'})
    refuse('nowhere.*no checkpoint', **{'train.init_from': str(tmp_path / 'nowhere')})
    assert not (tmp_path / 'other').exists()


def test_the_argument_init_takes_the_model_of_a_run(finished, config):
    found = synthetic_config.get_config(f'runlocal,init={finished[0]},root={config.data.root}')
    assert found.train.init_from == str(finished[0])
    for section in ('model', 'loss'):
        assert found[section].to_dict() == config[section].to_dict()
    assert found.optimizer.learning_rate == 1.5e-3 and found.optimizer.ema_decay == 0
    with pytest.raises(UserError, match='model=cg_detr: init=.* has dualground'):
        synthetic_config.get_config(f'model=cg_detr,init={finished[0]}')


def test_ema_follows_the_parameters(config):
    """By the program of `finished`: it is compiled already."""
    mesh = sharding.make_mesh(config.mesh)
    tx = state_lib.make_optimizer(config.optimizer, STEPS)
    abstract = state_lib.abstract_state(config, mesh, STEPS)
    step = train.make_train_step(config, mesh, STEPS, abstract)
    state = state_lib.fresh_state(config, tx, abstract)
    first = expected = jax.device_get(state.params)
    size = config.train.batch_size
    batch = state_lib.dummy_batch(config, size)
    batch['video_mask'][:] = True
    batch = sharding.put_batch(batch, sharding.batch_sharding(mesh), size)
    for _ in range(3):  # the first one has a learning rate of zero
        state, _ = step(state, batch, dict(seed=np.uint32(0)), {})
        assert state.eval_params is state.ema
        params, ema = jax.device_get((state.params, state.ema))
        expected = jax.tree.map(lambda e, p: (e + p) / 2, expected, params)
        jax.tree.map(lambda e, x: np.testing.assert_allclose(e, x, atol=1e-6), ema, expected)
    assert max(jax.tree.leaves(jax.tree.map(lambda p, f: np.abs(p - f).max(), params, first))) > (
        1e-5)


@pytest.mark.parametrize(
    'values, expected',
    [
        (dict(), [1.0, 1.0, 1.0]),
        (dict(schedule='cosine'), [1.0, 0.5, 0.0]),
        (dict(warmup_steps=4), [0.0, 1.0, 1.0]),
    ],
)
def test_learning_rate_schedules(config, values, expected):
    section = config.optimizer.copy_and_resolve_references()
    with section.unlocked():
        section.update(dict(learning_rate=1.0, weight_decay=0.0, clip_norm=1e9))
        section.update(dict(schedule='constant', warmup_steps=0) | values)
    tx = state_lib.make_optimizer(section, 10)
    params = {'w': np.zeros(1, np.float32)}
    state, sizes = tx.init(params), []
    for _ in range(11):
        updates, state = tx.update({'w': np.ones(1, np.float32)}, state, params)
        sizes.append(-float(updates['w'][0]))
    np.testing.assert_allclose([sizes[0], sizes[5], sizes[10]], expected, atol=1e-5)


def test_mesh_and_batch_size_must_fit(config):
    with pytest.raises(ValueError, match='mesh .* needs 1024 devices'):
        sharding.make_mesh(type(config.mesh)(dict(data=1024, fsdp=1, model=1)))
    if jax.device_count() > 1:
        with pytest.raises(ValueError, match='train.batch_size=3 cannot be split over 2'):
            mesh = sharding.make_mesh(type(config.mesh)(dict(data=2, fsdp=1, model=1)))
            sharding.check_batch_size(mesh, 3, 'train.batch_size')
    section = config.evaluate.copy_and_resolve_references()
    section.buckets = 0
    with pytest.raises(ValueError, match='evaluate.buckets=0: expected 1 or more'):
        predict.check_section(section, sharding.one_device())
    three = jax.local_devices()[:1] * 3
    with pytest.raises(ValueError, match='3 devices cannot be shared out among 2'):
        sharding.make_mesh(type(config.mesh)(dict(data=-1, fsdp=2, model=1)), three)


