"""How a model's phrases divide the words among them, and how alike they are, over a split.

Axes: B samples, Q queries of the split, N phrases, L words, D width.
"""

import numpy as np

from data_pipelines.tokens import PUNCTUATION, WORD

# What of a model's `out` it reads; a model without phrases has none of these.
FIELDS = ('phrases', 'phrase_attention', 'slot_attention', 'phrase_weights', 'phrase_energy')


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


def variance_within(phrases: np.ndarray) -> float:
    """Share of the variance of embeddings float64[Q, N, D] that lies within a query.

    With x_qn a phrase, x_q the mean of its query's and x the mean of all:
    sum |x_qn - x_q|^2 / sum |x_qn - x|^2. The rest is that of the queries' means.

    Returns:
        in [0, 1]: 0 where a query's phrases are one, about (N - 1) / N where they are as alike as
        phrases of different queries; NaN for N = 1, for one query, and if all are equal.
    """
    total = ((phrases - phrases.mean((0, 1))) ** 2).sum()
    if min(phrases.shape[:2]) < 2 or not total:
        return np.nan
    return float(((phrases - phrases.mean(1, keepdims=True)) ** 2).sum() / total)


def cosines(phrases: np.ndarray) -> tuple[np.ndarray, float]:
    """How alike the directions of embeddings float64[Q, N, D] are; that of 0 is like none.

    Returns:
        Mean cosine of two phrases of one query: float64[Q], NaN for N = 1; mean cosine of two
        phrases of different queries, over all such pairs: NaN for one query.
    """
    queries, number, _ = phrases.shape
    length = np.linalg.norm(phrases, axis=-1, keepdims=True)
    units = np.divide(phrases, length, out=np.zeros_like(phrases), where=length > 0)
    # The cosines of all pairs, each phrase with itself too, are in the squared sum of unit vectors.
    sums = units.sum(1)
    own = (sums**2).sum(-1)
    within = (own - (units**2).sum((1, 2))) / (number * (number - 1) or np.nan)
    pairs = number**2 * queries * (queries - 1)
    return within, float(((sums.sum(0) ** 2).sum() - own.sum()) / (pairs or np.nan))


class PhraseStudy:
    """Entropy, overlap, weight and likeness of phrases: `add` batches, then read `results`."""

    def __init__(self):
        self.rows = []
        self.phrases = []  # embeddings, kept: what they are centred by is known at the end

    def add(self, out: dict[str, np.ndarray], batch: dict) -> None:
        """Adds a batch.

        Args:
            out: the `FIELDS`.
            batch: index int[B] and text_role int[B, L]. Queries of which the model sees no words do
                not count: their phrases have no weights.
        """
        counts = np.isin(batch['text_role'], (WORD, PUNCTUATION)).sum(1)
        kept = (batch['index'] >= 0) & out['phrase_attention'].any((1, 2))
        if not kept.any():
            return
        self.phrases.append(out['phrases'][kept])
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
            effective_phrases, the exponential of the entropy of the phrases' weights; of the
            refined embeddings variance_within, cosine_within, cosine_between and, with the mean of
            all phrases taken off, centred_within and centred_between (see `variance_within` and
            `cosines`; std is None for what is one number of the split); phrase_weights, N means;
            n, queries.
        """
        rows = np.concatenate(self.rows)
        names = ('generator_entropy', 'generator_overlap', 'slot_entropy', 'slot_overlap',
                 'effective_phrases')
        found = {name: _summary(column) for name, column in zip(names, rows.T)}
        phrases = np.concatenate(self.phrases).astype(float)
        found['variance_within'] = _summary(variance_within(phrases))
        for name, embeddings in (('cosine', phrases), ('centred', phrases - phrases.mean((0, 1)))):
            within, between = cosines(embeddings)
            found |= {f'{name}_within': _summary(within), f'{name}_between': _summary(between)}
        return found | dict(phrase_weights=rows[:, len(names):].mean(0).tolist(), n=len(rows))


def word_weights(out: dict[str, np.ndarray]) -> np.ndarray:
    """A of the paper: the last slot layer's weights of the words, mean over heads: [B, N, L]."""
    return out['slot_attention'][:, -1].mean(1)


def _summary(values: np.ndarray | float) -> dict:
    """Mean and standard deviation of what is no NaN; of one number that alone."""
    found = np.atleast_1d(values)[~np.isnan(np.atleast_1d(values))]
    if not len(found):
        return dict(mean=None, std=None)
    return dict(mean=float(found.mean()), std=float(found.std()) if np.ndim(values) else None)
