"""Token ablation: what a trained model still finds when a role's tokens are gone or are another's.

The paper's controlled experiment (arXiv 2510.20244, section 3) retrains models on parts of the
tokens; mode `sweep` does that. Here the trained model stays as it is, and its input changes.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from data_pipelines import datasets
from data_pipelines.tokens import EOS, MEAN, PADDING, PUNCTUATION, START, WORD
from dualground_jax.metrics import moments, official, summary

RESAMPLES = 1000
WORDS, SENTENCE = (WORD, PUNCTUATION), (EOS, MEAN)


@dataclasses.dataclass(frozen=True)
class Condition:
    """A change of the text.

    Attributes:
        masked: roles whose tokens are removed.
        swapped: roles whose tokens are another query's.
    """

    masked: frozenset[int] = frozenset()
    swapped: frozenset[int] = frozenset()


_SWAPPED = dict(eos=SENTENCE, words=WORDS, text=(*SENTENCE, *WORDS))
_MASKED = _SWAPPED | dict(start=(START,), punctuation=(PUNCTUATION,))
CONDITIONS = {
    'full': Condition(),
    **{f'mask_{name}': Condition(masked=frozenset(roles)) for name, roles in _MASKED.items()},
    **{f'swap_{name}': Condition(swapped=frozenset(roles)) for name, roles in _SWAPPED.items()},
}
TITLES = {
    'full': 'all tokens',
    'mask_eos': 'without [EOS]',
    'mask_words': 'without words',
    'mask_text': 'without both',
    'mask_start': 'without start-of-text',
    'mask_punctuation': 'without punctuation',
    'swap_eos': "another query's [EOS]",
    'swap_words': "another query's words",
    'swap_text': 'another query',
}


def distinct_conditions(seen: set[int]) -> dict[str, str]:
    """Maps each condition to the first one that is the same to a model which sees these roles."""
    first: dict[Condition, str] = {}
    return {name: first.setdefault(Condition(one.masked & seen, one.swapped & seen), name)
            for name, one in CONDITIONS.items()}


def partners(source: np.ndarray, seed: int = 0) -> np.ndarray | None:
    """Draws another query for each query, of another source video; each is drawn once.

    Args:
        source: int[Q], equal for queries of one source video.
        seed: of the draw.

    Returns:
        int[Q], a permutation; None if more than half of the queries are of one video.
    """
    _, inverse, counts = np.unique(source, return_inverse=True, return_counts=True)
    if 2 * counts.max() > len(source):
        return None
    # Queries of one video lie side by side; half the circle further on there are none of them.
    rng = np.random.default_rng(seed)
    videos = rng.permutation(len(counts))
    shuffled = rng.permutation(len(source))
    order = shuffled[np.argsort(videos[inverse[shuffled]], kind='stable')]
    shift = rng.integers(counts.max(), len(source) - counts.max() + 1)
    found = np.empty(len(source), np.int64)
    found[order] = np.roll(order, -shift)
    return found


def edit_text(batch: dict, condition: Condition, other: dict | None) -> dict:
    """The batch with the condition's text.

    Tokens move up, so that no gaps tell where one was; start-of-text stays first, [EOS] last.

    Args:
        batch: text float[B, L, E] and text_role int[B, L], among others.
        condition: what changes.
        other: text and text_role of the queries whose tokens are swapped in.
    """
    text, role = batch['text'], batch['text_role']
    changed = condition.masked | condition.swapped
    kept = (role != PADDING) & ~np.isin(role, list(changed))
    if condition.swapped:
        text = np.concatenate([text, other['text']], 1)
        role = np.concatenate([role, other['text_role']], 1)
        kept = np.concatenate([kept, np.isin(other['text_role'], list(condition.swapped))], 1)
    place = np.select([~kept, role == START, np.isin(role, SENTENCE)], [3, 0, 2], 1)
    length = batch['text_role'].shape[1]
    order = np.argsort(place, axis=1, kind='stable')[:, :length]
    kept = np.take_along_axis(kept, order, 1)
    role = np.where(kept, np.take_along_axis(role, order, 1), PADDING)
    text = np.where(kept[..., None], np.take_along_axis(text, order[..., None], 1), 0)
    return batch | dict(text=text, text_role=role)


def texts_of(split: datasets.Split, index: np.ndarray, like: dict) -> dict:
    """text and text_role of the records index int[B], padded as in the batch `like`."""
    found = {name: np.zeros_like(like[name]) for name in ('text', 'text_role')}
    for row, i in enumerate(index):
        length = len(split.roles[i])
        found['text'][row, :length] = split.text[i]
        found['text_role'][row, :length] = split.roles[i]
    return found


@dataclasses.dataclass(frozen=True)
class Resampled:
    """Performance under each condition, over the same resamples of the queries.

    Performance is the mean of the metrics that the config selects checkpoints by.

    Attributes:
        value: condition -> number.
        draws: condition -> float64[R].
    """

    value: dict[str, float]
    draws: dict[str, np.ndarray]

    def interval(self, formula: Callable) -> dict:
        """value, low and high (95 %) of a formula of the conditions' performances.

        Args:
            formula: (condition -> number or float64[R]) -> the same.
        """
        low, high = np.nanquantile(formula(self.draws), [0.025, 0.975])
        return dict(value=float(formula(self.value)), low=float(low), high=float(high))


def resample(scores: dict[str, official.Columns], selection: tuple[str, ...],
             kept: np.ndarray | slice = slice(None)) -> Resampled | None:
    """Bootstraps the mean of the selected metrics; None where no query counts for them."""
    value, draws = {}, {}
    for name, found in scores.items():
        columns = [found.names.index(metric) for metric in selection]
        values, weights = found.values[kept][:, columns], found.weights[kept][:, columns]
        if not weights.any(0).all():
            return None
        # Through the protocol's numbers: percent or fraction.
        scale = found.protocol.number(1.0)
        means = (values * weights).sum(0) / weights.sum(0)
        value[name] = scale * means.mean()
        draws[name] = scale * summary.bootstrap(values, weights, RESAMPLES).mean(1)
    return Resampled(value, draws)


def reliance(resampled: Resampled, how: str = 'mask') -> dict:
    """How much of what the text adds to the performance hangs on [EOS], in [0, 1].

    The Shapley value of [EOS] in the game of two players, [EOS] and the words, over the sum of both
    players' values, which is what both together add to a query without either. Shared information
    counts half for each.

    Args:
        resampled: performances of `CONDITIONS`.
        how: 'mask' or 'swap': whether the absent player's tokens are gone or another query's.

    Returns:
        value, low and high (95 %, bootstrap over queries); value None where the text adds nothing,
        and [0, 1] where that cannot be told from nothing. gain_of_text: likewise, what both
        together add.
    """

    def gain(p):
        return p['full'] - p[f'{how}_text']

    def share(p):
        nothing, eos, words = p[f'{how}_text'], p[f'{how}_words'], p[f'{how}_eos']
        value = ((eos - nothing) + (p['full'] - words)) / 2
        return np.clip(value / np.where(gain(p) > 0, gain(p), np.nan), 0, 1)

    if gain(resampled.value) <= 0:
        found = dict(value=None, low=0.0, high=1.0)
    elif np.mean(gain(resampled.draws) <= 0) > 0.025:
        found = dict(value=float(share(resampled.value)), low=0.0, high=1.0)
    else:
        found = resampled.interval(share)
    return found | dict(gain_of_text=resampled.interval(gain))


def length_gains(scores: dict[str, official.Columns], selection: tuple[str, ...],
                 words: np.ndarray) -> dict[str, dict]:
    """What words and [EOS] add, by words of the query and by length of the true window.

    Args:
        scores: of `CONDITIONS`.
        selection: metrics whose mean is compared; for windows it is their mAP.
        words: int[Q], words of each query.

    Returns:
        overall, by_query_length and by_window_length: bin -> queries, and value, low and high of
        full, mask_words, mask_eos, gain_of_words and gain_of_eos.
    """
    full = scores['full']
    by_window_length = {}
    for name in moments.LENGTH_RANGES:
        metric = f'MR-{name}-mAP'
        if name != 'full' and metric in full.names:
            kept = full.weights[:, full.names.index(metric)] > 0
            if kept.any():
                by_window_length[name] = _gains(scores, (metric,), kept)
    return dict(
        overall=dict(all=_gains(scores, selection, np.ones(len(words), bool))),
        by_query_length={name: _gains(scores, selection, kept)
                         for name, kept in summary.length_bins(words).items() if kept.any()},
        by_window_length=by_window_length,
    )


def _gains(scores, selection, kept) -> dict:
    compared = {name: scores[name] for name in ('full', 'mask_words', 'mask_eos')}
    resampled = resample(compared, selection, kept)
    found = dict(queries=int(kept.sum()))
    if resampled is not None:
        for name in compared:
            found[name] = resampled.interval(lambda p, name=name: p[name])
        for role in ('words', 'eos'):
            found[f'gain_of_{role}'] = resampled.interval(
                lambda p, role=role: p['full'] - p[f'mask_{role}'])
    return found
