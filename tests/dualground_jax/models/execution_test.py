"""How layers are computed: in chunks of queries, in a loop, rematerialised; and at what sizes."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import qvh
from data_pipelines.errors import ConfigError
from dualground_jax import models, sharding
from dualground_jax import state as state_lib
from dualground_jax.models import cross_attention, detr, execution, layers, phrases
from dualground_jax.models.execution import Execution
from tests.dualground_jax.models import model_test

ALL = dict(attention_chunk=4, scan_layers=True, remat=True)
CHOICES = [dict(attention_chunk=5), dict(fused_attention='xla'), dict(scan_layers=True),
           dict(remat=True), ALL]
DEEP = dict(t2v_layers=2, enc_layers=2, context_layers=2)
every_choice = pytest.mark.parametrize('choice', CHOICES, ids=str)


def close(found, expected):
    """Compares what came out and gradients."""
    for x, y, atol in zip(found, expected, (1e-6, 1e-5), strict=False):
        check = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=atol)
        jax.tree.map(check, x, y)


def encoder(**choice):
    return layers.Encoder(2, num_layers=3, ffn=8, execution=Execution(**choice))


def encoder_inputs(clips=11, width=8, seed=0):
    """x, position and mask; a sample with all clips, one with one, one with none."""
    rng = np.random.default_rng(seed)
    x, position = rng.normal(size=(2, 3, clips, width)).astype(np.float32)
    return x, position, np.arange(clips) < np.array([[clips], [1], [0]])


def outputs_and_grads(module, *inputs, **how):
    """What comes out, and gradients of its randomly weighted sum by parameters and first input."""
    rng = np.random.default_rng(1)
    draw = lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32)
    init = lambda *args: nn.unbox(module.init(jax.random.key(0), *args, deterministic=True))
    params = jax.tree.map(draw, jax.eval_shape(init, *inputs))

    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def run(params, *inputs):
        out = module.apply(params, *inputs, deterministic=True, **how)
        weight = np.random.default_rng(2)
        return sum((leaf * weight.normal(size=leaf.shape)).sum() for leaf in jax.tree.leaves(out)
                   ), out

    (_, out), grads = jax.jit(run)(params, *inputs)
    return out, grads


@functools.cache
def plain_encoder():
    return outputs_and_grads(encoder(), *encoder_inputs())


@every_choice
def test_an_encoder_gives_the_same(choice):
    close(outputs_and_grads(encoder(**choice), *encoder_inputs()), plain_encoder())


@pytest.mark.parametrize('choice', [{}, dict(scan_layers=True), ALL], ids=str)
def test_parameters_lie_layer_by_layer(choice):
    """A stack reads `layer_0`, `layer_1`, ..., as layers that are called one after the other."""
    x, position, mask = encoder_inputs()
    layer = layers.EncoderLayer(2, ffn=8)
    own = [nn.unbox(layer.init(jax.random.key(i), x, position, mask, deterministic=True))['params']
           for i in range(3)]
    expected = x
    for params in own:
        expected = layer.apply({'params': params}, expected, position, mask, deterministic=True)
    tree = {'params': {f'layer_{i}': params for i, params in enumerate(own)}}
    found = encoder(**choice).apply(tree, x, position, mask, deterministic=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    fresh = nn.unbox(encoder(**choice).init(jax.random.key(0), x, position, mask,
                                            deterministic=True))
    assert jax.tree.structure(fresh) == jax.tree.structure(tree)


def test_a_cross_attention_gives_the_same_weights_in_a_loop():
    rng = np.random.default_rng(3)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    mask = np.array([[True] * 4, [True, False, False, False]])
    inputs = draw(2, 5, 8), draw(2, 5, 8), draw(2, 4, 8), draw(2, 3, 8), mask
    plain, looped = (
        outputs_and_grads(
            cross_attention.CrossAttention(
                2, num_layers=3, ffn=8, execution=Execution(**choice)
            ), *inputs
        ) for choice in ({}, ALL)
    )
    assert plain[0][1].shape == (2, 3, 2, 5, 4)
    close(looped, plain)


def test_a_decoder_gives_the_same():
    plain, chosen = (
        outputs_and_grads(
            detr.MomentDecoder(2, queries=3, num_layers=2, ffn=8, execution=Execution(**choice)),
            *encoder_inputs(),
        ) for choice in ({}, ALL)
    )
    close(chosen, plain)


def test_phrase_contexts_are_the_same():
    rng = np.random.default_rng(4)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    inputs = draw(2, 3, 8), draw(2, 8), draw(2, 9, 8), np.arange(9) < np.array([[9], [4]])
    path = lambda choice: phrases.PhrasePath(
        2, context_layers=2, across_phrases=True, execution=Execution(**choice)
    )
    close(*(outputs_and_grads(path(choice), *inputs) for choice in (ALL, {})))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_fused_attention_is_that_of_the_layers(dtype):
    """Masks of all shapes, no mask, odd lengths, queries that may attend to nothing."""
    rng = np.random.default_rng(7)
    query, key, value = (jnp.asarray(rng.normal(size=(2, n, 8)), dtype) for n in (3, 5, 5))
    keys = np.array([[True, True, False, True, False], [False] * 5])
    for mask in (None, keys[:, None, None], rng.random((3, 5)) < 0.5):
        weights = layers.attention_weights(query, key, mask, heads=2)
        expected = layers.weighted_values(weights, value)
        found = layers.fused_attention(query, key, value, mask, heads=2, implementation='xla')
        assert found.dtype == dtype
        np.testing.assert_allclose(
            *(np.float32(x) for x in (found, expected)), atol=1e-6 if dtype == 'float32' else 0.03)
        if mask is not None and mask.ndim == 4:
            assert not found[1].any()


@pytest.mark.parametrize('rate, deterministic, is_fused', [
    (0.5, False, False), (0.5, True, True), (0.0, False, True)])
def test_attention_that_drops_weights_is_not_fused(rate, deterministic, is_fused):
    x = jnp.ones((1, 4, 2))
    module = layers.Attention(1, dropout=rate, execution=Execution(fused_attention='xla'))
    found = jax.eval_shape(lambda: module.init_with_output(
        jax.random.key(0), x, x, x, deterministic=deterministic))
    assert (found[0][1] is None) == is_fused


@pytest.mark.parametrize('chunk', [0, 16, 24])
def test_dropout_of_weights_is_drawn_for_each_query(chunk):
    """Equal keys: a query's output is the share of weights that are kept, over the keep rate."""
    keys = 64
    x = jnp.ones((1, keys, 2))
    module = layers.Attention(1, dropout=0.5, execution=Execution(attention_chunk=chunk))
    params = jax.tree.map(jnp.zeros_like, nn.unbox(module.init(
        jax.random.key(0), x, x, x, deterministic=True)))
    for name in ('value', 'out'):
        params['params'][name]['kernel'] = jnp.eye(2)
    rngs = {'dropout': jax.random.key(5)}
    out, _ = module.apply(params, x, x, x, deterministic=False, rngs=rngs)
    kept = np.asarray(out[0, :, 0])
    # Mean 1, standard deviation 1/8 of one query, 1/64 of the mean over the queries.
    assert abs(kept.mean() - 1) < 4 / 64 and 0.09 < kept.std() < 0.16
    first, second = kept[:16], kept[16:32]
    assert np.abs(first - second).max() > 0.05, 'chunks draw the same numbers'


