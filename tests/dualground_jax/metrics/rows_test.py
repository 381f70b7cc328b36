"""The errors that name a bad row."""


import pytest

from dualground_jax.metrics.official import MetricsError, evaluate
from tests.dualground_jax.metrics.official_test import sample

NAN, INF = float('nan'), float('inf')
P, A = 'predictions', 'annotations'
BAD_FIELDS = [
    (P, 'pred_relevant_windows', ..., 'missing'),
    (P, 'pred_relevant_windows', None, 'found None, expected a list'),
    (P, 'pred_relevant_windows', 'text', "found 'text', expected a list"),
    (P, 'pred_relevant_windows', [[0, 1, 1], [0, 1]], '[1]: found [0, 1], expected three'),
    (P, 'pred_relevant_windows', [[0, 1]], 'expected three finite numbers'),
    (P, 'pred_relevant_windows', [[0, 1, 1, 1]], 'expected three finite numbers'),
    (P, 'pred_relevant_windows', [[0, '1', 1]], "found [0, '1', 1], expected three"),
    (P, 'pred_relevant_windows', [[0, None, 1]], 'expected three finite numbers'),
    (P, 'pred_relevant_windows', [3, 4, 5], '[0]: found 3, expected three'),
    (P, 'pred_relevant_windows', [[0, 1, 1], [NAN, 1, 1]], '[1]: found [nan, 1, 1]'),
    (P, 'pred_relevant_windows', [[0, INF, 1]], 'expected three finite numbers'),
    (P, 'pred_relevant_windows', [[0, 10**400, 1]], 'expected three finite numbers'),
    (P, 'pred_relevant_windows', [[0, 1, NAN]], 'expected three finite numbers'),
    (P, 'pred_saliency_scores', ..., 'missing'),
    (P, 'pred_saliency_scores', [], 'found [], expected at least one score'),
    (P, 'pred_saliency_scores', [0.1, NAN], '[1]: found nan, expected a finite number'),
    (P, 'pred_saliency_scores', [0.1, -INF], '[1]: found -inf'),
    (P, 'pred_saliency_scores', [[0.1]], '[0]: found [0.1]'),
    (P, 'pred_saliency_scores', [0.1, None], '[1]: found None'),
    (A, 'relevant_windows', ..., 'missing'),
    (A, 'relevant_windows', [], 'found [], expected at least one window'),
    (A, 'relevant_windows', [[0, 1, 2]], 'expected two finite numbers'),
    (A, 'relevant_windows', [[0, NAN]], 'expected two finite numbers'),
    (A, 'relevant_windows', [[5, 1]], 'expected start <= end'),
    (A, 'duration', ..., 'found None, expected a number of seconds'),
    (A, 'duration', NAN, 'found nan, expected a number of seconds'),
    (A, 'duration', '10', "found '10', expected a number of seconds"),
    (A, 'duration', 1.9, 'found 1.9, expected a number of seconds >= 2'),
    (A, 'relevant_clip_ids', ..., 'missing'),
    (A, 'relevant_clip_ids', [5], '[0]: found 5, expected a clip id in [0, duration / 2)'),
    (A, 'relevant_clip_ids', [-1], '[0]: found -1, expected a clip id'),
    (A, 'relevant_clip_ids', [0.5], '[0]: found 0.5, expected a clip id'),
    (A, 'saliency_scores', ..., 'missing'),
    (A, 'saliency_scores', [[1, 2, 3]] * 2, 'expected one entry per relevant_clip_ids'),
    (A, 'saliency_scores', [[1, 2]], '[0]: found [1, 2], expected 3 finite numbers'),
    (A, 'saliency_scores', [[1, 2, NAN]], 'expected 3 finite numbers'),
]


@pytest.mark.parametrize(('source', 'field', 'value', 'text'), BAD_FIELDS)
def test_bad_field_is_named_with_its_qid(source, field, value, text):
    rows = dict(zip((P, A), sample(), strict=True))
    rows[source][1][field] = value
    if value is ...:
        del rows[source][1][field]
    message = error_of(**rows)
    assert message.startswith(f'{source} qid 2: field {field}') and text in message


def error_of(predictions, annotations):
    with pytest.raises(MetricsError) as caught:
        evaluate(predictions, annotations)
    message = str(caught.value)
    assert '\n' not in message and len(message) < 300
    return message


BAD_QIDS = [
    (lambda p, a: p.pop(), 'predictions qid 2: field qid: missing, expected the 2 qids'),
    (lambda p, a: a.pop(), 'predictions qid 2: field qid: extra, expected the 1 qids'),
    (lambda p, a: p.clear(), 'predictions qid 1 (and 1 more): field qid: missing'),
    (lambda p, a: p[1].update(qid='2'),
     "predictions qid '2': field qid: a text, expected a number, 2 as in the annotations"),
    (lambda p, a: a[0].update(qid='1'),
     "predictions qid 1: field qid: a number, expected a text, '1' as in the annotations"),
    (lambda p, a: p[1].update(qid='c'), 'predictions qid 2: field qid: missing'),
    (lambda p, a: p.append(p[0]), 'predictions qid 1: field qid: duplicate in row 3'),
    (lambda p, a: a.append(a[1]), 'annotations qid 2: field qid: duplicate in row 3'),
    (lambda p, a: p[1].pop('qid'), 'predictions row 2: field qid: found None'),
    (lambda p, a: a[0].update(qid=[1]), 'annotations row 1: field qid: found [1]'),
    (lambda p, a: p.append([1, 2]), 'predictions row 3: found [1, 2], expected a dict'),
    (lambda p, a: (p.clear(), a.clear()), 'predictions and annotations: found no rows'),
    (lambda p, a: [row.pop(name) for row in p
                   for name in ('pred_relevant_windows', 'pred_saliency_scores')],
     'nothing to score'),
]


@pytest.mark.parametrize(('edit', 'text'), BAD_QIDS)
def test_bad_rows_are_named(edit, text):
    predictions, annotations = sample()
    edit(predictions, annotations)
    assert error_of(predictions, annotations).startswith(text)


# --------------------------------------------------------------------------------------- jsonl
