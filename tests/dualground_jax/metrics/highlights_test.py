"""Own data, TVSum and YouTube Highlights against one video at a time in fractions."""

import json
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualground_jax.metrics.official import MetricsError, columns, evaluate, per_query
from tests.dualground_jax.metrics.official_test import LEVELS, brute_clip_ap, mean

ANNOTATORS = {'tvsum': 20, 'youtube_highlights': 1}
LABELS = {'tvsum': (1, 5), 'youtube_highlights': (0, 1)}


def brute_ap(scores, positive, depth):
    """Area under straight lines between the points of the curve, from recall 0, precision 1."""
    ranked = sorted(range(min(len(scores), len(positive))), key=lambda i: -scores[i])[:depth]
    found = [positive[i] for i in ranked]
    if not any(found):
        return Fraction(0)
    points = [(Fraction(0), Fraction(1))]
    for i in range(1, len(found) + 1):
        points.append((Fraction(sum(found[:i]), sum(found)), Fraction(sum(found[:i]), i)))
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in zip(points, points[1:]))


def brute_video(prediction, annotation, dataset):
    label = annotation['label']
    aps = []
    for annotator in range(ANNOTATORS[dataset]):
        given = [clip[annotator] for clip in label]
        if dataset == 'tvsum':
            threshold = sorted(given)[(len(given) - 1) // 2]
            aps.append(brute_ap(
                prediction['pred_saliency_scores'], [value > threshold for value in given], 5))
        else:
            aps.append(brute_ap(
                prediction['pred_saliency_scores'], [value == 1 for value in given], None))
    return sum(aps) / len(aps)


@st.composite
def videos(draw, dataset):
    """Pairs of prediction and annotation of one or more domains."""
    pairs = []
    for qid in range(draw(st.integers(1, 6))):
        clips = draw(st.integers(1, 9))
        length = max(1, clips + draw(st.sampled_from([0, 0, -2, 3])))
        width = ANNOTATORS[dataset]
        value = st.integers(*LABELS[dataset])
        pairs.append((
            dict(qid=f'v{qid}', pred_saliency_scores=draw(st.lists(
                st.sampled_from([-1.5, 0, 0.25, 0.5, 2, 3]), min_size=length, max_size=length))),
            dict(qid=f'v{qid}', domain=draw(st.sampled_from(['BK', 'dog', 'VU'])), label=draw(
                st.lists(st.lists(value, min_size=width, max_size=width),
                         min_size=clips, max_size=clips)))))
    return pairs


def score(pairs, dataset):
    return evaluate([p for p, _ in pairs], [a for _, a in pairs], dataset)


@pytest.mark.parametrize('dataset', ANNOTATORS)
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_equals_brute_force(dataset, data):
    pairs = data.draw(videos(dataset))
    by_domain = {}
    for prediction, annotation in pairs:
        value = brute_video(prediction, annotation, dataset)
        by_domain.setdefault(annotation['domain'], []).append(value)
    means = {name: sum(values) / len(values) for name, values in by_domain.items()}
    expected = {'mAP': sum(means.values()) / len(means)}
    expected |= {f'{name}-mAP': means[name] for name in sorted(means)}
    metrics = score(pairs, dataset)
    assert list(metrics['brief']) == list(expected)
    for name, exact in expected.items():
        assert abs(metrics['brief'][name] - exact) < 0.5e-5 + 1e-9
    assert {name: block['mAP'] for name, block in metrics.items() if name != 'brief'} == {
        'full' if name == 'mAP' else name.removesuffix('-mAP'): value
        for name, value in metrics['brief'].items()}
    json.dumps(metrics, allow_nan=False)


@pytest.mark.parametrize('dataset', ANNOTATORS)
@settings(max_examples=30, deadline=None)
@given(st.data())
def test_order_of_videos_does_not_matter(dataset, data):
    pairs = data.draw(videos(dataset))
    before = score(pairs, dataset)
    shuffled = data.draw(st.permutations(pairs))
    after = score(shuffled, dataset)['brief']
    assert after == pytest.approx(before['brief'], abs=1.01e-5)


@settings(max_examples=30, deadline=None)
@given(videos('youtube_highlights'))
def test_wrong_clip_ranked_last_changes_nothing(pairs):
    for prediction, annotation in pairs:
        size = min(len(annotation['label']), len(prediction['pred_saliency_scores']))
        annotation['label'] = annotation['label'][:size]
        prediction['pred_saliency_scores'] = prediction['pred_saliency_scores'][:size]
    before = score(pairs, 'youtube_highlights')
    for prediction, annotation in pairs:
        annotation['label'].append([0])
        prediction['pred_saliency_scores'].append(-9)
    assert score(pairs, 'youtube_highlights') == before


@pytest.mark.parametrize('dataset', ANNOTATORS)
def test_perfect_and_worst_prediction(dataset):
    low, high = LABELS[dataset]
    label = [[high] * ANNOTATORS[dataset]] * 2 + [[low] * ANNOTATORS[dataset]] * 7
    annotation = dict(qid='a', domain='dog', label=label)
    best = dict(qid='a', pred_saliency_scores=[5, 4, 3, 3, 2, 2, 1, 1, 0])
    assert score([(best, annotation)], dataset)['brief'] == {'mAP': 1.0, 'dog-mAP': 1.0}
    worst = dict(qid='a', pred_saliency_scores=[0, 0, 1, 2, 3, 4, 5, 6, 7])
    # The two come at ranks 8 and 9: (0 + 1/8) / 2 / 2 + (1/8 + 2/9) / 2 / 2.
    value = {'tvsum': 0.0, 'youtube_highlights': 0.11806}[dataset]
    assert score([(worst, annotation)], dataset)['brief']['mAP'] == value


def test_domains_weigh_the_same_however_many_videos():
    def pair(qid, domain, good):
        scores = [1, 0] if good else [0, 1]
        return (dict(qid=qid, pred_saliency_scores=scores),
                dict(qid=qid, domain=domain, label=[[1], [0]]))

    pairs = [pair('a', 'dog', True), *(pair(f'b{i}', 'skiing', False) for i in range(3))]
    assert score(pairs, 'youtube_highlights')['brief'] == {
        'mAP': 0.625, 'dog-mAP': 1.0, 'skiing-mAP': 0.25}
    found = columns(per_query(
        [p for p, _ in pairs], [a for _, a in pairs], 'youtube_highlights'))
    means = (found.values * found.weights).sum(axis=0) / found.weights.sum(axis=0)
    assert dict(zip(found.names, means)) == {'mAP': 0.625, 'dog-mAP': 1.0, 'skiing-mAP': 0.25}
    assert found.brief() == {'mAP': 0.625, 'dog-mAP': 1.0, 'skiing-mAP': 0.25}


def bad(dataset, **change):
    annotation = dict(qid='a', domain='dog', label=[[1] * ANNOTATORS[dataset]] * 3)
    prediction = dict(qid='a', pred_saliency_scores=[1, 2, 3])
    for name, value in change.items():
        (annotation if name in annotation else prediction)[name] = value
    with pytest.raises(MetricsError) as caught:
        evaluate([prediction], [annotation], dataset)
    return str(caught.value)


@pytest.mark.parametrize(('change', 'text'), [
    (dict(label=None), 'annotations qid \'a\': field label: found None, expected a list'),
    (dict(label=[]), 'field label: found [], expected at least one clip'),
    (dict(label=[[1], [0, 1]]), 'field label[1]: found [0, 1], expected 1 finite numbers'),
    (dict(label=[[1], [2]]), 'field label[1]: found [2], expected [0] or [1]'),
    (dict(domain=None), 'field domain: found None, expected a name'),
    (dict(pred_saliency_scores=[1, float('nan')]), 'field pred_saliency_scores[1]: found nan'),
    (dict(pred_saliency_scores=[]), 'field pred_saliency_scores: found [], expected at least'),
])
def test_bad_field_is_named(change, text):
    assert text in bad('youtube_highlights', **change)


def test_tvsum_needs_twenty_annotators():
    assert 'expected 20 finite numbers' in bad('tvsum', label=[[1] * 19] * 3)


def test_nothing_to_score():
    annotation = dict(qid=1, domain='dog', label=[[1]])
    with pytest.raises(MetricsError, match='nothing to score: expected predictions with pred_sal'):
        evaluate([dict(qid=1, pred_relevant_windows=[[0, 1, 1]])], [annotation],
                 'youtube_highlights')


@pytest.mark.parametrize(('ranked', 'area'), [
    ((1, 0, 1), 1 / 2 + 1 / 2 * (1 / 2 + 2 / 3) / 2), ((0, 1), (0 + 1 / 2) / 2)])
def test_worked_by_hand(ranked, area):
    pair = (dict(qid='a', pred_saliency_scores=[-i for i in range(len(ranked))]),
            dict(qid='a', domain='dog', label=[[value] for value in ranked]))
    assert score([pair], 'youtube_highlights')['brief']['mAP'] == round(area, 5)


# Own data: clips of any length, any number of annotators --------------------------------------


def brute_own(prediction, annotation, seconds, minimum):
    """(AP of each annotator, whether the best clip is a hit), clip by clip."""
    size = math.ceil(annotation['duration'] / seconds)
    grades = dict(zip(annotation['relevant_clip_ids'], annotation['saliency_scores'], strict=True))
    given = prediction['pred_saliency_scores'][:size]
    best = given.index(max(given))
    hit = max(grades.get(best, [0])) >= minimum
    scores = given + [-math.inf] * (size - len(given))
    width = len(annotation['saliency_scores'][0])
    return [brute_clip_ap(scores, [grades.get(clip, [0] * width)[a] >= minimum
                                   for clip in range(size)]) for a in range(width)], hit


@st.composite
def own_queries(draw, seconds, annotators):
    pairs = []
    for qid in range(draw(st.integers(1, 5))):
        clips = draw(st.integers(2, 8))
        duration = seconds * (clips - draw(st.sampled_from([0, 0.25])))
        ids = draw(st.lists(st.integers(0, clips - 1), unique=True, min_size=1))
        truth = dict(qid=qid, duration=duration, relevant_windows=[[0, seconds]])
        if draw(st.booleans()):
            truth |= dict(relevant_clip_ids=ids, saliency_scores=[
                [draw(st.integers(0, 4)) for _ in range(annotators)] for _ in ids])
        length = max(1, clips + draw(st.sampled_from([0, 0, -2, 2])))
        pairs.append((dict(qid=qid, pred_saliency_scores=draw(st.lists(
            st.sampled_from([-5., -1.5, -0.25, 0, 1]), min_size=length, max_size=length))), truth))
    return pairs


@pytest.mark.parametrize(('seconds', 'annotators'), [(4, 3), (1, 1), (0.5, 5), (2, 3)])
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_own_data_equal_brute_force(seconds, annotators, data):
    pairs = data.draw(own_queries(seconds, annotators))
    graded = [pair for pair in pairs if 'saliency_scores' in pair[1]]
    for prediction, _ in pairs:
        prediction['pred_relevant_windows'] = [[0, seconds, 1]]
    found = evaluate([p for p, _ in pairs], [a for _, a in pairs], 'custom', seconds)['brief']
    assert found['MR-full-R1@0.5'] == 100
    assert ('HL-min-Fair-mAP' in found) == bool(graded)
    for name, minimum in LEVELS.items() if graded else ():
        each = [brute_own(*pair, seconds, minimum) for pair in graded]
        ap = mean([value for aps, _ in each for value in aps])
        assert abs(found[f'{name}-mAP'] - 100 * ap) < 0.005 + 1e-9
        hits = mean([Fraction(hit) for _, hit in each])
        assert abs(found[f'{name}-Hit1'] - 100 * hits) < 0.005 + 1e-9


def own(scores, seconds=4, dataset='custom', **changes):
    truth = dict(qid=1, duration=30, relevant_windows=[[12, 28]], relevant_clip_ids=[3, 4, 5, 6],
                 saliency_scores=[[4]] * 4) | changes
    return evaluate([dict(qid=1, pred_saliency_scores=scores)], [truth], dataset, seconds)['brief']


def test_negative_scores_rank_rightly():
    """Eight clips of 4 s: scored as fifteen of 2 s, the seven without a score would come first."""
    perfect = [-9, -9, -9, -1, -1, -1, -1, -9]
    assert set(own(perfect).values()) == {100.0}
    assert set(own(perfect[:7]).values()) == {100.0}  # features end a clip earlier
    assert set(own([*perfect, 5, 5]).values()) == {100.0}  # and later
    inverse = own([-score for score in perfect])
    assert inverse['HL-min-Fair-Hit1'] == 0 and inverse['HL-min-Fair-mAP'] == 50  # 4 of 8


def test_the_second_half_counts_with_clips_of_one_second():
    right = [float(14 <= clip < 28) for clip in range(30)]
    grades = dict(relevant_clip_ids=list(range(14, 28)), saliency_scores=[[4]] * 14)
    assert set(own(right, 1, **grades).values()) == {100.0}
    wrong = [float(clip == 14 or clip >= 28) for clip in range(30)]
    assert own(wrong, 1, **grades)['HL-min-Good-mAP'] < 60


@pytest.mark.parametrize(('change', 'text'), [
    (dict(seconds=None), 'need the seconds of a clip'),
    (dict(relevant_clip_ids=[3, 4, 5, 8]), 'relevant_clip_ids[3]: found 8, expected a clip id in'),
    (dict(saliency_scores=[[4], [4], [4], [4, 3]]), 'saliency_scores[3]: found [4, 3], expected 1'),
    (dict(saliency_scores=[[4], [4], [5], [4]]), 'saliency_scores[2]: found [5], expected 1 numb'),
    (dict(duration=0), 'duration: found 0, expected a number of seconds > 0'),
    (dict(dataset='qvhighlights'), 'clips of 4 s (data.clip_length, --clip_length), expected 2 s'),
    (dict(saliency_scores=4), 'saliency_scores: found 4, expected a list'),
])
def test_own_data_that_cannot_be_scored_are_named(change, text):
    with pytest.raises(MetricsError) as caught:
        own([1.0] * 8, **change)
    assert text in str(caught.value) and '\n' not in str(caught.value)


def test_grades_of_some_records_in_files_scored_in_parts():
    pairs = [(dict(qid=i, pred_saliency_scores=[0, 1]), dict(qid=i, duration=2))
             for i in range(700)]
    pairs[600][1].update(relevant_clip_ids=[1], saliency_scores=[[4, 0]])
    pairs[0][1].update(relevant_clip_ids=[], saliency_scores=[])  # as good as none
    pairs[1][1].update(relevant_clip_ids=None, saliency_scores=None)
    found = evaluate([p for p, _ in pairs], [a for _, a in pairs], 'custom', 1)['brief']
    assert found['HL-min-Fair-mAP'] == 50 and found['HL-min-Fair-Hit1'] == 100
    with pytest.raises(MetricsError, match='nothing to score'):
        evaluate([p for p, _ in pairs[:9]], [a for _, a in pairs[:9]], 'custom', 1)
