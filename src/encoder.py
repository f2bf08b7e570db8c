"""GPT-2's byte-level byte-pair encoding: text ↔ token ids.

Text is split into pieces (roughly words, each with the space before it); a piece's UTF-8 bytes are symbols, and
neighbouring symbols are merged, the pair that stands first in vocab.bpe first, until no pair of the list is left
(Sennrich et al. 2016, section 3.2; Radford et al. 2019, section 2.2). What remains are the tokens.

    enc = get_encoder('124M')
    enc.encode('Hello world')    # [15496, 995]
    enc.decode([15496, 995])     # 'Hello world'

The ids are those of tiktoken's r50k_base. Which characters are letters and digits is Unicode's to say and grows with
each of its versions: for characters newer than both libraries' tables, the installed `regex` decides.

Special tokens, such as <|endoftext|>, are ids that no merge makes. In a text they are characters like any
others, unless they are asked for: then the text is split at them first, and what lies between is encoded.
"""
import functools
import hashlib
import itertools
import json
import os
import re
import typing
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np

from errors import InputError, require
from merges import Merges
from pieces import PieceCache, safe_cut, split
from storage import paths

EOT = '<|endoftext|>'
VOCABULARY_FILES = ('encoder.json', 'vocab.bpe')
SPECIAL_TOKENS_FILE = 'special_tokens.json'  # which a model directory need not have
SPECIAL_TOKENS_BYTES = 1 << 20  # at most
PART = 1 << 18  # characters split at a time
REMEDY = 'fetch it again with ./download_model.py, or copy it from where the model came from'


def bytes_to_unicode() -> dict[int, str]:
    """A dict of 256: each byte's value → the one character that stands for it in encoder.json and vocab.bpe.

    Printable characters of Latin-1 stand for themselves and come first, in the order of GPT-2's ids 0…255; the others
    (controls, space, soft hyphen) take the characters from U+0100 on.
    """
    def shown(byte):
        return 0x21 <= byte <= 0x7E or (0xA1 <= byte <= 0xFF and byte != 0xAD)
    hidden = [byte for byte in range(256) if not shown(byte)]
    return {**{byte: chr(byte) for byte in range(256) if shown(byte)},
            **{byte: chr(256 + i) for i, byte in enumerate(hidden)}}


class SpecialTokens(typing.NamedTuple):
    """What special_tokens.json holds: symbols of encoder.json, and which of them ends a text."""
    tokens: Sequence[str]
    end: str | None


