"""CLIP's byte-pair tokenizer, by the rules of OpenAI's code or of Hugging Face's; and whole words.

The two clean sentences otherwise: OpenAI's mends text by ftfy and resolves HTML's entities, twice;
Hugging Face's composes characters (NFC). They split words alike, but for what stands beside a
special token.

An encoder that knows few words has a tokenizer of whole ones, in a `tokenizer.json` of the same
library. Words of any case are known, marks are left out, and an unknown word is an error.
"""

import gzip
import html
import os
import pathlib
import re
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import regex
import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers, processors

from data_pipelines import files
from data_pipelines.errors import ConfigError, DataError, one_line
from dualground_jax.encoders import clip_weights

CLEANINGS = 'openai', 'huggingface'
WORDS = 'words'  # in place of a cleaning, where tokens are whole words
START, END = '<|startoftext|>', '<|endoftext|>'
OPENAI_FILE = 'bpe_simple_vocab_16e6.txt.gz'
_WORD_END = '</w>'
# A special token, an English ending, letters, a digit, or other marks.
_WORD = (r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
         r'|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+')
_WORDS = regex.compile(_WORD, regex.IGNORECASE)
# What ftfy leaves as it is, but for spaces.
_PLAIN = re.compile(r"[\t\n\r -%'-~]*")


