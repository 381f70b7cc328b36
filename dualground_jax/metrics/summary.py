"""Numbers of many queries and of many runs: bins of length, bootstrap, means over seeds."""

import numpy as np

SEED = 'seed'  # the config key that means are taken over
# Words of a query, as in the paper: (0, 10], (10, 15], (15, 20], (20, inf).
QUERY_LENGTHS = {'1-10': (0, 10), '11-15': (10, 15), '16-20': (15, 20), '>20': (20, np.inf)}


def length_bins(words: np.ndarray) -> dict[str, np.ndarray]:
    """Returns bin of `QUERY_LENGTHS` -> bool[Q], the queries in it; words is int[Q]."""
    return {name: (low < words) & (words <= high) for name, (low, high) in QUERY_LENGTHS.items()}


def bootstrap(values: np.ndarray, weights: np.ndarray, resamples: int, seed: int = 0) -> np.ndarray:
    """Means over queries drawn with replacement.

    Args:
        values: float64[Q, M].
        weights: float64[Q, M].
        resamples: R.
        seed: of the draws.

    Returns:
        float64[R, M], weighted means; NaN where a draw holds no query that counts.
    """
    rng = np.random.default_rng(seed)
    queries = len(values)
    means = np.empty((resamples, values.shape[1]))
    step = max(1, 2**20 // queries)  # draws at a time, so that memory stays small
    for start in range(0, resamples, step):
        part = means[start:start + step]
        drawn = rng.integers(queries, size=(len(part), queries))
        drawn += queries * np.arange(len(part))[:, None]
        counts = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape) * 1.0
        with np.errstate(invalid='ignore'):
            np.divide(counts @ (values * weights), counts @ weights, out=part)
    return means


def mean_std(values: list[float]) -> dict:
    """Returns mean, std (ddof=1; None of one number) and n of the numbers that runs gave."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return dict(mean=float(np.mean(values)), std=std, n=len(values))


def without_seed(values: dict) -> dict:
    """The values but for the seed: what runs that are averaged have in common."""
    return {key: value for key, value in values.items() if key != SEED}


def over_seeds(runs: list[tuple[dict, dict]]) -> list[dict]:
    """Groups runs that differ in nothing but the seed.

    Args:
        runs: (values, numbers) each; values is config key -> value, numbers name -> number.

    Returns:
        A dict for each group, in the order of its first run: `values`, but for the seed; `runs`,
        the places of its runs in the list; `numbers`, name -> `mean_std` of the numbers that all
        its runs have.
    """
    groups = {}
    for place, (values, _) in enumerate(runs):
        key = tuple(map(str, without_seed(values).items()))  # as text: values may be lists
        groups.setdefault(key, []).append(place)
    found = []
    for places in groups.values():
        measured = [runs[place][1] for place in places]
        common = [name for name in measured[0] if all(name in other for other in measured)]
        found.append(dict(
            values=without_seed(runs[places[0]][0]), runs=places,
            numbers={name: mean_std([numbers[name] for numbers in measured]) for name in common}))
    return found
