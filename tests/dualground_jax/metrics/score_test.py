"""Mode `score`: intervals, comparison, breakdown, and the command line as a user runs it."""

import gzip
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import files
from data_pipelines.errors import UserError
from dualground_jax.metrics import official, score
from tests.dualground_jax.metrics.official_test import data_sets, evaluate, sample
from tests.helpers.paths import REPO, goldens_dir

OFFICIAL = dict(dataset='qvhighlights', clip_length=None)

# Single queries -------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(data_sets())
def test_brief_numbers_are_means_of_columns(pairs):
    predictions, annotations = [p for p, _ in pairs], [a for _, a in pairs]
    columns = official.columns(official.per_query(predictions, annotations))
    brief = evaluate(predictions, annotations)['brief']
    assert columns.names == list(brief)
    for name, column, weight in zip(
            columns.names, columns.values.T, columns.weights.T, strict=True):
        assert set(weight) <= {0.0, 1.0}
        # Each entry is what the query scores alone.
        for value, counts, pair in zip(column, weight, pairs, strict=True):
            alone = evaluate([pair[0]], [pair[1]])['brief'][name]
            assert not counts or abs(100 * value - alone) < 0.005 + 1e-9
        mean = column[weight > 0].mean() if weight.any() else 0
        assert abs(100 * mean - brief[name]) < 0.005 + 1e-9


def test_many_queries_are_scored_as_few():
    """Enough to be scored in several parts, one of them with a far longer list."""
    predictions, annotations = sample()
    one = evaluate(predictions, annotations)
    many = [(dict(p, qid=f'{p["qid"]}-{i}'), dict(a, qid=f'{a["qid"]}-{i}'))
            for i in range(800) for p, a in zip(predictions, annotations, strict=True)]
    many[3][0]['pred_relevant_windows'] = [
        *many[3][0]['pred_relevant_windows'], *[[100, 101, 0.0]] * 5000]
    assert evaluate([p for p, _ in many], [a for _, a in reversed(many)]) == one


# Queries without a prediction -----------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(data_sets(), st.data())
def test_missing_predictions_count_as_misses(pairs, data):
    """Each number is the mean of what is there, times the share of its queries that is there."""
    kept = data.draw(st.sets(st.sampled_from(range(len(pairs))), min_size=1))
    annotations = [a for _, a in pairs]
    whole = official.columns(official.per_query([p for p, _ in pairs], annotations))
    rows = [pairs[i][0] if i in kept else dict(pairs[i][0], pred_saliency_scores=[1.])
            for i in range(len(pairs))]
    missed = {a['qid'] for i, a in enumerate(annotations) if i not in kept}
    found = official.columns(official.per_query(rows, annotations, missed=missed))
    there = np.array([i in kept for i in range(len(pairs))])[:, None]
    np.testing.assert_array_equal(found.values, whole.values * there)
    np.testing.assert_array_equal(found.weights, whole.weights)


def test_missing_queries_are_counted_where_that_is_asked_for(tmp_path, capsys):
    predictions, annotations = sample()
    paths = [write(tmp_path / name, rows) for name, rows in (
        ('all.jsonl', predictions), ('one.jsonl', predictions[:1]), ('gt.jsonl', annotations))]
    flags = flags_of(predictions=paths[1:2], annotations=paths[2], nms='normal:0.7', breakdown=True,
                     output=str(tmp_path / 'out.json'))
    with pytest.raises(UserError, match='one.jsonl: qid 2: field qid: missing.*--count_missing'):
        score.run(flags)
    flags.count_missing = True
    score.run(flags)
    assert f'{paths[1]}: 1 queries without a prediction, counted as misses' in (
        capsys.readouterr().out)
    report = json.loads((tmp_path / 'out.json').read_text())
    assert report['missing'] == {paths[1]: 1}
    assert report['brief']['MR-full-R1@0.5'] == 50.0 == report['brief']['HL-min-Fair-Hit1']
    flags.predictions, flags.compare = [], paths[:2]
    score.run(flags)
    assert json.loads((tmp_path / 'out.json').read_text())['missing'] == {paths[0]: 0, paths[1]: 1}
    text = write(tmp_path / 'text.jsonl', [dict(row, qid=str(row['qid'])) for row in predictions])
    with pytest.raises(UserError, match="text.jsonl: qid '1': field qid: a text, expected a num"):
        score.run(flags_of(predictions=[text], annotations=paths[2], count_missing=True))


# Clips of another length ----------------------------------------------------------------------


