"""A tiny encoder is trained: its loss, meshes and checkpoints, and the folder that it leaves."""

import json
import pathlib

import flax.linen as nn
import jax
import numpy as np
import pytest
import safetensors.numpy

from configs import tiny_clip
from data_pipelines import pairs
from data_pipelines.errors import UserError
from dualground_jax import checkpoints, cli, losses, main, sharding, state, train_encoder
from dualground_jax.encoders import clip, contrastive, tokenizer
from tests.helpers import clip_oracle, command_line
from tests.helpers.parity import assert_close

STEPS = 5  # evaluated and saved after 2, 4 and the last


def changed(**values):
    config = tiny_clip.get_config('runlocal')
    config.train.update(max_steps=STEPS, word_weight=0.5)  # so that runs have both losses
    config.update_from_flattened_dict(values)
    return config.lock()


@pytest.fixture(scope='module', name='finished')
def finished_run(tmp_path_factory):
    """An uninterrupted run on two devices: its workdir and what it returned."""
    workdir = tmp_path_factory.mktemp('encoders') / 'finished'
    return workdir, train_encoder.train(changed(**{'mesh.data': 2}), workdir)


def latest(workdir, config):
    abstract = state.abstract_state(
        config, sharding.make_mesh(config.mesh), STEPS, train_encoder.init)
    return jax.device_get(checkpoints.Checkpoints(workdir).restore('latest', abstract)[0])


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


# The loss


def test_the_loss_is_a_slow_info_nce():
    rng = np.random.default_rng(0)
    shown, told = rng.normal(size=(2, 6, 5)).astype(np.float32)
    loss, parts = contrastive.loss_of(dict(pictures=shown, sentences=told, scale=np.float32(7)))

    def nce(queries, keys):
        terms = []
        for i, query in enumerate(queries):
            scores = [7 * query @ key / np.linalg.norm(query) / np.linalg.norm(key) for key in keys]
            terms.append(np.log(np.exp(scores).sum()) - scores[i])
        return np.mean(terms)

    assert_close(parts['by_picture'], nce(shown, told))
    assert_close(parts['by_sentence'], nce(told, shown))
    assert_close(loss, (nce(shown, told) + nce(told, shown)) / 2)


def rows_and_mask(seed=0, sentences=5, pictures=5, words=4, patches=3):
    rng = np.random.default_rng(seed)
    told = rng.normal(size=(sentences, words, 6)).astype(np.float32)
    shown = rng.normal(size=(pictures, patches, 6)).astype(np.float32)
    return told, shown, np.arange(words) < rng.integers(1, words + 1, (sentences, 1))


def slow_similarities(told, shown, mask):
    """Of words and of patches, a pair at a time."""
    found = np.zeros((2, len(told), len(shown)))
    for i, sentence in enumerate(told):
        for j, picture in enumerate(shown):
            cosines = np.array([[w @ p / np.linalg.norm(w) / np.linalg.norm(p) for p in picture]
                                for w in sentence[mask[i]]])
            found[:, i, j] = np.mean([max(row) for row in cosines]), np.mean(
                [max(column) for column in cosines.T])
    return found


def test_the_loss_of_words_and_patches_is_a_slow_one():
    told, shown, mask = rows_and_mask(sentences=10, pictures=10)  # more than a block of them
    assert 0 < mask.mean() < 1
    expected = slow_similarities(told, shown, mask)
    for found, slow in zip(losses.late_interaction(told, shown, mask), expected, strict=True):
        assert_close(found, slow)
    whole = np.random.default_rng(1).normal(size=(2, 10, 6)).astype(np.float32)
    out = dict(pictures=whole[0], sentences=whole[1], words=told, patches=shown, word_mask=mask,
               scale=np.float32(7))
    loss, parts = contrastive.loss_of(out, 0.5)
    of_words, of_patches = 7 * expected
    nce = lambda logits: np.mean(np.log(np.exp(logits).sum(1)) - np.diag(logits))
    assert_close(parts['by_words'], nce(of_words))  # of the pictures, the sentence's own
    assert_close(parts['by_patches'], nce(of_patches.T))  # of the sentences, the picture's own
    assert_close(loss, contrastive.loss_of(out)[0] + (nce(of_words) + nce(of_patches.T)) / 4)