class Encoder:
    """Encodes and decodes with one vocabulary; see the module's docstring.

    encoder: dict of symbol → id; bpe_merges: pairs of symbols, first to be merged first; errors: what decode does with
    bytes that are not UTF-8, as bytes.decode takes it; names: what messages call the two; special: None for
    <|endoftext|> alone, where the vocabulary has it.
    Remembers pieces as it encodes, so that two threads may not use it at once.
    Attributes: encoder, decoder (id → symbol), n_vocab (largest id + 1), special (text of a special token →
    id), eot (the id of the one that ends a text, or None).
    Raises InputError if the vocabulary or the merges cannot be used.
    """

    def __init__(self, encoder: dict[str, int], bpe_merges: Sequence[Sequence[str]], errors: str = 'replace',
                 names: Sequence[str] = VOCABULARY_FILES, special: SpecialTokens | None = None):
        check_vocabulary(encoder, names[0])
        self.encoder = encoder
        self.decoder = {id: symbol for symbol, id in encoder.items()}
        self.errors = errors
        self.n_vocab = max(self.decoder) + 1
        symbols = bytes_to_unicode()
        byte_of = {symbol: byte for byte, symbol in symbols.items()}
        self._bytes = {id: symbol_bytes(symbol, byte_of) for symbol, id in encoder.items()}
        byte_ids = [encoder[symbols[byte]] for byte in range(256)]
        triples = merge_ids(encoder, bpe_merges, names)
        self._merges = Merges(triples, byte_ids, self.n_vocab)
        self._cache = PieceCache(self._merges)
        tokens, end = special or ((EOT,) if EOT in encoder else (), EOT)
        spelt = {*byte_ids, *(merged for _, _, merged in triples)}  # by bytes
        self.special: dict[str, int] = {}
        for text in tokens:
            require(text in encoder, f'{names[0]} lacks the special token {text[:80]!r}; {REMEDY}')
            id, token_bytes = encoder[text], text.encode('utf-8', 'surrogatepass')
            require(id not in spelt or self._bytes[id] == token_bytes,
                    f'{text[:80]!r} can be no special token, as it stands for other bytes in {names[0]}; take it '
                    'off the list of special tokens')
            self.special[text], self._bytes[id] = id, token_bytes
        self.eot = None if end is None else self.special.get(end)

    def __len__(self):
        return self.n_vocab

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 digits, others for another vocabulary."""
        content = json.dumps([self.encoder, self.special, self.eot], sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()

    def encode(self, text: str, allowed_special: bool = False) -> list[int]:
        """The token ids of a text. <|endoftext|> and other special tokens in it are text like any other,
        unless allowed_special: then they are their ids, and of several at one place the longest is.

        Raises InputError for a lone surrogate (half a UTF-16 pair), which has no UTF-8 form.
        """
        ids: list[int] = []
        if allowed_special:
            parts_of_text = split_at([text], self.special)
            for are_tokens, parts in itertools.groupby(parts_of_text, self.special.__contains__):
                if are_tokens:
                    ids += [self.special[part] for part in parts]
                else:
                    ids += self.encode(''.join(parts))
        else:
            for some in self.encode_stream([text]):
                ids += some.tolist()
        return ids

    def encode_stream(self, texts: Iterable[str]) -> Iterator[np.ndarray]:  # each int32 [n_tokens]
        """Yields, an array at a time, the ids that encode gives for the strings joined; they may be cut anywhere.

        Memory is bounded by the longest piece (a run of letters, of digits, of other signs or of white space), not
        by the text. Raises InputError for a lone surrogate.
        """
        held, length, enough = [], 0, PART
        for part in checked_parts(texts):
            held.append(part)
            length += len(part)
            if length >= enough:
                ids, rest = self._ids(''.join(held), whole=False)
                if len(ids):
                    yield ids
                held, length = [rest], len(rest)
                enough = max(PART, 2 * length)  # an endless piece is looked at log n times, not n
        if length:
            yield self._ids(''.join(held))[0]

    def _ids(self, text, whole=True):  # str, not empty -> int32 [n_tokens], the rest of the text if not whole
        if not self._merges.ranks:  # every byte is a token: nothing to split
            return self._merges.byte_ids[np.frombuffer(text.encode(), np.uint8)].astype(np.int32), ''
        data, bounds, rest = split(text, whole)
        return self._cache.ids(data, bounds)[0], rest

    def encode_each(self, texts: Sequence[str]) -> list[np.ndarray]:  # none empty -> each int32 [n_tokens]
        """What encode gives for each text; for many short ones, in a fraction of the time.

        Raises InputError for a lone surrogate.
        """
        results, few, length = [], [], 0
        for text in [*texts, None]:
            if few and (text is None or length + len(text) > PART):
                results += self._ids_each(few)
                few, length = [], 0
            if text is not None and len(text) <= PART:
                few.append(text)
                length += len(text)
            elif text is not None:
                results.append(np.concatenate(list(self.encode_stream([text]))))
        return results

    def _ids_each(self, texts):  # one or more, not empty, joined not too long -> list of int32 [n_tokens]
        text = ''.join(texts)
        check_surrogates(text)
        if not self._merges.ranks:
            return [self._ids(each)[0] for each in texts]
        starts = np.cumsum([len(each) for each in texts])[:-1]
        data, bounds, _ = split(text, starts=starts)
        ids, counts = self._cache.ids(data, bounds)
        byte_starts = np.cumsum([len(each.encode()) for each in texts])[:-1]
        pieces_before = np.searchsorted(bounds, byte_starts)
        return np.split(ids, np.append(0, np.cumsum(counts))[pieces_before])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids: a list, a NumPy array, any iterable of integers.

        Ids that end within a character decode to U+FFFD there. Raises InputError for what is not an id here.
        """
        return self.decode_bytes(ids).decode('utf-8', errors=self.errors)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of token ids, which need not begin and end between characters. Raises InputError as decode does."""
        ids = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
        for kind in set(map(type, ids)):
            if kind is bool or not issubclass(kind, (int, np.integer)):
                bad = next(id for id in ids if type(id) is kind)
                raise InputError(f'token id {bad!r} is not an integer; ids are 0 to {self.n_vocab - 1}')
        try:
            return b''.join(map(self._bytes.__getitem__, ids))
        except KeyError as error:
            raise InputError(f'token id {error.args[0]} is not in the vocabulary, whose ids are 0 to '
                             f'{self.n_vocab - 1}; check that text and model belong together') from None


def checked_parts(texts):
    """The strings again, in parts of at most PART characters; InputError at a lone surrogate."""
    seen = 0
    for text in texts:
        for start in range(0, len(text), PART):
            part = text[start:start + PART]
            check_surrogates(part, seen)
            seen += len(part)
            yield part


def split_at(texts: Iterable[str], tokens: Collection[str]) -> Iterator[str]:  # none empty
    """The strings joined, which may be cut anywhere, and cut anew: each of the tokens in them stands alone.

    Of several at one place the longest does. Raises InputError for a lone surrogate, with its offset in the
    whole.
    """
    pattern = re.compile('|'.join(map(re.escape, sorted(tokens, key=len, reverse=True))) or '(?!)')
    longest, held = max(map(len, tokens), default=1), ''
    for part in itertools.chain(checked_parts(texts), [None]):
        text = held + (part or '')
        # What begins from here on may be longer than can be seen.
        decided = len(text) if part is None else len(text) - longest + 1
        start = 0
        for match in pattern.finditer(text):
            if match.start() >= decided:
                break
            if start < match.start():
                yield text[start:match.start()]
            yield match[0]
            start = match.end()
        if start < decided:
            yield text[start:decided]
        held = text[max(start, decided):]


def separate_texts(texts: Iterable[str]) -> Iterator[str]:  # none empty
    """The strings joined, and cut anew where a cut changes no id: each can be encoded for itself.

    A text of up to PART characters stays whole. Memory is bounded by the longest piece. Raises InputError for a lone
    surrogate, with its offset in the whole.
    """
    held = []
    for part in checked_parts(texts):
        if held:
            cut = safe_cut(held[-1][-1] + part) - 1
            if cut >= 0:
                yield ''.join([*held, part[:cut]])
                held, part = [], part[cut:]
        held.append(part)
    if held:
        yield ''.join(held)


def check_surrogates(text: str, seen: int = 0):
    """InputError, with its offset and those `seen` before the text, for a lone surrogate."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f'the character at offset {seen + error.start} is U+{ord(text[error.start]):04X}, half of a '
                         'UTF-16 pair, or a byte that was not UTF-8; remove it, or read the text with its own '
                         'encoding') from None


