"""Sets without windows: records with labels of every clip, training and evaluation on them."""

import json
import re
import types

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import tvsum, youtube_hl
from data_pipelines import annotations, datasets, files, release, saliency, simulate
from dualground_jax import evaluate, train
from dualground_jax.metrics import official
from dualground_jax.models import detr, flash_vtg, pyramid
from tests.helpers.release_files import (
    LINE,
    annotation_config,
    assert_parts,
    make_release,
    make_rows,
    refusal,
    write_lines,
)

BARE = {name: LINE[name] for name in ('qid', 'query', 'duration', 'vid')}
LABEL = [[1, 5], [2, 4], [3.5, 3], [1, 1], [5, 5]]
GRADES = annotation_config(saliency='grades')


def read(tmp_path, lines, skipped=None, data=GRADES):
    write_lines(tmp_path / 'a.jsonl', lines)
    return annotations.read_annotations(tmp_path / 'a.jsonl', data, skipped)


# Annotations


def test_labels_and_domain(tmp_path):
    lines = [BARE | dict(label=LABEL, domain='BK', relevant_windows=None, relevant_clip_ids=None),
             BARE | dict(qid=2, label=None)]
    record, bare = read(tmp_path, lines)
    assert record.label.dtype == np.float32 and record.label.tolist() == LABEL
    assert (record.domain, record.windows.shape) == ('BK', (0, 2))
    assert bare.label is None and bare.domain == ''
    assert [saliency.is_annotated(r, 'grades') for r in (record, bare)] == [True, False]
    assert not saliency.is_annotated(record, 'window')


@pytest.mark.parametrize('changes, parts', [
    ({'label': []}, ['label is []', 'a row for each clip']),
    ({'label': 4}, ['label is 4']),
    ({'label': [1, 2]}, ['label[0] is 1']),
    ({'label': [[]]}, ['label[0] is []']),
    ({'label': [[1, 2], [3]]}, ['label[1] is [3]', '2 numbers from 1 to 5']),
    ({'label': [[1, 2], [3, 'x']]}, ["label[1] is [3, 'x']"]),
    ({'label': [[1, float('nan')]]}, ['label[0] is [1, nan]']),
    ({'label': [[1, 0]]}, ['label[0] is [1, 0]', 'from 1 to 5']),
    ({'label': [[1, 6]]}, ['label[0] is [1, 6]', 'from 1 to 5']),
    ({'domain': 3}, ['domain is 3', 'a name']),
    ({'domain': None}, ['domain is None']),
])  # fmt: skip
def test_bad_labels(tmp_path, changes, parts):
    message = refusal(read, tmp_path, [BARE | changes])
    assert_parts(message, 'a.jsonl:1: ', *parts)


def test_sums_of_grades_are_as_good_as_the_grades(tmp_path):
    """TVSum's files for SlowFast and CLIP: one number a clip, the sum of 20 annotators' grades."""
    grades = np.random.default_rng(0).integers(1, 6, (7, 20))
    sums = grades.sum(axis=1, keepdims=True)
    given, summed = read(tmp_path, [BARE | dict(label=grades.tolist()),
                                    BARE | dict(qid=2, label=sums.tolist())])
    labels = saliency.clip_labels(summed, 7, 'grades')
    np.testing.assert_allclose(labels, (sums[:, 0] - 20) / 80 * 12, rtol=1e-5)
    np.testing.assert_allclose(labels, saliency.clip_labels(given, 7, 'grades'), rtol=1e-5)
    assert summed.label.shape == (7, 20)  # as the protocol takes them
    for bad in ([[63], [101]], [[63], [19]]):
        message = refusal(read, tmp_path, [BARE | dict(label=bad)])
        assert_parts(message, 'label[1] is', 'from 1 to 5')
    one, = read(tmp_path, [BARE | dict(label=[[3], [5]])])  # a single annotator
    assert one.label.tolist() == [[3], [5]]


def test_domains(tmp_path):
    lines = [BARE | dict(qid=i, domain=name) for i, name in enumerate('abab')]
    of = lambda domain, **more: [r.qid for r in read(
        tmp_path, lines, data=annotation_config(domain=domain, **more))]
    assert (of(''), of('b'), of('b', limit=1), of('', limit=3)) == ([0, 1, 2, 3], [1, 3], [1],
                                                                   [0, 1, 2])
    assert_parts(refusal(of, 'c'), 'a.jsonl', "'c'", 'data.domain', 'known are: a, b')
    assert_parts(refusal(read, tmp_path, [LINE], data=annotation_config(domain='c')), 'none')


