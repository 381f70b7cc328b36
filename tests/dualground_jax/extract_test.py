"""Mode extract: from videos and sentences to feature files, and a model that keeps the recipe."""

import dataclasses
import json
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from data_pipelines import annotations, features, recipe
from data_pipelines.errors import ConfigError, DataError
from dualground_jax import cli, extract, main
from dualground_jax.encoders import encoder as encoder_lib
from tests.helpers import clip_folder, command_line
from tests.helpers.paths import REPO
from tests.helpers.release_files import annotation_config, assert_parts, write_lines

SECONDS = 12
QUERIES = ['a man runs', 'the dog talks to the camera', 'people are cooking', 'naïve 12!']


def write_video(path, seed, seconds=SECONDS, rate=5):
    """Blocks of colours that change each second."""
    import av

    colours = np.random.default_rng(seed).integers(0, 255, (seconds, 4, 6, 3), np.uint8)
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('mpeg4', rate=rate)
        stream.width, stream.height, stream.pix_fmt = 48, 32, 'yuv420p'
        for i in range(seconds * rate):
            picture = np.kron(colours[i // rate], np.ones((8, 8, 1), np.uint8))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')))
        container.mux(stream.encode(None))
    return path


def make_query(qid, vid, sentence):
    return dict(qid=qid, query=sentence, vid=vid, duration=SECONDS, relevant_windows=[[2, 6]],
                relevant_clip_ids=[1, 2], saliency_scores=[[3, 4, 2], [1, 0, 1]])


@pytest.fixture(scope='module', name='source')
def clip_videos_and_annotations(tmp_path_factory):
    folder = tmp_path_factory.mktemp('source')
    clip_folder.write(folder / 'clip')
    (folder / 'videos').mkdir()
    vids = [f'v{i}_0.0_{SECONDS}.0' for i in range(6)]
    for seed, vid in enumerate(vids):
        write_video(folder / 'videos' / f'{vid}.{"mkv" if seed else "mp4"}', seed)
    (folder / 'videos' / 'notes.txt').touch()
    lines = [make_query(i, vid, QUERIES[i % 4]) for i, vid in enumerate(vids)]
    write_lines(folder / 'train.jsonl', lines[:4])
    write_lines(folder / 'val.jsonl', lines[4:])
    return folder


def arguments(source, root, *flags):
    return ['main', '--mode=extract', f'--videos={source}/videos', f'--output={root}',
            f'--annotations={source}/train.jsonl,{source}/val.jsonl',
            f'--encoder=clip={source}/clip', '--decoders=2', *flags]


def start(monkeypatch, argv):
    """Runs the command line here; returns what it exits with."""
    monkeypatch.chdir(REPO)
    command_line.start(monkeypatch, argv)
    try:
        main.main(cli.parse(argv))
    except SystemExit as end:
        assert '\n' not in end.code
        return end.code
    return None


@pytest.fixture(scope='module', name='root')
def extracted(source):
    root = source / 'features'
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert start(monkeypatch, arguments(source, root)) is None
    return root


def read_all(root):
    """File -> arrays."""
    return {str(path.relative_to(root)): dict(np.load(path)) for path in root.glob('*/*.npz')}


def assert_same_files(root, other):
    ours, theirs = read_all(root), read_all(other)
    assert ours.keys() == theirs.keys() and ours
    for name, arrays in ours.items():
        for key, x in arrays.items():
            y = theirs[name][key]
            assert x.dtype == y.dtype and x.shape == y.shape
            if x.dtype.kind == 'f':  # in a batch of other videos a last bit may be otherwise
                np.testing.assert_allclose(x, y, rtol=2e-3, atol=1e-3)
            else:
                assert (x == y).all()
    assert recipe.read(root) == recipe.read(other)


def test_files_hold_what_the_encoder_gives(source, root):
    """Rows of each file are those of its own video and sentence, encoded alone."""
    encoder = encoder_lib.load(f'clip={source}/clip')
    assert recipe.read(root) == encoder.recipe
    queries = annotations.read_annotations(source / 'train.jsonl', annotation_config())
    found = read_all(root)
    assert len(found) == 6 + 6
    for query in queries:
        video, = encoder.encode_video(next((source / 'videos').glob(f'{query.vid}.*')))
        rows = found[f'clip/{query.vid}.npz']['features']
        assert rows.dtype == np.float16 and rows.shape == (SECONDS // 2, encoder.clip.width)
        np.testing.assert_allclose(rows, video, rtol=2e-3, atol=1e-3)
        text = found[f'text/qid{query.qid}.npz']
        np.testing.assert_array_equal(text['last_hidden_state'],
                                      encoder.encode_text([query.query])[0])
        np.testing.assert_array_equal(text['pooler_output'],
                                      encoder.encode_sentences([query.query])[0])
        assert text['query'] == query.query
        assert features.read_features(root / 'text' / f'qid{query.qid}.npz', features.TEXT_KEY
                                      ).shape[1] == encoder.clip.text_width


def test_what_is_there_is_not_made_again(source, root, tmp_path, monkeypatch, capfd):
    again = tmp_path / 'features'
    shutil.copytree(root, again)
    vid = f'v2_0.0_{SECONDS}.0'
    lost = [again / 'clip' / f'{vid}.npz', again / 'text' / 'qid3.npz']
    for path in lost:
        path.rename(path.with_name(f'.{path.name}.tmp'))  # as a process leaves it that was killed
    np.savez(again / 'text' / 'qid1.npz', last_hidden_state=np.ones((3, 16)), query='other words')
    kept = {path: path.stat().st_mtime_ns for path in again.glob('*/*.npz')
            if path.name != 'qid1.npz'}
    assert start(monkeypatch, arguments(source, again, '--dry_run')) is None
    assert '6 videos, 1 to extract, 0 not found; 6 queries, 2 to extract' in capfd.readouterr().out
    assert not any(path.exists() for path in lost)
    assert start(monkeypatch, arguments(source, again)) is None
    assert_same_files(root, again)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_replaced_video_is_extracted_anew(source, root, tmp_path, monkeypatch, capfd):
    """And so is one whose file notes nothing; rows of a video that is gone stay."""
    again = tmp_path / 'features'
    shutil.copytree(root, again)
    for kind in ('videos', 'clip'):
        shutil.copytree(source / kind, tmp_path / kind)
    for split in ('train', 'val'):
        shutil.copy(source / f'{split}.jsonl', tmp_path)
    of = lambda i: f'v{i}_0.0_{SECONDS}.0'
    write_video(tmp_path / 'videos' / f'{of(2)}.mkv', seed=9)
    (tmp_path / 'videos' / f'{of(3)}.mkv').unlink()
    np.savez(again / 'clip' / f'{of(4)}.npz', features=np.ones((6, 12)))
    of_its_size = read_all(again)[f'clip/{of(5)}.npz']
    of_its_size['source'][1] ^= 1
    np.savez(again / 'clip' / f'{of(5)}.npz', **of_its_size)
    before = read_all(again)
    assert start(monkeypatch, arguments(tmp_path, again)) is None
    assert '6 videos, 3 to extract, 0 not found; 6 queries, 0 to ex' in capfd.readouterr().out
    after = read_all(again)
    changed = {name for name, arrays in after.items()
               if not np.array_equal(arrays.get('features'), before[name].get('features'))}
    assert changed == {f'clip/{of(i)}.npz' for i in (2, 4)}
    assert (after[f'clip/{of(5)}.npz']['source'] != of_its_size['source']).any()


def test_failures_are_listed_and_the_rest_goes_on(source, tmp_path, monkeypatch, capfd):
    good = source / 'videos' / f'v1_0.0_{SECONDS}.0.mkv'
    shutil.copy(good, tmp_path / 'good.mkv')
    (tmp_path / 'cut.mkv').write_bytes(good.read_bytes()[:-3000])
    (tmp_path / 'empty.mp4').touch()
    (tmp_path / 'list.txt').write_text('good.mkv\ncut.mkv\n\nempty.mp4\nabsent.mp4\n')
    lines = [make_query(i, vid, 'a dog') for i, vid in enumerate(
        ('good', 'cut', 'empty', 'absent', 'unlisted'))]
    write_lines(tmp_path / 'train.jsonl', lines)
    argv = [*arguments(source, tmp_path / 'out'), f'--videos={tmp_path}/list.txt',
            f'--annotations={tmp_path}/train.jsonl']
    message = start(monkeypatch, argv)
    assert_parts(message, 'error: ', '4 of 10 videos and queries failed', 'tries these again')
    told = capfd.readouterr().err
    for name, reason in dict(
        cut=f'{tmp_path}/cut.mkv: ', empty=f'{tmp_path}/empty.mp4: ',
        absent=f'{tmp_path}/absent.mp4: ', unlisted='no video of this name in --videos').items():
        assert f'failed: {name}: {reason}' in told
    assert [path.name for path in (tmp_path / 'out' / 'clip').iterdir()] == ['good.npz']
    assert len(list((tmp_path / 'out' / 'text').iterdir())) == 5


def test_a_folder_has_one_recipe(source, root, tmp_path, monkeypatch):
    message = start(monkeypatch, arguments(source, root, '--rule=legacy', '--clip_length=1'))
    assert_parts(message, f'{root}: holds features by another recipe', 'expected another --output',
                 'clip_length: 2.0 there, 1.0 here', 'rule: middle there, legacy here')
    (tmp_path / 'clip').mkdir()
    (tmp_path / 'clip' / 'old.npz').touch()
    assert 'holds features without features.json' in start(
        monkeypatch, arguments(source, tmp_path))


@pytest.mark.parametrize('flags, message', [
    (['--encoder=dino=x'], "encoder 'dino=x': expected clip=FOLDER, slowfast=FILE, or both"),
    (['--encoder=clip=a,clip=b'], 'expected clip=FOLDER'),
    (['--encoder='], '--mode=extract needs --encoder=clip=FOLDER'),
    (['--encoder=slowfast=x', '--clip_frames=50'], 'SlowFast needs that'),
    (['--videos=', '--annotations='], '--mode=extract needs'),
    (['--videos=nowhere'], 'nowhere: expected a folder of videos, or a text file'),
    (['--videos=docs'], 'docs: no videos, expected files that end in .mp4'),
    (['--annotations=nowhere.jsonl'], "nowhere.jsonl: can't be read"),
    (['--output='], '--mode=extract needs --output=FOLDER'),
    (['--encoder_dtype=int8'], 'should be one of <float32|bfloat16>'),
])
def test_mistakes_are_told_before_anything_is_made(flags, message, source, tmp_path, monkeypatch):
    assert message in start(monkeypatch, [*arguments(source, tmp_path / 'out'), *flags])
    assert not list((tmp_path / 'out').glob('**/*.*'))


def test_names_that_share_a_file_are_refused(tmp_path):
    for name in ('a.mp4', 'a.mkv', 'b.mp4'):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"a.mp4: a second video of the name 'a', beside .*a.mkv"):
        extract.find_work(str(tmp_path), None)
    path = tmp_path / 'train.jsonl'
    write_lines(path, [make_query(1, 'b', 'a dog'), make_query('1', 'b', 'a cat')])
    with pytest.raises(DataError, match="record 2: qid '1' stands for 'a dog', too"):
        extract.find_work(None, str(path))
    write_lines(path, [make_query(1, 'b/c', 'a dog')])
    with pytest.raises(DataError, match="record 1: vid 'b/c' can't name a file"):
        extract.find_work(None, str(path))


def test_batches_have_one_size_and_rows_their_owner(monkeypatch):
    """Of videos that interleave; one fails, and one begins anew after the first of its pictures."""
    jobs = {name: extract.Job(name, name) for name in 'abcd'}
    words = 'a- a1 b- b2 a1 c- c3 b2 c! b2 d- d4 d- a. b2 d5 b2 d5 d. b.'.split()
    events = [(jobs[name], None if word == '-' else '' if word == '.' else 'why' if word == '!'
               else np.full((1, 1, 3), int(word), np.uint8)) for name, word in words]
    sizes = []

    def encode(pictures):
        sizes.append(len(pictures))
        return np.repeat(pictures[:, 0, 0, :1], 2, 1).astype(np.float32)

    monkeypatch.setattr(extract.decoding, 'decoded', lambda *_, **__: (event for event in events))
    stream = encoder_lib.Stream(recipe.Stream('s', 's', 'h', 2), (1, 1, 3), 4, None, encode)
    found = list(extract.encoded(stream, list(jobs.values()), 1, 2.0))
    assert sizes == [4, 4, 3]
    rows = {job.vid: rows for job, rows in found}
    assert len(found) == 4 and rows.pop('c') == 'why'
    assert {vid: x.tolist() for vid, x in rows.items()} == {
        'a': [[1, 1]] * 2, 'b': [[2, 2]] * 5, 'd': [[5, 5]] * 2}


def test_two_streams_have_an_order(source, tmp_path, monkeypatch):
    """SlowFast on small pictures: those of 224 pixels take minutes where code is not optimised."""
    weights = pathlib.Path(__file__).parent / 'encoders' / 'slowfast_files' / 'pytorchvideo.pyth'
    load = encoder_lib.slowfast.load
    monkeypatch.setattr(encoder_lib.slowfast, 'load', lambda *args, **options: dataclasses.replace(
        load(*args, **options), size=32))
    monkeypatch.setitem(encoder_lib.BATCH, 'slowfast', 1)
    path = write_video(tmp_path / 'a.mp4', 0, seconds=5)
    (tmp_path / 'list.txt').write_text(path.name)
    root = tmp_path / 'features'
    argv = [*arguments(source, root), f'--videos={tmp_path}/list.txt', '--annotations=',
            f'--encoder=slowfast={weights},clip={source}/clip']
    assert start(monkeypatch, argv) is None
    encoder = encoder_lib.load(f'slowfast={weights},clip={source}/clip')
    found = read_all(root)
    made = recipe.read(root)
    assert made == encoder.recipe
    assert list(made.data()['video_dirs']) == ['slowfast', 'clip']
    for name, rows in zip(('slowfast', 'clip'), encoder.encode_video(path), strict=True):
        own = found[f'{name}/a.npz']['features']
        assert own.shape == rows.shape == (3, rows.shape[1])
        np.testing.assert_allclose(own, rows, rtol=2e-3, atol=1e-3)


def test_pictures_of_the_clips_are_as_good_as_a_file(source):
    encoder = encoder_lib.load(f'clip={source}/clip', clip_length=4)
    path = str(next((source / 'videos').glob('*.mp4')))
    pictures = list(encoder.streams[0].decode(path))
    assert len(pictures) == SECONDS // 4
    for given in (pictures, iter(pictures), np.array(pictures)):
        np.testing.assert_array_equal(encoder.encode_video(given)[0], encoder.encode_video(path)[0])
    with pytest.raises(DataError, match='video: shorter than a clip'):
        encoder.encode_video([])
    two = dataclasses.replace(encoder, streams=encoder.streams * 2)
    with pytest.raises(ConfigError, match='read by CLIP alone'):
        two.encode_video(pictures)


def test_numbers_that_files_cannot_hold_are_refused():
    with pytest.raises(DataError, match='encoded to 1000000.0 in row 0, column 1'):
        encoder_lib.stored(np.float32([[1, 1e6]]), 'v')


QUICKLY = (
    '--config.model.width=16', '--config.model.paths=sentence', '--config.model.strides=(1,)',
    '--config.model.mlp_layers=1', '--config.model.input_layers=1', '--config.mesh.data=1',
    '--config.train.eval_every=5', '--config.evaluate.pictures=0')


def train(monkeypatch, source, root, workdir, steps=5):
    for split in ('train', 'val'):
        shutil.copy(source / f'{split}.jsonl', root)
    return start(monkeypatch, [
        'main', f'--config=configs/custom.py:root={root},runlocal', *QUICKLY,
        f'--config.train.max_steps={steps}', f'--workdir={workdir}'])


VIT_B32 = dict(
    vision=dict(width=768, heads=12, ffn=3072, num_layers=12, size=224, patch=32),
    text=dict(width=512, heads=8, ffn=2048, num_layers=12, context=77), projected=512)


@pytest.mark.slow
def test_vit_b32_from_videos_to_moments(source, tmp_path, monkeypatch, capfd):
    """Extract, train five steps, predict from the file: the same as from its features."""
    root = tmp_path / 'features'
    encoder = f'--encoder=clip={clip_folder.write(tmp_path / "clip", sizes=VIT_B32)}'
    assert start(monkeypatch, arguments(source, root, encoder)) is None
    assert train(monkeypatch, source, root, tmp_path / 'run') is None
    vid = f'v0_0.0_{SECONDS}.0'
    predict = ['main', '--mode=predict', f'--workdir={tmp_path}/run']
    capfd.readouterr()
    found = []
    for given in ([f'--video={source}/videos/{vid}.mp4', f'--query={QUERIES[0]}', encoder],
                  [f'--video_features={root}/clip/{vid}.npz',
                   f'--query_features={root}/text/qid0.npz']):
        assert start(monkeypatch, [*predict, *given]) is None
        found.append(json.loads(capfd.readouterr().out.splitlines()[-1]))
    assert len(found[0]['windows']) > 1
    for key in ('windows', 'saliency'):
        np.testing.assert_allclose(*(row[key] for row in found), atol=2e-3)


def test_from_videos_to_a_model_that_keeps_the_recipe(source, root, tmp_path, monkeypatch, capfd):
    """Extract, train five steps, predict; then with features by another recipe."""
    assert train(monkeypatch, source, root, tmp_path / 'run') is None
    predict = ['main', '--mode=predict', f'--workdir={tmp_path}/run', f'--config={tmp_path}/run']
    assert start(monkeypatch, predict) is None
    vid = f'v0_0.0_{SECONDS}.0'
    one = [*predict, f'--video_features={root}/clip/{vid}.npz',
           f'--query_features={root}/text/qid0.npz']
    assert start(monkeypatch, one) is None
    assert '"clip_length": 2.0' in capfd.readouterr().out

    made = recipe.read(root)
    try:
        dataclasses.replace(made, rule='legacy').write(root)
        for argv in (predict, one, [*predict, '--mode=evaluate']):
            assert_parts(start(monkeypatch, argv), 'error: ', str(root),
                         'rule: middle there, legacy here',
                         '--config.evaluate.any_recipe=True')
        assert start(monkeypatch, [*predict, '--config.evaluate.any_recipe=True']) is None
        assert 'data.recipe.rule: middle there, legacy here' in train(
            monkeypatch, source, root, tmp_path / 'run', steps=6)
        (root / 'features.json').unlink()
        capfd.readouterr()
        assert start(monkeypatch, predict) is None
        assert 'no features.json' in capfd.readouterr().err
    finally:
        made.write(root)


def test_beam_makes_the_same_files(source, root, tmp_path, monkeypatch):
    pytest.importorskip('apache_beam', reason="needs the extra 'beam'")
    monkeypatch.setattr(extract, 'BEAM_VIDEOS', 2)
    other = tmp_path / 'features'
    assert start(monkeypatch, arguments(source, other, '--beam=runner=DirectRunner')) is None
    assert_same_files(root, other)
    assert not list(other.glob('.failed*'))
    (source / 'videos' / 'bad.mp4').touch()
    try:
        argv = [*arguments(source, tmp_path / 'bad', '--beam=runner=DirectRunner')]
        argv[4] = '--annotations='
        assert '1 of 7 videos and queries failed' in start(monkeypatch, argv)
    finally:
        (source / 'videos' / 'bad.mp4').unlink()


@pytest.mark.slow
def test_two_processes_one_killed_and_started_again(source, tmp_path):
    """40 videos; nothing is missing in the end, and nothing was made twice."""
    (tmp_path / 'videos').mkdir()
    for i in range(40):
        write_video(tmp_path / 'videos' / f'v{i}.mkv', i, seconds=4 + i % 5)
    root = tmp_path / 'features'

    def launch():
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        return [subprocess.Popen([
            sys.executable, '-m', 'dualground_jax.main', '--mode=extract',
            f'--videos={tmp_path}/videos', f'--output={root}', '--decoders=1',
            f'--encoder=clip={source}/clip', f'--coordinator=127.0.0.1:{port}',
            '--num_processes=2', f'--process_id={i}'], cwd=REPO) for i in range(2)]

    def made():
        return {path.name: path.stat().st_mtime_ns for path in root.glob('clip/*.npz')}

    first = launch()
    while not any(int(name[1:-4]) % 2 for name in made()):
        time.sleep(0.01)
    first[1].send_signal(signal.SIGKILL)
    time.sleep(1)
    for process in first:
        process.kill()
        process.wait()
    before = made()
    assert 0 < len(before) < 40
    assert [process.wait(timeout=120) for process in launch()] == [0, 0]
    after = made()
    assert len(after) == 40 and before.items() <= after.items()
    assert all(len(np.load(root / 'clip' / f'v{i}.npz')['features']) == (4 + i % 5 + 1) // 2
               for i in range(40))