def test_without_a_weight_the_loss_is_that_of_clip_bit_for_bit():
    rng = np.random.default_rng(0)
    shown, told = rng.normal(size=(2, 6, 5)).astype(np.float32)
    nothing = np.full((6, 3, 5), np.nan, np.float32)
    out = dict(pictures=shown, sentences=told, scale=np.float32(7))
    loss, parts = contrastive.loss_of(dict(
        out, words=nothing, patches=nothing, word_mask=np.ones((6, 3), bool)), 0.0)
    assert loss == (parts['by_picture'] + parts['by_sentence']) / 2
    assert parts.keys() == {'by_picture', 'by_sentence', 'scale'} and np.isfinite(loss)


def test_words_are_what_stands_between_the_ends():
    """A sentence's own rows, of which [EOS] and padding are none; the patches lack the first."""
    config = changed()
    words = tokenizer.WordTokenizer(tokenizer.words_file(contrastive.WORDS))
    ids, lengths = words(['a dog runs', 'a red dog holds the hat'], config.model.context)
    batch = dict(frames=np.zeros((2, 64, 64, 3), np.uint8), ids=ids, end=lengths - 1)
    model = contrastive.build(config.model)
    params = nn.unbox(jax.jit(lambda: train_encoder.init(config, jax.random.key(0)))())
    out = jax.jit(model.apply)({'params': params}, batch)
    assert out['word_mask'].sum(1).tolist() == [3, 6] and out['word_mask'][:, :3].all()
    assert out['patches'].shape == (2, 4, 8)
    text = jax.jit(model.text.apply)({'params': params['text']}, ids, lengths - 1)
    assert_close(out['words'][1, :6], text['rows'][1, 1:7] @ params['text']['projection']['kernel'])
    assert_close(text['projected'][[0, 1], lengths - 1], out['sentences'])


def test_the_scale_is_at_most_100():
    np.testing.assert_allclose(contrastive.scale_of(np.float32(2)), np.exp(2), rtol=1e-6)
    np.testing.assert_allclose(contrastive.scale_of(np.float32(9)), 100, rtol=1e-6)


# The run


def test_what_a_run_leaves(finished):
    workdir, result = finished
    assert json.loads((workdir / 'results.json').read_text()) == result
    rows = rows_of(workdir)
    assert [row['step'] for row in rows if 'train/loss' in row] == [1, 2, 3, 4, 5]
    assert [row['step'] for row in rows if 'val/to_sentence' in row] == [2, 4, 5]
    np.testing.assert_allclose(rows[0]['train/scale'], 1 / 0.07, rtol=1e-6)
    assert result['steps'] == STEPS and result['pairs'] == result['swapped_pairs'] == 8
    card = (workdir / 'encoder' / 'README.md').read_text()
    assert f'retrieval@1 among 8: sentence of a picture {result["to_sentence"]:.3f}' in card
    assert f'right one is nearer in {result["swaps"]:.3f} (chance' in card
    assert '"max_steps": 5' in card and 'striped' in card
    assert list(workdir.glob('events.out.tfevents*'))


def test_one_device_computes_the_same(finished, tmp_path):
    """So the loss is that of the whole batch: half of it has other sentences to tell apart."""
    config = changed(**{'mesh.data': 1})
    train_encoder.train(config, tmp_path)
    found, expected = latest(tmp_path, config), latest(finished[0], changed(**{'mesh.data': 2}))
    apart = jax.tree_util.tree_leaves_with_path(
        jax.tree.map(lambda x, y: np.abs(x - y).max(), found.params, expected.params))
    # What all logits of a softmax share has no gradient but rounding, which Adam makes a step.
    assert max(value for path, value in apart
               if not jax.tree_util.keystr(path).endswith("['key']['bias']")) < 2e-5
    for row, other in zip(rows_of(tmp_path), rows_of(finished[0]), strict=True):
        assert row.keys() == other.keys()
        if 'train/loss' in row:
            assert abs(row['train/loss'] - other['train/loss']) < 1e-4


def test_a_run_that_was_cut_off_goes_on_bit_for_bit(finished, tmp_path, monkeypatch):
    config = changed(**{'mesh.data': 2})
    draw = pairs.training_batch

    def killed(seed, step, *others):
        if step == 4:  # when the batch after the next is asked for: after step 3
            raise KeyboardInterrupt
        return draw(seed, step, *others)

    monkeypatch.setattr(pairs, 'training_batch', killed)
    with pytest.raises(KeyboardInterrupt):
        train_encoder.train(config, tmp_path)
    monkeypatch.undo()
    assert checkpoints.Checkpoints(tmp_path).step('latest') == 2
    assert not (tmp_path / 'results.json').exists()
    train_encoder.train(config, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, latest(tmp_path, config),
                 latest(finished[0], config))
    assert rows_of(tmp_path) == rows_of(finished[0])
    for name in ('model.safetensors', 'README.md', 'config.json'):
        path = pathlib.Path('encoder', name)
        assert (tmp_path / path).read_bytes() == (finished[0] / path).read_bytes()


