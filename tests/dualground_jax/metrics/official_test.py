"""Tests of the official metrics: exact brute force, properties, published numbers."""

import functools
import json
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.files import load_jsonl
from dualground_jax.metrics.official import evaluate, format_table
from tests.helpers import plain_metrics
from tests.helpers.paths import REPO, goldens_dir

AP_PERCENTS = range(50, 100, 5)
R1_PERCENTS = range(30, 100, 5)
RANGES = {'full': (-1, 10**9), 'short': (0, 10), 'middle': (10, 30), 'long': (30, 150)}
LEVELS = {'HL-min-Fair': 2, 'HL-min-Good': 3, 'HL-min-VeryGood': 4}


# ------------------------------------------------- brute force, one query at a time, in fractions


def brute_iou(a, b):
    inter = max(0, min(a[1], b[1]) - max(a[0], b[0]))
    return Fraction(inter, (a[1] - a[0]) + (b[1] - b[0]) - inter)


def brute_window_ap(windows, targets, threshold):
    ranked = sorted(windows[:10], key=lambda window: -window[2])
    free, found, curve = set(range(len(targets))), 0, []
    for rank, window in enumerate(ranked, start=1):
        reached = [(brute_iou(window, targets[i]), i) for i in free
                   if brute_iou(window, targets[i]) >= threshold]
        if reached:
            free.remove(max(reached)[1])
            found += 1
        curve.append((found, Fraction(found, rank)))
    best = [max((p for n, p in curve if n >= k), default=Fraction(0))
            for k in range(1, len(targets) + 1)]
    return sum(best) / len(targets)


def brute_clip_ap(scores, positive):
    if not any(positive):
        return Fraction(0)
    curve = []
    for threshold in sorted(set(scores), reverse=True):
        kept = [p for s, p in zip(scores, positive, strict=True) if s >= threshold]
        curve.append((sum(kept), Fraction(sum(kept), len(kept))))
    recalls = {n for n, _ in curve if n}
    return sum(max(p for n, p in curve if n >= k) for k in recalls) / len(recalls)


def mean(values):
    return sum(values, Fraction(0)) / len(values)


def brute_moments(pairs, low, high):
    """Returns {(metric, key): exact mean} over the queries with a target in (low, high]."""
    pairs = [(p, [t for t in a['relevant_windows'] if low < t[1] - t[0] <= high])
             for p, a in pairs]
    pairs = [(p['pred_relevant_windows'], t) for p, t in pairs if t]
    pairs = pairs or [([], [[0, 1]])]  # no query counts: 0, as CG-DETR writes
    ap = {f'{q / 100}': mean([brute_window_ap(w, t, Fraction(q, 100)) for w, t in pairs])
          for q in AP_PERCENTS}
    first = [max((brute_iou(w[0], x) for x in t), default=0) if w else Fraction(0)
             for w, t in pairs]
    return {
        ('MR-mIoU',): mean(first),
        **{('MR-mAP', key): value for key, value in ap.items()},
        ('MR-mAP', 'average'): mean(list(ap.values())),
        **{('MR-R1', f'{q / 100}'): mean([Fraction(x >= Fraction(q, 100)) for x in first])
           for q in R1_PERCENTS},
    }


