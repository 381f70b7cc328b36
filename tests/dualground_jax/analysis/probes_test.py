"""Linear probes of rows whose answers are known."""

import json

import numpy as np
import pytest

from data_pipelines import pictures, sentences, world
from dualground_jax import cli, main
from dualground_jax.analysis import probes
from tests.helpers import command_line

WORLD = world.World(train_queries=500, val_queries=100, test_queries=200)


@pytest.fixture(scope='module', name='parts')
def drawn_parts():
    rng, seen = np.random.default_rng(0), set()
    return [probes.draw(rng, WORLD, count, seen) for count in (500, 100, 200)]


def rows_of(parts, values_of):
    return [probes.Rows(values_of(text), np.arange(len(text.words))) for text in parts]


def value(found, name):
    return found[name]['value']


# The numbers


def test_area_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    values, labels = rng.integers(5, size=(40, 3)) * 1.0, rng.random((40, 3)) < 0.3
    labels[:, 2] = True
    slow = [np.mean([(a > b) + 0.5 * (a == b) for a in x[y] for b in x[~y]])
            for x, y in zip(values.T[:2], labels.T[:2])]
    found = probes.auc(values, labels)
    np.testing.assert_allclose(found[:2], slow)
    assert np.isnan(found[2])


def test_ridge_is_least_squares_where_rows_tell_all():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(4, 2))
    xs = [3 + rng.normal(size=(n, 4)) * [1, 10, 0.1, 5] for n in (50, 20, 10)]
    ys = [x @ true + 7 for x in xs]
    found = probes.ridge([probes.Rows(x, np.arange(len(x))) for x in xs], ys)
    np.testing.assert_allclose(found, ys[2], rtol=1e-3)


def test_ridge_takes_the_penalty_that_the_second_part_likes():
    rng = np.random.default_rng(0)
    xs = [rng.normal(size=(n, 40)) for n in (45, 300, 300)]
    ys = [x[:, :1] + rng.normal(size=(len(x), 1)) for x in xs]
    found = probes.ridge([probes.Rows(x, np.arange(len(x))) for x in xs], ys)
    plain = xs[2] @ np.linalg.lstsq(xs[0], ys[0], rcond=None)[0]
    assert ((found - ys[2]) ** 2).mean() < 0.7 * ((plain - ys[2]) ** 2).mean()


# Sentences


def test_parts_share_no_sentence_and_swapped_forms_name_the_same(parts):
    every = [words for text in parts for words in text.words]
    assert len(every) == len(set(every))
    for text in parts:
        assert len(text.first) > 0.3 * len(np.unique(text.group))
        other = text.first + 1
        assert (text.group[text.first] == text.group[other]).all()
        assert (text.present[text.first] == text.present[other]).all()
        assert (text.bound[text.first] != text.bound[other]).any((1, 2)).all()


def test_bonds_are_those_of_the_grammar():
    words = 'a', 'red', 'dog', 'holds', 'a', 'hat'
    text = probes.text_of([words], np.array([], int), np.zeros(1))
    named = [sentences.CONCEPTS[i] for i in np.flatnonzero(text.present[0])]
    assert sorted(named) == ['dog', 'hat', 'holds', 'red']
    [[noun, attribute]] = np.argwhere(text.bound[0])
    assert (probes.NOUNS[noun], probes.ATTRIBUTES[attribute]) == ('dog', 'red')


# Rows with known answers


def test_a_bag_of_words_is_read_and_binds_nothing(parts):
    table = np.random.default_rng(1).normal(size=(len(sentences.CONCEPTS), 80))
    found = probes.scores(parts, rows_of(parts, lambda text: text.present @ table))
    for kind in (*sentences.LEXICON, 'all'):
        assert value(found, kind) > 0.98
    assert value(found, 'binding') == 0.5


def test_noise_tells_nothing(parts):
    rng = np.random.default_rng(2)
    found = probes.scores(parts, rows_of(parts, lambda text: rng.normal(
        size=(len(text.words), 20))))
    assert 0.47 < value(found, 'all') < 0.53
    assert 0.4 < value(found, 'binding') < 0.6


