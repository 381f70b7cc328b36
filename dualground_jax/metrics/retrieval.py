"""How well pictures and sentences find each other by their scores."""

import numpy as np


def recall_at_1(scores: np.ndarray) -> float:
    """Share of the rows whose best column is their own; of several best ones the first counts.

    Args:
        scores: float[N, N], those of what belongs together on the diagonal.
    """
    return float((scores.argmax(1) == np.arange(len(scores))).mean())


def wins(right: np.ndarray, wrong: np.ndarray) -> float:
    """Share of right scores [N] above the wrong ones [N]; equal ones count half."""
    return float(((right > wrong) + 0.5 * (right == wrong)).mean())
