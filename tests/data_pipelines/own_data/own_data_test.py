"""The worked example of docs/own_data.md, command by command, and the config for own data."""

import collections
import json
import os
import re
import shlex
import subprocess
import sys

import imageio_ffmpeg
import numpy as np
import pytest

from configs import custom
from data_pipelines import video
from data_pipelines.errors import ConfigError
from dualground_jax import cli, main
from tests.helpers import clip_folder, command_line
from tests.helpers.paths import REPO

COMMAND = 'python -m dualground_jax.main '
# The test's own addition to the training command: a quarter of the time to compile.
QUICKLY = ('--config.model.paths=sentence', '--config.model.strides=(1,)',
           '--config.model.mlp_layers=1', '--config.model.input_layers=1',
           '--config.mesh.data=1', '--config.train.max_steps=2')


def example_blocks():
    text = (REPO / 'docs/own_data.md').read_text()
    return re.findall(r'```bash\n(.*?)```', text, re.DOTALL)


def run_block(block, monkeypatch):
    """Runs a block as a shell would, but our own commands in this process."""
    if not block.startswith(COMMAND):
        path = os.pathsep.join([os.path.dirname(sys.executable), os.environ['PATH']])
        subprocess.run(['bash', '-euc', block], check=True, env={**os.environ, 'PATH': path})
        return
    argv = ['main', *shlex.split(block.removeprefix(COMMAND).replace('\\\n', ' '))]
    argv += QUICKLY * ('runlocal' in block)
    command_line.start(monkeypatch, argv)
    main.main(cli.parse(argv))


def test_the_documented_example_runs(tmp_path, monkeypatch, capsys):
    """With a small encoder in place of the one to download."""
    clip_folder.write(tmp_path / 'openai' / 'clip-vit-base-patch32')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'configs').symlink_to(REPO / 'configs')
    printed = collections.defaultdict(str)
    for block in example_blocks():
        run_block(block, monkeypatch)
        printed[block.split()[3] if block.startswith(COMMAND) else block] += capsys.readouterr().out
    assert '6 videos, 6 to extract' in printed['--mode=extract']
    assert 'val: 2 queries of 1 videos' in printed['--mode=import']
    assert 'errors: 0, warnings: 0' in printed['--mode=verify-data']
    rows = [json.loads(line) for line in open('runs/mine/val_predictions.jsonl')]
    wanted = [json.loads(line) for line in open('data/mine/val.jsonl')]
    assert [row['qid'] for row in rows] == [row['qid'] for row in wanted]
    found = json.load(open('data/mine/moments.json'))
    assert [row['query'] for row in found] == ['a dog runs', 'the sun sets']
    for row in found:
        assert len(row['saliency']) == 15 and row['clip_length'] == 2 and len(row['windows']) == 1
        assert all(0 <= start < end <= 30 for start, end, _ in row['windows'])
    # FFmpeg reads the list, and makes a video of the cuts.
    cuts = [row['windows'][0] for row in found]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), '-v', 'error', '-f', 'concat', '-safe', '0',
                    '-i', 'data/mine/moments.ffconcat', 'cuts.mp4'], check=True)
    length = sum(end - start for start, end, score in cuts if score > 0)
    assert abs(video.probe('cuts.mp4').duration - length) <= 0.4 * len(cuts)


@pytest.fixture(name='folder')
def own_folder(tmp_path):
    """A folder with two video streams and a test split."""
    for name in ('a', 'b', 'words'):
        (tmp_path / name).mkdir()
    rng = np.random.default_rng(0)
    line = dict(query='a dog', duration=41.5)
    windows = [[0, 4], [6, 8], [10, 41.5]]
    for split, qids in dict(train=(0, 1), val=(2, 3)).items():
        (tmp_path / f'{split}.jsonl').write_text(''.join(json.dumps(
            dict(line, qid=qid, vid=f'v{qid}', relevant_windows=windows[:qid])) + '\n'
            for qid in qids))
    for i in range(4):
        np.save(tmp_path / 'a' / f'v{i}.npy', rng.normal(size=(9, 7 if i else 5)))
        np.savez(tmp_path / 'b' / f'v{i}.npz', features=rng.normal(size=(9, 3)))
        np.savez(tmp_path / 'words' / f'{i}.npz', last_hidden_state=rng.normal(size=(2, 11)))
    (tmp_path / 'a' / 'v1.npy').write_bytes(b'damaged')
    return tmp_path