def test_rows_that_hold_bonds_bind(parts):
    rng = np.random.default_rng(3)
    table = rng.normal(size=(len(probes.NOUNS) * len(probes.ATTRIBUTES), 160))
    found = probes.scores(parts, rows_of(
        parts, lambda text: text.bound.reshape(len(text.words), -1) @ table))
    assert value(found, 'binding') > 0.95
    assert found['binding']['low'] <= value(found, 'binding') <= found['binding']['high']
    assert value(found, 'place') < 0.6  # of which these rows hold nothing


def test_a_noun_may_tell_its_own_attribute(parts):
    rng = np.random.default_rng(4)
    table = rng.normal(size=(len(sentences.WORD_IDS), 90))

    def rows(text, seen):
        """Each row is that of its word and, if it may be seen, of the one before it."""
        found = []
        for words in text.words:
            own = table[[sentences.WORD_IDS[word] for word in words]]
            before = np.concatenate([np.zeros((1, 90)), own[:-1]])
            found.append(np.concatenate([table[:1], own + seen * before, table[:1]]))
        return probes.rows_of(text, found, np.zeros((len(found), 2)))['noun']

    assert value(probes.scores(parts, [rows(text, 1) for text in parts]), 'binding') > 0.97
    assert value(probes.scores(parts, [rows(text, 0) for text in parts]), 'binding') == 0.5


# The world, and an encoder


class Encode:
    """An encoder whose text rows hold nothing at all; pictures are their own."""

    def encode_video(self, frames):
        assert all(x.shape == (64, 64, 3) and x.dtype == np.uint8 for x in frames)
        return [np.stack([x[::8, ::8].ravel() for x in frames])]

    def encode_text(self, texts):
        return [np.zeros((2 + len(text.split()), 3)) for text in texts]


def test_planted_rows_beside_those_of_an_encoder():
    generated = world.World(train_queries=300, val_queries=60, test_queries=60)
    found = probes.probe(generated, Encode())
    planted = found['planted']
    assert value(planted['words'], 'all') > 0.97 > 0.9 > value(planted['eos'], 'all') > 0.55
    assert value(planted['picture'], 'all') > 0.9
    for name in ('words', 'picture'):
        assert 0.3 < value(planted[name], 'binding') < 0.7
    assert value(found['encoder']['words'], 'all') == 0.5
    assert value(found['encoder']['words'], 'binding') == 0.5
    assert value(found['encoder']['picture'], 'all') > 0.52


def test_pictures_are_drawn_of_the_very_words(monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, 'draw', lambda rng, figures, noise: (
        drawn.append(figures) or np.zeros((64, 64, 3), np.uint8)))
    text = probes.draw(np.random.default_rng(0), WORLD, 5, set())
    probes.encoded_rows(np.random.default_rng(0), WORLD, text, Encode())
    assert [[figure[:2] for figure in shown] for shown in drawn] == [
        pictures.bind(sentences.concept_ids(words)) for words in text.words]


# The mode


def test_the_mode_leaves_a_table(tmp_path, monkeypatch, capsys):
    argv = ['main', '--mode=probe', '--config=configs/synthetic.py:runlocal',
            f'--output={tmp_path / "probes"}']
    command_line.start(monkeypatch, argv)
    main.main(cli.parse(argv))
    found = json.loads((tmp_path / 'probes' / 'probes.json').read_text())
    assert found.keys() == {'planted'} and found['planted'].keys() == probes.TITLES.keys()
    printed = capsys.readouterr().out
    assert '| planted: [EOS]' in printed and 'binding' in printed
    monkeypatch.setattr(probes, 'probe', None)  # what is there is kept
    main.main(cli.parse(argv))
    assert capsys.readouterr().out == printed


def test_a_config_without_a_world_is_refused(tmp_path, monkeypatch):
    argv = ['main', '--mode=probe', '--config=configs/qvh.py', f'--output={tmp_path}']
    command_line.start(monkeypatch, argv)
    with pytest.raises(SystemExit, match='--mode=probe needs a generated world'):
        main.main(cli.parse(argv))
