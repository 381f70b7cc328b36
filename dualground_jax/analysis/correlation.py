"""Pearson and Spearman correlation of many series over the clips of videos, in one pass.

A series is how much attention one token role gets at each clip. Everything here is float64 on the
host: attention is often nearly constant over the clips, where float32, all that an accelerator has,
leaves no correct digit of a correlation, while 1e-6 is wanted. That costs little, for the device
has already pooled what is large (heads, layers, tokens): only [B, S, T] comes over.

Axes: B samples, S series, T clips, P pairs of series, K bins, N stored clips. Masks: True = valid.
"""

from typing import NamedTuple

import numpy as np

from data_pipelines.errors import UserError

BINS = np.arange(-20, 21) / 20  # edges of the histograms
# Clips that are kept for the pooled Spearman: more than the 541 350 of QVHighlights' training
# split, and at most 200 MB of 24 series.
SAMPLE_SIZE = 2**20
CHUNK = 2**18  # numbers at a time in products of series: they stay in the cache


# Single rows ----------------------------------------------------------------------------------


def ranks(x, mask):
    """Ranks the valid entries of each row, equal ones by their mean rank.

    Args:
        x: float[..., T]; valid entries are not NaN.
        mask: bool, broadcast to x.

    Returns:
        float64[..., T], from 1; 0 where not valid.
    """
    x = np.where(mask, np.asarray(x, np.float64), np.nan)  # NaN comes last, and equals nothing
    order = np.argsort(x, axis=-1)
    ordered = np.take_along_axis(x, order, axis=-1)
    place = np.arange(x.shape[-1])
    begins = np.ones(x.shape, bool)
    begins[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    ends = np.ones(x.shape, bool)
    ends[..., :-1] = begins[..., 1:]
    low = np.maximum.accumulate(np.where(begins, place, 0), axis=-1)
    high = np.where(ends, place, place.size)
    high = np.minimum.accumulate(high[..., ::-1], axis=-1)[..., ::-1]
    found = np.empty(x.shape)
    np.put_along_axis(found, order, (low + high) / 2 + 1, axis=-1)
    return np.where(mask, found, 0.0)


def pearson(x, y, mask):
    """Correlation of the valid entries of rows.

    Args:
        x: float[..., T].
        y: float[..., T].
        mask: bool, broadcast to x and y.

    Returns:
        float64[...]; NaN where a row has fewer than two valid entries, or where all those of x or
        all those of y are equal.
    """
    return _bounded((_standardise(x, mask).unit * _standardise(y, mask).unit).sum(axis=-1))


def spearman(x, y, mask):
    """Rank correlation of the valid entries of rows; arguments and result as of `pearson`."""
    return pearson(ranks(x, mask), ranks(y, mask), mask)


class _Standardised(NamedTuple):
    """Rows x = start + mean + norm * unit; the parts but `unit` are float64[...].

    Attributes:
        start: the first valid entry.
        mean: of the valid entries, less start.
        norm: NaN where fewer than two entries are valid or all of them are equal.
        unit: float64[..., T], 0 where not valid; NaN where norm is.
    """

    start: np.ndarray
    mean: np.ndarray
    norm: np.ndarray
    unit: np.ndarray


def _standardise(x, mask):
    x = np.asarray(x, np.float64)
    mask = np.broadcast_to(mask, x.shape)
    start = np.take_along_axis(x, mask.argmax(axis=-1)[..., None], axis=-1)
    # Differences of nearly equal numbers are exact: a constant row is all 0 here, where its mean
    # may be off by a rounding.
    x = np.subtract(x, start, out=np.zeros(x.shape), where=mask)
    mean = x.sum(axis=-1, keepdims=True) / np.maximum(mask.sum(axis=-1, keepdims=True), 1)
    np.subtract(x, mean, out=x, where=mask)
    scale = np.abs(x).max(axis=-1, keepdims=True)  # squares of small numbers would vanish
    unit = x / np.where(scale > 0, scale, np.nan)
    norm = np.sqrt((unit * unit).sum(axis=-1, keepdims=True))
    unit /= norm
    return _Standardised(start[..., 0], mean[..., 0], (scale * norm)[..., 0], unit)


def _bounded(correlation):
    return np.clip(correlation, -1.0, 1.0)


# One pass over many ---------------------------------------------------------------------------


class Correlations:
    """Correlations of pairs of series: of each sample, their means, and of all clips together.

    Each statistic is independent of how samples come in batches and in which order: up to
    rounding, and the sample of clips exactly.
    """

    def __init__(self, n_series, pairs, *, pooled=True, sample_size=SAMPLE_SIZE, bins=BINS):
        """Starts with no samples.

        Args:
            n_series: S.
            pairs: list of P pairs of numbers of series.
            pooled: whether to correlate over the clips of all samples, too. That is dear for
                thousands of series: their clips are stored.
            sample_size: clips that are stored at most.
            bins: float64[K + 1], rising edges of the histograms, from -1 to 1.
        """
        self.pairs = np.array(pairs, int).reshape(-1, 2).T
        self.bins = np.asarray(bins)
        n_pairs = self.pairs.shape[1]
        self.n_series = n_series
        self.n_constant = np.zeros(n_pairs, int)
        self.histograms = np.zeros((2, n_pairs, self.bins.size - 1), int)
        self.samples = _Moments(n_pairs)  # x, y: Pearson, Spearman of a sample
        self.pooled = _Moments(n_pairs) if pooled else None  # x, y: the two series
        self.clips = _ClipSample(n_series, sample_size) if pooled else None

    def add(self, series, present, mask, index):
        """Adds a batch; what is absent, masked or padding may hold anything, NaN too.

        Args:
            series: float[B, S, T].
            present: bool[B, S], whether the sample has the series.
            mask: bool[B, T], clips.
            index: int[B], number of the record in the split, each only once; below 0: padding of
                the batch, not counted.

        Returns:
            Pearson and Spearman correlations, float64[B, P] each; NaN where a series of the pair is
            absent or constant, or has fewer than two clips.

        Raises:
            UserError: a value that counts is not finite.
        """
        series, mask, index = np.asarray(series, np.float64), np.asarray(mask), np.asarray(index)
        if series.shape[1] != self.n_series:
            raise ValueError(f'{series.shape[1]} series, expected {self.n_series}')
        mask = mask & (index >= 0)[:, None]
        present = np.asarray(present) & (index >= 0)[:, None]
        # An absent series becomes a constant one: its correlations are NaN.
        series = np.where(present[..., None] & mask[:, None], series, 0.0)
        _check_finite(series, index)

        i, j = self.pairs
        both = present[:, i] & present[:, j]
        rows = _standardise(series, mask[:, None])
        by_rank = _standardise(ranks(series, mask[:, None]), mask[:, None])
        values = np.stack([self._products(rows.unit), self._products(by_rank.unit)])
        defined = ~np.isnan(values).any(axis=0)
        self.n_constant += (both & ~defined).sum(axis=0)
        self._count_bins(values, defined)
        self.samples.add(defined, np.where(defined, values, 0.0), 0.0, np.zeros((3, *both.shape)))
        if self.pooled:
            norm = np.nan_to_num(np.stack([rows.norm[:, i], rows.norm[:, j]]))
            squares = norm[0] * norm[0], norm[1] * norm[1]
            product = np.nan_to_num(values[0]) * norm[0] * norm[1]
            self.pooled.add(
                both * mask.sum(axis=1, keepdims=True),
                np.stack([rows.start[:, i], rows.start[:, j]]),
                np.stack([rows.mean[:, i], rows.mean[:, j]]), np.stack([*squares, product]))
            self.clips.add(np.where(present[..., None], series, np.nan), mask, index)
        return tuple(values)

    def _products(self, unit):
        """Returns the correlations float64[B, P] of unit float64[B, S, T]."""
        # Not einsum or matmul: their order of adding depends on the shape of the batch.
        i, j = self.pairs
        found = np.empty((len(unit), i.size))
        step = max(1, CHUNK // max(1, unit[:, 0].size))
        for part in (slice(k, k + step) for k in range(0, i.size, step)):
            found[:, part] = (unit[:, i[part]] * unit[:, j[part]]).sum(axis=-1)
        return _bounded(found)

    def _count_bins(self, values, defined):
        n_bins = self.bins.size - 1
        place = np.searchsorted(self.bins, values, side='right') - 1
        place = np.minimum(place, n_bins - 1)  # the last bin holds 1, too
        row = np.arange(self.histograms[..., 0].size).reshape(2, 1, -1)
        counted = (row * n_bins + place)[:, defined]
        self.histograms += np.bincount(
            counted.ravel(), minlength=self.histograms.size).reshape(self.histograms.shape)

    def results(self):
        """Returns a dict of plain numbers for each pair, None where undefined.

        `pearson`, `spearman`, `pearson_std`, `spearman_std`: mean and standard deviation (of n - 1
        degrees of freedom) over the samples where both are defined; `n`: these samples;
        `n_constant`: samples that have both series, but one of them constant or fewer than two
        clips; `pearson_histogram`, `spearman_histogram`: the n samples' counts in `bins`.

        Where pooled, over all valid clips of all samples that have both series, constant ones too:
        `pearson_pooled`, `spearman_pooled`; `n_clips`: these clips; `pooled_exact`: False where
        Spearman is that of a uniform sample of the clips. Pearson is always exact.
        """
        mean, std = self.samples.mean_and_std()
        found = [dict(
            pearson=_number(mean[0, k]), pearson_std=_number(std[0, k]),
            spearman=_number(mean[1, k]), spearman_std=_number(std[1, k]),
            n=int(self.samples.count[k]), n_constant=int(self.n_constant[k]),
            pearson_histogram=self.histograms[0, k].tolist(),
            spearman_histogram=self.histograms[1, k].tolist(),
        ) for k in range(self.n_constant.size)]
        if self.pooled:
            by_value, (by_rank, stored) = self.pooled.correlation(), self._pooled_spearman()
            for k, row in enumerate(found):
                row |= dict(
                    pearson_pooled=_number(by_value[k]), spearman_pooled=_number(by_rank[k]),
                    n_clips=int(self.pooled.count[k]),
                    pooled_exact=bool(stored[k] == self.pooled.count[k]))
        return found

    def _pooled_spearman(self):
        """Returns the correlations float64[P] over stored clips, and these clips' number int[P]."""
        values = self.clips.values()
        present = ~np.isnan(values)
        alike = {}  # Pairs with the same clips: each of their series is ranked once.
        for k, (i, j) in enumerate(self.pairs.T):
            alike.setdefault((present[i] & present[j]).tobytes(), []).append(k)
        found, stored = np.full(self.pairs.shape[1], np.nan), np.zeros(self.pairs.shape[1], int)
        for clips, pairs in alike.items():
            both = np.frombuffer(clips, bool)
            stored[pairs] = both.sum()
            if both.any():
                units = {s: _standardise(ranks(values[s, both], True), True).unit
                         for s in np.unique(self.pairs[:, pairs])}
                found[pairs] = [(units[i] * units[j]).sum() for i, j in self.pairs[:, pairs].T]
        return _bounded(found), stored

    def sample(self, pair, limit=None):
        """Stored clips where both series of a pair are present, a uniform sample of all of these.

        Args:
            pair: its number in `pairs`.
            limit: how many at most; default: all that are stored.

        Returns:
            x, y: float64[n] each.
        """
        stored = self.clips.values()
        x, y = stored[self.pairs[0, pair]], stored[self.pairs[1, pair]]
        both = np.flatnonzero(~np.isnan(x) & ~np.isnan(y))[:limit]
        return x[both], y[both]


def _check_finite(series, index):
    finite = np.isfinite(series)
    if not finite.all():
        b, s, t = np.argwhere(~finite)[0]
        raise UserError(f'record {index[b]}: series {s} at clip {t}: found {series[b, s, t]}, '
                        'expected finite numbers: have the parameters diverged?')


def _number(x):
    return None if np.isnan(x) else float(x)


class _Moments:
    """Running means, squares and products of P pairs (x, y).

    Groups of numbers are merged by their means as in Chan, Golub and LeVeque, "Updating formulae
    and a pairwise algorithm for computing sample variances" (1979).

    Attributes:
        count: float64[P].
        origin: float64[2, P], an x and a y of the first group. Means are counted from there, so
            that numbers which are all equal have squares of exactly 0.
        mean: float64[2, P], less origin.
        squares: float64[3, P], sums of xx, yy and xy, where x and y are less their means.
    """

    def __init__(self, n_pairs):
        self.count = np.zeros(n_pairs)
        self.origin = np.zeros((2, n_pairs))
        self.mean = np.zeros((2, n_pairs))
        self.squares = np.zeros((3, n_pairs))

    def add(self, count, start, mean, squares):
        """Adds G groups.

        Args:
            count: int[G, P]; where it is 0 the others do not matter, if finite.
            start: float64[2, G, P].
            mean: float64[2, G, P], less start.
            squares: float64[3, G, P].
        """
        if not len(count):
            return
        first = start[:, (count > 0).argmax(axis=0), np.arange(self.count.size)]
        self.origin = np.where(self.count > 0, self.origin, first)
        mean = start - self.origin[:, None] + mean
        count = np.concatenate([self.count[None], count])
        mean = np.concatenate([self.mean[:, None], mean], axis=1)
        self.count = count.sum(axis=0)
        self.mean = (count * mean).sum(axis=1) / np.maximum(self.count, 1)
        gap = mean - self.mean[:, None]
        between = count * gap[[0, 1, 0]] * gap[[0, 1, 1]]
        self.squares += np.where(count[1:] > 0, squares, 0.0).sum(axis=1) + between.sum(axis=1)

    def mean_and_std(self):
        """Returns mean and std float64[2, P] of x and of y, NaN of no number and of one."""
        mean = np.where(self.count > 0, self.origin + self.mean, np.nan)
        freedom = np.where(self.count > 1, self.count - 1, np.nan)
        return mean, np.sqrt(self.squares[:2] / freedom)

    def correlation(self):
        """Returns float64[P], NaN where x or y is constant."""
        norm = np.sqrt(np.where(self.squares[:2] > 0, self.squares[:2], np.nan))
        return _bounded(self.squares[2] / norm[0] / norm[1])


class _ClipSample:
    """A uniform sample of all clips, or all of them where they are few.

    Each clip has a fixed pseudo-random priority and the lowest stay (bottom-k sampling), so that
    neither order nor batches matter.

    Attributes:
        bound: clips of a higher priority are in no sample any more.
        chunks: list of (priority uint64[n], rising; values float64[S, n]).
    """

    def __init__(self, n_series, size):
        self.size = size
        self.bound = np.iinfo(np.uint64).max
        self.chunks = [(np.empty(0, np.uint64), np.empty((n_series, 0)))]

    def add(self, series, mask, index):
        """Adds the valid clips (mask bool[B, T]) of series float64[B, S, T], NaN where absent."""
        row, clip = np.nonzero(mask)
        priority = _hash(index[row], clip)
        kept = np.flatnonzero(priority <= self.bound)
        kept = kept[priority[kept].argsort()]
        self.chunks.append((priority[kept], series[row[kept], :, clip[kept]].T))
        if sum(priority.size for priority, _ in self.chunks) > 2 * self.size:
            self._cut()

    def values(self):
        """Returns float64[S, N], lowest priority first."""
        self._cut()
        if len(self.chunks) > 1:
            priority = np.concatenate([priority for priority, _ in self.chunks])
            order = priority.argsort()
            values = np.concatenate([values for _, values in self.chunks], axis=1)[:, order]
            self.chunks = [(priority[order], values)]
        return self.chunks[0][1]

    def _cut(self):
        priority = np.concatenate([priority for priority, _ in self.chunks])
        if priority.size > self.size:
            self.bound = np.partition(priority, self.size - 1)[self.size - 1]
            ends = [p.searchsorted(self.bound, side='right') for p, _ in self.chunks]
            # Copies: a view would keep all of its chunk in memory.
            self.chunks = [(p[:end].copy(), values[:, :end].copy())
                           for (p, values), end in zip(self.chunks, ends) if end]


def _hash(index, clip):
    """Returns uint64, different for each pair of int index and int clip < 2**32.

    The finaliser of splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
    generators", 2014), which maps 64 bits one to one.
    """
    x = (index.astype(np.uint64) << np.uint64(32)) + clip.astype(np.uint64)
    x += np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
