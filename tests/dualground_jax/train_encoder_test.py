"""A tiny encoder is trained: its loss, meshes and checkpoints, and the folder that it leaves."""

import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from configs import tiny_clip
from data_pipelines import pairs
from data_pipelines.errors import UserError
from dualground_jax import checkpoints, cli, main, sharding, state, train_encoder
from dualground_jax.encoders import clip, contrastive
from tests.helpers import clip_oracle, command_line
from tests.helpers.parity import assert_close

STEPS = 5  # evaluated and saved after 2, 4 and the last


def changed(**values):
    config = tiny_clip.get_config('runlocal')
    config.train.max_steps = STEPS
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
