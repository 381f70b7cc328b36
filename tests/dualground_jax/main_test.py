"""The command line: every mistake is one line that names the culprit, before anything is run."""

import importlib
import inspect
import json
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines import world as planted
from dualground_jax import cli, main, models
from tests.helpers import command_line
from tests.helpers.file_limit import file_limit
from tests.helpers.paths import FOLDER_CONFIG, REPO

CONFIG = 'configs/synthetic.py:runlocal'


@pytest.fixture(name='world')
def small_world(tmp_path):
    """Folder of a tiny world, to be damaged, with plain file names."""
    root = tmp_path / 'world'
    planted.generate(
        planted.World(train_queries=6, val_queries=2, test_queries=2), root
    )
    return root


@pytest.fixture(name='cli_error')
def run_to_error(monkeypatch, tmp_path):
    """Runs the command line in this process; returns the message that it exits with."""
    monkeypatch.chdir(REPO)

    def no_device_work(*_):
        raise AssertionError('a model was built before the mistake was reported')

    monkeypatch.setattr(models, 'build', no_device_work)

    def run(*arguments):
        argv = ['main', f'--workdir={tmp_path / "run"}', *arguments]
        command_line.start(monkeypatch, argv)
        with pytest.raises(SystemExit) as exit_info:
            main.main(cli.parse(argv))
        message = str(exit_info.value.code)
        assert message.startswith('error: ') and '\n' not in message
        assert not list((tmp_path / 'run').glob('**/*')), 'something was left behind'
        return message

    return run


@pytest.mark.parametrize('arguments, message', [
    (['--config.train.epochs=3'], '--config.train.epochs changes nothing in this --mode=predict'),
    (['--config.seed=1'], 'which reads model, data, evaluate, mesh'),
    (['--config.data.root=x', '--video_features=a', '--query_features=b'],
     '--config.data.root changes nothing in this --mode=predict, which reads model, data.video_d'),
    (['--split=val', '--video_features=a', '--query_features=b'], '--split=val changes nothing'),
])
def test_what_a_prediction_does_not_read_is_not_passed_over(arguments, message, cli_error):
    assert message in cli_error('--mode=predict', f'--config={CONFIG}', *arguments)


def test_what_cannot_be_scored_is_told_before_training(world, cli_error):
    config = f'--config={FOLDER_CONFIG}:{world}'
    message = cli_error(config, '--config.data.clip_length=1.0')
    assert 'val.jsonl: cannot be scored: clips of 1.0 s' in message and 'expected 2 s' in message
    message = cli_error(config, "--config.evaluate.selection=('mAP',)")
    assert 'evaluate.selection names mAP; the evaluation gives MR-full-R1@0.3' in message


def test_a_workdir_is_a_config_in_one_process(cli_error, tmp_path):
    assert 'no checkpoint' in cli_error('--mode=predict', f'--config={tmp_path}')
    assert 'in one process alone' in cli_error(
        '--mode=predict', f'--config={tmp_path}', '--coordinator=localhost:1')


