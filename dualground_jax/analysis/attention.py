"""Which token roles the clips attend to: correlation between roles, and alignment with moments.

The paper (arXiv 2510.20244) correlates the attention that clips pay to [EOS] with that to words,
and does not say how heads, layers and words are pooled; so each way is computed and named.

Axes: B samples, T clips, K keys, R roles of `STUDIED`, 3 poolings of `POOLINGS`.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.errors import UserError
from data_pipelines.tokens import DUMMY, EOS, MEAN, P_EOS, PHRASE, PUNCTUATION, ROLES, START, WORD
from dualground_jax import models, state
from dualground_jax.analysis import correlation

STUDIED = (START, EOS, MEAN, WORD, PUNCTUATION, DUMMY, PHRASE, P_EOS)
POOLINGS = ('sum', 'mean', 'max')  # over the keys of a role


def pool_keys(weights: jax.Array, member: jax.Array) -> jax.Array:
    """Pools the keys of each role.

    Args:
        weights: float32[B, T, K].
        member: bool[B, R, K], which keys are of which role.

    Returns:
        float32[B, R, 3, T]; of a role without keys 0, 0 and -inf.
    """
    total = jnp.einsum('btk,brk->brt', weights, member, precision='highest')
    mean = total / jnp.maximum(member.sum(-1), 1)[..., None]
    largest = jnp.where(member[:, :, None], weights[:, None], -jnp.inf).max(-1)
    return jnp.stack([total, mean, largest], 2)


def observe(out: dict) -> dict[str, jax.Array]:
    """What the analysis keeps of a model's `out`, pooled on the device.

    Returns:
        roles float32[B, R, 3, T], of attention averaged over layers and heads, with present
        bool[B, R]; heads float32[B, layers, heads, 2, 3, T] of the sentence token and the words in
        each head, with heads_present bool[B, 2].
    """
    attn, roles = out['attn'].astype(jnp.float32), out['attn_roles']
    member = roles[:, None] == jnp.array(STUDIED)[:, None]
    pair = jnp.stack([jnp.isin(roles, jnp.array([EOS, MEAN])), roles == WORD], 1)
    by_head = jax.vmap(jax.vmap(pool_keys, (1, None), 1), (1, None), 1)
    return dict(
        roles=pool_keys(attn.mean((1, 2)), member),
        present=member.any(-1),
        heads=by_head(attn, pair),
        heads_present=pair.any(-1),
    )


def check_attention(out: dict, batch: dict, name: str) -> tuple[int, int]:
    """Checks that a model returns what the analysis reads.

    Args:
        out: of the model, arrays or their shapes.
        batch: what it was called with.
        name: of the model.

    Returns:
        (layers, heads).

    Raises:
        UserError: no attention map, or one of another form; says what is expected.
    """
    expected = (
        "expected out['attn'] float32[B, layers, heads, T, K], what clips take from each key, and "
        "out['attn_roles'] int32[B, K], the role of each key (data_pipelines.tokens)")
    for key in ('attn', 'attn_roles'):
        if key not in out:
            raise UserError(f"model {name!r} returns no out[{key!r}]: {expected}")
    attn, roles = out['attn'].shape, out['attn_roles'].shape
    samples, clips = batch['video_mask'].shape
    if len(attn) != 5 or (attn[0], attn[3]) != (samples, clips) or roles != (samples, attn[-1]):
        raise UserError(f'model {name!r} returns attn of shape {attn} and attn_roles of shape '
                        f'{roles} for {samples} samples of {clips} clips: {expected}')
    return attn[1], attn[2]


def seen_roles(config: ConfigDict) -> set[int]:
    """The roles of tokens that the config's model attends to or makes phrases of."""
    batch = state.dummy_batch(config, 2)
    role = np.array([[START, WORD, PUNCTUATION, EOS], [START, WORD, PUNCTUATION, MEAN]], np.int32)
    batch |= dict(text_role=role, text=np.zeros((*role.shape, config.data.text_dim), np.float32))
    batch['video_mask'][:] = True
    model = models.build(config.model)

    def roles():
        params = model.init(jax.random.key(0), batch, train=True)
        out = model.apply(params, batch, train=False)
        check_attention(out, batch, config.model.name)
        return out['attn_roles']

    return set(np.unique(jax.jit(roles)()).tolist()) & {START, WORD, PUNCTUATION, EOS, MEAN}


def clips_in_windows(batch: dict) -> np.ndarray:
    """Which clips have their middle in a true window: bool[B, T]."""
    length = batch['clip_length'][:, None]
    middle = (np.arange(batch['video_mask'].shape[1]) + 0.5) * length
    start, end = np.moveaxis(batch['windows'][:, :, None], -1, 0)
    inside = (start <= middle[:, None]) & (middle[:, None] < end)
    return (inside & batch['windows_mask'][..., None]).any(1) & batch['video_mask']


