"""Retrieval and swaps on planted scores."""

import numpy as np
import pytest

from dualground_jax.metrics import retrieval


def test_recall_counts_rows_whose_own_column_is_best():
    scores = np.eye(5)
    assert retrieval.recall_at_1(scores) == 1
    scores[0, 3] = scores[4, 1] = 2
    assert retrieval.recall_at_1(scores) == pytest.approx(3 / 5)
    assert retrieval.recall_at_1(scores.T) == pytest.approx(3 / 5)
    scores[1, 3] = 2  # columns 3 and 1 each take one row more, or a second one
    assert retrieval.recall_at_1(scores) == pytest.approx(2 / 5)
    assert retrieval.recall_at_1(scores.T) == pytest.approx(3 / 5)


def test_wins_are_of_right_scores_and_ties_are_chance():
    right = np.array([0.9, 0.2, 0.5, 0.5])
    wrong = np.array([0.1, 0.3, 0.5, 0.4])
    assert retrieval.wins(right, wrong) == pytest.approx(2.5 / 4)
    assert retrieval.wins(right, right) == 0.5