def test_another_config_is_refused(finished):
    with pytest.raises(UserError, match='model.width: 16 there, 32 here.*use another --workdir'):
        train_encoder.train(changed(**{'mesh.data': 2, 'model.width': 32}), finished[0])


# The folder


def test_the_folder_is_the_trained_model(finished):
    """`clip.load` encodes as the trained parameters do once they are rounded to 16 bits."""
    workdir, result = finished
    folder = workdir / 'encoder'
    encoder = clip.load(folder)
    config = changed(**{'mesh.data': 2})
    held_out = pairs.held_out(config.seed, 8, config.world)
    found = contrastive.evaluate(encoder, held_out)
    assert len(found) == 5 and found == {key: result[key] for key in found}
    ids, lengths = encoder.tokenizer(held_out.sentences, 32)
    state = safetensors.numpy.load_file(folder / 'model.safetensors')
    assert {x.dtype for x in state.values()} == {np.dtype(np.float16)}
    trained = latest(workdir, config).params
    kernel = state['text_projection.weight'].T
    assert (kernel == trained['text']['projection']['kernel'].astype(np.float16)).all()
    assert state['logit_scale'] == trained['logit_scale'].astype(np.float16)
    state = {name: np.float64(x) for name, x in state.items()}
    pictures = [clip_oracle.picture(frame, state, 2) for frame in held_out.pictures]
    assert_close(encoder.encode_frames(held_out.pictures), np.stack(pictures))
    texts = [clip_oracle.sentence(row[:length], state, 2)[1] for row, length in zip(ids, lengths)]
    assert_close(encoder.encode_sentences(held_out.sentences), np.stack(texts))


class Planted:
    """An encoder whose features are those of a table."""

    def __init__(self, held_out, features):
        self.shown = {x.tobytes(): features(text) for x, text in (
            *zip(held_out.pictures, held_out.sentences),
            *zip(held_out.swapped_pictures, held_out.right))}
        self.features = features

    def encode_frames(self, frames):
        return np.stack([self.shown[x.tobytes()] for x in frames])

    def encode_sentences(self, sentences):
        return np.stack([self.features(text) for text in sentences])


def test_evaluation_tells_a_bag_of_words_from_an_order_of_them():
    config = changed()
    held_out = pairs.held_out(0, 8, config.world)
    vectors = np.random.default_rng(0).normal(size=(len(contrastive.WORDS), 32))
    table = dict(zip(contrastive.WORDS, vectors))
    bag = lambda text: sum(table[word] for word in sorted(text.split()))
    order = lambda text: sum((i + 1) * table[word] for i, word in enumerate(text.split()))
    found = contrastive.evaluate(Planted(held_out, bag), held_out)
    assert (found['to_sentence'], found['to_picture'], found['swaps']) == (1, 1, 0.5)
    assert contrastive.evaluate(Planted(held_out, order), held_out)['swaps'] == 1
    other = dict(zip(held_out.sentences, held_out.sentences[1:] + held_out.sentences[:1]))
    wrong = Planted(held_out, bag)
    wrong.features = lambda text: bag(other.get(text, text))
    assert contrastive.evaluate(wrong, held_out)['to_sentence'] == 0


# What can't be used


@pytest.mark.parametrize('values, message', [
    ({'train.batch_size': 0}, 'train.batch_size=0: expected 1 or more'),
    ({'train.max_steps': 0}, 'train.max_steps=0: expected 1 or more'),
    ({'train.word_weight': -1.0}, 'train.word_weight=-1.0: expected 0 or more'),
    ({'model.heads': 3}, 'model.width=16: expected a multiple of model.heads=3'),
    ({'model.patch': 24}, 'model.patch=24: expected a divisor of 64'),
    ({'model.context': 20}, 'model.context=20: expected 27 or more'),
    ({'world.min_concepts': 1}, 'world.min_concepts is 1, expected 2 to 10'),
])
def test_bad_settings_are_told_first(values, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train_encoder.train(changed(**values), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('mode, config', [
    ('train', 'tiny_clip'), ('train-encoder', 'synthetic')])
def test_a_config_of_the_other_kind_is_refused(mode, config, tmp_path, monkeypatch):
    argv = ['main', f'--mode={mode}', f'--config=configs/{config}.py:runlocal',
            f'--workdir={tmp_path}']
    command_line.start(monkeypatch, argv)
    with pytest.raises(SystemExit, match=f'^error: --mode={mode}: --config is of the other kind'):
        main.main(cli.parse(argv))