# Loading


def get_encoder(model_name: str, models_dir: str = 'models') -> Encoder:
    """The Encoder of a model's or run's encoder.json, vocab.bpe and, where it has one, special_tokens.json; InputError
    if they are missing or damaged."""
    directory = paths.find_model(model_name, models_dir)
    vocabulary, merges, special = load_vocabulary(directory)
    return Encoder(vocabulary, merges, names=[os.path.join(directory, name) for name in VOCABULARY_FILES],
                   special=special)


def load_vocabulary(directory: str) -> tuple[dict[str, int], list[tuple[str, ...]], SpecialTokens | None]:
    """Ids by symbol, pairs of symbols, and special tokens, as they stand in a folder's files; Encoder checks
    whether they can be used."""
    vocabulary, merges = (os.path.join(directory, name) for name in VOCABULARY_FILES)
    return (read_vocabulary(vocabulary), read_merges(merges),
            read_special_tokens(os.path.join(directory, SPECIAL_TOKENS_FILE)))


def read_utf8(path):
    try:
        return paths.read_small(path).decode('utf-8').removeprefix(paths.BYTE_ORDER_MARK)
    except FileNotFoundError:
        raise InputError(f'{path} is missing; {REMEDY}') from None
    except UnicodeDecodeError as error:
        raise InputError(f'{path} is not UTF-8 at byte {error.start}; {REMEDY}') from None


def read_vocabulary(path: str) -> dict[str, int]:
    """What should be ids by symbol; check_vocabulary tells. Raises InputError for what is not JSON."""
    text = read_utf8(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path} is not JSON: {error}; {REMEDY}') from None


