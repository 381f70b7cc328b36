"""Mode `probe`: what a linear map reads from rows of the generated world, and so what [EOS] knows.

It compares the rows of an encoder with those that a world without pictures plants for the same
sentences. docs/pixels.md tells what each number is.
"""

import functools
import pathlib
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from scipy import stats

from data_pipelines import files, pictures, progress, sentences, world
from data_pipelines.errors import ConfigError
from data_pipelines.sentences import CONCEPTS, LEXICON, WORD_CLASS
from data_pipelines.world import SPLITS, World
from dualground_jax import worlds
from dualground_jax.analysis.scaling import t_interval
from dualground_jax.metrics import tables

VERSION = 1  # raise it when the same settings begin to give other numbers
STREAM = 4  # of random numbers, which splits do not have
NOUNS = tuple(word for kind in pictures.NOUNS for word in LEXICON[kind])
ATTRIBUTES = LEXICON['attribute']
PENALTIES = 10.0 ** np.arange(-6, 3)  # of ridge regression, for each row that it fits
BLOCKS = 10  # of the sentences that are asked about, for intervals
CHUNK = 256  # pictures that are drawn before they are encoded
TITLES = dict(eos='[EOS]', words='mean of the words', noun='the noun', picture='picture')


class Text(NamedTuple):
    """Sentences of a part, and what is asked about them.

    Attributes:
        words: of n sentences; behind one that has a swapped form, see `pictures.swapped`, it comes.
        present: bool[n, V], the concepts that they name.
        bound: bool[n, NOUNS, ATTRIBUTES], what belongs to what.
        first: int[S], the sentences that have a swapped form.
        group: int[n], the same of a sentence and its swapped form.
    """

    words: list[tuple[str, ...]]
    present: np.ndarray
    bound: np.ndarray
    first: np.ndarray
    group: np.ndarray


class Rows(NamedTuple):
    """Features of sentences.

    Attributes:
        values: float64[m, D].
        sentence: int[m], whose they are.
        noun: int[m], of NOUNS; None: they are of a sentence as a whole.
    """

    values: np.ndarray
    sentence: np.ndarray
    noun: np.ndarray | None = None


def run(values: Any, config: ConfigDict) -> None:
    """Writes `probes.md` and `probes.json` into --output; what is there of the same is kept.

    Raises:
        ConfigError: the config has no generated world.
        UserError: a parameter is out of range, or the folder holds something else.
        DataError: the encoder can't be read, or does not know the world's words.
    """
    if not config.world:
        raise ConfigError('--mode=probe needs a generated world, --config=configs/pixels.py')
    generated = world.read(config.world)
    encode = worlds.load_encoder(generated)
    record = dict(version=VERSION, world=world.parameters(generated))
    if encode:
        record['recipe'] = encode.recipe.flat()
    folder = files.fill_once(
        values.output, 'settings.json', record, functools.partial(_write, generated, encode))
    print((folder / 'probes.md').read_text(encoding='utf-8') + f'wrote {folder}')


def _write(generated: World, encode: Any, folder: pathlib.Path) -> None:
    found = probe(generated, encode)
    files.write_json(folder / 'probes.json', found)
    (folder / 'probes.md').write_text(table(found), encoding='utf-8')


def probe(generated: World, encode: Any = None) -> dict[str, dict[str, dict[str, dict]]]:
    """Probes planted rows, and those of an encoder, of sentences that are drawn anew.

    As many sentences as the world has training queries fit the maps, as many as it has for
    validation choose their penalty, and what is told is of as many as it has for the test.

    Args:
        generated: the world.
        encode: see `data_pipelines.world.generate`.

    Returns:
        'planted' and 'encoder' -> rows of TITLES -> kind of concept, 'all' and 'binding' ->
        `scores` of them.
    """
    rng = np.random.default_rng([generated.seed, STREAM])
    seen = set()
    parts = [draw(rng, generated, getattr(generated, f'{split}_queries'), seen)
             for split in SPLITS]
    made = dict(planted=[planted_rows(rng, generated, text) for text in parts])
    if encode:
        made['encoder'] = [encoded_rows(rng, generated, text, encode) for text in parts]
    return {source: {name: scores(parts, [rows[name] for rows in own]) for name in TITLES}
            for source, own in made.items()}


