"""Tokens against slow ones by OpenAI's rules and against transformers', on 1000 sentences."""

import gzip
import html
import json
import random
import sys

import ftfy
import pytest
import regex
import transformers

from data_pipelines.errors import ConfigError, DataError
from dualground_jax.encoders import tokenizer
from tests.helpers import clip_folder

ROWS = 77
PAIRS = clip_folder.merges()
PIECES = clip_folder.pieces(PAIRS)
WORDS = (
    "a man in the red shirt doesn't run they're I'M we'll café naïve Straße über 3.14 50% #tag "
    '@user :) &amp; &amp;lt;b&amp;gt; &eacute; &quot;so&quot; don’t “curly” … — ½ ﬁnd Ａ１ 日本語 '
    'русский العربية हिन्दी 한국어 😀 👍🏽 👨\u200d👩 e\u0301 \u00a0 \u200b \u2028 schÃ¶n â€™ <b> '
    "<|endoftext|> !<|endoftext|> <|ENDOFTEXT|> <|startoftext|>x 'ſ İ ǅ ①② Ⅷ x² \t tab\tb "
    'new\nline \x0b \x1f ! !! "!" aaaaaa ababab running dogs walking cameras').split(' ')


def sentences(count=1000):
    rng = random.Random(0)
    found = ['', ' ', '!', '! ! !']
    while len(found) < count:
        length = 200 if len(found) % 10 == 0 else rng.randint(1, 30)
        found.append(' '.join(rng.choices(WORDS, k=length)))
        ranges = (1, 0x2FF), (0x300, 0x3000), (0x3000, 0xD7FF), (0x1F300, 0x1FAFF)
        found.append(''.join(chr(rng.randint(*rng.choice(ranges))) for _ in range(20)))
    return found[:count]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('vocabulary')
    clip_folder.write_vocabulary(path, PAIRS)
    return path


def slow_ids(sentence):
    """OpenAI's rules, one merge at a time."""
    text = html.unescape(html.unescape(ftfy.fix_text(sentence))).strip()
    text = regex.sub(r'\s+', ' ', text).strip().lower()
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    character = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    words = regex.findall(
        r"<\|startoftext\|>|<\|endoftext\|>|'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
        text, regex.IGNORECASE)
    ids = []
    for word in words:
        if word in ('<|startoftext|>', '<|endoftext|>'):
            ids.append(PIECES.index(word))
            continue
        parts = [character[b] for b in word.encode()]
        parts[-1] += '</w>'
        while known := [PAIRS.index(p) for p in zip(parts, parts[1:]) if p in PAIRS]:
            first, second = PAIRS[min(known)]
            merged = []
            for part in parts:
                if part == second and merged and merged[-1] == first:
                    merged[-1] = first + second + '\0'  # not to be merged again in this round
                else:
                    merged.append(part)
            parts = [part.rstrip('\0') for part in merged]
        ids += map(PIECES.index, parts)
    ids = [len(PIECES) - 2, *ids, len(PIECES) - 1]
    return ids if len(ids) <= ROWS else [*ids[: ROWS - 1], ids[-1]]


def test_tokens_equal_openai(folder):
    given = sentences()
    found = tokenizer.load(folder / tokenizer.OPENAI_FILE, len(PIECES), 'openai')
    ids, lengths = found(given, ROWS)
    for sentence, row, length in zip(given, ids, lengths, strict=True):
        expected = slow_ids(sentence)
        assert row[:length].tolist() == expected, sentence
        assert not row[length:].any(), sentence
    assert (lengths == ROWS).sum() > 100 and lengths.min() == 2


@pytest.mark.parametrize('file', ['vocab.json', 'tokenizer.json', tokenizer.OPENAI_FILE])
def test_tokens_equal_transformers(folder, tmp_path, file):
    theirs = transformers.CLIPTokenizer.from_pretrained(folder)
    source = folder
    if file == 'tokenizer.json':
        theirs.backend_tokenizer.save(str(tmp_path / file))
        source = tmp_path
    elif file == tokenizer.OPENAI_FILE:
        source = folder / file
    found = tokenizer.load(source, len(PIECES), 'huggingface')
    given = sentences()
    ids, lengths = found(given, ROWS)
    expected = theirs(given, padding='max_length', max_length=ROWS, truncation=True)
    for i, sentence in enumerate(given):
        assert ids[i].tolist() == expected['input_ids'][i], sentence
        assert lengths[i] == sum(expected['attention_mask'][i]), sentence


def test_a_word_of_id_zero_is_no_padding(folder):
    found = tokenizer.load(folder, len(PIECES), 'openai')
    ids, lengths = found(['go!a ! b'], 10)
    assert PIECES[0] == '!' and lengths[0] > 4 and ids[0, lengths[0] - 1] == found.end


def test_without_ftfy_only_plain_sentences_are_taken(folder, monkeypatch):
    found = tokenizer.load(folder, len(PIECES), 'openai')
    plain = ['A dog\truns, "fast"!', "they're 50% done <b>\n"]
    expected, _ = found(plain, ROWS)
    monkeypatch.setitem(sys.modules, 'ftfy', None)
    assert (found(plain, ROWS)[0] == expected).all()
    for sentence in ('café', 'fish &amp; chips', 'bell \x07'):
        with pytest.raises(DataError, match='^sentence .*needs ftfy: pip install ftfy$'):
            found([sentence], ROWS)
    monkeypatch.undo()
    rng = random.Random(1)
    for _ in range(300):  # what counts as plain is what ftfy leaves alone
        text = ''.join(rng.choices([c for c in map(chr, range(128))
                                    if tokenizer._PLAIN.fullmatch(c)], k=60))
        assert ftfy.fix_text(text).split() == text.split()