class Coin(nn.Module):
    """Tells what its dropout keeps."""

    @nn.compact
    def __call__(self, x):
        scale = self.param('scale', nn.initializers.ones, ())
        return scale * x, nn.Dropout(0.5)(jnp.ones((2, 50)), deterministic=False)


class Coins(nn.Module):
    execution: Execution

    @nn.compact
    def __call__(self, x):
        return execution.run_layers(
            self, lambda name: Coin(name=name), lambda layer, x: layer(x), x, num_layers=3
        )[1]


@every_choice
def test_layers_and_steps_draw_dropout_of_their_own(choice):
    module = Coins(Execution(**choice))
    params = {'params': {f'layer_{i}': {'scale': jnp.ones(())} for i in range(3)}}
    draw = lambda seed: module.apply(params, 1.0, rngs={'dropout': jax.random.key(seed)})
    kept = np.asarray(draw(0))
    assert kept.shape == (2, 3, 50)
    assert len(np.unique(kept.reshape(6, 50), axis=0)) == 6
    assert (kept != np.asarray(draw(1))).any()
    np.testing.assert_array_equal(kept, draw(0))


# What the choices are for ---------------------------------------------------------------------


def lowered(module, clips=11, width=8):
    """The program of an encoder's gradient."""
    inputs = encoder_inputs(clips, width)
    params = jax.eval_shape(
        lambda: nn.unbox(module.init(jax.random.key(0), *inputs, deterministic=True)))
    loss = lambda params: jnp.square(module.apply(params, *inputs, deterministic=True)).sum()
    return jax.jit(jax.grad(loss)).lower(params)