def test_clip_length_and_protocol_of_flags_and_config(tmp_path, capsys):
    truth = [dict(qid=1, duration=30, relevant_windows=[[12, 28]], relevant_clip_ids=[3, 4, 5, 6],
                  saliency_scores=[[4]] * 4)]
    rows = [dict(qid=1, pred_saliency_scores=[-9, -9, -9, -1, -1, -1, -1, -9])]
    paths = dict(predictions=[write(tmp_path / 'p.jsonl', rows)],
                 annotations=write(tmp_path / 'gt.jsonl', truth))
    config = SimpleNamespace(evaluate=SimpleNamespace(protocol='custom'),
                             data=SimpleNamespace(clip_length=4.0))
    for flags, told in ((dict(dataset='custom', clip_length=4.0), None), ({}, config)):
        score.run(flags_of(**paths, **flags), told)
        found = dict(line.split() for line in capsys.readouterr().out.splitlines() if 'HL' in line)
        assert len(found) == 6 and set(found.values()) == {'100.00'}
    for flags in ({}, dict(dataset='custom', clip_length=1.0)):  # also where the ids happen to fit
        with pytest.raises(UserError) as caught:
            score.run(flags_of(**paths, **flags))
        assert 'p.jsonl: 8 pred_saliency_scores for 30 s' in str(caught.value)
        assert '--dataset=custom --clip_length=SECONDS' in str(caught.value)


# Intervals ------------------------------------------------------------------------------------


def run_of(predictions, annotations, tmp_path, **changes):
    path = write(tmp_path / 'P.jsonl', predictions)
    flags = flags_of(annotations=write(tmp_path / 'A.jsonl', annotations), **changes)
    return score.score_file(path, annotations, flags, OFFICIAL)


def flags_of(**changes):
    return SimpleNamespace(**dict(
        predictions=[], compare=[], annotations=None, dataset=None, nms=None, bootstrap=None,
        breakdown=False, output=None, clip_length=None, count_missing=False) | changes)


def write(path, rows):
    text = ''.join(json.dumps(row) + '\n' for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == '.gz' else text)
    return str(path)


def test_intervals_of_equal_queries_have_no_width(tmp_path):
    predictions, annotations = sample()
    predictions[1] = dict(predictions[0], qid=2)
    annotations[1] = dict(annotations[0], qid=2)
    run = run_of(predictions, annotations, tmp_path)
    bounds = score.intervals(run.columns, 100)
    brief = run.metrics['brief']
    assert bounds == {name: (brief[name],) * 2 for name in run.brief()}
    assert 'MR-long-mAP' not in bounds and score.intervals(run.columns, 0) == {}