def read_merges(path: str) -> list[tuple[str, ...]]:
    """The merges of a vocab.bpe: a line each, two symbols with a space between; a first line #version… is a comment."""
    text = read_utf8(path)
    require(text, f'{path} is empty; {REMEDY}')  # one without merges has the line of the version
    lines = text.replace('\r\n', '\n').rstrip('\n').split('\n')
    start = 1 if lines[0].startswith('#version') or lines == [''] else 0
    merges: list[tuple[str, ...]] = []
    for number, line in enumerate(lines[start:], start + 1):
        pair = tuple(line.split(' '))
        if len(pair) != 2 or not all(pair):
            raise InputError(f'{path} line {number} is not two symbols with a space between but {line[:80]!r}; '
                             f'{REMEDY}')
        merges.append(pair)
    return merges


def read_special_tokens(path: str) -> SpecialTokens | None:
    """The special tokens that a special_tokens.json lists; None where there is none."""
    try:
        data = paths.read_small(path, SPECIAL_TOKENS_BYTES)
    except FileNotFoundError:
        if os.path.islink(path):  # to a file that has gone
            raise
        return None
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path} is not JSON: {error}; {REMEDY}') from None
    tokens = values.get('tokens') if isinstance(values, dict) else None
    require(isinstance(tokens, list) and all(isinstance(text, str) and text for text in tokens)
            and values.keys() == {'tokens', 'end'} and values['end'] in (None, *tokens),
            f'{path} must hold an object of "tokens", a list of texts, and "end", one of these or null; '
            f'{REMEDY}')
    return SpecialTokens(**values)


def write_vocabulary(directory: str, encoder: dict[str, int], merges: Iterable[Sequence[str]],
                     special: SpecialTokens | None = None, names: Sequence[str] = VOCABULARY_FILES):
    """Writes what load_vocabulary reads, the first two in the form of the released files."""
    with paths.replacing(os.path.join(directory, names[0])) as file:
        json.dump(encoder, file)
    with paths.replacing(os.path.join(directory, names[1])) as file:
        file.write('#version: 0.2\n')
        file.writelines(f'{first} {second}\n' for first, second in merges)
    if special:
        with paths.replacing(os.path.join(directory, SPECIAL_TOKENS_FILE)) as file:
            json.dump(special._asdict(), file)


def check_vocabulary(encoder, name: str):
    """InputError unless encoder is a dict of str → id, all ids different, with a symbol for each of the 256 bytes."""
    require(isinstance(encoder, dict), f'{name} must hold an object of symbol: id, not a {type(encoder).__name__}; '
            f'{REMEDY}')
    for symbol, id in encoder.items():
        if type(id) is not int or not 0 <= id < 2**31:
            raise InputError(f'{name} gives {symbol[:80]!r} the id {str(id)[:40]!r}, which is not a whole number '
                             f'from 0 to {2**31 - 1}; {REMEDY}')
    missing = [symbol for symbol in bytes_to_unicode().values() if symbol not in encoder]
    require(not missing, f'{name} lacks {len(missing)} of the 256 byte symbols, the first {missing[:1]}; {REMEDY}')
    owners = {}
    for symbol, id in encoder.items():
        if owners.setdefault(id, symbol) != symbol:
            raise InputError(f'{name} gives the id {id} to both {owners[id][:80]!r} and {symbol[:80]!r}; '
                             f'{REMEDY}')


def merge_ids(encoder, merges, names):  # -> list of (first id, second id, merged id)
    """The merges as ids; InputError where a symbol, or the two joined, is not in the vocabulary."""
    triples = []
    for number, pair in enumerate(merges, 1):
        first, second = pair
        try:
            triples.append((encoder[first], encoder[second], encoder[first + second]))
        except KeyError as error:
            raise InputError(f'{names[1]}: merge {number}, {" ".join(pair)[:80]!r}, needs the symbol '
                             f'{error.args[0][:80]!r}, which {names[0]} does not have; take both files '
                             'from the same model') from None
    return triples


def symbol_bytes(symbol, byte_of):  # str -> bytes
    """The bytes that a symbol stands for; one that is not spelt in byte symbols (an added token) stands for itself."""
    try:
        return bytes(map(byte_of.__getitem__, symbol))
    except KeyError:
        return symbol.encode('utf-8', 'surrogatepass')
