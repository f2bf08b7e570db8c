"""A vocabulary's files: encoder.json, vocab.bpe and, in some models, special_tokens.json."""
import os
import typing

from errors import InputError, require
from storage import paths

VOCABULARY_FILES = ('encoder.json', 'vocab.bpe')
REMEDY = 'fetch or copy it again'


class SpecialTokens(typing.NamedTuple):
    """Symbols of encoder.json, and the one that ends a text."""
    tokens: list[str]
    end: str | None


def load_vocabulary(folder):
    """{symbol: id}, merges and SpecialTokens or None of a folder; Encoder checks them."""
    special = read_special_tokens(f'{folder}/special_tokens.json')
    return paths.read_json(f'{folder}/encoder.json', REMEDY), read_merges(f'{folder}/vocab.bpe'), special


def read_merges(path):
    """The pairs of a vocab.bpe: two symbols a line, a space between, below #version…"""
    require(os.path.exists(path), f'no {path}; {REMEDY}')
    try:
        text = paths.read_small(path).decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise InputError(f'{path} is not UTF-8 at byte {error.start}; {REMEDY}') from None
    lines = text.replace('\r\n', '\n').rstrip('\n').split('\n')
    start = 1 if lines[0].startswith('#version') else 0
    merges = [tuple(line.split(' ')) for line in lines[start:]]
    for number, pair in enumerate(merges, start + 1):
        if len(pair) != 2 or not all(pair):
            raise InputError(f'{path} line {number} is not two symbols with a space between; {REMEDY}')
    return merges


def read_special_tokens(path):  # -> SpecialTokens, or None without the file
    if not os.path.lexists(path):
        return None
    values = paths.read_json(path, REMEDY)
    tokens = values.get('tokens', [])
    is_list = isinstance(tokens, list) and all(isinstance(text, str) and text for text in tokens)
    require(is_list and values.keys() == {'tokens', 'end'} and values['end'] in (None, *tokens),
            f'{path} must hold "tokens", texts, and "end", one of them or null; {REMEDY}')
    return SpecialTokens(**values)


def check_vocabulary(encoder, name):
    """Raises InputError unless the ids of {symbol: id} are valid and differ. name: of the file."""
    owners = {}
    for symbol, id in encoder.items():
        if type(id) is not int or not 0 <= id < 2**31 or owners.setdefault(id, symbol) != symbol:
            raise InputError(f'{name} gives {symbol[:80]!r} the id {str(id)[:40]!r}, expected a whole number '
                             f'of its own below 2^31; {REMEDY}')


def write_vocabulary(folder, encoder, merges, special=None, names=VOCABULARY_FILES):
    """Writes the files of load_vocabulary, as the released ones are."""
    paths.write_json(f'{folder}/{names[0]}', encoder)
    if special:
        paths.write_json(f'{folder}/special_tokens.json', special._asdict())
    with paths.replacing(f'{folder}/{names[1]}') as file:
        file.write('#version: 0.2\n')
        file.writelines(f'{first} {second}\n' for first, second in merges)
