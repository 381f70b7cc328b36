"""The benchmark of the recipes: stand-ins in memory, and the table of padding worked by hand."""

import json

import numpy as np
import pytest

from benchmarks import recipes


def load(tmp_path, lengths):
    """Charades-STA with queries of so many (seconds, words) on a video each."""
    rows = [dict(qid=i, vid=f'v{i}', duration=seconds, query=' '.join(['word'] * words),
                 relevant_windows=[[0, 5]]) for i, (seconds, words) in enumerate(lengths)]
    folder = tmp_path / 'charades_sta'
    folder.mkdir()
    for split in ('train', 'test'):
        (folder / f'charades_sta_{split}_tvr_format.jsonl').write_text(
            '\n'.join(map(json.dumps, rows)))
    return recipes.load('tr_detr', 'charades_sta', 'sf_clip', str(tmp_path), str(tmp_path / 'root'))


def test_stand_ins_have_the_real_numbers_of_rows_in_one_block(tmp_path):
    _, split, _ = load(tmp_path, [(10, 3), (50.2, 8), (203, 40)])
    assert [rows.shape for rows in split.videos] == [(10, 2816), (51, 2816), (200, 2816)]
    assert [rows.shape for rows in split.text] == [(5, 512), (10, 512), (32, 512)]
    assert all(np.shares_memory(rows, split.videos[2]) for rows in split.videos)
    assert not [path for path in (tmp_path / 'root').rglob('*') if path.is_file()]


@pytest.mark.parametrize('lengths, batch_size, expected, buckets', [
    # Alone in its batch, none is padded to another; 16 x 8 and 50 x 10 hold 10 x 5 and 50 x 10.
    ([(10, 3)] * 2 + [(50, 8)] * 2, 1,
     dict(clips_before=800 / 120, clips_after=132 / 120, clips_longest=1,
          tokens_before=128 / 30, tokens_after=36 / 30, tokens_longest=1), '16x8 50x10'),
    # Six queries in batches of four: two empty rows are computed as well.
    ([(10, 3)] * 6, 4,
     dict(clips_before=1600 / 60, clips_after=80 / 60, clips_longest=80 / 60,
          tokens_before=256 / 30, tokens_after=40 / 30, tokens_longest=40 / 30), '10x5'),
])
def test_padding_is_what_is_computed_over_what_is_there(
        tmp_path, lengths, batch_size, expected, buckets):
    config, split, _ = load(tmp_path, lengths)
    config.train.batch_size = batch_size
    row = recipes.padding(config, split)
    assert {key: row[key] for key in expected} == pytest.approx(expected)
    assert row['queries'] == len(lengths) and row['buckets'] == buckets


def test_padding_of_an_evaluation(tmp_path):
    config, _, split = load(tmp_path, [(10, 3)] * 8 + [(50, 8)] * 8)
    config.evaluate.batch_size = 2
    row = recipes.evaluation_padding(config, split)
    expected = dict(clips_before=16 * 200 / 480, clips_after=(8 * 16 + 8 * 50) / 480,
                    clips_longest=1, tokens_before=16 * 32 / 120, tokens_longest=1)
    assert {key: row[key] for key in expected} == pytest.approx(expected)
    assert row['queries'] == 16 and row['buckets'] == '16x8 50x10'


def test_steps_are_drawn_evenly_by_size(tmp_path):
    config, split, _ = load(tmp_path, [(10 * i, 3) for i in range(1, 10)])
    config.train.batch_size = 1
    schedule, = recipes.Schedule.of(split, config.data, config.train, 0)
    steps = recipes.drawn(schedule, 3)
    assert [schedule.size(range(i, i + 1))[0] for i in steps] == [20, 50, 80]
