"""The sentences of the generated world: its words, and a grammar that draws clauses of them."""

import math
from collections.abc import Container, Sequence
from typing import Any

import numpy as np

# No noun or attribute starts with a vowel, so that sentences need no 'an'.
LEXICON = {
    'actor': ('dog', 'cat', 'woman', 'man', 'girl', 'boy', 'chef', 'dancer'),
    'motion': ('runs', 'jumps', 'dances', 'sleeps', 'sings', 'waves'),
    'handling': ('holds', 'washes', 'paints', 'throws', 'carries', 'fixes'),
    'object': ('ball', 'guitar', 'bicycle', 'basket', 'book', 'bottle', 'hat', 'lamp', 'drum',
               'kite'),
    'place': ('kitchen', 'garden', 'beach', 'street', 'forest', 'bridge'),
    'attribute': ('red', 'blue', 'young', 'small', 'tall', 'wet', 'striped', 'shiny'),
    'manner': ('fast', 'slowly', 'quietly', 'happily', 'gently', 'alone'),
}
ARTICLES = ('a', 'the')
PREPOSITIONS = ('near', 'by', 'behind', 'beside')
JOINTS = ('while', 'then', 'and', 'as')
OPENERS = ('here', 'now', 'in this video', 'we see how', 'the camera shows that')
WORD_CLASS = {word: name for name, words in LEXICON.items() for word in words}
CONCEPTS = tuple(WORD_CLASS)
FUNCTION_WORDS = tuple(sorted({*ARTICLES, *PREPOSITIONS, *JOINTS, *' '.join(OPENERS).split()}))
WORD_IDS = {word: i for i, word in enumerate(CONCEPTS + FUNCTION_WORDS)}  # concepts come first
MIN_WORDS, MAX_WORDS = 3, 25
MAX_CLAUSES, MAX_CLAUSE_CONCEPTS = 3, 5


def draw_sentence(rng: np.random.Generator, world: Any, seen: Container[tuple[str, ...]]
                  ) -> tuple[str, ...]:
    """Draws the words of a sentence, one that is not in `seen`.

    It names world.min_concepts to world.max_concepts different concepts.
    """
    while True:
        count = int(rng.integers(world.min_concepts, world.max_concepts + 1))
        fewest = math.ceil(count / MAX_CLAUSE_CONCEPTS)
        sizes = [2] * int(rng.integers(fewest, min(MAX_CLAUSES, count // 2) + 1))
        for _ in range(count - sum(sizes)):
            sizes[rng.choice([i for i, n in enumerate(sizes) if n < MAX_CLAUSE_CONCEPTS])] += 1
        pools = {name: rng.permutation(words).tolist() for name, words in LEXICON.items()}
        articles = () if rng.random() < 0.3 else ARTICLES
        words = str(rng.choice(OPENERS)).split() if rng.random() < 0.3 else []
        for i, size in enumerate(sizes):
            words += [str(rng.choice(JOINTS))] if i else []
            words += _draw_clause(rng, size, pools, articles)
        if MIN_WORDS <= len(words) <= MAX_WORDS and tuple(words) not in seen:
            return tuple(words)


def _draw_clause(rng, size, pools, articles):
    """Draws a clause with `size` concepts, which it takes out of the pools."""
    handles = size > 2 and rng.random() < 0.5
    options = ['actor attribute', 'manner', 'place'] + ['object attribute'] * handles
    chosen = set(rng.choice(options, size - 2 - handles, replace=False))

    def noun(name):
        article = [str(rng.choice(articles))] if articles else []
        attribute = [pools['attribute'].pop()] if f'{name} attribute' in chosen else []
        return article + attribute + [pools[name].pop()]

    words = noun('actor') + [pools['handling' if handles else 'motion'].pop()]
    if handles:
        words += noun('object')
    if 'manner' in chosen:
        words.append(pools['manner'].pop())
    if 'place' in chosen:
        words += [str(rng.choice(PREPOSITIONS))] + noun('place')
    return words


def swap_concepts(rng: np.random.Generator, words: Sequence[str], least: float, most: float
                  ) -> tuple[str, ...]:
    """Swaps a share of a sentence's concepts, from least to most, at least one, in their class."""
    places = [i for i, word in enumerate(words) if word in WORD_CLASS]
    low, high = (max(1, int(share * len(places))) for share in (least, most))
    swapped = list(words)
    for i in rng.choice(places, int(rng.integers(low, high + 1)), replace=False):
        others = [w for w in LEXICON[WORD_CLASS[words[i]]] if w not in {*words, *swapped}]
        swapped[i] = str(rng.choice(others))
    return tuple(swapped)


def concept_ids(words: Sequence[str]) -> tuple[int, ...]:
    """The ids in CONCEPTS of those words that name one."""
    return tuple(WORD_IDS[word] for word in words if word in WORD_CLASS)
