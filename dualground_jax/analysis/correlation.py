"""Pearson and Spearman correlation of many series over the clips of videos.

A series is how much attention one token role gets at each clip. All arithmetic is float64 on the
host: attention is often nearly constant over the clips, where float32, all that an accelerator has,
leaves no correct digit of a correlation, while 1e-6 is wanted. That costs little, for the device
has already pooled what is large (heads, layers, tokens): only [B, S, T] comes over.

What is kept grows with the split, and fits in memory: each valid clip's S numbers, in the precision
in which they come, and two correlations for each sample and pair. For the 24 float32 series of
`attention` that is 52 MB for the 541 350 clips of QVHighlights' training split; 18 227 queries of
700 clips each, more than any data set has, would take 1.2 GB.

Axes: B samples, S series, T clips, P pairs of series, N clips of all samples. Masks: True = valid.
"""

import numpy as np
from scipy import stats

from data_pipelines.errors import UserError

KINDS = ('pearson', 'spearman')
BINS = np.arange(-20, 21) / 20  # edges of the histograms


def ranks(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Ranks the valid entries of each row, equal ones by their mean rank.

    Args:
        x: float[..., T]; valid entries are not NaN.
        mask: bool, broadcast to x.

    Returns:
        float64[..., T], from 1; 0 where not valid.
    """
    x = np.where(mask, x, np.nan)
    return np.nan_to_num(stats.rankdata(x, axis=-1, nan_policy='omit'))


def pearson(x: np.ndarray, y: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Correlation of the valid entries of rows.

    Args:
        x: float[..., T].
        y: float[..., T].
        mask: bool, broadcast to x and y.

    Returns:
        float64[...]; NaN where a row has fewer than two valid entries, or where all those of x or
        all those of y are equal.
    """
    return _product(_unit(x, mask), _unit(y, mask))


def spearman(x: np.ndarray, y: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Rank correlation of the valid entries of rows; arguments and result as of `pearson`."""
    return pearson(ranks(x, mask), ranks(y, mask), mask)


def _unit(x, mask):
    """Returns rows less their mean, of norm 1: 0 where not valid, NaN where all are equal."""
    x = np.asarray(x, np.float64)
    mask = np.broadcast_to(mask, x.shape)
    start = np.take_along_axis(x, mask.argmax(axis=-1)[..., None], axis=-1)
    # Differences of nearly equal numbers are exact: a constant row is all 0 here, where its mean
    # may be off by a rounding.
    x = np.subtract(x, start, out=np.zeros(x.shape), where=mask)
    mean = x.sum(axis=-1, keepdims=True) / np.maximum(mask.sum(axis=-1, keepdims=True), 1)
    x = np.where(mask, x - mean, 0.0)
    scale = np.abs(x).max(axis=-1, keepdims=True)  # squares of small numbers would vanish
    x = x / np.where(scale > 0, scale, np.nan)
    return x / np.sqrt((x * x).sum(axis=-1, keepdims=True))


def _product(x, y):
    # Not einsum or matmul: their order of adding depends on the shape of the batch.
    return np.clip((x * y).sum(axis=-1), -1.0, 1.0)


class Correlations:
    """Correlations of pairs of series: in each sample, their means, and over all clips together.

    How samples come in batches does not matter.
    """

    def __init__(self, pairs: list[tuple[int, int]], *, pooled: bool = True):
        """Starts with no samples.

        Args:
            pairs: P pairs of numbers of series.
            pooled: whether to correlate over the clips of all samples, too, which keeps them all.
        """
        self.pairs = np.array(pairs, int).reshape(-1, 2).T
        self.pooled = pooled
        n_pairs = self.pairs.shape[1]
        self.there = np.zeros(n_pairs, int)  # samples that have both series
        self.values = [np.empty((2, 0, n_pairs))]  # both kinds of correlation, batch by batch
        self.clips = [np.empty((0, 1 + self.pairs.max()))]  # valid clips of all series, likewise

    def add(
        self, series: np.ndarray, present: np.ndarray, mask: np.ndarray, index: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Adds a batch; what is absent or masked may hold anything, NaN too.

        Args:
            series: float[B, S, T].
            present: bool[B, S], whether the sample has the series.
            mask: bool[B, T], clips.
            index: int[B], number of the query in the split, for messages.

        Returns:
            Pearson and Spearman correlations, float64[B, P] each; NaN where a series of the pair is
            absent or constant, or has fewer than two clips.

        Raises:
            UserError: a value that counts is not finite.
        """
        valid = present[..., None] & mask[:, None]
        if (odd := np.argwhere(valid & ~np.isfinite(series))).size:
            b, s, t = odd[0]
            raise UserError(f'record {index[b]}: series {s} at clip {t}: found {series[b, s, t]}, '
                            'expected finite numbers: have the parameters diverged?')
        # An absent series becomes a constant one: its correlations are NaN.
        known = np.where(valid, series, 0).astype(np.float64)
        i, j = self.pairs
        units = [_unit(x, mask[:, None]) for x in (known, ranks(known, mask[:, None]))]
        values = np.stack([_product(unit[:, i], unit[:, j]) for unit in units])
        self.values.append(values)
        self.there += (present[:, i] & present[:, j]).sum(axis=0)
        if self.pooled:
            self.clips.append(np.where(valid, series, np.nan).swapaxes(1, 2)[mask])
        return values[0], values[1]

    def results(self) -> list[dict]:
        """Returns a dict of plain numbers for each pair, None where undefined.

        `pearson`, `spearman`, `pearson_std`, `spearman_std`: mean and standard deviation (of n - 1
        degrees of freedom) over the samples where both are defined; `n`: these samples;
        `n_constant`: samples that have both series, but one of them constant or fewer than two
        clips; `pearson_histogram`, `spearman_histogram`: the n samples' counts in `BINS`.

        Where pooled, over all valid clips of all samples that have both series, constant ones too:
        `pearson_pooled`, `spearman_pooled`; `n_clips`: these clips.
        """
        values = np.concatenate(self.values, axis=1)
        defined = ~np.isnan(values).any(axis=0)
        found = []
        for k, kept in enumerate(defined.T):
            row = dict(n=int(kept.sum()), n_constant=int(self.there[k] - kept.sum()))
            for kind, numbers in zip(KINDS, values[:, kept, k], strict=True):
                row[kind] = float(numbers.mean()) if len(numbers) else None
                row[f'{kind}_std'] = float(numbers.std(ddof=1)) if len(numbers) > 1 else None
                row[f'{kind}_histogram'] = np.histogram(numbers, BINS)[0].tolist()
            if self.pooled:
                clips = self.clips_of(k)
                row['n_clips'] = len(clips[0])
                for kind, correlate in zip(KINDS, (pearson, spearman), strict=True):
                    value = correlate(*clips, True) if row['n_clips'] else np.nan
                    row[f'{kind}_pooled'] = None if np.isnan(value) else float(value)
            found.append(row)
        return found

    def clips_of(self, pair: int, limit: int | None = None) -> np.ndarray:
        """All clips where both series of a pair are present, or a random sample of them.

        Args:
            pair: its number in `pairs`.
            limit: how many at most; None: all.

        Returns:
            float[2, n], the two series.
        """
        chosen = self.pairs[:, pair]
        clips = np.concatenate([part[:, chosen] for part in self.clips])
        clips = clips[~np.isnan(clips).any(axis=1)]
        if limit is not None and len(clips) > limit:
            kept = np.random.default_rng(0).choice(len(clips), limit, replace=False)
            clips = clips[np.sort(kept)]
        return clips.T
