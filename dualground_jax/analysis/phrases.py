"""How a model's phrases divide the words among them, over a split.

Axes: B samples, N phrases, L words.
"""

import numpy as np

from data_pipelines.tokens import PUNCTUATION, WORD

# What of a model's `out` it reads; a model without phrases has none of these.
FIELDS = ('phrase_attention', 'slot_attention', 'phrase_weights', 'phrase_energy')


def entropy(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Entropy of distributions over words, relative to that of equal weights.

    Args:
        weights: float[B, N, L], each row sums to one.
        counts: int[B], words of each sample.

    Returns:
        float64[B, N] in [0, 1]; NaN for fewer than two words.
    """
    logs = np.log(np.where(weights > 0, weights, 1.0))
    most = np.log(np.where(counts > 1, counts, np.nan))
    return -(weights * logs).sum(-1) / most[:, None]


def overlap(weights: np.ndarray) -> np.ndarray:
    """Mean mass that two phrases share, of float[B, N, L]: float64[B] in [0, 1], NaN for N = 1."""
    first, second = np.triu_indices(weights.shape[1], 1)
    if not len(first):
        return np.full(len(weights), np.nan)
    return np.minimum(weights[:, first], weights[:, second]).sum(-1).mean(1)


class PhraseStudy:
    """Entropy, overlap and weight of phrases: `add` batches, then read `results`."""

    def __init__(self):
        self.rows = []

    def add(self, out: dict[str, np.ndarray], batch: dict) -> None:
        """Adds a batch.

        Args:
            out: the `FIELDS`.
            batch: index int[B] and text_role int[B, L]; queries without words do not count.
        """
        counts = np.isin(batch['text_role'], (WORD, PUNCTUATION)).sum(1)
        kept = (batch['index'] >= 0) & (counts > 0)
        shares = out['phrase_weights'][kept].astype(float)
        columns = []
        for weights in (out['phrase_attention'], word_weights(out)):
            weights = weights[kept].astype(float)
            columns += [entropy(weights, counts[kept]).mean(1), overlap(weights)]
        logs = np.log(np.where(shares > 0, shares, 1.0))
        columns.append(np.exp(-(shares * logs).sum(-1)))
        self.rows.append(np.column_stack([*columns, shares]))

    def results(self) -> dict:
        """Means and standard deviations over the queries; None where undefined.

        Returns:
            of the generator's and of the refined (slot) weights, entropy and overlap;
            effective_phrases, the exponential of the entropy of the phrases' weights;
            phrase_weights, N means; n, queries.
        """
        rows = np.concatenate(self.rows)
        names = ('generator_entropy', 'generator_overlap', 'slot_entropy', 'slot_overlap',
                 'effective_phrases')
        found = {name: _summary(column) for name, column in zip(names, rows.T)}
        return found | dict(phrase_weights=rows[:, len(names):].mean(0).tolist(), n=len(rows))


def word_weights(out: dict[str, np.ndarray]) -> np.ndarray:
    """A of the paper: the last slot layer's weights of the words, mean over heads: [B, N, L]."""
    return out['slot_attention'][:, -1].mean(1)


def _summary(values: np.ndarray) -> dict:
    values = values[~np.isnan(values)]
    if not len(values):
        return dict(mean=None, std=None)
    return dict(mean=float(values.mean()), std=float(values.std()))
