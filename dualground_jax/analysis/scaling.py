"""How what is measured of runs changes with a size: of the model, the text or the data.

Sizes are numbers of the config that runs differ in. Each seed gives a fit of its own over all
sizes, and the intervals are over the seeds: runs of one seed are no independent points.
"""

import numpy as np
from scipy import stats

LEAST_SIZES = 3  # that a fit needs


def fits(runs: list[tuple[dict, int, dict]]) -> list[dict]:
    """Fits each number to each size.

    Args:
        runs: (values, seed, numbers) each; values is what tells the runs apart but for the seed,
            config key -> value, numbers name -> number.

    Returns:
        A dict for each size, what the others of the values are, and number, where there are
        LEAST_SIZES sizes at least: `key`, `values` (the others), `name`, `sizes`, `seeds` (those
        that have the number at all sizes), `curve` and `std`, over these, of each size (std None of
        one seed), and two `t_interval`s over the seeds: `per_doubling`, slope of the number
        over log2 of the size; `exponent`, that of log number over log size, None where a number is
        not above 0.
    """
    found = []
    for key in dict.fromkeys(key for values, _, _ in runs for key in values):
        families = {}
        for values, seed, numbers in runs:
            size = values.get(key)
            if isinstance(size, int | float) and not isinstance(size, bool) and size > 0:
                others = {name: value for name, value in values.items() if name != key}
                family = families.setdefault(str(others), (others, {}))
                family[1].setdefault(seed, {})[size] = numbers
        for others, by_seed in families.values():
            sizes = sorted({size for measured in by_seed.values() for size in measured})
            if len(sizes) >= LEAST_SIZES:
                found += _fits_of(key, others, sizes, by_seed)
    return found


def _fits_of(key: str, others: dict, sizes: list[float], by_seed: dict[int, dict]) -> list[dict]:
    """The fits of one size, all else alike."""
    found = []
    names = dict.fromkeys(name for measured in by_seed.values() for numbers in measured.values()
                          for name in numbers)
    for name in names:
        curves = {seed: [measured[size][name] for size in sizes]
                  for seed, measured in by_seed.items()
                  if all(name in measured.get(size, ()) for size in sizes)}
        if not curves:
            continue
        table = np.array(list(curves.values()))
        slope = lambda y: np.polyfit(np.log2(sizes), y, 1)[0]
        exponents = [slope(np.log2(y)) for y in table] if (table > 0).all() else None
        found.append(dict(
            key=key, values=others, name=name, sizes=sizes, seeds=sorted(curves),
            curve=table.mean(0).tolist(),
            std=table.std(0, ddof=1).tolist() if len(table) > 1 else None,
            per_doubling=t_interval([slope(y) for y in table]),
            exponent=exponents and t_interval(exponents)))
    return found


def t_interval(values: list[float]) -> dict:
    """Mean of independent numbers and its 95 % interval by Student's t.

    Returns:
        `value`, and `low` and `high`, None of one number.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return dict(value=mean, low=None, high=None)
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return dict(value=mean, low=mean - half, high=mean + half)