def arguments(folder, **changes):
    values = dict(root=folder, layout='words', clip_length=4, video='a+b', text='words')
    return ','.join(f'{name}={value}' for name, value in (values | changes).items() if value)


def test_sizes_are_read_off_the_files(folder):
    config = custom.get_config(arguments(folder, model='flash_vtg'))
    data = config.data
    assert (data.video_dirs, data.video_dims) == (('a', 'b'), (7, 3))
    assert (data.text_dir, data.text_dim, data.text_layout) == ('words', 11, 'words')
    assert (data.clip_length, data.max_clips, data.max_windows, data.max_spans) == (4, 13, 3, 3)
    assert data.saliency == 'windows' and data.annotations.test == ''
    assert (config.evaluate.clip_to, config.evaluate.round_to) == ((0, 41.5), 0)
    assert config.model.name == 'flash_vtg'


def test_grades_in_training_records_are_used(folder):
    lines = [json.loads(line) for line in (folder / 'train.jsonl').read_text().splitlines()]

    def saliency():
        (folder / 'train.jsonl').write_text('\n'.join(map(json.dumps, lines)))
        return custom.get_config(arguments(folder)).data.saliency

    assert saliency() == 'windows'
    lines[1] |= dict(relevant_clip_ids=[0], saliency_scores=[[4, 3]])
    assert saliency() == 'annotators'


@pytest.mark.parametrize('changes, message', [
    (dict(root=''), r'needs the arguments root=\.\.\. \(folder'),
    (dict(layout='', clip_length=0),
     r'needs the arguments layout=\.\.\. \(.*clip, llama, words.*\); clip_length=\.\.\. \(seconds'),
    (dict(layout='bert'), 'layout=bert.*expected clip, llama, words'),
    (dict(clip_length=-1), 'clip_length=-1.0: expected .*above 0'),
    (dict(video='a+c'), r'c: expected feature files.*found 0 \(arguments root, video, text\)'),
    (dict(model='vtg'), "unknown model 'vtg'"),
    (dict(annotations='elsewhere'), r'elsewhere/train.jsonl: no such file .*--mode=import'),
    (dict(val='dev'), 'val=dev: expected one of .*train, val'),
])
def test_what_is_missing_is_asked_for(changes, message, folder):
    with pytest.raises(ConfigError, match=message):
        custom.get_config(arguments(folder, **changes))


def test_one_video_has_a_way_on(folder):
    (folder / 'val.jsonl').unlink()
    with pytest.raises(ConfigError, match='val.jsonl: no such file .*val=train chooses'):
        custom.get_config(arguments(folder))
    assert custom.get_config(arguments(folder, val='train')).data.annotations.val == 'train.jsonl'


def test_files_that_sizes_cannot_be_read_off(folder):
    np.savez(folder / 'b' / 'v0.npz', rows=np.ones((3, 3)), x=np.ones(3))
    for i in range(1, 4):
        (folder / 'b' / f'v{i}.npz').unlink()
    with pytest.raises(ConfigError, match="found 1, but: .*v0.npz: expected array 'features'"):
        custom.get_config(arguments(folder))
    (folder / 'train.jsonl').write_text('{}\n')
    (folder / 'val.jsonl').write_text('')
    with pytest.raises(ConfigError, match='train.jsonl: no record is as expected'):
        custom.get_config(arguments(folder, video='a'))