@pytest.mark.parametrize('file, content, message', [
    ('vocab.json', '{', "vocab.json: can't be read as JSON"),
    ('vocab.json', '[]', r'vocab.json: holds \[\], expected a JSON object'),
    ('vocab.json', '{"a": 0}', 'vocab.json: 1 tokens, the text encoder knows'),
    ('vocab.json', 'version https://git-lfs.github.com/spec/v1\n', 'vocab.json: .*Git LFS'),
    ('merges.txt', '#version: 0.2\nyy zz\n', 'vocab.json: no vocabulary of byte pairs: '),
    ('tokenizer.json', '{"model": {}}', 'tokenizer.json: 0 tokens, the text encoder knows'),
])
def test_bad_vocabularies(tmp_path, file, content, message):
    clip_folder.write_vocabulary(tmp_path, PAIRS)
    (tmp_path / file).write_text(content)
    with pytest.raises(DataError, match=message) as info:
        tokenizer.load(tmp_path, len(PIECES), 'huggingface')
    assert '\n' not in str(info.value)


def test_bad_files_of_openai(tmp_path):
    clip_folder.write_vocabulary(tmp_path, PAIRS)
    path = tmp_path / tokenizer.OPENAI_FILE
    with pytest.raises(DataError, match=f'{path}: {len(PIECES) + 1} tokens, the text en'):
        tokenizer.load(path, len(PIECES) + 2, 'openai')
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=f"{path}: can't be read"):
        tokenizer.load(path, len(PIECES), 'openai')
    path.write_bytes(gzip.compress(b'#version\n'))
    with pytest.raises(DataError, match='514 tokens'):
        tokenizer.load(path, len(PIECES), 'openai')
    with pytest.raises(ConfigError, match="cleaning='nfc': expected one of openai, huggingface"):
        tokenizer.Tokenizer({}, [], 'nfc')
    with pytest.raises(DataError, match='no <|startoftext|>'):
        tokenizer.Tokenizer({'a': 0}, [], 'openai')


def test_merges_are_not_taken_for_comments(tmp_path):
    """Some of CLIP's merges begin with '#', as the line with the version does."""
    pairs = [('#', '#</w>'), *PAIRS]
    clip_folder.write_vocabulary(tmp_path, pairs)
    assert json.loads((tmp_path / 'vocab.json').read_text())['##</w>'] == 512
    found = tokenizer.load(tmp_path, len(PIECES) + 1, 'huggingface')
    assert found(['##'], 4)[0].tolist() == [[found.start, 512, found.end, found.end]]


# Whole words


LEXICON = ('dog', 'a', 'runs', 'red')


@pytest.fixture(name='words')
def words_folder(tmp_path):
    tokenizer.write_words(tmp_path, LEXICON, 8)
    return tmp_path


def test_words_are_those_of_a_plain_split(words):
    found = tokenizer.load(words, 6, 'huggingface')
    assert found.cleaning == 'words' and (found.start, found.end, found.padding) == (4, 5, 5)
    given = ['a red dog runs', 'RUNS  Dog\n', '', 'a, red: "dog"!', ' '.join(['red'] * 9)]
    ids, lengths = found(given, 8)
    for sentence, row, length in zip(given, ids, lengths, strict=True):
        plain = ''.join(c for c in sentence.lower() if c not in ',:"!').split()
        expected = [4, *map(LEXICON.index, plain[:6]), 5]
        assert row.tolist() == expected + [5] * (8 - len(expected)) and length == len(expected)
    assert found.words('A red, dog') == [('a', 1), ('red', 1), ('dog', 1)]
    theirs = transformers.AutoTokenizer.from_pretrained(words)
    for sentence, row, length in zip(given[:4], ids, lengths, strict=False):
        assert theirs(sentence)['input_ids'] == row[:length].tolist()
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (4, 5, 5)


@pytest.mark.parametrize('sentence, word', [
    ('a dragon runs', 'dragon'), ("the dog's", 'the'), ('a dog 12', '12'),
    ('a <|endoftext|> dog', 'endoftext'), ('a dög', 'dög')])
def test_an_unknown_word_is_named_with_what_is_known(words, sentence, word):
    found = tokenizer.load(words, 6, 'huggingface')
    with pytest.raises(DataError, match=r'unknown word .*; the text encoder knows a, dog, red, '
                       'runs$') as info:
        found(['a dog', sentence], 8)
    assert f'unknown word {word!r}' in str(info.value) and sentence in str(info.value)


def test_bad_vocabularies_of_words(words):
    with pytest.raises(DataError, match='tokenizer.json: 6 tokens, the text encoder knows 7$'):
        tokenizer.load(words, 7, 'huggingface')
    path = words / 'tokenizer.json'
    text = path.read_text()
    path.write_text(text.replace('<|startoftext|>', '<s>'))
    with pytest.raises(DataError, match=r'tokenizer.json: the vocabulary has no <\|startoftext'):
        tokenizer.load(words, 6, 'huggingface')
    path.write_text(json.dumps(json.loads(text) | dict(pre_tokenizer=3)))
    with pytest.raises(DataError, match='tokenizer.json: no tokenizer of words: '):
        tokenizer.load(words, 6, 'huggingface')
