"""Pairs to train an encoder on: functions of seed and step; held-out ones and swapped forms."""

import types

import numpy as np
import pytest

from data_pipelines import pairs, sentences

WORLD = types.SimpleNamespace(min_concepts=2, max_concepts=10, extras=0.3, faintest=0.7)


def test_a_batch_is_a_function_of_seed_and_step():
    frames, captions = pairs.training_batch(3, 5, 4, WORLD)
    again = pairs.training_batch(3, 5, 4, WORLD)
    assert (frames == again[0]).all() and captions == again[1]
    for other in ((4, 5), (3, 6)):
        assert pairs.training_batch(*other, 4, WORLD)[1] != captions


@pytest.mark.parametrize('named', [0, 1, 3])
def test_captions_name_some_of_the_concepts(named):
    """The pictures are those of whole sentences."""
    frames, whole = pairs.training_batch(0, 0, 12, WORLD)
    shown, captions = pairs.training_batch(0, 0, 12, WORLD, named)
    assert (frames == shown).all()
    for sentence, caption in zip(whole, captions, strict=True):
        concepts = [word for word in sentence.split() if word in sentences.WORD_CLASS]
        if not named or len(concepts) <= named:
            assert caption == sentence
            continue
        words = caption.split()
        assert len(words) == named
        places = [concepts.index(word) for word in words]  # a sentence names none twice
        assert places == sorted(places)


def test_held_out_pairs_differ_and_swaps_keep_the_words():
    found = pairs.held_out(0, 16, WORLD)
    assert len(found.pictures) == len(set(found.sentences)) == 16
    assert len(found.swapped_pictures) == len(found.right) == 16
    for right, wrong in zip(found.right, found.wrong, strict=True):
        assert right != wrong and sorted(right.split()) == sorted(wrong.split())
    assert found.fingerprint() == pairs.held_out(0, 16, WORLD).fingerprint()
    assert found.fingerprint() != pairs.held_out(1, 16, WORLD).fingerprint()
    trained = pairs.training_batch(0, 0, 16, WORLD)[0]
    assert not np.isin(found.pictures.sum((1, 2, 3)), trained.sum((1, 2, 3))).any()
    alone = types.SimpleNamespace(**vars(WORLD) | dict(max_concepts=2))  # nobody has an attribute
    assert pairs.held_out(0, 4, alone).right == []


def test_what_is_made_ahead_comes_in_order_and_its_errors_too():
    assert list(pairs.ahead(lambda step: step**2, range(2, 7))) == [4, 9, 16, 25, 36]
    assert list(pairs.ahead(str, range(0))) == []
    found = pairs.ahead(lambda step: 1 // (2 - step), range(5))
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(found)
