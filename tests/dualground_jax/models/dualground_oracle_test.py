"""DualGround, the paper's defaults and every option, against a slow float64 numpy of the equations.

The oracle takes a sample at a time, as long as it is; the model a batch of them with junk in its
padding: that they agree also shows that neither padding nor batch mates matter.
"""

from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipelines.tokens import EOS, MEAN, PADDING, PUNCTUATION, START, WORD
from dualground_jax import losses
from dualground_jax.models import dualground
from tests.helpers import dualground_oracle

CLIPS, TOKENS = 9, 7
ROLES = (
    [START, WORD, WORD, PUNCTUATION, WORD, EOS, PADDING],
    [WORD, EOS] + [PADDING] * 5,
    [START, EOS] + [PADDING] * 5,  # no words
    [WORD, WORD, WORD, MEAN] + [PADDING] * 3,
    [START, WORD, WORD] + [PADDING] * 4,  # no sentence token
)
LENGTHS = (9, 1, 6, 4, 8)
TINY = dict(
    width=8, heads=2, ffn=6, dropout=0.0, input_dropout=0.0, input_layers=1, dummies=2,
    dummy_layers=1, t2v_layers=1, enc_layers=0, phrases=2, phrase_layers=1, context_layers=0,
    strides=(1, 4), kernel=3, mlp_layers=1, queries=4, dec_layers=1,
)
# Options of the model, and those of the losses; gradients are compared for the first of these.
CASES = dict(
    defaults=(
        dict(input_layers=2, t2v_layers=2, enc_layers=1, phrases=3, phrase_layers=2,
             context_layers=1, kernel=5, mlp_layers=2),
        [{}],
    ),
    detr=(
        dict(head='detr', slot_normalize='inputs', rpg_positions=False, fusion='gate',
             dec_layers=2, dummies=1),
        [dict(eos_form='margin', dqa_r=0.5, attn=0.3), dict(detr_label='focal')],
    ),
    sentence=(
        dict(paths='sentence', tokens='eos', bins=4, dummy_layers=2, conv_layers=2),
        [dict(classification='quality', regression='dfl', absence_weight=0.0, margin_weight=2.0),
         dict(classification='saliency')],
    ),
    phrase=(
        dict(paths='phrase', tokens='words', strides=(1,), context_layers=1, across_phrases=True),
        [dict(nce_over_batch=False)],
    ),
)
# Axes of the outputs of a sample: T clips, L tokens, P points; others are the same in each.
AXES = dict(
    saliency='T', saliency_neg='T', text_weight='T', text_weight_neg='T', clips='T.',
    sentence_attention='..T.', phrase_attention='.L', slot_attention='...L', phrase_energy='.T',
    summary_energy='T', logits='P', offsets='P.', offset_logits='P..', decoder_attention='...T',
    attn='..TK', attn_roles='K',
)


def make_batch():
    """Ragged samples with junk in their padding, and in an empty row that fills the batch up."""
    rng = np.random.default_rng(0)
    size = len(LENGTHS)
    mask = np.arange(CLIPS) < np.array(LENGTHS)[:, None]
    windows = np.array([[[2, 8], [10, 18]], [[0, 2], [0, 0]], [[4, 12], [0, 0]], [[1, 3], [3, 8]],
                        [[0, 16], [5, 9]]], float)
    windows_mask = np.array([[1, 1], [1, 0], [1, 0], [1, 1], [1, 1]], bool)
    labels = rng.integers(0, 13, (size, CLIPS)) * rng.integers(0, 2, (size, CLIPS)) * mask
    batch = dict(
        video=rng.normal(size=(size, CLIPS, 5)),
        video_mask=mask,
        source_id=np.int32([0, 1, 1, 2, 3]),
        text=rng.normal(size=(size, TOKENS, 4)),
        text_role=np.int32(ROLES),
        clip_length=np.full(size, 2.0),
        windows=windows,
        windows_mask=windows_mask,
        spans=np.stack([windows.mean(-1), windows[..., 1] - windows[..., 0]], -1) / 18,
        spans_mask=windows_mask,
        saliency=labels.astype(float),
        graded=np.array([1, 1, 0, 1, 1], bool),
        pos_clips=np.int32([[3, 2], [0, 0], [5, 1], [2, 0], [1, 3]]),
        neg_clips=np.int32([[0, 5], [0, 0], [2, 2], [3, 3], [7, 6]]),
        pairs_mask=np.array([1, 1, 1, 0, 1], bool),
    )
    return {name: np.concatenate([x, x[:1] if x.dtype == float else np.zeros_like(x[:1])])
            for name, x in batch.items()}


