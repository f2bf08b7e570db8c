"""A model's vocabulary on the disk: encoder.json, vocab.bpe and, in some models, special_tokens.json."""
import json
import os
import typing
from collections.abc import Iterable, Sequence

from errors import InputError, require
from storage import paths

VOCABULARY_FILES = ('encoder.json', 'vocab.bpe')
SPECIAL_TOKENS_FILE = 'special_tokens.json'
MAX_SPECIAL_TOKENS_BYTES = 1 << 20
MAX_ID = 2**31 - 1
REMEDY = 'fetch it again with ./download_model.py, or copy it from where the model came from'


class SpecialTokens(typing.NamedTuple):
    """The content of special_tokens.json: symbols of encoder.json, and the symbol that ends a text."""
    tokens: Sequence[str]
    end: str | None


def load_vocabulary(directory: str) -> tuple[dict[str, int], list[tuple[str, ...]], SpecialTokens | None]:
    """Ids by symbol, merges and special tokens of a folder; Encoder checks whether they can be used."""
    vocabulary, merges, special = (os.path.join(directory, name)
                                   for name in (*VOCABULARY_FILES, SPECIAL_TOKENS_FILE))
    return read_vocabulary(vocabulary), read_merges(merges), read_special_tokens(special)


def read_vocabulary(path: str) -> dict[str, int]:
    """Ids by symbol, before check_vocabulary. Raises InputError for a file that is not JSON."""
    return read_json(path)


def read_merges(path: str) -> list[tuple[str, ...]]:
    """The merges of a vocab.bpe: two symbols a line, a space between. A first line #version… is a comment."""
    text = read_text(path)
    if not text:
        raise InputError(f'{path} is empty; {REMEDY}')  # a file without merges has the line of the version
    lines = text.replace('\r\n', '\n').rstrip('\n').split('\n')
    start = 1 if lines[0].startswith('#version') or lines == [''] else 0
    merges: list[tuple[str, ...]] = []
    for number, line in enumerate(lines[start:], start + 1):
        pair = tuple(line.split(' '))
        if len(pair) != 2 or not all(pair):
            raise InputError(f'{path} line {number} is not two symbols with a space between but '
                             f'{line[:80]!r}; {REMEDY}')
        merges.append(pair)
    return merges


def read_special_tokens(path: str) -> SpecialTokens | None:
    """The special tokens that a special_tokens.json lists, or None if there is no such file."""
    if not os.path.lexists(path):
        return None
    values = read_json(path, MAX_SPECIAL_TOKENS_BYTES)
    tokens = values.get('tokens') if isinstance(values, dict) else None
    require(isinstance(tokens, list) and all(isinstance(text, str) and text for text in tokens)
            and values.keys() == {'tokens', 'end'} and values['end'] in (None, *tokens),
            f'{path} must hold an object of "tokens", a list of texts, and "end", one of these or null; '
            f'{REMEDY}')
    return SpecialTokens(**values)


def read_json(path, limit=paths.SMALL_FILE):
    text = read_text(path, limit)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path} is not JSON: {error}; {REMEDY}') from None


def read_text(path, limit=paths.SMALL_FILE):
    try:
        return paths.read_small(path, limit).decode().removeprefix(paths.BYTE_ORDER_MARK)
    except FileNotFoundError:
        raise InputError(f'{path} is missing; {REMEDY}') from None
    except UnicodeDecodeError as error:
        raise InputError(f'{path} is not UTF-8 at byte {error.start}; {REMEDY}') from None


def check_vocabulary(encoder: typing.Any, name: str):
    """Raises InputError, which names the file, unless encoder is a dict of symbol: id, all ids different."""
    require(isinstance(encoder, dict),
            f'{name} must hold an object of symbol: id, not a {type(encoder).__name__}; {REMEDY}')
    owners: dict[int, str] = {}
    for symbol, id in encoder.items():
        if type(id) is not int or not 0 <= id <= MAX_ID:
            raise InputError(f'{name} gives {symbol[:80]!r} the id {str(id)[:40]!r}, which is not a whole '
                             f'number from 0 to {MAX_ID}; {REMEDY}')
        if owners.setdefault(id, symbol) != symbol:
            raise InputError(f'{name} gives the id {id} to both {owners[id][:80]!r} and {symbol[:80]!r}; '
                             f'{REMEDY}')


def check_merges(encoder: dict[str, int], merges: Iterable[Sequence[str]], names: Sequence[str]):
    """Raises InputError if a symbol of the merges, or two of them joined, is not in the vocabulary."""
    for number, (first, second) in enumerate(merges, 1):
        for symbol in (first, second, first + second):
            if symbol not in encoder:
                pair = f'{first} {second}'[:80]
                raise InputError(f'{names[1]}: merge {number}, {pair!r}, needs the symbol {symbol[:80]!r}, '
                                 f'which {names[0]} does not have; take both files from the same model')


def write_vocabulary(directory: str, encoder: dict[str, int], merges: Iterable[Sequence[str]],
                     special: SpecialTokens | None = None, names: Sequence[str] = VOCABULARY_FILES):
    """Writes files that load_vocabulary reads, the first two in the form of the released files."""
    with paths.replacing(os.path.join(directory, names[0])) as file:
        json.dump(encoder, file)
    with paths.replacing(os.path.join(directory, names[1])) as file:
        file.write('#version: 0.2\n')
        file.writelines(f'{first} {second}\n' for first, second in merges)
    if special:
        with paths.replacing(os.path.join(directory, SPECIAL_TOKENS_FILE)) as file:
            json.dump(special._asdict(), file)