def memory(module, clips):
    """Bytes of what an encoder's gradient keeps for a while."""
    return lowered(module, clips).compile().memory_analysis().temp_size_in_bytes


def test_memory_is_linear_in_the_number_of_clips():
    chunked, whole = (
        layers.Encoder(2, num_layers=1, ffn=8, execution=Execution(attention_chunk=chunk))
        for chunk in (16, 0)
    )
    assert memory(chunked, 1024) < 2.2 * memory(chunked, 512)
    assert memory(whole, 1024) > 3.5 * memory(whole, 512)
    assert memory(whole, 1024) > 10 * memory(chunked, 1024)


def test_a_loop_does_not_grow_with_depth():
    products = lambda depth, **choice: lowered(
        layers.Encoder(2, num_layers=depth, ffn=8, execution=Execution(**choice))
    ).as_text().count('dot_general')
    assert products(6, scan_layers=True) == products(2, scan_layers=True)
    assert products(6) > 2.5 * products(2)


def test_rematerialisation_keeps_less():
    def size(**choice):
        how = Execution(scan_layers=True, **choice)
        return memory(layers.Encoder(2, num_layers=6, ffn=8, execution=how), 128)

    assert size(remat=True) < 0.5 * size()


# Whole models ---------------------------------------------------------------------------------


@pytest.mark.parametrize('name', [
    'dualground', *(pytest.param(name, marks=pytest.mark.slow) for name in ('cg_detr', 'tr_detr'))])
def test_models_put_out_the_same(name):
    batch = model_test.make_batch()
    own = {k: v for k, v in DEEP.items() if k in models.defaults(name)}

    def run(choice):
        model, params = model_test.make(batch, name, **own, **choice)
        return jax.jit(lambda params: model.apply(params, batch, train=True))(params)

    close([run(ALL)], [run({})])


# How often a sample passes a transformer layer at depth 2.
PASSES = dict(
    dualground=1 + 2 + 2 + 2 + 1,  # dummies, cross-attention, clips, contexts, temporal attention
    flash_vtg=1 + 2 + 2,
    cg_detr=1 + 2 * 2 + 2 + 2 + 2 + 2,  # ..., both sentences, both moments, decoder
    tr_detr=2 + 2 * 2 + 2,
)


@model_test.every_model
def test_choices_reach_all_layers(name):
    batch = model_test.make_batch()

    def program(depth, **choice):
        own = {k: depth for k in DEEP if k in models.defaults(name)}
        model, params = model_test.make(batch, name, **own, **choice)
        return str(jax.make_jaxpr(lambda params: model.apply(params, batch, train=True))(params))

    one_by_one, looped, deeper = program(2, remat=True), program(2, **ALL), program(3, **ALL)
    assert len(re.findall(r'\b(?:remat2?|checkpoint)\[', one_by_one)) == PASSES[name]
    assert looped.count('dot_general[') == deeper.count('dot_general[')
    square = r'f32\[([\d,]*,)?(11,11|12,12)\]'  # of all clips by all; 12: with a summary
    assert re.search(square, one_by_one) and not re.search(square, looped)