def alone(batch, b):
    """Sample b without padding, as the oracle takes it."""
    role, clips = batch['text_role'][b], slice(LENGTHS[b])
    words, sentence = (np.isin(role, kinds) for kinds in ((WORD, PUNCTUATION), (EOS, MEAN)))
    targets = batch['windows_mask'][b]
    return SimpleNamespace(
        video=batch['video'][b, clips],
        saliency=batch['saliency'][b, clips],
        graded=batch['graded'][b],
        source=batch['source_id'][b],
        words=batch['text'][b, words],
        word_roles=role[words],
        eos=batch['text'][b, sentence][0] if sentence.any() else None,
        sentence_role=role[sentence].max(initial=PADDING),
        clip_length=batch['clip_length'][b],
        windows=batch['windows'][b, targets],
        spans=batch['spans'][b, targets],
        pos_clips=batch['pos_clips'][b],
        neg_clips=batch['neg_clips'][b],
        has_pairs=batch['pairs_mask'][b],
    )


def places(model, batch, b):
    """Where what the oracle has of sample b stands along the axes of the model's outputs."""
    words = np.isin(batch['text_role'][b], (WORD, PUNCTUATION)) & (model.tokens != 'eos')
    levels = [np.arange(CLIPS // stride) < LENGTHS[b] // stride for stride in model.strides]
    keys = np.array([], bool)
    if model.paths != 'phrase':
        keys = np.append(keys, [True] * (model.dummies + 1))
    if model.paths != 'sentence':
        keys = np.append(keys, [*[True] * (model.phrases + 1), *words])
    masks = dict(T=np.arange(CLIPS) < LENGTHS[b], L=words, P=np.concatenate(levels), K=keys)
    return {axis: np.flatnonzero(mask) for axis, mask in masks.items()}


def place(name, shape, b, at):
    """The entries of a batched output of this shape that sample b has without padding."""
    by_layer = name.startswith('pred_')  # layers come before samples
    axes = AXES.get(name, '').ljust(len(shape) - 1, '.')
    axes = axes[0] + 'b' + axes[1:] if by_layer else 'b' + axes
    at = at | dict(b=[b])
    return np.ix_(*(at.get(axis, np.arange(size)) for axis, size in zip(axes, shape)))


def make(model, batch):
    """Random parameters, none at its first value, where it might not be seen."""
    shapes = jax.eval_shape(lambda: nn.unbox(model.init(jax.random.key(0), batch, train=False)))
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        around = 1.0 if path[-1].key in ('scale', 'level_scale') else 0.0
        return around + rng.normal(size=leaf.shape) * (0.6 if leaf.ndim > 1 else 0.3)

    return jax.tree.map_with_path(draw, shapes)


class Comparison:
    """A tiny model of some options, and the oracle, on the same batch and parameters."""

    def __init__(self, options, changes):
        self.batch = make_batch()
        self.model = dualground.Model(**TINY | options, dtype='float64')
        self.configs = [ConfigDict(dualground.LOSS) for _ in changes]
        for config, change in zip(self.configs, changes):
            config.update(change)
        self.params = make(self.model, self.batch)
        self.samples = [alone(self.batch, b) for b in range(len(LENGTHS))]
        self.at = [places(self.model, self.batch, b) for b in range(len(LENGTHS))]
        self.kept = [{} for _ in LENGTHS]  # what has no gradient is as in the oracle's first call
        self.outs, self.parts = self.oracle(self.params)
        # All that is differentiated, each with a random weight: outputs and losses.
        rng = np.random.default_rng(2)
        self.weights = [
            {name: rng.normal(size=np.shape(value)) / max(np.size(value), 1)
             for name, value in out.items() if np.asarray(value).dtype == float}
            for out in self.outs]
        self.part_weights = {name: rng.uniform(0.5, 2) for name in self.parts[0]}

    def oracle(self, params):
        """(outputs of each sample, losses by each config)."""
        outs = dualground_oracle.forward(params['params'], self.model, self.samples, self.kept)
        return outs, [dualground_oracle.losses(outs, self.samples, self.model, config)
                      for config in self.configs]

    def slope(self, direction, step=1e-7):
        """Central difference of the oracle's total along a direction."""
        def total(distance):
            moved = jax.tree.map(lambda x, d: x + distance * d, self.params, direction)
            outs, parts = self.oracle(moved)
            return losses.weighted_sum(parts[0], self.part_weights) + sum(
                (weight * out[name]).sum() for weights, out in zip(self.weights, outs)
                for name, weight in weights.items())

        return (total(step) - total(-step)) / (2 * step)

    def run(self):
        """What the model puts out, its windows, losses by each config, gradients of the total."""
        def run(params):
            out = self.model.apply(params, self.batch, train=True)
            parts = [dualground.loss_fn(out, self.batch, config)[1] for config in self.configs]
            total = losses.weighted_sum(parts[0], self.part_weights)
            for name in self.weights[0]:
                weights = np.zeros(out[name].shape)
                for b, at in enumerate(self.at):
                    where = place(name, weights.shape, b, at)
                    weights[where] = self.weights[b][name].reshape(weights[where].shape)
                total += (weights * out[name]).sum()
            windows, _ = dualground.decode(out, self.batch)
            return total, (out, windows, parts)

        (_, found), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(self.params)
        return *jax.device_get(found), jax.device_get(grads)


def assert_equal(found, expected, name):
    scale = np.abs(expected).max(initial=1e-3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * scale, err_msg=name)


def in_order(windows):
    """Rows by score and start: moment queries tie where there is one clip to attend to."""
    return windows[np.lexsort((windows[:, 0], -windows[:, 2].round(9)))]


@pytest.mark.parametrize('options, changes', CASES.values(), ids=CASES)
def test_outputs_losses_and_gradients(options, changes, monkeypatch):
    monkeypatch.setattr(jnp, 'float32', jnp.float64)
    with jax.enable_x64(True):
        pair = Comparison(options, changes)
        found, windows, parts, grads = pair.run()

    assert set(found) == set(pair.outs[0]) | ({'points', 'points_mask'} & set(found))
    for b, at in enumerate(pair.at):
        for name, expected in pair.outs[b].items():
            own = found[name][place(name, found[name].shape, b, at)]
            assert_equal(own.reshape(np.shape(expected)), expected, f'{name} of sample {b}')
            if AXES.get(name, '.')[-1] in 'LK':
                beyond = np.delete(found[name][b], at[AXES[name][-1]], -1)
                assert not beyond.any(), f'{name} of what sample {b} has not'
        if 'points_mask' in found:
            np.testing.assert_array_equal(np.flatnonzero(found['points_mask'][b]), at['P'])
        expected = dualground_oracle.decode(pair.outs[b], pair.samples[b], pair.model)
        own = windows[b][windows[b, :, 2] >= 0]
        assert_equal(in_order(own), in_order(expected), f'windows of sample {b}')
        assert (np.diff(own[:, 2]) <= 0).all()
    for own, expected in zip(parts, pair.parts):
        assert set(own) == set(expected)
        for name in own:
            assert_equal(own[name], expected[name], name)

    rng = np.random.default_rng(3)
    for _ in range(2):
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape), pair.params)
        slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), grads, direction)))
        np.testing.assert_allclose(slope, pair.slope(direction), rtol=1e-6)


@pytest.mark.parametrize('mode', ['hadamard', 'concat'])
def test_the_other_fusions(mode):
    rng = np.random.default_rng(0)
    paths, weights = rng.normal(size=(2, 1, 5, 4)), rng.normal(size=(1, 5, 4))
    with jax.enable_x64(True):
        module = dualground.Fusion(mode, dtype='float64')
        params = jax.tree.map(
            lambda x: rng.normal(size=x.shape), nn.unbox(module.init(jax.random.key(0), *paths)))

        def total(params):
            out = module.apply(params, *paths)
            return (out * weights).sum(), out

        (_, found), grads = jax.device_get(jax.value_and_grad(total, has_aux=True)(params))

    def oracle(params):
        p = dict(fusion=params.get('params'))
        return dualground_oracle.fuse(p, SimpleNamespace(fusion=mode), *paths[:, 0])

    assert_equal(found[0], oracle(params), mode)
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape), params)
    ahead, behind = (oracle(jax.tree.map(lambda x, d, way=way: x + way * d, params, direction))
                     for way in (1e-7, -1e-7))
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), grads, direction)))
    np.testing.assert_allclose(
        slope, ((ahead - behind) * weights[0]).sum() / 2e-7, rtol=1e-6, atol=1e-9)