# Sentences and their rows


def draw(rng: np.random.Generator, generated: World, count: int, seen: set) -> Text:
    """Draws so many sentences that are not in `seen`; adds them and their swapped forms to it."""
    words, first, group = [], [], []
    for number in range(count):
        own = sentences.draw_sentence(rng, generated, seen)
        forms = [own]
        other = pictures.swapped(own, rng)
        if other and other not in seen:
            first.append(len(words))
            forms.append(other)
        seen.update(forms)
        words += forms
        group += [number] * len(forms)
    return text_of(words, np.array(first, int), np.array(group))


def text_of(words: list[tuple[str, ...]], first: np.ndarray, group: np.ndarray) -> Text:
    """The Text of sentences; arguments as its attributes."""
    present = np.zeros((len(words), len(CONCEPTS)), bool)
    bound = np.zeros((len(words), len(NOUNS), len(ATTRIBUTES)), bool)
    for i, own in enumerate(words):
        for concept, attribute in pictures.bind(sentences.concept_ids(own)):
            present[i, concept] = True
            if attribute is not None:
                present[i, attribute] = True
                bound[i, NOUNS.index(CONCEPTS[concept]),
                      ATTRIBUTES.index(CONCEPTS[attribute])] = True
    return Text(words, present, bound, first, group)


def rows_of(text: Text, rows: list[np.ndarray], shown: np.ndarray) -> dict[str, Rows]:
    """Rows by TITLES.

    Args:
        text: n sentences.
        rows: float[R, D] of each: start-of-text, words, [EOS].
        shown: float[n, E], of their pictures.
    """
    every = np.arange(len(rows))
    places = [(i, 1 + j, NOUNS.index(word)) for i, own in enumerate(text.words)
              for j, word in enumerate(own) if word in NOUNS]
    whole = lambda values: Rows(np.asarray(values, float), every)
    sentence, _, noun = np.transpose(places)
    return dict(
        eos=whole([own[-1] for own in rows]), words=whole([own[1:-1].mean(0) for own in rows]),
        noun=Rows(np.array([rows[i][place] for i, place, _ in places], float), sentence, noun),
        picture=whole(shown))


def planted_rows(rng: np.random.Generator, generated: World, text: Text) -> dict[str, Rows]:
    """Rows as `world` plants them; its pictures do not bind attributes."""
    maps = world.concept_maps(generated)
    rows = [world.text_features(rng, generated, maps, own) for own in text.words]
    strengths = text.present * rng.uniform(generated.faintest, 1, text.present.shape)
    return rows_of(text, rows, world.clip_features(
        rng, strengths, maps.video, generated.video_noise))


def encoded_rows(rng: np.random.Generator, generated: World, text: Text, encode: Any
                 ) -> dict[str, Rows]:
    """Rows as an encoder makes them of the sentences and of pictures that show these alone."""
    def frame(words):
        shown = pictures.figures_of(words)
        strengths = rng.uniform(generated.faintest, 1, len(shown)).tolist()
        shown = [figure._replace(strength=own)
                 for figure, own in zip(shown, strengths, strict=True)]
        return pictures.draw(rng, shown, noise=generated.camera_noise)

    features = []
    with progress.Bar('encoding', len(text.words), 'sentences') as bar:
        for start in range(0, len(text.words), CHUNK):
            part = text.words[start:start + CHUNK]
            features += encode.encode_video([frame(words) for words in part])
            bar.advance(len(part))
    rows = encode.encode_text([' '.join(words) for words in text.words])
    return rows_of(text, rows, np.concatenate(features))


# Probes


