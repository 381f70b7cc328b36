"""Rows of a sentence from a file of word vectors, such as GloVe's, for releases without text.

The public code for VGG features of Charades-STA looks words up while it loads
(start_end_dataset.py: get_query): what spaces separate, in lower case, 'light.' with its full stop.
A word that the file lacks, and so almost every last one, is a row of zeros. Here the rows are
written once, in files like those of any other release.
"""

import os
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data_pipelines import annotations, files, tokens
from data_pipelines.errors import ConfigError, DataError, one_line


def run(values: Any, config: ConfigDict) -> None:
    """Mode `word-vectors`: writes the rows of all queries of the config; flag --vectors.

    Raises:
        ConfigError: no --vectors, or as `write_rows`.
        DataError: as `write_rows`.
    """
    if not values.vectors:
        raise ConfigError('--mode=word-vectors needs --vectors=FILE')
    print(write_rows(config.data, values.vectors))


def write_rows(data: Any, path: str | os.PathLike) -> str:
    """Writes `qid{qid}.npy` float32[words, text_dim] for all queries, whole or not at all.

    Args:
        data: the config node; its text_dir is made in its root.
        path: of the vectors: a line for each word, then its numbers, separated by spaces.

    Returns:
        What was written, in a line.

    Raises:
        ConfigError: data.text_layout has rows that are no words.
        DataError: bad annotations or vectors, two sentences of one qid, or text_dir exists.
    """
    layout = tokens.TEXT_LAYOUTS[data.text_layout]
    if layout.start or layout.has_eos or layout.padded:
        raise ConfigError(f'data.text_layout is {data.text_layout!r}, whose rows are not words '
                          "alone; --mode=word-vectors writes those of layout 'glove'")
    folder = pathlib.Path(data.root, data.text_dir)
    if folder.exists():
        raise DataError(f'{folder}: exists, expected to make it (data.root, data.text_dir)')
    sentences: dict[str, str] = {}
    for file in dict.fromkeys(annotations.annotation_files(data).values()):
        for query in annotations.read_annotations(file, data):
            annotations.check_sentence(sentences, query.qid, query.query, f'{file}:{query.line}')
    words_of = {qid: sentence.lower().split() for qid, sentence in sentences.items()}
    words = {word for own in words_of.values() for word in own}
    vectors = _read_vectors(path, words, data.text_dim)
    unknown = np.zeros(data.text_dim, np.float32)
    with files.whole_folder(folder) as unfinished:
        for qid, own in words_of.items():
            rows = np.stack([vectors.get(word, unknown) for word in own])
            np.save(unfinished / f'qid{qid}.npy', rows)
    return (f'wrote {folder}: {len(sentences)} queries; {len(vectors)} of their {len(words)} '
            'different words have a vector')


def _read_vectors(path: str | os.PathLike, words: set[str], width: int) -> dict[str, np.ndarray]:
    """Reads the vectors of some words, without holding the others."""
    files.check_genuine(path)
    found = {}
    try:
        with open(path, encoding='utf-8') as lines:
            for number, line in enumerate(lines, start=1):
                word, _, numbers = line.rstrip().partition(' ')
                if word in words:
                    found[word] = _parse(numbers, width, f'{path}:{number}')
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read: {one_line(error)}") from error
    if not found:
        raise DataError(f'{path}: has none of the {len(words)} words of the queries')
    return found


def _parse(numbers: str, width: int, where: str) -> np.ndarray:
    try:
        vector = np.array(numbers.split(' '), np.float32)
    except ValueError:
        vector = np.zeros(0, np.float32)
    if len(vector) != width or not np.isfinite(vector).all():
        raise DataError(f'{where}: not a word and {width} finite numbers (data.text_dim)')
    return vector