def rewrite(path, change):
    """Applies `change` to the list of records of an annotation file."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    change(records)
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))


def first_video(world):
    return min((world / 'video').glob('train_*.npz'))


def save_features(path, change):
    features = np.load(path)['features'].astype(np.float32)
    np.savez(path, features=change(features))


def set_nan(features):
    features[3, 5] = np.nan
    return features


DAMAGES = {
    'missing feature file': (
        lambda world: first_video(world).unlink(), ['video', 'found no file train_00000']
    ),
    'wrong feature width': (
        lambda world: save_features(first_video(world), lambda x: x[:, :7]),
        ['train_00000.npz', 'width 7', 'expected 96', 'data.video_dims'],
    ),
    'NaN in features': (
        lambda world: save_features(first_video(world), set_nan),
        ['train_00000.npz', 'nan in row 3, column 5'],
    ),
    'empty text': (
        lambda world: rewrite(world / 'train.jsonl', lambda r: r[1].update(query=' ')),
        ['train.jsonl:2', "query is ' '"],
    ),
    'window beyond duration': (
        lambda world: rewrite(
            world / 'train.jsonl', lambda r: r[2].update(relevant_windows=[[0, 1000]])
        ),
        ['train.jsonl:3', 'relevant_windows[0]', '[0, 1000]', 'duration'],
    ),
    'start > end': (
        lambda world: rewrite(
            world / 'train.jsonl', lambda r: r[2].update(relevant_windows=[[8, 7]])
        ),
        ['train.jsonl:3', 'relevant_windows[0]', '[8, 7]', 'start <= end'],
    ),
    'start = end': (
        lambda world: rewrite(
            world / 'train.jsonl', lambda r: r[2].update(relevant_windows=[[8, 8]])
        ),
        ['train.jsonl:3', 'relevant_windows[0]', '[8, 8]', 'data.empty_windows=drop'],
    ),
    'a grade beyond the scale': (
        lambda world: rewrite(
            world / 'val.jsonl', lambda r: r[1]['saliency_scores'][0].__setitem__(2, 7)
        ),
        ['val.jsonl:2', 'saliency_scores[0]', '7]', '3 numbers from 0 to 4'],
    ),
    'malformed json line': (
        lambda world: (world / 'val.jsonl').write_text('{"qid": 1,\n'), ['val.jsonl:1', 'not JSON']
    ),
    'duplicate qid': (
        lambda world: rewrite(world / 'train.jsonl', lambda r: r[3].update(qid=r[0]['qid'])),
        ['train.jsonl:4', 'qid', 'line 1'],
    ),
    'corrupt npz': (
        lambda world: first_video(world).write_bytes(b'PK\x03\x04 not a zip'),
        ['train_00000.npz', "can't be read"],
    ),
    'more clips than the limit': (
        lambda world: save_features(first_video(world), lambda x: np.tile(x, (3, 1))),
        ['train_00000.npz', f'expected at most {planted.World().max_clips}', 'data.max_clips'],
    ),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_bad_data_is_named(damage, world, cli_error):
    change, expected = DAMAGES[damage]
    change(world)
    # No generator parameters: the folder is taken as any user's real data.
    message = cli_error(f'--config={FOLDER_CONFIG}:{world}')
    for part in expected:
        assert part in message


def test_a_batch_of_no_size_is_named(world, cli_error):
    config = f'--config={FOLDER_CONFIG}:{world}'
    assert 'train.batch_size=0' in cli_error(config, '--config.train.batch_size=0')


def test_bad_data_is_skipped_on_request(world, capsys, monkeypatch, tmp_path):
    first_video(world).unlink()
    rewrite(world / 'train.jsonl', lambda r: r[2].update(query=''))
    monkeypatch.chdir(REPO)

    class Reached(Exception):
        pass

    def stop(*_):
        raise Reached

    monkeypatch.setattr(models, 'build', stop)
    argv = [
        'main', f'--workdir={tmp_path / "run"}',
        f'--config={FOLDER_CONFIG}:{world}', '--config.data.on_error=skip',
    ]
    command_line.start(monkeypatch, argv)
    with pytest.raises(Reached):
        main.main(cli.parse(argv))
    printed = capsys.readouterr().out
    assert "split 'train': skipped 2 problems" in printed
    assert 'train_00000' in printed and 'query' in printed


@pytest.mark.parametrize(
    'arguments, expected',
    [
        ([f'--config={CONFIG}', '--config.foo=1'], ["no key 'foo'", 'model', 'optimizer']),
        (
            [f'--config={CONFIG}', '--config.model.widht=1'],
            ["config.model has no key 'widht'", 'width'],
        ),
        (
            ['--config=configs/qvh.py:feature=iv2'],
            ["unknown config argument 'feature'", 'features', 'model', 'runlocal'],
        ),
        (['--config=configs/qvh.py:features=c3d'], ["unknown features 'c3d'", 'iv2', 'sf_clip']),
        (['--config=configs/qvh.py:model=vtg'], ["unknown model 'vtg'", 'dualground']),
        (['--config=configs/nothing.py'], ['configs/nothing.py', 'no such file']),
        ([f'--config={CONFIG}', '--config.model.width=wide'], ['model.width', 'wide']),
        (['--mode=trian', f'--config={CONFIG}'], ['trian', 'train', 'evaluate', 'predict']),
        (['--mode=evaluate'], ['no checkpoint']),
        (['--mode=analyse'], ['no checkpoint']),
        (['--mode=analyse', '--splits=val,val'], ['--splits=val,val', 'different splits']),
        (['--mode=sweep', '--sweep=seed=1,2'], ['needs --config']),
        (['--mode=sweep', f'--config={CONFIG}'], ['needs --sweep=key=value']),
        (
            ['--mode=sweep', f'--config={CONFIG}', '--sweep=model.tokns=eos'],
            ["config.model has no key 'tokns'", 'tokens'],
        ),
        (['--mode=train'], ['needs --config']),
        (['--mode=verify-data'], ['needs --config']),
        (
            ['--mode=verify-data', '--config=configs/qvh.py', '--skip_list=nowhere/skip.jsonl'],
            ['--skip_list=nowhere/skip.jsonl', 'no such folder'],
        ),
        (['--mode=import-csv', '--table=a.csv'], ['--output=FOLDER']),
        (['--config=configs/custom.py:root=nowhere'], ['root=nowhere: no such folder']),
        (['--config=configs/custom.py:root=.'], ['layout=...', 'clip_length=...']),
        (['--config=configs/qvh.py:domain=BK'], ["unknown config argument 'domain'"]),
        (
            ['--mode=word-vectors', '--config=configs/charades.py:features=vgg'],
            ['needs --vectors=FILE'],
        ),
        (['--mode=predict', '--video_features=a.npz'], ['--query_features']),
        (['--mode=predict', '--query_features=a.npz'], ['--video_features']),
        (
            ['--mode=simulate', '--config=configs/qvh.py:annotations=nowhere'],
            ['nowhere', 'no annotation file', 'data.annotations'],
        ),
    ],
)
def test_mistakes_on_the_command_line_are_named(arguments, expected, cli_error):
    message = cli_error(*arguments)
    for part in expected:
        assert part in message


def test_a_full_disk_is_named(cli_error, tmp_path):
    root = tmp_path / 'planted'
    with file_limit(500):
        message = cli_error(f'--config=configs/synthetic.py:runlocal,root={root}')
    assert message.startswith(f'error: {root}')
    assert 'File too large; what was written before is whole' in message
    assert not list(tmp_path.glob('*planted*'))


def test_exit_code_and_stderr_of_the_real_process(tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'dualground_jax.main', '--mode=evaluate', f'--workdir={tmp_path}'],
        cwd=REPO,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1].startswith('error: ')
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize('mode', main.MODES)
def test_every_mode_has_its_run(mode):
    module, needs = main.MODES[mode]
    parameters = list(inspect.signature(importlib.import_module(module).run).parameters)
    assert len(parameters) == 2 + ('files' in needs)
    assert set(needs.split()) <= {
        'workdir', 'config', 'saved', 'world', 'processes', 'files', 'output'}


def test_help_names_every_flag_and_mode(capsys):
    with pytest.raises(SystemExit) as done:
        cli.parse(['main', '--help'])
    printed = capsys.readouterr().out
    assert not done.value.code
    for flag in main.flags.FLAGS.flags_by_module_dict()[cli.__name__]:
        assert f'  --{flag.name}: ' in printed
    for mode in main.MODES:
        assert mode in printed
    readers = {name for named in cli.FLAGS for name in named.split(', ')}
    assert readers <= set(main.MODES)


def test_the_package_is_cheap_to_import_and_offers_its_names():
    done = subprocess.run(
        [sys.executable, '-c', 'import dualground_jax, sys; print(*sys.modules)'],
        cwd=REPO, capture_output=True, text=True, check=True)
    assert not {'jax', 'tensorflow', 'numpy', 'absl'} & set(done.stdout.split())
    import dualground_jax

    for name in dualground_jax.__all__:
        assert getattr(dualground_jax, name) is not None and name in dir(dualground_jax)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dualground_jax.nothing  # noqa: B018


def test_every_config_key_is_read():
    """No key without a reader: each leaf's name occurs in the code, as an attribute or an item."""
    from configs import charades, pixels, qvh, tacos, tiny_clip, tvsum, youtube_hl
    from configs import synthetic as synthetic_config

    code = '\n'.join(
        path.read_text()
        for folder in ('dualground_jax', 'data_pipelines')
        for path in (REPO / folder).glob('**/*.py')
    )
    expanded = ('weights', 'detr_cost')  # read as a whole, by the losses' names
    for module in (
            qvh, charades, tacos, tvsum, youtube_hl, synthetic_config, pixels, tiny_clip):
        config = module.get_config()
        del config.world  # becomes a World, whose fields it has by construction
        for path in leaves(config):
            name = path[-1]
            found = f'.{name}' in code or f"'{name}'" in code or path[1] in expanded
            assert found, '.'.join(path)


def leaves(config, prefix=()):
    for key, value in config.items():
        if hasattr(value, 'items'):
            yield from leaves(value, (*prefix, key))
        else:
            yield (*prefix, key)


@pytest.mark.parametrize(
    'name', ['qvh', 'charades', 'tacos', 'tvsum', 'youtube_hl', 'synthetic', 'pixels']
)
def test_runlocal_shrinks_every_config(name, monkeypatch):
    module = importlib.import_module(f'configs.{name}')
    full, small = module.get_config(), module.get_config('runlocal')
    assert small.model.width <= 32 and small.train.epochs <= 2 and 0 < small.data.limit <= 64
    assert sorted(leaves(full)) == sorted(leaves(small))