def scores(parts: list[Text], rows: list[Rows]) -> dict[str, dict]:
    """What linear maps read from rows.

    Args:
        parts: sentences to fit the maps, to choose their penalty, and to ask about.
        rows: of these.

    Returns:
        A `t_interval` over BLOCKS of the sentences that are asked about, of each kind of concept
        and of 'all': the area under the ROC curve of a concept's presence, mean over concepts; and
        of 'binding': how often the map finds who has the attributes, of a sentence and its swapped
        form. None where there is nothing to tell apart.
    """
    present = ridge(rows, [text.present[own.sentence] for text, own in zip(parts, rows)])
    bound = ridge(rows, [_bound(text, own) for text, own in zip(parts, rows)])
    text, own = parts[-1], rows[-1]
    table = np.zeros(text.bound.shape)
    if own.noun is None:
        table[own.sentence] = bound.reshape(-1, *table.shape[1:])
    else:
        table[own.sentence, own.noun] = bound
    kinds = np.array([WORD_CLASS[concept] for concept in CONCEPTS])
    found = {name: [] for name in (*LEXICON, 'all', 'binding')}
    for block in np.array_split(np.unique(text.group), BLOCKS):
        asked = np.isin(text.group, block)
        among = asked[own.sentence]
        areas = auc(present[among], text.present[own.sentence[among]])
        for name in (*LEXICON, 'all'):
            found[name].append(areas[(kinds == name) | (name == 'all')])
        found['binding'].append(binding(table, text.bound, text.first[asked[text.first]]))
    means = {name: [np.nanmean(own) for own in values if np.isfinite(own).any()]
             for name, values in found.items()}
    return {name: t_interval(values) if values else None for name, values in means.items()}


def _bound(text: Text, rows: Rows) -> np.ndarray:
    """Bonds bool[m, NOUNS * ATTRIBUTES] that maps are to tell; [m, ATTRIBUTES] of nouns' rows."""
    if rows.noun is None:
        return text.bound[rows.sentence].reshape(len(rows.sentence), -1)
    return text.bound[rows.sentence, rows.noun]


def ridge(rows: list[Rows], targets: list[np.ndarray]) -> np.ndarray:
    """Fits targets by ridge regression on rows of unit variance, in closed form.

    Args:
        rows: to fit on, to choose the penalty by the squared error, and to tell about.
        targets: bool[m, K] of these.

    Returns:
        float64[m, K], what the map says of the last ones.
    """
    centre = rows[0].values.mean(0)
    scale = np.maximum(rows[0].values.std(0), 1e-9)
    fit, choose, ask = ((own.values - centre) / scale for own in rows)
    mean = targets[0].mean(0)
    sizes, axes = np.linalg.eigh(fit.T @ fit)
    goal = axes.T @ (fit.T @ (targets[0] - mean))
    maps = [axes @ (goal / (sizes + penalty * len(fit))[:, None]) for penalty in PENALTIES]
    errors = [((choose @ own + mean - targets[1]) ** 2).mean() for own in maps]
    return ask @ maps[int(np.argmin(errors))] + mean


def auc(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each column, by ranks; equal values count half.

    Args:
        values: float[m, K].
        labels: bool[m, K].

    Returns:
        float[K]; NaN where labels are all the same.
    """
    ranks = stats.rankdata(values, axis=0)
    yes, no = labels.sum(0), (~labels).sum(0)
    with np.errstate(invalid='ignore', divide='ignore'):
        return ((ranks * labels).sum(0) - yes * (yes + 1) / 2) / (yes * no)


def binding(table: np.ndarray, bound: np.ndarray, first: np.ndarray) -> float:
    """Share of sentences and swapped forms whose own bonds have more than those of the other form.

    What is the same of both, as a bag of their words is, gives 0.5.

    Args:
        table: float[n, NOUNS, ATTRIBUTES], how far a map says that they belong together.
        bound: bool of the same shape, whether they do.
        first: int[S], sentences whose swapped forms come next.

    Returns:
        The share, equal ones counting half; NaN of no sentence.
    """
    other = first + 1
    change = bound[first].astype(float) - bound[other]
    ahead = np.concatenate([(table[first] * change).sum((1, 2)),
                            -(table[other] * change).sum((1, 2))])
    return float(((ahead > 0) + 0.5 * (ahead == 0)).mean()) if len(first) else np.nan


def table(found: dict) -> str:
    """What `probe` found, as a Markdown table."""
    cell = lambda one: '–' if not one else tables.spread(
        one['value'], None if one['low'] is None else one['high'] - one['value'])
    columns = *LEXICON, 'all', 'binding'
    return tables.markdown(
        ('rows', *columns),
        [(f'{source}: {TITLES[name]}', *(cell(own[column]) for column in columns))
         for source, rows in found.items() for name, own in rows.items()])
