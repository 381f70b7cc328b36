"""DualGround's invariants, at tiny sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import qvh
from data_pipelines.tokens import EOS, PADDING, START, WORD
from dualground_jax import convert, models
from dualground_jax.errors import ConfigError
from dualground_jax.models import dualground

CLIPS, WORDS, WINDOWS = 11, 5, 2
VIDEO_DIM, TEXT_DIM = 7, 6
LENGTHS, WORD_COUNTS = (11, 7, 1, 4), (5, 2, 3, 0)
TINY = dict(
    width=16, heads=2, ffn=16, dropout=0.0, input_dropout=0.0, t2v_layers=1, enc_layers=1,
    dummy_layers=1, phrases=2, phrase_layers=1, context_layers=1, mlp_layers=2, dec_layers=2,
    queries=4, strides=(1, 2, 4),
)


def roles(words, padding=0):
    """Token roles of a query: start-of-text, words, [EOS], padding."""
    return np.int32([START, *[WORD] * words, EOS, *[PADDING] * padding])


def make_batch(seed=0):
    """A batch with junk in its padding: an odd length, a 1-clip video, a query without words."""
    rng = np.random.default_rng(seed)
    size = len(LENGTHS)
    video_mask = np.arange(CLIPS) < np.array(LENGTHS)[:, None]
    windows = np.array([[[2, 8], [12, 16]], [[0, 14], [0, 0]], [[0, 2], [0, 0]], [[2, 4], [0, 0]]])
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return dict(
        video=normal(size, CLIPS, VIDEO_DIM),
        video_mask=video_mask,
        video_id=np.arange(size, dtype=np.int32),
        text=normal(size, 2 + WORDS, TEXT_DIM),
        text_role=np.stack([roles(n, WORDS - n) for n in WORD_COUNTS]),
        duration=np.float32(LENGTHS) * 2,
        clip_length=np.full(size, 2, np.float32),
        windows=windows.astype(np.float32),
        windows_mask=np.array([[1, 1], [1, 0], [1, 0], [1, 0]], bool),
        spans=rng.uniform(0.2, 0.5, (size, WINDOWS, 2)).astype(np.float32),
        spans_mask=np.array([[1, 1], [1, 0], [1, 0], [1, 0]], bool),
        saliency=rng.integers(0, 13, (size, CLIPS)).astype(np.float32) * video_mask,
        pos_clips=np.zeros((size, 2), np.int32),
        neg_clips=np.array([[3, 4], [2, 2], [0, 0], [1, 3]], np.int32),
        pairs_mask=np.ones(size, bool),
    )


def make(batch, **options):
    """A model with random parameters; drawn here, since compiling its own draws takes longer."""
    model = dualground.Model(**{**TINY, **options})
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, train=False))
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        around = 1.0 if path[-1].key in ('scale', 'level_scale') else 0.0
        fan_in = leaf.shape[-2] if leaf.ndim > 1 else 25
        return (around + rng.normal(size=leaf.shape) / np.sqrt(fan_in)).astype(np.float32)

    return model, jax.tree.map_with_path(draw, shapes)


def trimmed(batch, b):
    """Sample b alone, without padding."""
    n, w = LENGTHS[b], WORD_COUNTS[b]
    one = {k: v[b : b + 1] for k, v in batch.items()}
    for key in ('video', 'video_mask', 'saliency'):
        one[key] = one[key][:, :n]
    for key in ('text', 'text_role'):
        one[key] = one[key][:, : 2 + w]
    return one


@pytest.mark.parametrize('head', ['pyramid', 'detr'])
def test_a_sample_does_not_depend_on_padding_or_batch_mates(head):
    batch = make_batch()
    model, params = make(batch, head=head)

    @jax.jit
    def run(batch):
        out = model.apply(params, batch, train=False)
        windows, saliency = dualground.decode(out, batch)
        return out, windows, saliency

    out, windows, saliency = run(batch)
    for b in range(len(LENGTHS)):
        n, w = LENGTHS[b], WORD_COUNTS[b]
        alone, alone_windows, alone_saliency = run(trimmed(batch, b))
        close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)  # noqa: E731
        close(saliency[b, :n], alone_saliency[0])
        close(out['attention'][b, :n], alone['attention'][0])
        close(out['phrase_attention'][b, :, : 2 + w], alone['phrase_attention'][0])
        close(out['phrase_eos'][b], alone['phrase_eos'][0])
        close(out['clips'][b, :n], alone['clips'][0])
        if head == 'pyramid':
            close(out['logits'][b][out['points_mask'][b]], alone['logits'][0])
            close(out['offsets'][b][out['points_mask'][b]], alone['offsets'][0])
        found = windows[b][windows[b, :, 2] >= 0]
        # Rows of one clip can tie, and then come in any order.
        order = lambda w: w[np.lexsort((np.round(w[:, 0], 3), np.round(w[:, 2], 4)))]  # noqa: E731
        close(order(found), order(alone_windows[0]))
    assert (np.diff(windows[..., 2], axis=1) <= 0).all(), 'best first'
    if head == 'pyramid':
        assert [(w[:, 2] >= 0).sum() for w in windows] == [11 + 5 + 2, 7 + 3 + 1, 1, 4 + 2 + 1]


def test_reversed_batch_gives_reversed_output():
    batch = make_batch()
    model, params = make(batch)
    run = jax.jit(lambda b: model.apply(params, b, train=False)['saliency'])
    flipped = run({k: v[::-1] for k, v in batch.items()})
    np.testing.assert_allclose(run(batch), flipped[::-1], atol=1e-6)


@pytest.mark.parametrize(
    'tokens, ignored, seen', [('eos', WORD, EOS), ('words', EOS, WORD)]
)
def test_a_role_that_is_off_is_not_seen(tokens, ignored, seen):
    batch = make_batch()
    model, params = make(batch, tokens=tokens)
    run = jax.jit(lambda b: model.apply(params, b, train=False))
    out = run(batch)
    change = lambda role: np.float32(batch['text_role'] == role)[..., None]  # noqa: E731
    other = run({**batch, 'text': batch['text'] + change(ignored)})
    for name in ('saliency', 'logits', 'offsets', 'attention'):
        np.testing.assert_array_equal(out[name], other[name], err_msg=name)
    other = run({**batch, 'text': batch['text'] * (1 - 2 * change(seen))})
    assert np.abs(out['saliency'] - other['saliency']).max() > 1e-4
    if tokens == 'words':
        assert not out['attention'].any()
    else:
        assert not out['phrase_attention'].any()


def test_negative_pairs_are_the_next_samples_queries():
    batch = make_batch()
    batch['video_id'] = np.array([0, 1, 1, 2], np.int32)
    model, params = make(batch)
    out = jax.jit(lambda b: model.apply(params, b, train=True))(batch)
    text = ('text', 'text_role')
    rolled = {k: np.roll(v, -1, 0) if k in text else v for k, v in batch.items()}
    expected = jax.jit(lambda b: model.apply(params, b, train=False))(rolled)
    np.testing.assert_allclose(out['saliency_neg'], expected['saliency'], atol=1e-5)
    np.testing.assert_allclose(out['attention_neg'], expected['attention'], atol=1e-5)
    np.testing.assert_array_equal(out['real_neg'], [True, False, True, True])


OPTIONS = [
    dict(fusion='hadamard', slot_normalize='inputs', rpg_positions=False, across_phrases=True),
    dict(fusion='gate', tokens='words', head='detr', dtype='bfloat16'),
    dict(fusion='concat', tokens='eos', bins=4, dropout=0.1),
    dict(paths='sentence'),
    dict(paths='phrase', head='detr'),
]


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_loss_and_gradient_are_finite_on_awkward_samples(options):
    """No words, one clip, no positive clip, all-equal saliency, no real negative pair at all."""
    batch = make_batch()
    batch['saliency'][:] = 0
    batch['pairs_mask'][:] = False
    batch['video_id'][:] = 0
    config = qvh.get_config().loss
    if options.get('bins'):
        config.update(dict(regression='dfl', classification='quality'))
    if options.get('paths') == 'phrase':
        config.eos_form = 'margin'
    model, params = make(batch, **options)

    @jax.jit
    def both(params, batch):
        def loss(params):
            rngs = {'dropout': jax.random.key(1)}
            out = model.apply(params, batch, train=True, rngs=rngs)
            return dualground.loss_fn(out, batch, config)

        return jax.value_and_grad(loss, has_aux=True)(params)

    ordinary = make_batch()
    for samples in (batch, ordinary):
        (loss, parts), grads = both(params, samples)
        assert np.isfinite(loss) and all(np.isfinite(v) for v in parts.values())
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert loss.dtype == jnp.float32
    on_head = dict(pyramid={'cls', 'reg', 'label'}, detr={'span', 'giou', 'query_label'})
    named = {'sal', 'saliency'} | on_head[options.get('head', 'pyramid')]
    named |= set() if options.get('paths') == 'sentence' else {'phrase', 'eos'}
    assert set(parts) == named
    np.testing.assert_allclose(
        loss, sum(config.weights[k] * v for k, v in parts.items()), rtol=1e-5
    )


def test_every_parameter_gets_a_gradient():
    batch = make_batch()
    model, params = make(batch, across_phrases=True)

    def loss(params):
        out = model.apply(params, batch, train=True)
        return dualground.loss_fn(out, batch, qvh.get_config().loss)[0]

    grads = jax.jit(jax.grad(loss))(params)['params']
    # A bias that is added to all logits of a softmax has none.
    dead = [
        jax.tree_util.keystr(path)
        for path, g in jax.tree_util.tree_leaves_with_path(grads)
        if np.abs(g).max() < 1e-9
    ]
    assert all("'key']['bias']" in name or "'score']['bias']" in name for name in dead), dead


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(fusion='add'), "model.fusion='add'.*'sum'"),
        (dict(paths='none'), "model.paths='none'.*'both'"),
        (dict(tokens='all'), "model.tokens='all'.*'full'"),
        (dict(head='mlp'), "model.head='mlp'.*'pyramid'"),
        (dict(slot_normalize='rows'), "normalize='rows'"),
        (dict(head='detr', queries=1), 'model.queries >= data.max_spans'),
    ],
)
def test_bad_options_are_named(options, message):
    batch = make_batch()
    model = dualground.Model(**{**TINY, **options})

    def trace():
        rngs = dict(params=jax.random.key(0), dropout=jax.random.key(0))
        out, _ = model.init_with_output(rngs, batch, train=True)
        return dualground.loss_fn(out, batch, qvh.get_config().loss)

    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(trace)


def test_names_all_lead_to_parameters():
    batch = make_batch()
    model = dualground.Model(**{**TINY, 'across_phrases': True})
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, train=False))['params']
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    paths = {'/'.join(str(k.key) for k in path) for path, _ in leaves}
    for name in dualground.TORCH_NAMES:
        filled = name.replace('{}', '0')
        assert any(p == filled or p.startswith(filled + '/') for p in paths), name


def test_conversion_names_what_does_not_fit():
    params = {'a': {'kernel': np.zeros((2, 3)), 'bias': np.zeros(3)}, 'b': {'scale': np.zeros(2)}}
    state = {'x.weight': np.zeros((3, 2)), 'x.bias': np.zeros(4), 'old.weight': np.zeros(1)}
    with pytest.raises(convert.ConvertError) as error:
        convert.from_torch(state, params, {'a': 'x', 'b': 'y'})
    for part in ('b/scale: nothing fills it', 'y.weight', 'a/bias: shape (3,)', 'old.weight'):
        assert part in str(error.value)


def test_config_sections_build_their_model():
    section = qvh.get_config().model
    model = models.build(section)
    assert {k: getattr(model, k) for k in section if k != 'name'} == {
        k: v for k, v in section.items() if k != 'name'
    }