def brute_highlights(pairs, minimum):
    aps, hits = [], []
    for prediction, annotation in pairs:
        label = [[0, 0, 0] for _ in range(annotation['duration'] // 2)]
        for clip, scores in zip(annotation['relevant_clip_ids'], annotation['saliency_scores'],
                                strict=True):
            label[clip] = scores
        raw = prediction['pred_saliency_scores']
        fitted = (raw + [0] * len(label))[:len(label)]
        top = raw.index(max(raw))
        hits.append(Fraction(top < len(label) and max(label[top]) >= minimum))
        aps += [brute_clip_ap(fitted, [row[a] >= minimum for row in label]) for a in range(3)]
    return {('HL-mAP',): mean(aps), ('HL-Hit1',): mean(hits)}


def assert_block(block, expected):
    flat = leaves(block)
    assert set(flat) == set(expected)
    for key, exact in expected.items():
        assert abs(flat[key] - 100 * exact) < 0.005 + 1e-9, key


def leaves(tree, path=()):
    """Returns {path tuple: number} of nested dicts."""
    if not isinstance(tree, dict):
        return {path: tree}
    return {k: v for name, sub in tree.items() for k, v in leaves(sub, (*path, name)).items()}


# ------------------------------------------------------------------------------ random data sets


@st.composite
def windows_in(draw, duration, minimum_length):
    start = draw(st.integers(-2, duration))
    return [start, start + draw(st.integers(minimum_length, 50))]


@st.composite
def queries(draw, qid, max_windows=12):
    """One prediction and annotation pair on whole seconds: ties and exact thresholds are common."""
    duration = draw(st.sampled_from([4, 11, 20, 33, 60]))
    clips = duration // 2
    targets = draw(st.lists(windows_in(duration, 1), min_size=1, max_size=4))
    near = st.builds(lambda target, a, b: [target[0] - a, target[1] + b],
                     st.sampled_from(targets), st.integers(0, 4), st.integers(0, 4))
    windows = draw(st.lists(near | windows_in(duration, 0), max_size=max_windows))
    scores = st.sampled_from([0.1, 0.5, 0.5, 0.9])
    ids = draw(st.sets(st.integers(0, clips - 1)) | st.just(set(range(clips))))
    level = draw(st.sampled_from([st.integers(0, 4), st.just(0), st.just(4)]))
    length = max(1, clips + draw(st.sampled_from([0, 0, -2, 3])))
    return (
        {'qid': qid, 'query': 'q', 'vid': 'v',
         'pred_relevant_windows': [[*window, draw(scores)] for window in windows],
         'pred_saliency_scores': draw(st.lists(st.sampled_from([-1.5, 0, 0.25, 2]),
                                               min_size=length, max_size=length))},
        {'qid': qid, 'query': 'q', 'vid': 'v', 'duration': duration,
         'relevant_windows': targets, 'relevant_clip_ids': sorted(ids),
         'saliency_scores': [[draw(level) for _ in range(3)] for _ in ids]},
    )


@st.composite
def data_sets(draw):
    return [draw(queries(qid=qid)) for qid in range(draw(st.integers(1, 4)))]


def score(pairs):
    return evaluate([p for p, _ in pairs], [a for _, a in pairs])


def sample():
    """Two small queries, new objects at each call."""
    predictions = [
        {'qid': 1, 'query': 'a', 'vid': 'v', 'pred_relevant_windows': [[0, 10, 0.9], [4, 8, 0.1]],
         'pred_saliency_scores': [0.1, 0.9, 0.3, 0.2, 0.0]},
        {'qid': 2, 'query': 'b', 'vid': 'v', 'pred_relevant_windows': [[2, 6, 0.8]],
         'pred_saliency_scores': [0.5, 0.4, 0.3, 0.2, 0.1]}]
    annotations = [
        {'qid': 1, 'query': 'a', 'vid': 'v', 'duration': 10, 'relevant_windows': [[0, 10]],
         'relevant_clip_ids': [1, 2], 'saliency_scores': [[4, 3, 2], [2, 2, 0]]},
        {'qid': 2, 'query': 'b', 'vid': 'v', 'duration': 10, 'relevant_windows': [[2, 4], [4, 6]],
         'relevant_clip_ids': [0], 'saliency_scores': [[4, 4, 4]]}]
    return predictions, annotations


@settings(max_examples=100, deadline=None)
@given(data_sets())
def test_equals_brute_force(pairs):
    metrics = score(pairs)
    for name, (low, high) in RANGES.items():
        assert_block(metrics[name], brute_moments(pairs, low, high))
        assert metrics['brief'][f'MR-{name}-mAP'] == metrics[name]['MR-mAP']['average']
    for name, minimum in LEVELS.items():
        assert_block(metrics[name], brute_highlights(pairs, minimum))
    json.dumps(metrics, allow_nan=False)


def random_rows(n, seed):
    """Predictions and annotations of n queries, of any real windows and scores."""
    rng = np.random.default_rng(seed)
    predictions, annotations = [], []
    for qid in range(n):
        duration = int(rng.integers(4, 151))
        windows = np.sort(rng.uniform(0, duration, (rng.integers(1, 15), 2)), axis=1).round(2)
        clips = rng.permutation(duration // 2)[:rng.integers(1, duration // 2 + 1)]
        predictions.append(dict(
            qid=qid, pred_saliency_scores=rng.normal(size=duration // 2).round(1).tolist(),
            pred_relevant_windows=np.column_stack([windows, rng.random(len(windows))]).tolist()))
        annotations.append(dict(
            qid=qid, duration=duration, relevant_clip_ids=np.sort(clips).tolist(),
            saliency_scores=rng.integers(0, 5, (len(clips), 3)).tolist(),
            relevant_windows=np.sort(rng.choice(duration // 2 + 1, (rng.integers(1, 4), 2)) * 2,
                                     axis=1).tolist()))
    return predictions, annotations


@pytest.mark.parametrize('seed', range(4))
def test_equals_plain_python_to_the_last_digit(seed):
    """On more queries than are scored at a time."""
    predictions, annotations = random_rows(700, seed)
    plain = plain_metrics.evaluate(predictions, annotations)
    found = evaluate(predictions, annotations[::-1])
    assert {name: found[name] for name in plain} == plain


# ---------------------------------------------------------------------------------- properties


@settings(max_examples=40, deadline=None)
@given(data_sets(), st.randoms(use_true_random=False))
def test_order_of_queries_does_not_matter(pairs, random):
    before = leaves(score(pairs))
    predictions, annotations = [p for p, _ in pairs], [a for _, a in pairs]
    random.shuffle(predictions)
    random.shuffle(annotations)
    after = leaves(evaluate(predictions, annotations))
    assert after.keys() == before.keys()
    # One unit of the last digit: sums in another order may round another way at a half.
    assert all(abs(after[key] - before[key]) < 0.0101 for key in before)


@settings(max_examples=40, deadline=None)
@given(data_sets())
def test_perfect_prediction_scores_100(pairs):
    for prediction, annotation in pairs:
        clips = annotation['duration'] // 2
        labels = [row[0] for row in annotation['saliency_scores']][:clips - 1] + [4]
        annotation['relevant_clip_ids'] = list(range(len(labels)))
        annotation['saliency_scores'] = [[label] * 3 for label in labels]
        prediction['pred_saliency_scores'] = labels + [0] * (clips - len(labels))
        prediction['pred_relevant_windows'] = [
            [*target, 1 - i / 10] for i, target in enumerate(annotation['relevant_windows'])]
    metrics = score(pairs)
    for name in ('full', *LEVELS):
        assert set(leaves(metrics[name]).values()) == {100.0}


@settings(max_examples=40, deadline=None)
@given(data_sets())
def test_wrong_window_at_the_end_never_helps(pairs):
    before = score(pairs)
    for prediction, _ in pairs:
        prediction['pred_relevant_windows'].append([1000, 1010, 0.01])
    after = score(pairs)
    for name in RANGES:
        assert after[name]['MR-R1'] == before[name]['MR-R1']
        assert after[name]['MR-mIoU'] == before[name]['MR-mIoU']
        for key, value in after[name]['MR-mAP'].items():
            assert value <= before[name]['MR-mAP'][key]


# ------------------------------------------------------------------- the protocol, worked by hand


def test_structure_and_order_of_keys():
    predictions, annotations = sample()
    annotations[0]['relevant_windows'] = [[0, 10], [0, 20], [0, 40]]
    metrics = evaluate(predictions, annotations)
    assert list(metrics) == ['brief', 'HL-min-Fair', 'HL-min-Good', 'HL-min-VeryGood',
                             'full', 'long', 'middle', 'short']
    assert list(metrics['brief']) == [
        'MR-full-R1@0.3', 'MR-full-R1@0.5', 'MR-full-R1@0.7', 'MR-full-mAP', 'MR-full-mAP@0.5',
        'MR-full-mAP@0.75', 'MR-full-mIoU', 'MR-long-mAP', 'MR-middle-mAP', 'MR-short-mAP',
        'HL-min-Fair-mAP', 'HL-min-Fair-Hit1', 'HL-min-Good-mAP', 'HL-min-Good-Hit1',
        'HL-min-VeryGood-mAP', 'HL-min-VeryGood-Hit1']
    assert list(metrics['full']) == ['MR-mIoU', 'MR-mAP', 'MR-R1']
    assert list(metrics['full']['MR-mAP']) == [f'{q / 100}' for q in AP_PERCENTS] + ['average']
    assert list(metrics['full']['MR-R1']) == [f'{q / 100}' for q in R1_PERCENTS]
    assert list(metrics['HL-min-Fair']) == ['HL-mAP', 'HL-Hit1']


def test_a_task_without_its_fields_is_left_out():
    predictions, annotations = sample()
    for row in annotations:
        del row['saliency_scores'], row['relevant_clip_ids'], row['duration']
    charades = evaluate(predictions, annotations)
    assert set(charades) == {'brief', *RANGES}
    assert all(name.startswith('MR-') for name in charades['brief'])
    predictions, annotations = sample()
    for row in predictions:
        del row['pred_relevant_windows']
    assert set(evaluate(predictions, annotations)) == {'brief', *LEVELS}


def moments_of(windows, targets):
    return evaluate([{'qid': 'x', 'pred_relevant_windows': windows}],
                    [{'qid': 'x', 'relevant_windows': targets}])['full']


def test_recall_takes_the_first_listed_window_and_ap_the_first_ten():
    listed = moments_of([[50, 60, 0.1], [0, 10, 0.9]], [[0, 10]])
    assert listed['MR-R1']['0.5'] == 0.0 and listed['MR-mAP']['average'] == 100.0
    eleventh = moments_of([[50, 60, 0.1]] * 10 + [[0, 10, 0.9]], [[0, 10]])
    assert eleventh['MR-mAP']['average'] == 0.0


def test_scores_that_tie_keep_the_listed_order():
    assert moments_of([[50, 60, 0.5], [0, 10, 0.5]], [[0, 10]])['MR-mAP']['average'] == 50.0


def test_of_two_equal_ious_the_later_target_is_taken():
    windows = [[0, 20, 0.9], [11, 20, 0.8]]
    assert moments_of(windows, [[0, 10], [10, 20]])['MR-mAP']['0.5'] == 50.0
    assert moments_of(windows, [[10, 20], [0, 10]])['MR-mAP']['0.5'] == 100.0


def test_thresholds_count_when_reached_exactly():
    scores = moments_of([[0, 7, 1.0]], [[0, 10]])
    assert (scores['MR-R1']['0.7'], scores['MR-R1']['0.75'], scores['MR-mIoU']) == (100., 0., 70.)
    assert (scores['MR-mAP']['0.7'], scores['MR-mAP']['0.75']) == (100., 0.)


def test_empty_window_list_is_a_counted_miss():
    metrics = evaluate(
        [{'qid': 1, 'pred_relevant_windows': []}, {'qid': 2, 'pred_relevant_windows': [[0, 5, 1]]}],
        [{'qid': 1, 'relevant_windows': [[0, 5]]}, {'qid': 2, 'relevant_windows': [[0, 5]]}])
    assert set(leaves(metrics['full']).values()) == {50.0}
    assert set(leaves(moments_of([], [[0, 5]])).values()) == {0.0}


def test_zero_length_windows():
    assert set(leaves(moments_of([[3, 3, 1.0]], [[0, 10]])).values()) == {0.0}
    # 0/0 in the reference: NaN passes as a match in mAP and as a miss in R1.
    both = moments_of([[3, 3, 1.0]], [[7, 7]])
    assert both['MR-mAP']['average'] == 100.0
    assert both['MR-mIoU'] == 0.0 and both['MR-R1']['0.3'] == 0.0
    assert set(leaves(moments_of([], [[7, 7]])).values()) == {0.0}
    own = evaluate([{'qid': 'x', 'pred_relevant_windows': [[3, 3, 1.0], [7, 7, 0.5]]}],
                   [{'qid': 'x', 'relevant_windows': [[7, 7]]}], 'custom')
    assert set(leaves(own['full']).values()) == {0.0}  # of own data: nothing overlaps it


@settings(max_examples=40, deadline=None)
@given(data_sets(), st.integers(51, 60), st.integers(-5, 70))
def test_window_that_ends_before_it_starts_is_a_miss(pairs, length, start):
    """Unless its length and a target's cancel out: targets have up to 50 seconds here."""
    found = []
    for window in ([start, start - length], [1000, 1010]):
        for prediction, _ in pairs:
            prediction['pred_relevant_windows'].insert(0, [*window, 0.7])
        found.append(score(pairs))
        for prediction, _ in pairs:
            del prediction['pred_relevant_windows'][0]
    assert found[0] == found[1]
    assert set(leaves(moments_of([[9, 4, 1.0]], [[0, 5]])['MR-R1']).values()) == {0.0}


def test_length_ranges_are_open_below_and_closed_above():
    targets = [[0, 10], [0, 30], [0, 150], [0, 151]]
    found = [evaluate([{'qid': 1, 'pred_relevant_windows': [[*target, 1.0]]}],
                      [{'qid': 1, 'relevant_windows': [target]}]) for target in targets]
    values = [{name: set(leaves(metrics[name]).values()) for name in RANGES} for metrics in found]
    assert all(value in ({0.0}, {100.0}) for by_range in values for value in by_range.values())
    names = [{name for name in by_range if by_range[name] == {100.0}} - {'full'}
             for by_range in values]
    assert names == [{'short'}, {'middle'}, {'long'}, set()]


def test_arg_max_beyond_the_label_misses_but_ap_cuts_it():
    predictions, annotations = sample()
    predictions[0]['pred_saliency_scores'] += [5.0]
    metrics = evaluate(predictions, annotations)
    assert metrics['HL-min-Fair'] == {'HL-mAP': 100.0, 'HL-Hit1': 50.0}


def test_negative_scores_beside_a_longer_vector():
    predictions, annotations = sample()
    for row in predictions:
        row['pred_saliency_scores'] = [score - 9 for score in row['pred_saliency_scores']]
    predictions[0]['pred_saliency_scores'] += [-10.0]
    assert evaluate(predictions, annotations)['HL-min-Fair'] == {'HL-mAP': 100.0, 'HL-Hit1': 100.0}


def test_arrays_and_text_qids_are_fine():
    predictions, annotations = sample()
    plain = evaluate(predictions, annotations)
    for row in predictions:
        row['pred_relevant_windows'] = np.array(row['pred_relevant_windows'])
        row['pred_saliency_scores'] = np.array(row['pred_saliency_scores'], dtype=np.float32)
    for row in predictions + annotations:
        row['qid'] = f'q{row["qid"]}'
    assert evaluate(predictions, annotations) == plain


def test_inputs_are_not_changed():
    predictions, annotations = sample()
    evaluate(predictions, annotations)
    assert (predictions, annotations) == sample()


def test_format_table_shows_the_brief_numbers():
    metrics = evaluate(*sample())
    lines = format_table(metrics).splitlines()
    assert [line.split()[0] for line in lines] == list(metrics['brief'])
    assert [float(line.split()[1]) for line in lines] == list(metrics['brief'].values())
    assert len({len(line) for line in lines}) == 1


def test_import_is_light():
    code = ('import sys, dualground_jax.metrics; '
            'print({"jax", "tensorflow", "sklearn", "scipy"} & set(sys.modules))')
    root = REPO
    done = subprocess.run([sys.executable, '-c', code], cwd=root, text=True, check=True,
                          capture_output=True)
    assert done.stdout.strip() == 'set()'


# ----------------------------------------------------------------------------- published numbers


GOLDENS = goldens_dir() / 'metrics'


def golden_cases():
    cases = []
    for stored in sorted(GOLDENS.glob('*.stored_metrics.json')):
        stem = stored.name.removesuffix('.stored_metrics.json')
        for reference in [stored, *sorted(GOLDENS.glob(f'{stem}.computed_*.json'))]:
            cases.append(pytest.param(f'{stem}.jsonl.gz', reference.name, id=reference.stem))
    reason = 'no *.stored_metrics.json in $GOLDENS_DIR/metrics (default tests/goldens/metrics)'
    return cases or [pytest.param('', '', marks=pytest.mark.skip(reason=reason))]


@functools.cache
def golden_scores(name):
    predictions = load_jsonl(GOLDENS / name)
    qids = {row['qid'] for row in predictions}
    for path in sorted(GOLDENS.glob('gt_*.jsonl.gz')):
        annotations = load_jsonl(path)
        if {row['qid'] for row in annotations} == qids:
            return evaluate(predictions, annotations)
    raise AssertionError(f'no gt_*.jsonl.gz in {GOLDENS} has the qids of {name}')


def test_a_published_file_in_plain_python():
    if not (names := sorted(path.name for path in GOLDENS.glob('*_val*.jsonl.gz'))[:1]):
        pytest.skip(f'no *_val*.jsonl.gz in {GOLDENS}')
    plain = plain_metrics.evaluate(load_jsonl(GOLDENS / names[0]),
                                   load_jsonl(GOLDENS / 'gt_val.jsonl.gz'))
    found = golden_scores(names[0])
    assert {name: found[name] for name in plain} == plain


@pytest.mark.parametrize(('predictions', 'reference'), golden_cases())
def test_official_numbers(predictions, reference):
    ours = leaves(golden_scores(predictions))
    theirs = leaves(json.loads((GOLDENS / reference).read_text()))
    shared = ours.keys() & theirs.keys()
    assert len(shared) > len(theirs) / 2
    assert {key: ours[key] for key in shared} == {key: theirs[key] for key in shared}
