"""TVSum and YouTube Highlights against one video at a time in fractions, and against labels."""

import json
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualground_jax.metrics.official import MetricsError, columns, evaluate, per_query

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