def test_durations_in_another_unit(tmp_path):
    line = BARE | dict(duration=5, relevant_windows=[[2, 9]])
    assert read(tmp_path, [line], data=annotation_config(duration_unit=2.0))[0].duration == 10
    assert_parts(refusal(read, tmp_path, [line]), '[2, 9]', 'duration 5')


# Features


def test_features_as_long_as_the_labels(tmp_path):
    data = make_release(tmp_path, saliency='grades')
    whole = release.read_video(data, 'w')
    for labelled, clips in ((None, 6), (8, 6), (6, 6), (5, 5), (4, 4)):
        np.testing.assert_array_equal(release.read_video(data, 'w', labelled), whole[:clips])
    message = refusal(release.read_video, data, 'w', 3)
    assert_parts(message, 'w.npz', '6 clips', 'about 3', "'w'")
    lines = [BARE | dict(label=LABEL[:4]), BARE | dict(qid='b', vid='w', label=LABEL),
             BARE | dict(qid=3, label=LABEL[:4])]
    write_lines(tmp_path / 'train.jsonl', lines)
    split = datasets.load_split(data, 'train')
    assert [len(video) for video in split.videos] == [4, 5]
    assert [len(labels) for labels in split.saliency] == [4, 5, 4]
    lines[1]['label'] = LABEL[:2]
    write_lines(tmp_path / 'train.jsonl', lines)
    assert_parts(refusal(datasets.load_split, data, 'train'), '6 clips', 'about 2')


def test_a_stream_in_two_files_and_a_named_array(tmp_path):
    data = make_release(tmp_path, video_dirs=('two',), video_dims=(7,), video_parts=('_a', '_b'),
                        text_key='token')
    (tmp_path / 'two').mkdir()
    np.save(tmp_path / 'two' / 'w_a.npy', a := make_rows(5, 4))
    np.savez(tmp_path / 'two' / 'w_b.npz', features=(b := make_rows(6, 3)))
    rows = np.concatenate([a, b[:5]], 1)  # scaled to length one together
    expected = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(release.read_video(data, 'w'), expected, rtol=1e-4)
    (tmp_path / 'two' / 'w_b.npz').unlink()
    assert_parts(refusal(release.read_video, data, 'w'), 'w_b', 'found no file')
    np.savez(tmp_path / 'text' / 'qid1.npz', token=make_rows(4, 8))
    assert release.read_query(data, 1)[0].shape == (4, 8)
    assert_parts(refusal(datasets.load_split, make_release(tmp_path / 'x', video_parts=()),
                         'train'), 'data.video_parts')


# Runs


def write_set(folder, name, domains, draw):
    """Annotation files of a highlight set: 4 training videos and 1 of validation a domain."""
    rng = np.random.default_rng(0)
    for split, count in (('train', 4), ('valid' if name == 'youtube' else 'val', 1)):
        lines = []
        for domain in domains:
            for i in range(count):
                clips = int(rng.integers(6, 9))
                label = [draw(rng) for _ in range(clips)]
                vid = f'{domain}{split}{i}'
                lines.append(dict(qid=vid, query=f'title of {domain} film', vid=vid, duration=clips,
                                  relevant_windows=None, relevant_clip_ids=None, label=label,
                                  domain=domain))
        write_lines(folder / f'{name}_{split}.jsonl', lines)


def graded(rng):
    return rng.integers(1, 6, 20).tolist()


def tiny(module, folder, argument, **sizes):
    config = module.get_config(f'runlocal,root={folder}/features,annotations={folder},{argument}')
    sizes_of_model = dict(width=16, heads=2, ffn=16, phrases=2, input_layers=1, mlp_layers=1,
                          strides=(1,))
    config.model.update({k: v for k, v in sizes_of_model.items() if k in config.model})
    config.data.update(dict(max_clips=8, max_tokens=8, **sizes))
    config.train.update(dict(max_steps=3, log_every=1, batch_size=4))
    return config.lock()


