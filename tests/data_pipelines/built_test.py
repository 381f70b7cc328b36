"""Built data: what they hold, that reading them equals reading the files, and what is refused."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipelines import annotations, built, datasets, lazy, pipeline, release
from data_pipelines.errors import ConfigError
from tests.helpers.release_files import (
    LINE,
    assert_parts,
    make_release,
    make_rows,
    refusal,
    unit,
    write_lines,
)

tfds = pytest.importorskip('tensorflow_datasets')
pytest.importorskip('array_record', reason='array_record has no release for this platform')
from data_pipelines import tfds_builders  # noqa: E402
from data_pipelines.schedule import Schedule, limits, query_sizes  # noqa: E402

N_VIDEOS, N_TRAIN, N_VAL = 5, 11, 4


def make_data(root, **changes):
    """A release of two splits, with lengths that differ, as a config node."""
    data = make_release(root, annotations={'train': 'train.jsonl', 'val': 'val.jsonl', 'test': ''})
    for path in (root / 'text').iterdir():
        path.unlink()
    vids = [f'v{i}_0.0_10.0' for i in range(N_VIDEOS)]
    for i, vid in enumerate(vids):
        np.savez(root / 'slow' / f'{vid}.npz', features=make_rows(3 + i, 4, i))
        np.save(root / 'clip' / f'{vid}.npy', make_rows(8, 3, 10 + i))
    lines = [{**LINE, 'qid': i if i % 3 else f'q{i}', 'vid': vids[i * 7 % N_VIDEOS],
              'relevant_windows': [[0.1 * i, 3 + 0.1 * i]]} for i in range(N_TRAIN + N_VAL)]
    for i, line in enumerate(lines):
        np.save(root / 'text' / f'qid{line["qid"]}.npy', make_rows(3 + i % 5, 8, 20 + i))
    del lines[1]['relevant_clip_ids'], lines[1]['saliency_scores']
    write_lines(root / 'train.jsonl', lines[:N_TRAIN])
    (root / 'train.jsonl').write_text('\n' + (root / 'train.jsonl').read_text())  # a blank line
    write_lines(root / 'val.jsonl', lines[N_TRAIN:])
    values = dict(vars(data), records=str(root / 'records'), max_spans=2, **changes)
    return ConfigDict(values)


def changed(data, **changes):
    return ConfigDict(data.to_dict() | changes)


def raw(data, **changes):
    return changed(data, records='', **changes)


@pytest.fixture(name='files', params=[256e6, 1], ids=['one file', 'a file per record'])
def shard_size(request, monkeypatch):
    monkeypatch.setattr(tfds_builders, 'SHARD_BYTES', request.param)


def stream(split, data, steps, *, batch_size, seed=0, **options):
    """Batches of the steps."""
    plan = Schedule(query_sizes(split), batch_size, seed, buckets=[limits(data)])
    return pipeline.train_batches(split, data, plan, {steps: limits(data)}, **options)


def assert_equal_batches(found, expected):
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype and a[name].tobytes() == b[name].tobytes(), name


@pytest.mark.parametrize('dtype', ['float32', 'float16'])
def test_batches_of_built_data_are_those_of_the_files(tmp_path, files, dtype):
    data = make_data(tmp_path, dtype=dtype)
    folder = tfds_builders.build(data)
    assert folder == tmp_path / 'records' / 'tiny' / f'raw_{dtype}' / '1.0.0'

    def train(data, first=0, rows=slice(None)):
        split = datasets.load_split(data, 'train')
        return list(stream(split, data, range(first, 5), batch_size=4, seed=3, rows=rows))

    expected = train(raw(data))
    for cache in (-1.0, 0.0, 0.2e-6):
        read = changed(data, cache_gb=cache)
        assert_equal_batches(train(read), expected)
        assert_equal_batches(train(read, first=3), expected[3:])  # from the middle of an epoch
        own = [{name: rows[1:3] for name, rows in batch.items()} for batch in expected]
        assert_equal_batches(train(read, rows=slice(1, 3)), own)
        assert_equal_batches(train(raw(data, cache_gb=cache)), expected)

        def evaluation(data):
            split = datasets.load_split(data, 'val')
            return [batch for _, batch in pipeline.eval_batches(split, data, batch_size=3,
                                                                buckets=2)]

        assert_equal_batches(evaluation(read), evaluation(raw(data)))


def test_splits_of_built_data_are_those_of_the_files(tmp_path):
    data = make_data(tmp_path)
    tfds_builders.build(data)
    for limit in (0, 3):
        found, expected = (datasets.load_split(changed(d, limit=limit), 'train')
                           for d in (data, raw(data)))
        assert len(found.queries) == (limit or N_TRAIN)
        for field in dataclasses.fields(annotations.Query):
            for a, b in zip(found.queries, expected.queries, strict=True):
                a, b = getattr(a, field.name), getattr(b, field.name)
                assert type(a) is type(b)
                np.testing.assert_array_equal(a, b)
        for name in ('video_index', 'source_index'):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        for name in ('videos', 'text', 'roles', 'saliency'):
            for a, b in zip(getattr(found, name), getattr(expected, name), strict=True):
                np.testing.assert_array_equal(a, b)


def assert_equal_splits(found, expected):
    assert [record.qid for record in found.queries] == [record.qid for record in expected.queries]
    for name in ('videos', 'text', 'saliency'):
        for a, b in zip(getattr(found, name), getattr(expected, name), strict=True):
            np.testing.assert_array_equal(a, b)


def test_labelled_videos_and_domains(tmp_path):
    """A video is as long as its labels; of what was built a domain can be read, not the reverse."""
    data = changed(make_data(tmp_path), saliency='grades')
    lengths = {f'v{i}_0.0_10.0': 2 + i for i in range(N_VIDEOS)}  # one clip less than features
    for path in (tmp_path / 'train.jsonl', tmp_path / 'val.jsonl'):
        lines = [json.loads(line) for line in path.read_text().split('\n') if line]
        for i, line in enumerate(lines):
            line.update(label=[[1 + i % 5, 3]] * lengths[line['vid']], domain='ab'[i % 2])
        write_lines(path, lines)
    tfds_builders.build(data)
    for domain, limit in (('', 0), ('a', 0), ('b', 2)):
        found, expected = (datasets.load_split(changed(d, domain=domain, limit=limit), 'train')
                           for d in (data, raw(data)))
        assert_equal_splits(found, expected)
        assert {len(video) for video in found.videos} <= set(lengths.values())
    part = changed(data, domain='a', records=str(tmp_path / 'part'))
    tfds_builders.build(part)
    assert_equal_splits(datasets.load_split(part, 'train'),
                        datasets.load_split(raw(part), 'train'))
    assert_parts(refusal(datasets.load_split, changed(part, domain='b'), 'train'),
                 "built with data.domain='a'", "expected 'b'")


@pytest.mark.parametrize('when', ['before', 'after'])
def test_skip_lists(tmp_path, when):
    """The same records are left out, whether the data were built with the list or without."""
    data = make_data(tmp_path)
    write_lines(tmp_path / 'skip.jsonl', [dict(split='train', qid=1, reason='no sound'),
                                          dict(split='train', qid='q3', line=5)])
    listed = changed(data, skip_list=str(tmp_path / 'skip.jsonl'))
    tfds_builders.build(listed if when == 'before' else data)
    for limit in (0, 3):
        found, expected = (datasets.load_split(changed(d, limit=limit), 'train')
                           for d in (listed, raw(listed)))
        assert_equal_splits(found, expected)
        assert ':3: no sound' in found.skipped[0]
        assert len(found.skipped) == (1 if limit and when == 'after' else 2)


def test_what_tfds_reads(tmp_path, files):
    data = make_data(tmp_path)
    folder = tfds_builders.build(data)
    builder = tfds.builder_from_directory(folder)
    source = builder.as_data_source()
    assert {name: len(rows) for name, rows in source.items()} == {
        'train': N_TRAIN, 'val': N_VAL, 'videos': N_VIDEOS}
    lines = [json.loads(line)
             for line in (tmp_path / 'train.jsonl').read_text().strip().split('\n')]
    for example, line in zip(source['train'], lines, strict=True):
        assert json.loads(example['annotation']) == line
        assert example['query'].decode() == line['query'] and example['qid'].decode() == str(
            line['qid'])
        assert example['windows'].tolist() == line['relevant_windows']
        assert example['duration'] == 10
        assert example['clip_ids'].tolist() == line.get('relevant_clip_ids', [])
        assert example['clip_scores'].tolist() == sum(line.get('saliency_scores', []), [])
        rows = np.load(tmp_path / 'text' / f'qid{line["qid"]}.npy')
        np.testing.assert_allclose(example['text'], unit(rows), rtol=1e-6)
        video = source['videos'][int(example['video_place'])]
        assert video['vid'] == example['vid'] and len(video['video']) == example['n_clips']
        slow = np.load(tmp_path / 'slow' / f'{line["vid"]}.npz')['features']
        np.testing.assert_allclose(video['video'][:, :4], unit(slow), rtol=1e-6)
    metadata = built.read_metadata(folder)
    assert metadata['videos'] == N_VIDEOS and metadata['settings']['text_layout'] == 'clip'
    assert metadata['splits']['val']['tokens'] == {'total': 22, 'least': 4, 'most': 7}
    report = tfds_builders.report(folder)
    assert_parts(report, '5 videos', 'val: 4 queries, 4 windows, 4 to 7 tokens')


def test_splits_of_one_file_are_stored_once(tmp_path):
    data = make_data(tmp_path)
    data.annotations.test = 'val.jsonl'
    folder = tfds_builders.build(data)
    assert set(tfds.builder_from_directory(folder).info.splits) == {'train', 'test', 'videos'}
    for split in ('val', 'test'):
        assert len(datasets.load_split(data, split).queries) == N_VAL


def test_fewer_tokens_than_built_are_those_of_the_files(tmp_path):
    data = make_data(tmp_path)
    tfds_builders.build(data)
    found, expected = (datasets.load_split(changed(d, max_tokens=4), 'train')
                       for d in (data, raw(data)))
    assert max(map(len, found.text)) == 4
    for a, b in zip(found.text, expected.text, strict=True):
        np.testing.assert_array_equal(a, b)


def test_videos_are_cut_as_those_of_the_files(tmp_path):
    data = make_data(tmp_path)
    tfds_builders.build(data)
    found, expected = (datasets.load_split(changed(d, max_clips=5), 'train')
                       for d in (data, raw(data)))
    assert max(map(len, found.videos)) == 5
    assert_equal_splits(found, expected)
    assert found.notes == expected.notes and 'cut to 5 clips' in found.notes[0]


@pytest.mark.parametrize('changes, parts', [
    ({'text_layout': 'words'}, ["built with data.text_layout='clip'", "expected 'words'"]),
    ({'normalize_text': False}, ['data.normalize_text=True', 'expected False']),
    ({'video_dims': (4, 5)}, ['data.video_dims=[4, 3]', 'expected [4, 5]']),
    ({'max_tokens': 21}, ['data.max_tokens=20, too little for 21']),
    ({'max_clips': 2}, ['5 clips, expected at most 2', 'data.max_clips']),
    ({'max_windows': 0}, ['relevant_windows, expected at most 0']),
    ({'dtype': 'float16'}, ['raw_float16', 'no built data set', '--mode=build']),
    ({'dataset': 'other'}, ['other', 'no built data set', '--mode=build']),
])  # fmt: skip
def test_other_settings_than_built(tmp_path, changes, parts):
    data = make_data(tmp_path)
    tfds_builders.build(data)
    assert_parts(refusal(datasets.load_split, changed(data, **changes), 'train'), *parts)


def test_limit_of_the_build(tmp_path):
    data = make_data(tmp_path, limit=3)
    tfds_builders.build(data)
    assert len(datasets.load_split(changed(data, limit=2), 'train').queries) == 2
    message = refusal(datasets.load_split, changed(data, limit=0), 'train')
    assert_parts(message, 'data.limit=3, too little for 0')
    assert_parts(refusal(datasets.load_split, data, 'test'), "no split 'test'", 'train, val')


# Building


def test_build_of_what_is_there(tmp_path):
    data = make_data(tmp_path)
    folder = tfds_builders.build(data)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert tfds_builders.build(data) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    message = refusal(tfds_builders.build, changed(data, max_tokens=30))
    assert_parts(message, folder, 'data.max_tokens=20')


def test_build_names_what_is_bad_and_leaves_nothing(tmp_path):
    data = make_data(tmp_path)
    (tmp_path / 'clip' / 'v2_0.0_10.0.npy').write_bytes(b'cut')
    assert_parts(refusal(tfds_builders.build, data), 'v2_0.0_10.0.npy', "can't be read")
    assert not list((tmp_path / 'records').rglob('*array_record*'))
    assert_parts(refusal(datasets.load_split, data, 'train'), 'no built data set')
    with pytest.raises(ConfigError, match='data.records'):
        tfds_builders.build(raw(data))


def test_build_leaves_out_what_is_bad_if_asked_to(tmp_path):
    data = make_data(tmp_path, on_error='skip')
    (tmp_path / 'clip' / 'v2_0.0_10.0.npy').write_bytes(b'cut')
    (tmp_path / 'text' / 'qid7.npy').unlink()
    folder = tfds_builders.build(data)
    found, expected = (datasets.load_split(d, 'train') for d in (data, raw(data)))
    assert [r.qid for r in found.queries] == [r.qid for r in expected.queries]
    assert found.skipped == expected.skipped and len(found.skipped) == 2
    strict = datasets.load_split(changed(data, on_error='raise'), 'train')
    assert strict.skipped == expected.skipped
    assert_parts(tfds_builders.report(folder), 'qid7', 'v2_0.0_10.0.npy')


def test_a_killed_build_is_not_read(tmp_path, monkeypatch):
    data = make_data(tmp_path)

    def kill(queries):
        shutil.copytree(tmp_path / 'records', tmp_path / 'killed')
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tfds_builders, 'statistics', kill)  # the last that is done
        tfds_builders.build(data)
    assert not list((tmp_path / 'records').rglob('*array_record*'))
    killed = changed(data, records=str(tmp_path / 'killed'))
    assert len(list((tmp_path / 'killed').rglob('*array_record*'))) == 3
    assert_parts(refusal(datasets.load_split, killed, 'train'), 'no built data set')
    tfds_builders.build(killed)  # what is left there is in nobody's way
    assert len(datasets.load_split(killed, 'train').queries) == N_TRAIN


def test_build_by_beam_is_that_of_one_process(tmp_path, monkeypatch):
    pytest.importorskip('apache_beam', reason="needs the extra 'beam'")
    monkeypatch.setattr(tfds_builders, 'SHARD_BYTES', 3000)
    data = make_data(tmp_path)
    beam = changed(data, records=str(tmp_path / 'beam'))
    folders = [tfds_builders.build(data)]
    reads, read = [], release.read_video
    monkeypatch.setattr(release, 'read_video', lambda *args: reads.append(args) or read(*args))
    folders.append(tfds_builders.build(beam, 'runner=DirectRunner'))
    assert len(reads) == N_VIDEOS
    names = [sorted(path.name for path in folder.glob('*array_record*')) for folder in folders]
    assert names[0] == names[1] and len(names[0]) > 3
    found, expected = (tfds.builder_from_directory(folder).as_data_source() for folder in folders)
    for split in expected:
        for a, b in zip(found[split], expected[split], strict=True):
            for name in b:
                np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    (tmp_path / 'clip' / 'v2_0.0_10.0.npy').write_bytes(b'cut')
    again = changed(data, records=str(tmp_path / 'again'))
    message = refusal(tfds_builders.build, again, 'runner=DirectRunner')
    assert_parts(message, 'v2_0.0_10.0.npy', "can't be read")


def test_every_feature_release_has_a_builder():
    for (dataset, version), values in datasets.FEATURES.items():
        if 'video_dims' not in values:
            continue
        builder_class = tfds.builder_cls(dataset)
        names = [config.name for config in builder_class.BUILDER_CONFIGS]
        assert {f'{version}_float16', f'{version}_float32'} <= set(names)
        card = tfds_builders.CARDS[dataset]
        assert card['description'] and card['homepage'] and card['license']
        assert '@' in card['citation']


def test_info_of_a_builder(tmp_path):
    builder = tfds.builder('qvhighlights/sf_clip_float16', data_dir=tmp_path)
    info = builder.info
    assert info.features['video'].shape == (None, 2816)
    assert info.features['video'].np_dtype == np.float16
    assert info.features['text'].shape == (None, 512)
    assert 'Lei' in info.citation and str(info.version) == '1.0.0'


# Damage


def damage(path, marker):
    content = bytearray(path.read_bytes())
    content[content.index(marker) + 5] ^= 1
    path.write_bytes(content)


def test_damaged_video_is_named_and_skipped_only_if_asked_to(tmp_path, files):
    data = make_data(tmp_path)
    folder = tfds_builders.build(data)
    video = release.read_video(raw(data), 'v3_0.0_10.0').tobytes()
    path, = (path for path in folder.glob('*videos.array_record*') if video in path.read_bytes())
    damage(path, video)
    parts = [path, 'record', "of split 'videos'", 'hash mismatch']
    assert_parts(refusal(datasets.load_split, data, 'train'), *parts)

    lazily = changed(data, cache_gb=0.0)  # found when a batch needs it
    split = datasets.load_split(lazily, 'train')
    batches = stream(split, lazily, range(1), batch_size=N_TRAIN)
    assert_parts(refusal(list, batches), *parts)

    for cache in (-1.0, 0.0):
        skipping = changed(data, cache_gb=cache, on_error='skip')
        split = datasets.load_split(skipping, 'train')
        assert {r.vid for r in split.queries} == {f'v{i}_0.0_10.0' for i in (0, 1, 2, 4)}
        problem, = split.skipped
        assert_parts(problem, *parts, '(skipped records: 2)')
        assert len(list(stream(split, skipping, range(2), batch_size=4))) == 2


def test_damaged_query(tmp_path):
    data = make_data(tmp_path)
    folder = tfds_builders.build(data)
    path, = folder.glob('*train.array_record*')
    damage(path, release.read_query(raw(data), 4)[0].tobytes())
    assert_parts(refusal(datasets.load_split, data, 'train'), path, 'record 4', "split 'train'")
    split = datasets.load_split(changed(data, on_error='skip'), 'train')
    assert 4 not in [r.qid for r in split.queries] and len(split.queries) == N_TRAIN - 1
    assert_parts(*split.skipped, path, 'record 4')


@pytest.mark.parametrize('cut', [0, 1000, 65536])
def test_file_that_is_cut_short(tmp_path, cut):
    data = make_data(tmp_path)
    folder = tfds_builders.build(data)
    path, = folder.glob('*videos.array_record*')
    path.write_bytes(path.read_bytes()[:cut])
    for on_error in ('raise', 'skip'):
        message = refusal(datasets.load_split, changed(data, on_error=on_error), 'train')
        assert_parts(message, path, "can't be read")
    path.unlink()
    assert_parts(refusal(datasets.load_split, data, 'train'), path, "can't be read")


# Memory


def test_memory_keeps_what_fits():
    memory = lazy.Memory(2.5e-6)  # 2500 bytes
    reads = []

    def get(key):
        return memory.get(key, lambda: reads.append(key) or np.full(250, key, np.float32))

    for _ in range(3):
        for key in (3, 1, 4, 5):
            assert (get(key) == key).all()
    assert reads == [3, 1, 4, 5, 4, 5, 4, 5]
    assert not memory.unlimited and lazy.Memory(-1).unlimited


def test_files_are_read_again_only_if_they_are_not_kept(tmp_path, monkeypatch):
    data = raw(make_data(tmp_path))
    count = []
    read = release.read_video
    monkeypatch.setattr(release, 'read_video', lambda *args: count.append(1) or read(*args))
    for cache, expected in ((-1.0, N_VIDEOS), (0.0, N_VIDEOS + N_TRAIN), (1.0, N_VIDEOS)):
        count.clear()
        data.cache_gb = cache
        split = datasets.load_split(data, 'train')
        pipeline.collate(split, data, np.arange(N_TRAIN), None)
        assert len(count) == expected
    assert isinstance(split.videos, lazy.Rows) and len(split.videos) == N_VIDEOS
    assert len(list(split.text)) == N_TRAIN