def test_interval_covers_the_mean_of_many_samples(tmp_path):
    """Coverage: of 200 data sets with a true recall of 60 %, about 95 % of intervals hold it."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(200):
        values = (rng.random((100, 1)) < 0.6).astype(float)
        columns = official.Columns(['R1'], values, np.ones((100, 1)),
                                   official.PROTOCOLS['qvhighlights'])
        low, high = score.intervals(columns, 400)['R1']
        hits += low <= 60 <= high
    assert 0.89 < hits / 200 < 0.99


# Comparison, seeds, breakdown -----------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(data_sets(), st.randoms(use_true_random=False))
def test_comparison_of_files_in_any_order(tmp_path_factory, pairs, random):
    folder = tmp_path_factory.mktemp('compare')
    predictions, annotations = [p for p, _ in pairs], [a for _, a in pairs]
    other = [dict(p, pred_relevant_windows=p['pred_relevant_windows'][::-1]) for p in predictions]
    first = run_of(predictions, annotations, folder)
    second = run_of(random.sample(other, len(other)), annotations, folder)
    report = score.report_comparison(first, second, 50)
    for name, value in report['difference'].items():
        expected = second.metrics['brief'][name] - first.metrics['brief'][name]
        assert value == pytest.approx(expected, abs=0.0151)
    same = score.report_comparison(first, run_of(
        random.sample(predictions, len(predictions)), annotations, folder), 50)
    assert set(same['difference'].values()) == {0.0}
    assert {bound for pair in same.get('intervals', {}).values() for bound in pair} <= {0.0}


def test_paired_differences_are_narrower_than_each_interval(tmp_path):
    """The second file is better on every query by the same amount: the difference is certain."""
    predictions, annotations = [], []
    rng = np.random.default_rng(0)
    for qid in range(60):
        quality = int(rng.integers(2, 8))
        predictions.append(dict(qid=qid, pred_relevant_windows=[[0, quality, 1]]))
        annotations.append(dict(qid=qid, relevant_windows=[[0, 10]]))
    better = [dict(qid=row['qid'], pred_relevant_windows=[
        [0, row['pred_relevant_windows'][0][1] + 1, 1]]) for row in predictions]
    first = run_of(predictions, annotations, tmp_path)
    report = score.report_comparison(first, run_of(better, annotations, tmp_path), 300)
    assert report['difference']['MR-full-mIoU'] == 10.0
    assert report['intervals']['MR-full-mIoU'] == (10.0, 10.0)
    low, high = score.intervals(first.columns, 300)['MR-full-mIoU']
    assert high - low > 4


def test_seeds_give_mean_and_std(tmp_path, capsys):
    predictions, annotations = sample()
    other = [dict(row, pred_relevant_windows=[[50, 60, 1]]) for row in predictions]
    runs = [run_of(rows, annotations, tmp_path) for rows in (predictions, other, predictions)]
    report = score.report_runs(runs, 0)
    each = [run.metrics['full']['MR-R1']['0.5'] for run in runs]
    assert report['full']['MR-R1']['0.5'] == round(np.mean(each), 2)
    assert report['std']['full']['MR-R1']['0.5'] == round(np.std(each, ddof=1), 2)
    assert [row['brief'] for row in report['runs']] == [run.metrics['brief'] for run in runs]
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith('MR-full-R1@0.5'))
    assert [float(x) for x in line.split()[1:]] == [
        round(np.mean(each), 2), round(np.std(each, ddof=1), 2), *each]


def test_files_scored_on_other_metrics_are_refused(tmp_path):
    predictions, annotations = sample()
    short = [{k: v for k, v in row.items() if k != 'pred_saliency_scores'} for row in predictions]
    runs = [run_of(rows, annotations, tmp_path) for rows in (predictions, short)]
    for report in (lambda: score.report_runs(runs, 0), lambda: score.report_comparison(*runs, 0)):
        with pytest.raises(UserError, match='only one of them has predictions for HL-min-Fair'):
            report()


def test_bins_of_query_length_are_open_below():
    counts = [1, 10, 11, 15, 16, 20, 21, 40]
    annotations = [dict(qid=i, query='word ' * n, relevant_windows=[[0, 10]])
                   for i, n in enumerate(counts)]
    # The first of each bin is right, the second wrong.
    predictions = [dict(qid=i, pred_relevant_windows=[[0, 10, 1] if i % 2 == 0 else [50, 60, 1]])
                   for i in range(len(counts))]
    found = score.by_query_length(predictions[::-1], annotations, 'qvhighlights')
    assert list(found) == ['1-10', '11-15', '16-20', '>20']
    for brief in found.values():
        assert brief['queries'] == 2 and brief['MR-full-R1@0.5'] == 50.0
        assert 'MR-long-mAP' not in brief


@settings(max_examples=20, deadline=None)
@given(data_sets(), st.data())
def test_bins_add_up_to_the_whole(pairs, data):
    predictions, annotations = [p for p, _ in pairs], [a for _, a in pairs]
    for row in annotations:
        row['query'] = ' '.join(['w'] * data.draw(st.integers(1, 25)))
    found = score.by_query_length(predictions, annotations, 'qvhighlights')
    total = sum(brief['queries'] for brief in found.values())
    whole = evaluate(predictions, annotations)['brief']
    assert total == len(pairs)
    for name in ('MR-full-mAP', 'MR-full-R1@0.5', 'HL-min-Good-mAP'):
        mean = sum(brief['queries'] * brief[name] for brief in found.values()) / total
        assert mean == pytest.approx(whole[name], abs=0.0101)


def test_breakdown_needs_a_query():
    predictions, annotations = sample()
    del annotations[1]['query']
    with pytest.raises(UserError, match='annotations qid 2: field query: found None, expected a'):
        score.by_query_length(predictions, annotations, 'qvhighlights')


# Command line ---------------------------------------------------------------------------------


def command(*arguments):
    """Runs the mode as a user would, and tells which heavy packages it imported."""
    code = ('import sys, runpy; sys.argv[0] = "main"\n'
            'try:\n    runpy.run_module("dualground_jax.main", run_name="__main__")\n'
            'finally:\n    print("heavy:", sorted('
            '{"jax", "jaxlib", "flax", "tensorflow", "scipy", "matplotlib"} & set(sys.modules)))')
    return subprocess.run([sys.executable, '-c', code, '--mode=score', *arguments], cwd=REPO,
                          text=True, capture_output=True)


@pytest.fixture(name='files')
def sample_files(tmp_path):
    predictions, annotations = sample()
    worse = [dict(row, pred_relevant_windows=[[50, 60, 0.5], *row['pred_relevant_windows']])
             for row in predictions]
    return SimpleNamespace(
        folder=tmp_path, gt=write(tmp_path / 'gt.jsonl.gz', annotations),
        good=write(tmp_path / 'good.jsonl', predictions),
        bad=write(tmp_path / 'bad.jsonl.gz', worse))


def test_command_needs_no_jax_and_writes_the_official_layout(files):
    output = files.folder / 'metrics.json'
    done = command(f'--predictions={files.good}', f'--annotations={files.gt}',
                   f'--output={output}')
    assert done.returncode == 0, done.stderr
    assert 'heavy: []' in done.stdout
    expected = evaluate(*sample())
    assert json.loads(output.read_text()) == expected
    for name in ('MR-full-mAP', 'HL-min-VeryGood-Hit1'):
        assert f'{expected["brief"][name]:.2f}' in next(
            line for line in done.stdout.splitlines() if line.startswith(f'{name} ')).split()


@pytest.mark.parametrize('form', ['--compare={good},{bad}', '--compare {good} {bad}'])
def test_command_compares(files, form):
    output = files.folder / 'c.json'
    done = command(*form.format(good=files.good, bad=files.bad).split(), '--breakdown',
                   f'--annotations={files.gt}', '--bootstrap=50', f'--output={output}')
    assert done.returncode == 0, done.stderr
    report = json.loads(output.read_text())
    assert [row['predictions'] for row in report['runs']] == [files.good, files.bad]
    assert report['difference']['MR-full-R1@0.5'] == -100.0
    assert report['intervals']['MR-full-R1@0.5'] == [-100.0, -100.0]
    assert 'B - A' in done.stdout and '[-100.00, -100.00] *' in done.stdout


def test_command_suppresses_before_scoring(files):
    """The worse file's first window leaves the list's head, as the reference sorts after NMS."""
    output = files.folder / 'n.json'
    done = command(f'--predictions={files.bad}', f'--annotations={files.gt}', '--nms=normal:0.7',
                   f'--output={output}')
    assert done.returncode == 0, done.stderr
    assert json.loads(output.read_text())['brief']['MR-full-R1@0.5'] == 100.0


MISTAKES = [
    ([], 'needs either --predictions=FILE,... or --compare=FILE,FILE'),
    (['--predictions={good}', '--compare={good},{bad}'], 'needs either --predictions'),
    (['--compare={good}'], '--compare: found 1 files, expected two'),
    (['--predictions={good}', '--output=no/x.json'], '--output=no/x.json: no such folder'),
    (['--predictions={good}', '--nms=soft:1'], '--nms=soft:1: expected KIND:THRESHOLD'),
    (['--predictions=none.jsonl'], "none.jsonl: can't be read: No such file"),
    (['--predictions={broken}'], '{broken}: qid 2: field pred_saliency_scores[0]: found nan'),
    (['--predictions={broken}', '--nms=hard:0.5'], '{broken}: qid 2: field pred_relevant_windows'),
    (['--predictions={good}', '--dataset=tvsum'], '{gt}: qid 1: field label: missing'),
]


@pytest.mark.parametrize(('arguments', 'text'), MISTAKES)
def test_mistakes_are_one_line(files, arguments, text):
    predictions, _ = sample()
    predictions[1]['pred_saliency_scores'][0] = float('nan')
    predictions[1]['pred_relevant_windows'] = [[0, 1, -1]]
    names = vars(files) | dict(broken=write(files.folder / 'broken.jsonl', predictions))
    flags = flags_of(annotations=files.gt)
    for argument in arguments:
        name, _, value = argument.format(**names).removeprefix('--').partition('=')
        listed = name in ('predictions', 'compare')
        setattr(flags, name, value.split(',') if listed else value)
    with pytest.raises(UserError) as caught:
        score.run(flags)
    assert text.format(**names) in str(caught.value) and '\n' not in str(caught.value)
    assert not list(files.folder.glob('*.json'))


def test_annotations_are_needed(files):
    with pytest.raises(UserError, match='needs --annotations=FILE'):
        score.run(flags_of(predictions=[files.good]))


def test_published_files(capsys):
    folder = goldens_dir() / 'metrics'
    stored = sorted(folder.glob('*.stored_metrics.json'))
    if not stored:
        pytest.skip(f'no *.stored_metrics.json in {folder}')
    for path in stored:
        predictions = path.with_name(path.name.replace('.stored_metrics.json', '.jsonl.gz'))
        qids = {row['qid'] for row in files.load_jsonl(predictions)}
        truth = next(gt for gt in sorted(folder.glob('gt_*.jsonl.gz'))
                     if {row['qid'] for row in files.load_jsonl(gt)} == qids)
        score.run(flags_of(predictions=[str(predictions)], annotations=str(truth)))
        lines = dict(line.split() for line in capsys.readouterr().out.splitlines()
                     if line.startswith(('MR-', 'HL-')))
        brief = json.loads(path.read_text())['brief']
        shared = brief.keys() & lines.keys()
        assert len(shared) > len(brief) / 2
        assert {name: float(lines[name]) for name in shared} == {
            name: brief[name] for name in shared}