class Tokenizer:
    """Splits sentences as the text encoder was trained to.

    Attributes:
        cleaning: 'openai', 'huggingface' or 'words'.
        start, end: ids of start-of-text and end-of-text.
        padding: id after end-of-text: 0 in OpenAI's code, end-of-text in Hugging Face's.
    """

    def __init__(self, vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]],
                 cleaning: str):
        """`merges` are pairs of pieces that become one, first the most frequent ones.

        Raises:
            ConfigError: an unknown cleaning.
            DataError: the vocabulary lacks a special token or what a merge gives.
        """
        if cleaning not in CLEANINGS:
            raise ConfigError(f'cleaning={cleaning!r}: expected one of {", ".join(CLEANINGS)}')
        self._name_ends(vocabulary)
        try:
            model = tokenizers.models.BPE(
                dict(vocabulary), list(merges), continuing_subword_prefix='',
                end_of_word_suffix=_WORD_END, unk_token=END)
        except Exception as error:  # the library has no class of its own
            raise DataError(f'no vocabulary of byte pairs: {one_line(error)}') from error
        self._model = tokenizers.Tokenizer(model)
        self._model.add_special_tokens([START, END])
        # With its own rule it splits a special token in capitals, as Hugging Face's code does.
        to_bytes = pre_tokenizers.ByteLevel(
            add_prefix_space=False, use_regex=cleaning == 'huggingface')
        if cleaning == 'openai':
            self._model.pre_tokenizer = to_bytes
        else:
            self._model.normalizer = normalizers.Sequence([
                normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r'\s+'), ' '),
                normalizers.Lowercase()])
            self._model.pre_tokenizer = pre_tokenizers.Sequence([
                pre_tokenizers.Split(tokenizers.Regex(_WORD), 'removed', invert=True), to_bytes])
        self.cleaning = cleaning
        self.padding = 0 if cleaning == 'openai' else self.end

    def _name_ends(self, vocabulary: Mapping[str, int]) -> None:
        for token in (START, END):
            if token not in vocabulary:
                raise DataError(f'the vocabulary has no {token}')
        self.start, self.end = vocabulary[START], vocabulary[END]

    def __call__(self, sentences: Sequence[str], max_rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids of sentences.

        Args:
            sentences: n texts.
            max_rows: longer sentences lose their last pieces or words; end-of-text stays.

        Returns:
            (ids int32[n, max_rows]: start-of-text, word pieces, end-of-text, padding; lengths
            int32[n] without padding).

        Raises:
            DataError: OpenAI's cleaning of a sentence needs ftfy, which is not installed; or a word
                is not known, where tokens are words.
        """
        found = self._encode(sentences)
        ids = np.full((len(found), max_rows), self.padding, np.int32)
        lengths = np.zeros(len(found), np.int32)
        for i, encoding in enumerate(found):
            row = [self.start, *encoding.ids[: max_rows - 2], self.end]
            lengths[i] = len(row)
            ids[i, : len(row)] = row
        return ids, lengths

    def words(self, sentence: str) -> list[tuple[str, int]]:
        """The words of a sentence, cleaned, each with the number of its pieces; DataError as above.

        Together they have a piece for each id of the sentence between start and end, uncut.
        """
        found, pieces = [], []
        for piece in self._encode([sentence])[0].tokens:
            pieces.append(piece.removesuffix(_WORD_END))
            if piece.endswith(_WORD_END) or piece in (START, END):
                found.append((decoders.ByteLevel().decode(pieces), len(pieces)))
                pieces = []
        return found

    def _encode(self, sentences: Sequence[str]) -> list[tokenizers.Encoding]:
        split = self.cleaning == 'openai'
        texts = [_WORDS.findall(clean(text)) for text in sentences] if split else list(sentences)
        return self._model.encode_batch(texts, is_pretokenized=split)


class WordTokenizer(Tokenizer):
    """Takes whole words for tokens; attributes as of `Tokenizer`."""

    def __init__(self, text: str):
        """`text` is the content of a `tokenizer.json` with a model of the type WordLevel.

        Raises:
            DataError: it is no such thing, or lacks a special token.
        """
        try:
            self._model = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library has no class of its own
            raise DataError(f'no tokenizer of words: {one_line(error)}') from error
        ids = self._model.get_vocab()
        self._name_ends(ids)
        self._known = sorted(ids.keys() - {START, END})
        self.cleaning, self.padding = WORDS, self.end

    def words(self, sentence: str) -> list[tuple[str, int]]:
        """As `Tokenizer.words`: each word is one piece."""
        return [(word, 1) for word in self._encode([sentence])[0].tokens]

    def _encode(self, sentences: Sequence[str]) -> list[tokenizers.Encoding]:
        clean, split = self._model.normalizer, self._model.pre_tokenizer
        for sentence in sentences:
            text = clean.normalize_str(sentence) if clean else sentence
            words = [word for word, _ in split.pre_tokenize_str(text)] if split else [text]
            if unknown := [word for word in words if word not in self._known]:
                raise DataError(f'sentence {files.short(sentence)}: unknown word {unknown[0]!r}; '
                                f'the text encoder knows {", ".join(self._known)}')
        return self._model.encode_batch(list(sentences), add_special_tokens=False)


def words_file(words: Sequence[str]) -> str:
    """The `tokenizer.json` of whole words; their ids are their places, special tokens follow."""
    ids = {word: i for i, word in enumerate((*words, START, END))}
    found = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids))
    found.add_special_tokens([START, END])
    found.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    found.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation('removed')])
    found.post_processor = processors.TemplateProcessing(
        single=f'{START} $A {END}', special_tokens=[(name, ids[name]) for name in (START, END)])
    return found.to_str(pretty=True) + '\n'


def write_words(folder: pathlib.Path, words: Sequence[str], context: int) -> None:
    """Writes the files by which this module and transformers load a tokenizer of whole words.

    Args:
        folder: gets the files.
        words: see `words_file`.
        context: most rows of a sentence.
    """
    files.write_text(folder / 'tokenizer.json', words_file(words))
    files.write_json(folder / 'tokenizer_config.json', dict(
        tokenizer_class='PreTrainedTokenizerFast', bos_token=START, eos_token=END, pad_token=END,
        model_max_length=context))


def clean(sentence: str) -> str:
    """A sentence as OpenAI's code hands it to its tokenizer.

    Raises:
        DataError: the sentence is not plain ASCII, and ftfy is not installed.
    """
    try:
        import ftfy
        sentence = ftfy.fix_text(sentence)
    except ImportError as error:
        if not _PLAIN.fullmatch(sentence):
            raise DataError(f"sentence {files.short(sentence)}: OpenAI's cleaning of it needs "
                            'ftfy: pip install ftfy') from error
    sentence = html.unescape(html.unescape(sentence)).strip()
    return regex.sub(r'\s+', ' ', sentence).strip().lower()


def load(source: str | os.PathLike, size: int, cleaning: str) -> Tokenizer | None:
    """Loads a tokenizer.

    Args:
        source: folder or hub name of a Hugging Face model, which has `tokenizer.json`, or
            `vocab.json` and `merges.txt`; OpenAI's `bpe_simple_vocab_16e6.txt.gz`; or a file
            beside it.
        size: of the vocabulary that the text encoder knows.
        cleaning: 'openai' or 'huggingface'; of whole words the file says what is done to text.

    Returns:
        The tokenizer, or None where `source` has no vocabulary.

    Raises:
        DataError: a file is damaged, or of another size.
        ConfigError: an unknown cleaning.
    """
    path, found = _read(source, size)
    if found is None:
        return None
    vocabulary, merges = found
    if len(vocabulary) != size or set(vocabulary.values()) != set(range(size)):
        raise DataError(f'{path}: {len(vocabulary)} tokens, the text encoder knows {size}')
    try:
        if merges is None:
            return WordTokenizer(path.read_text(encoding='utf-8'))
        return Tokenizer(vocabulary, merges, cleaning)
    except DataError as error:
        raise DataError(f'{path}: {error}') from error


def _read(source, size):
    """(path, (vocabulary, merges or, of words, None) or None) of what `source` has."""
    if os.path.isfile(source):
        path = pathlib.Path(source)
        if '.txt' not in path.suffixes:
            path = path.with_name(OPENAI_FILE)
        return path, _read_openai(path, size) if path.is_file() else None
    if path := clip_weights.find(str(source), 'tokenizer.json'):
        model = clip_weights.read_json(path).get('model') or {}
        if model.get('type') == 'WordLevel':
            return path, (model.get('vocab') or {}, None)
        pairs = [pair.split(' ') if isinstance(pair, str) else pair
                 for pair in model.get('merges', ())]
        return path, (model.get('vocab') or {}, [tuple(pair) for pair in pairs])
    path = clip_weights.find(str(source), 'vocab.json')
    merges = clip_weights.find(str(source), 'merges.txt')
    if path is None or merges is None:
        return source, None
    return path, (clip_weights.read_json(path), _pairs(_lines(merges)))


def _read_openai(path: pathlib.Path, size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """OpenAI's file has more merges than its models know."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _pairs(_lines(path)[: size - 2 * len(alphabet) - 1])
    pieces = [*alphabet, *(c + _WORD_END for c in alphabet), *map(''.join, merges), START, END]
    return {piece: i for i, piece in enumerate(pieces)}, merges


def _lines(path: pathlib.Path) -> list[str]:
    files.check_genuine(path)
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == '.gz' else content
        return content.decode().split('\n')
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read: {one_line(error)}") from error


def _pairs(lines: list[str]) -> list[tuple[str, str]]:
    """Merges, one a line, behind a line that names the version."""
    return [tuple(line.split()) for line in lines[1:] if line.strip()]