@pytest.mark.slow
def test_training_and_evaluation(tmp_path, capsys):
    """One domain of TVSum with I3D features: from the annotations to the official numbers."""
    write_set(tmp_path, 'tvsum', ('BK', 'BT'), graded)
    config = tiny(tvsum, tmp_path, 'model=flash_vtg,features=i3d,domain=BT', video_dims=(6,),
                  text_dim=6)
    simulate.simulate(config.data, config.seed)
    assert re.search(r'5 videos \(\d+ clips\) and 5 queries', capsys.readouterr().out)
    train.train(config, str(tmp_path / 'run'))
    rows = files.load_jsonl(tmp_path / 'run' / 'metrics.jsonl')
    rows = [row for row in rows if 'train/loss' in row]
    assert len(rows) == 3
    for row in rows:
        parts = [weight * row[f'train/{name}'] for name, weight in config.loss.weights.items()]
        np.testing.assert_allclose(row['train/loss'], sum(parts), rtol=1e-5)
        assert row['train/cls'] != 0 and row['train/reg'] == 0
    result = json.loads((tmp_path / 'run' / 'results.json').read_text())
    truth = files.load_jsonl(tmp_path / 'tvsum_val.jsonl')[1:]
    found = files.load_jsonl(tmp_path / 'run' / 'val_predictions.jsonl')
    assert result['brief'] == official.evaluate(found, truth, 'tvsum')['brief']
    assert set(result['brief']) == {'mAP', 'BT-mAP'}
    assert len(list((tmp_path / 'run').glob('*.png'))) == 2
    capsys.readouterr()
    evaluate.evaluate(config, str(tmp_path / 'run'))
    assert f'{result["brief"]["mAP"]:.5f}' in capsys.readouterr().out
    assert json.loads((tmp_path / 'run' / 'val_metrics.json').read_text())['brief'] == (
        result['brief'])


def test_moment_losses_without_windows():
    """They are finite, those of boundaries 0, and so are their gradients."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    none = np.zeros((2, 1), bool)
    batch = dict(
        windows=np.zeros((2, 1, 2), np.float32), windows_mask=none, spans_mask=none,
        spans=np.zeros((2, 1, 2), np.float32), clip_length=np.full(2, 2.0, np.float32),
        saliency=np.abs(draw(2, 4)), video_mask=np.arange(4) < np.array([[4], [3]]),
        graded=np.ones(2, bool))
    points = dict(points=pyramid.pyramid_points(4, (1,)), points_mask=batch['video_mask'])
    found = dict(logits=draw(2, 4), offsets=np.abs(draw(2, 4, 2)), pred_logits=draw(1, 2, 3, 2),
                 pred_spans=np.abs(draw(1, 2, 3, 2)))
    config = flash_vtg.LOSS | detr.LOSS | dict(classification='saliency')
    config = ConfigDict(dict(config))

    def parts(found):
        losses = pyramid.point_losses(found | points, batch, config)
        return losses | detr.set_losses(found, batch, config)

    values, grads = jax.jit(lambda x: (parts(x), jax.jacrev(parts)(x)))(found)
    assert values['reg'] == values['span'] == values['giou'] == 0
    logits, labels, mask = found['logits'], batch['saliency'], batch['video_mask']
    p = 1 / (1 + np.exp(-logits.astype(float)))
    expected = -(labels * np.log(p) + (1 - labels) * np.log(1 - p))[mask].mean()
    np.testing.assert_allclose(values['cls'], expected, rtol=1e-5)
    for name, of_inputs in grads.items():
        assert all(np.isfinite(g).all() for g in of_inputs.values())
        if name in ('reg', 'span', 'giou'):
            assert not any(np.any(g) for g in of_inputs.values())


def test_training_needs_labels(tmp_path):
    write_set(tmp_path, 'youtube', ('dog',), lambda rng: [int(rng.integers(2))])
    path = tmp_path / 'youtube_train.jsonl'
    config = tiny(youtube_hl, tmp_path, '', video_dims=(4, 3), text_dim=6)
    simulate.simulate(config.data, config.seed)
    assert [len(s.queries) for s in train.load_splits(config)] == [4, 1]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]['label'] = None
    write_lines(path, lines)
    assert_parts(refusal(train.load_splits, config), "'train'", 'no label', "'binary'")


def test_ground_truth_is_that_of_the_file(tmp_path):
    line = BARE | dict(label=LABEL, domain='BK')
    split = types.SimpleNamespace(queries=read(tmp_path, [line]))
    row, = evaluate.ground_truth(split)
    assert (row['label'], row['domain']) == (LABEL, 'BK')


def test_every_set_has_a_protocol_and_selects_by_it():
    assert set(datasets.DATASETS) == set(official.PROTOCOLS)
    for row in datasets.DATASETS.values():
        assert row.selection == ('mAP',) or row.selection[0].startswith('MR-full')