def moment_auc(series: np.ndarray, inside: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """How often a clip inside the moments gets more attention than one outside, ties half.

    Args:
        series: float[B, S, T].
        inside: bool[B, T].
        mask: bool[B, T].

    Returns:
        float64[B, S], 0.5 by chance; NaN where no clip is inside or none outside.
    """
    ranks = correlation.ranks(series, mask[:, None])
    n_in = (inside & mask).sum(1)[:, None].astype(float)
    n_out = mask.sum(1)[:, None] - n_in
    pairs = np.where(n_in * n_out > 0, n_in * n_out, np.nan)
    return ((ranks * (inside & mask)[:, None]).sum(-1) - n_in * (n_in + 1) / 2) / pairs


class AttentionStudy:
    """Attention statistics of a split, in one pass: `add` its batches, then read `results`.

    Attributes:
        correlations: of roles, see `correlation.Correlations`.
        aucs: per batch, float32[B, R * 3], see `moment_auc`.
    """

    def __init__(self, layers: int, heads: int):
        n = len(POOLINGS)
        self.pairs = [(a, b, p) for a, b in itertools.combinations(range(len(STUDIED)), 2)
                      for p in range(n)]
        self.correlations = correlation.Correlations(
            [(a * n + p, b * n + p) for a, b, p in self.pairs])
        self.shape = (layers, heads, n)
        self.heads = correlation.Correlations(
            [(2 * head * n + p, (2 * head + 1) * n + p)
             for head in range(layers * heads) for p in range(n)], pooled=False)
        self.aucs = []

    def add(self, found: dict[str, np.ndarray], batch: dict) -> list[dict]:
        """Adds a batch.

        Args:
            found: of `observe`.
            batch: the batch that it was of.

        Returns:
            For each query of the batch a flat dict: the correlations of sentence token and words
            and their alignment with the true windows, by pooling.
        """
        counted = batch['index'] >= 0  # the others fill up the batch
        found = {name: values[counted] for name, values in found.items()}
        index, mask = batch['index'][counted], batch['video_mask'][counted]
        size, clips = mask.shape
        series = found['roles'].reshape(size, -1, clips)
        present = np.repeat(found['present'], len(POOLINGS), 1)
        values = self.correlations.add(series, present, mask, index)

        heads = found['heads'].reshape(size, -1, clips)
        heads_present = np.tile(np.repeat(found['heads_present'], len(POOLINGS), 1),
                                (1, self.shape[0] * self.shape[1]))
        self.heads.add(heads, heads_present, mask, index)

        auc = moment_auc(np.where(present[..., None], series, 0),
                         clips_in_windows(batch)[counted], mask)
        auc = np.where(present, auc, np.nan)
        self.aucs.append(auc.astype(np.float32))
        columns = {}
        for (a, b, p), *both in zip(self.pairs, *(value.T for value in values), strict=True):
            if STUDIED[b] == WORD and STUDIED[a] in (EOS, MEAN):
                pair = f'{ROLES[STUDIED[a]]}_words_{POOLINGS[p]}'
                columns |= {f'{kind}_{pair}': column
                            for kind, column in zip(correlation.KINDS, both, strict=True)}
        names = itertools.product(STUDIED, POOLINGS)
        columns |= {f'auc_{ROLES[role]}_{pooling}': column
                    for (role, pooling), column in zip(names, auc.T, strict=True)}
        return [{name: '' if np.isnan(column[i]) else float(column[i])
                 for name, column in columns.items()} for i in range(size)]

    def results(self, bins: dict[str, np.ndarray]) -> dict:
        """Statistics of all batches; None where undefined.

        Args:
            bins: name -> bool[Q], groups of queries in the order in which they were added.

        Returns:
            correlation: role -> other role -> pooling -> see `Correlations.results`;
            correlation_by_head: pooling -> pearson and spearman of the sentence token with the
            words, [layers][heads]; alignment: role -> pooling -> auc and n;
            alignment_by_query_length: bin -> role -> auc, of the mean over the role's keys.
        """
        found = {}
        for (a, b, p), row in zip(self.pairs, self.correlations.results(), strict=True):
            if row['n'] + row['n_constant']:
                for one, other in ((a, b), (b, a)):
                    found.setdefault(ROLES[STUDIED[one]], {}).setdefault(
                        ROLES[STUDIED[other]], {})[POOLINGS[p]] = row
        by_head = {kind: np.array([row[kind] for row in self.heads.results()], object).reshape(
            self.shape) for kind in ('pearson', 'spearman')}
        auc = np.concatenate(self.aucs).reshape(-1, len(STUDIED), len(POOLINGS))
        return dict(
            correlation=found,
            correlation_by_head={pooling: {kind: values[..., p].tolist()
                                           for kind, values in by_head.items()}
                                 for p, pooling in enumerate(POOLINGS)},
            alignment={ROLES[role]: {pooling: _mean(auc[:, r, p])
                                     for p, pooling in enumerate(POOLINGS)}
                       for r, role in enumerate(STUDIED) if (~np.isnan(auc[:, r])).any()},
            alignment_by_query_length={
                name: {ROLES[role]: _mean(auc[kept, r, POOLINGS.index('mean')])['auc']
                       for r, role in enumerate(STUDIED) if (~np.isnan(auc[kept, r])).any()}
                for name, kept in bins.items() if kept.any()},
        )

    def sample(self, role: int, other: int, pooling: str, limit: int) -> np.ndarray:
        """Up to `limit` clips' attention to two roles, for a scatter plot: float[2, n]."""
        a, b = STUDIED.index(role), STUDIED.index(other)
        return self.correlations.clips_of(self.pairs.index((a, b, POOLINGS.index(pooling))), limit)


def _mean(values: np.ndarray) -> dict:
    values = values[~np.isnan(values)].astype(float)
    return dict(auc=float(values.mean()) if len(values) else None, n=len(values))
