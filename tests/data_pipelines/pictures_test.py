"""Pictures: what is bound to what, that all of it can be told apart, and that draws repeat."""

import itertools

import numpy as np
import pytest

from data_pipelines import icons, pictures, sentences, world
from data_pipelines.sentences import CONCEPTS, LEXICON, WORD_IDS

NOUNS = [WORD_IDS[word] for word in LEXICON['actor'] + LEXICON['object']]
ATTRIBUTES = [WORD_IDS[word] for word in LEXICON['attribute']]
KINDS = [(i, None) for i in range(len(CONCEPTS))] + list(itertools.product(NOUNS, ATTRIBUTES))


def words_of(figures):
    return [(CONCEPTS[figure.concept], figure.attribute and CONCEPTS[figure.attribute])
            for figure in figures]


@pytest.mark.parametrize('sentence, expected', [
    ('a red dog and a blue cat', [('dog', 'red'), ('cat', 'blue')]),
    ('here dog holds the shiny ball fast', [
        ('dog', None), ('holds', None), ('ball', 'shiny'), ('fast', None)]),
    ('red runs wet', [('red', None), ('runs', None), ('wet', None)]),  # as in a background
])
def test_an_attribute_belongs_to_the_noun_that_it_precedes(sentence, expected):
    assert words_of(pictures.figures_of(sentence.split())) == expected


def test_the_grammar_binds_every_attribute():
    rng = np.random.default_rng(0)
    for _ in range(300):
        words = sentences.draw_sentence(rng, world.World(), ())
        figures = words_of(pictures.figures_of(words))
        assert not {word for word, _ in figures} & set(LEXICON['attribute'])
        named = [part for figure in figures for part in figure if part]
        assert sorted(named) == sorted(w for w in words if w in sentences.WORD_CLASS)


def test_exchanged_attributes():
    rng = np.random.default_rng(0)
    words = 'a red dog and a blue cat'.split()
    assert ' '.join(pictures.swapped(words, rng)) == 'a blue dog and a red cat'
    assert ' '.join(pictures.swapped('a red dog holds the hat'.split(), rng)) == (
        'a dog holds the red hat')
    for nothing in ('a dog holds a hat', 'the red dog runs near the beach'):
        assert pictures.swapped(nothing.split(), rng) is None
    for _ in range(300):
        words = sentences.draw_sentence(rng, world.World(), ())
        other = pictures.swapped(words, rng)
        if other:
            one, two = pictures.figures_of(words), pictures.figures_of(other)
            assert sum(a != b for a, b in zip(one, two, strict=True)) == 2
            assert sorted(words) == sorted(other)


@pytest.mark.parametrize('size', [12, 16, 21])
def test_every_icon_is_told_apart_from_all_others_amid_noise(size):
    """The nearest of all clean pictures to a noisy one, itself before another background."""
    rng = np.random.default_rng(0)
    side = 2 * size
    clean = [pictures.Layout(np.full((1, 2), size), np.array([size]),
                             np.full((side, side, 3), grey, np.float32)) for grey in (70, 80)]
    known = np.stack([pictures.paint([pictures.Figure(*kind)], clean[0]) for kind in KINDS])
    for i, kind in enumerate(KINDS):
        seen = pictures.expose(rng, pictures.paint([pictures.Figure(*kind, 0.9)], clean[1]))
        assert np.square(known - seen).sum((1, 2, 3)).argmin() == i, kind


def test_strength_is_contrast():
    layout = pictures.arrange(np.random.default_rng(0), 1)
    faint, strong = (np.abs(pictures.paint([pictures.Figure(NOUNS[0], None, strength)], layout)
                            - layout.background).sum() for strength in (0.5, 1.0))
    np.testing.assert_allclose(faint, strong / 2, rtol=1e-5)
    colours, covered = icons.icon(NOUNS[0], None, 16)
    assert covered.min() == 0 and covered.max() == 1 and (colours <= 255 * covered + 1e-3).all()


def test_figures_stand_apart():
    for count in range(1, 14):
        for seed in range(20):
            layout = pictures.arrange(np.random.default_rng(seed), count)
            assert layout.sizes.min() >= 12
            for (a, m), (b, n) in itertools.combinations(
                    zip(layout.centres, layout.sizes, strict=True), 2):
                assert np.abs(a - b).max() > 0.7 * (m + n) / 2


def test_pairs_are_a_function_of_the_seed():
    drawn = [pictures.pairs(np.random.default_rng(seed), 5, world.World()) for seed in (1, 1, 2)]
    assert drawn[0][0].shape == (5, 64, 64, 3) and drawn[0][0].dtype == np.uint8
    assert drawn[0][1] == drawn[1][1] != drawn[2][1]
    np.testing.assert_array_equal(drawn[0][0], drawn[1][0])
