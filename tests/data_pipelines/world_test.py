"""The planted world: formats, determinism, what is planted, and stand-ins for real annotations."""

import dataclasses
import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipelines import datasets, sentences, simulate, world
from tests.helpers.paths import REAL

WORLD = world.World(train_queries=60, val_queries=60, test_queries=10)


@pytest.fixture(scope='module', name='folder')
def generated(tmp_path_factory):
    return world.generate(WORLD, tmp_path_factory.mktemp('data') / 'world')


def records(folder, split):
    return [json.loads(line) for line in (folder / f'{split}.jsonl').read_text().splitlines()]


def video(folder, record):
    return np.load(folder / 'video' / f'{record["vid"]}.npz')['features'].astype(np.float32)


def text(folder, record):
    path = folder / 'text' / f'qid{record["qid"]}.npz'
    return np.load(path)['last_hidden_state'].astype(np.float32)


def test_formats(folder):
    for split in world.SPLITS:
        rows = records(folder, split)
        assert len(rows) == getattr(WORLD, f'{split}_queries')
        for row in rows:
            clips = video(folder, row)
            assert clips.shape == (row['duration'] / 2, WORLD.video_dim)
            words = row['query'].split()
            assert 3 <= len(words) <= 25
            assert text(folder, row).shape == (len(words) + 2, WORLD.text_dim)
            inside = [c for s, e in row['relevant_windows'] for c in range(s // 2, e // 2)]
            assert row['relevant_clip_ids'] == inside and inside[-1] < len(clips)
            grades = np.array(row['saliency_scores'])
            assert grades.shape == (len(inside), 3) and grades.min() >= 0 and grades.max() <= 4
    counts = [len(row['relevant_windows']) for row in records(folder, 'train')]
    assert set(counts) == {1, 2, 3, 4} and 0.05 < np.mean(np.array(counts) > 1) < 0.5


def test_splits_share_no_sentence_and_no_video(folder):
    rows = {split: records(folder, split) for split in world.SPLITS}
    for key in ('query', 'vid', 'qid'):
        values = [{row[key] for row in rows[split]} for split in world.SPLITS]
        assert sum(map(len, values)) == len(set.union(*values))


def test_same_seed_same_world_other_seed_another(folder, tmp_path):
    small = dataclasses.replace(WORLD, train_queries=4, val_queries=2, test_queries=1)
    folders = [
        world.generate(dataclasses.replace(small, seed=seed), tmp_path / name)
        for name, seed in (('a', 1), ('b', 1), ('c', 2))
    ]
    first, second, other = (records(f, 'train') for f in folders)
    assert first == second != other
    for row in first:
        np.testing.assert_array_equal(video(folders[0], row), video(folders[1], row))
        np.testing.assert_array_equal(text(folders[0], row), text(folders[1], row))


def share_shown(folder, record, maps):
    """Least strength with which a clip shows a concept of the query: float[T]."""
    ids = sentences.concept_ids(record['query'].split())
    return (video(folder, record) @ maps.video[list(ids)].T).min(1)


def separation(scores, record):
    """Probability that a clip of a window scores above one outside."""
    inside = np.zeros(len(scores), bool)
    inside[record['relevant_clip_ids']] = True
    return (scores[inside][:, None] > scores[~inside][None]).mean() if not inside.all() else 1.0


def test_words_tell_what_eos_does_not(folder):
    """Planted: concepts separate windows from the rest; the summary in [EOS] does so less."""
    maps = world.concept_maps(WORLD)
    # What [EOS] keeps of a clip: the summary of the concepts that the clip shows.
    to_text = maps.video.T @ maps.text[: len(sentences.CONCEPTS)] @ maps.summary
    words, eos = [], []
    for row in records(folder, 'val'):
        words.append(separation(share_shown(folder, row, maps), row))
        summaries = video(folder, row) @ to_text
        summaries /= np.linalg.norm(summaries, axis=1, keepdims=True)
        eos.append(separation(summaries @ text(folder, row)[-1], row))
    assert np.mean(words) > 0.95
    assert 0.55 < np.mean(eos) < np.mean(words) - 0.05


def test_controls_plant_noise(tmp_path):
    small = dataclasses.replace(WORLD, train_queries=4, val_queries=2, test_queries=1)
    plain = world.generate(small, tmp_path / 'plain')
    no_words = world.generate(dataclasses.replace(small, word_signal=0.0), tmp_path / 'words')
    no_eos = world.generate(dataclasses.replace(small, eos_rank=0), tmp_path / 'eos')
    for row in records(plain, 'train'):
        rows = [text(f, row) for f in (plain, no_words, no_eos)]
        np.testing.assert_array_equal(rows[0][1:-1], rows[2][1:-1])
        np.testing.assert_array_equal(rows[0][-1], rows[1][-1])
        assert np.abs(rows[0][1:-1] - rows[1][1:-1]).max() > 0.1
        assert np.abs(rows[0][-1] - rows[2][-1]).max() > 0.1


def test_an_existing_folder_is_kept_or_refused(folder):
    before = (folder / 'world.json').stat().st_mtime_ns
    assert world.generate(WORLD, folder) == folder
    assert (folder / 'world.json').stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r'world.*seed 0, asked for 5'):
        world.generate(dataclasses.replace(WORLD, seed=5), folder)


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(world, 'save', fail)
    with pytest.raises(KeyboardInterrupt):
        world.generate(WORLD, tmp_path / 'world')
    assert not list(tmp_path.iterdir())


def test_parameters_are_checked():
    with pytest.raises(ValueError, match='world.eos_rank is 999, expected 0 to 64'):
        dataclasses.replace(WORLD, eos_rank=999)


def standin_config(folder, path, **changes):
    """Data to simulate: a folder for the features, one annotation file."""
    values = datasets.defaults('custom', 'own') | dict(
        root=str(folder), annotations=dict(train=str(path), val=str(path)), max_windows=30)
    return ConfigDict(values | changes)


@pytest.mark.parametrize(
    'path, layout, clip_length',
    [
        ('qvhighlights/highlight_val_release.jsonl', 'llama', 2.0),
        ('charades_sta/charades_sta_test_tvr_format.jsonl', 'clip', 1.0),
        ('charades_sta/charades_sta_test_tvr_format.jsonl', 'glove', 1.0),
        ('tacos/val.jsonl', 'clip', 2.0),
    ],
)
def test_standins_for_real_annotations(path, layout, clip_length, tmp_path):
    if not (REAL / path).is_file():
        pytest.skip(f'no real annotations at {REAL / path}')
    data = standin_config(
        tmp_path / 'standin', REAL / path, video_dirs=('a', 'b'), video_dims=(12, 8), text_dim=10,
        text_layout=layout, clip_length=clip_length, limit=20,
    )
    out = simulate.simulate(data, seed=0)
    rows = [json.loads(line) for line in (REAL / path).read_text().splitlines()[:20]]
    assert not list(out.glob('**/*.jsonl')), 'annotations are not copied'
    for row in rows:
        for stream, width in (('a', 12), ('b', 8)):
            clips = np.load(out / stream / f'{row["vid"]}.npz')['features']
            assert clips.shape[1] == width
            longest = max(r['duration'] for r in rows if r['vid'] == row['vid'])
            assert len(clips) == int(np.ceil(longest / clip_length))
        tokens = np.load(out / 'text' / f'qid{row["qid"]}.npz')['last_hidden_state']
        extra = dict(clip=2, llama=5, glove=0)[layout]
        assert tokens.shape == (len(row['query'].split()) + extra, 10)


def test_standins_for_labels_of_every_clip(tmp_path, capsys):
    lines = [dict(qid=i, query='two green boats sail by', vid=f'v{i}', duration=3.5, domain=domain,
                  label=[[low], [1], [low], [1], [low]])
             for i, (domain, low) in enumerate([('a', 0), ('b', 0), ('b', 1), ('b', 0)])]
    lines[2]['query'] = 'seven brown foxes jump over lazy dogs behind tall grey wooden fences'
    (tmp_path / 'a.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    data = standin_config(
        tmp_path / 'out', tmp_path / 'a.jsonl', video_dirs=('s',), video_dims=(65,), text_dim=4,
        text_layout='clip', clip_length=1.0, limit=2, saliency='binary', video_parts=('_x', '_y'),
        text_key='token', domain='b')
    out = simulate.simulate(data, seed=0, video_noise=0.0)
    assert '2 videos (10 clips) and 2 queries' in capsys.readouterr().out
    assert sorted(p.name for p in (out / 's').iterdir()) == [
        f'v{i}_{part}.npz' for i in (1, 2) for part in 'xy']
    parts = [np.load(out / 's' / f'v1_{part}.npz')['features'] for part in 'xy']
    assert [part.shape for part in parts] == [(5, 33), (5, 32)]
    clips = np.concatenate(parts, 1).astype(float)
    # Clips of label 1 show all of the query, the others half of it or something else.
    words = np.sum([simulate._hashed_vector(0, 's', word, 65)
                    for word in 'two green boats sail by'.split() if word != 'by'], axis=0)
    likeness = clips @ words / np.linalg.norm(words)
    assert likeness[[1, 3]].min() > 0.85 > likeness[[0, 2, 4]].max()
    assert 'token' in np.load(out / 'text' / 'qid1.npz')
    data.update(dict(root=str(tmp_path / 'c'), domain='c'))
    with pytest.raises(ValueError, match="no record of domain 'c'"):
        simulate.simulate(data, seed=0)
    assert not (tmp_path / 'c').exists()


@pytest.mark.parametrize('field, value, expected', [
    ('vid', '../v', 'without folders'), ('qid', 'a/b', 'a whole number or a file name')])
def test_standins_stay_in_their_folder(field, value, expected, tmp_path):
    line = dict(qid=1, query='a dog', vid='v', duration=3.5) | {field: value}
    (tmp_path / 'a.jsonl').write_text(json.dumps(line))
    data = standin_config(tmp_path / 'out', tmp_path / 'a.jsonl', video_dims=(3,), text_dim=4)
    with pytest.raises(ValueError, match=f'a.jsonl:1: {field} is .*{expected}'):
        simulate.simulate(data, seed=0)
    assert not (tmp_path / 'out').exists()