@pytest.mark.parametrize('name', ['dualground', 'cg_detr'])
def test_parameters_lie_in_the_same_places(name):
    config = qvh.get_config(f'model={name},runlocal')
    config.model.update({k: v for k, v in DEEP.items() if k in config.model})
    mesh = sharding.make_mesh(ConfigDict(dict(data=1, fsdp=1, model=2)))
    plain = state_lib.abstract_state(config, mesh)
    config.model.update(ALL)
    chosen = state_lib.abstract_state(config, mesh)
    assert jax.tree.structure(plain) == jax.tree.structure(chosen)
    assert all(jax.tree.leaves(jax.tree.map(lambda x, y: x == y, plain, chosen)))


@pytest.mark.parametrize('options, message', [
    (dict(attention_chunk=-1), 'model.attention_chunk=-1: expected 0'),
    (dict(heads=3), 'model.width=16: expected a multiple of its 3'),
    (dict(fused_attention='flash'), "model.fused_attention='flash': expected one of '', 'xla'"),
    (dict(fused_attention='cudnn', dtype='bfloat16'), 'needs a GPU .* found cpu and bfloat16'),
    (dict(fused_attention='cudnn', backend='gpu'), 'needs .* found gpu and float32'),
    (dict(fused_attention='cudnn', backend='gpu', dtype='bfloat16', heads=4),
     'width=16 gives each of 4 heads 4 channels, expected a multiple of 8'),
])
def test_bad_values_are_named(options, message, monkeypatch):
    backend = options.get('backend', 'cpu')
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    with pytest.raises(ConfigError, match=message):
        model_test.make(model_test.make_batch(), **{
            key: value for key, value in options.items() if key != 'backend'})


# Sizes ----------------------------------------------------------------------------------------


def of_size(clips=model_test.CLIPS, tokens=7, samples=4):
    """A batch with as many clips and tokens, of which each sample has another number."""
    batch = {k: v[:samples] for k, v in model_test.make_batch().items()}
    rng = np.random.default_rng(6)
    batch['video'] = rng.normal(size=(samples, clips, model_test.VIDEO_DIM)).astype(np.float32)
    batch['video_mask'] = np.arange(clips) < clips - np.arange(samples)[:, None]
    batch['saliency'] = np.float32(rng.integers(0, 13, (samples, clips))) * batch['video_mask']
    batch['relevant'] = batch['saliency'] > 6
    batch['text'] = rng.normal(size=(samples, tokens, model_test.TEXT_DIM)).astype(np.float32)
    batch['text_role'] = np.stack([model_test.roles(tokens - 2 - i, i) for i in range(samples)])
    batch['duration'] = 2 * batch['video_mask'].sum(-1).astype(np.float32)
    return batch


SIZES = {
    'large': ('dualground', dict(tokens=256), dict(
        width=48, heads=12, ffn=96, phrases=9, dummies=50, t2v_layers=6, enc_layers=6,
        context_layers=6, scan_layers=True, remat=True)),
    'long video': ('dualground', dict(clips=4096, samples=1), dict(
        width=8, heads=1, phrases=2, attention_chunk=128)),
}


@pytest.mark.parametrize('case', ['long video', pytest.param('large', marks=pytest.mark.slow)])
def test_sizes_train(case):
    name, sizes, options = SIZES[case]
    batch = of_size(**sizes)
    model, params = model_test.make(batch, name, **options)
    loss = model_test.loss_of(name, model, model_test.default_loss(name))
    step = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(params, batch).compile()
    (value, parts), grads = step(params, batch)
    assert np.isfinite(value) and all(np.isfinite(part) for part in parts.values())
    if 'attention_chunk' in options:
        kept = step.memory_analysis().temp_size_in_bytes
        assert kept < 4 * sizes['clips'] ** 2 * options['phrases'], 'holds all clips at all clips'
    for path, grad in jax.tree_util.tree_leaves_with_path(grads['params']):
        where = '/'.join(key.key for key in path)
        assert np.isfinite(grad).all(), where
        assert np.abs(grad).max() > 1e-9 or re.search(f'({model_test.NO_GRADIENT})$', where), where
