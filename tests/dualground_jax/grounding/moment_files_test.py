"""Files of moments, read back by what they are for."""

import csv
import json
import re

import pytest

from data_pipelines.errors import ConfigError, DataError
from dualground_jax.grounding import moment_files


@pytest.fixture(name='rows')
def make_rows():
    def row(video, query, windows, rate=25.0):
        return dict(video=video, query=query, windows=windows, duration=60.0, clip_length=2.0,
                    saliency=[0.5], relevance=[0.6], frame_rate=rate)

    return [
        row("/v/it's a dog.mp4", 'a dog, "running"\nfast', [[4, 12, 0.9], [20, 24.02, 0.25]]),
        row('/v/b.mkv', 'rain', [[3599.98, 3661, 0.5], [3600, 3661, 0.0]]),
    ]


def test_json_holds_everything(rows, tmp_path):
    moment_files.write(tmp_path / 'a.json', rows)
    assert json.loads((tmp_path / 'a.json').read_text()) == rows


def test_csv_is_read_back(rows, tmp_path):
    moment_files.write(tmp_path / 'a.csv', rows)
    with open(tmp_path / 'a.csv', newline='') as file:
        found = list(csv.DictReader(file))
    assert [(line['video'], line['query']) for line in found] == [
        (row['video'], row['query']) for row in rows for _ in row['windows']]
    assert [int(line['rank']) for line in found] == [1, 2, 1, 2]
    assert [[float(line[key]) for key in ('start', 'end', 'score')] for line in found] == [
        window for row in rows for window in row['windows']]


def test_no_text_is_a_formula_or_a_line_of_its_own(rows):
    hostile = [row | dict(video='=1+1', query="@x\0file '/etc/passwd'") for row in rows]
    first = next(csv.DictReader(moment_files.to_csv(hostile).splitlines()))
    assert first['video'] == "'=1+1" and first['query'].startswith("'@x")
    for text in (moment_files.to_ffconcat(hostile), moment_files.to_edl(hostile)):
        assert '\0' not in text


def seconds(timecode, base):
    hours, minutes, second, frame = map(int, timecode.split(':'))
    assert frame < base and second < 60 and minutes < 60
    return ((hours * 60 + minutes) * 60 + second) * base + frame


@pytest.mark.parametrize('rate', [25.0, 24000 / 1001, 60000 / 1001])
def test_an_edl_lays_the_cuts_end_to_end(rows, rate):
    rows = [row | dict(frame_rate=rate) for row in rows]
    text = moment_files.to_edl(rows)
    title, fcm, *rest = text.splitlines()
    assert title.startswith('TITLE: ') and fcm == 'FCM: NON-DROP FRAME'
    events = [line for line in rest if re.match(r'\d{3}  ', line)]
    wanted = [window for row in rows for window in row['windows'] if window[2] > 0]
    assert len(events) == len(wanted) == 3
    written = 0
    for number, (line, (start, end, _)) in enumerate(zip(events, wanted), start=1):
        fields = line.split()
        assert fields[:4] == [f'{number:03d}', 'AX', 'V', 'C']
        first, last, begin, stop = (seconds(field, round(rate)) for field in fields[4:])
        assert abs(first - start * rate) <= 0.5 and abs(last - end * rate) <= 0.5
        assert begin == written and stop - begin == last - first
        written = stop
    assert "* FROM CLIP NAME: it's a dog.mp4" in rest
    assert '* COMMENT: 0.9000 a dog, "running" fast' in rest


def test_a_cut_has_a_frame(rows):
    short = rows[0] | dict(windows=[[1.0, 1.001, 0.5]])
    assert '00:00:01:00 00:00:01:01 00:00:00:00 00:00:00:01' in moment_files.to_edl([short])


def test_ffconcat_quotes_paths(rows):
    lines = moment_files.to_ffconcat(rows).splitlines()
    assert lines[0] == 'ffconcat version 1.0'
    assert lines[1:5] == ['# 0.9000 a dog, "running" fast', r"file '/v/it'\''s a dog.mp4'",
                          'inpoint 4.000000', 'outpoint 12.000000']
    assert len(lines) == 1 + 4 * 3
    with pytest.raises(DataError, match='a path with a line break'):
        moment_files.to_ffconcat([rows[0] | dict(video='a\nb.mp4')])


@pytest.mark.parametrize('path, rates, cuts, message', [
    ('a.xml', [25.0], 1, 'a.xml: expected a name that ends in .json, .csv, .ffconcat, .edl'),
    ('a.edl', [], 1, 'a cut list needs --video=FILE'),
    ('a.edl', [30.0, 25.0], 1, 'videos of 25, 30 frames a second, expected one rate'),
    ('a.edl', [0.0], 1, 'videos of 0 frames a second'),
    ('a.edl', [25.0], 1000, 'up to 1000 moments, expected at most 999'),
    ('nowhere/a.csv', [25.0], 1, 'nowhere/a.csv: no such folder'),
])
def test_what_cannot_be_written_is_told_first(path, rates, cuts, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        moment_files.check(path, rates, cuts)
    moment_files.check('a.csv', [], 1000)
