r"""Published test sets: where they come from, how their files are read, and how their text is detokenized.

The sets are tokenised: "the boat 's length was 1 @,@ 000 ft ( 300 m ) ." A model of natural text should not
pay for that, so the paper (Radford et al. 2019, section 3.1) uses "invertible de-tokenizers": both texts can
be restored from each other and have the same probability. A detokenizer here is a tuple of steps, each a
bijection on all lines, so that it is invertible; good rules only make the result look natural.

A step is called with a line, and with whether to make it natural or to undo that. `swap`, `frame` and `quote`
exchange two spellings, so they undo themselves. `respace` asks a rule between two characters whether a
tokenizer puts a space there that people do not write ("boat 's" ↔ "boat's"): there a space is removed, and a
missing one is put. The rule sees the tokenised text after the place, and the text before it without spaces.
Both ways go from right to left, so that the rule sees the same.
"""
import functools
import itertools
import json
import os
import re
import typing
from collections.abc import Iterator

import numpy as np

import load_dataset
from errors import InputError, require
from storage import paths

LINE = re.compile(r'[^\n]*\n|[^\n]+')
AHEAD, BEHIND = 6, 6  # characters that a rule sees
CONTRACTION = re.compile(r"'(?:s|t|ll|ve|re|d|m)(?!\w)", re.IGNORECASE)  # "don't" is "don 't" in WikiText
PENN_CONTRACTION = re.compile(r"'(?:s|ll|ve|re|d|m)(?!\w)", re.IGNORECASE)  # "do n't" in Penn Treebank
CLOSING, OPENING = frozenset(',;:!?)]}%′″'), frozenset('([{$£')
ABBREVIATIONS = ('Mr', 'Mrs', 'Ms', 'Dr', 'St', 'Mt', 'Jr', 'Sr', 'Lt', 'Col', 'Gen', 'Capt', 'Sgt', 'Gov',
                 'Sen', 'Rep', 'Rev', 'Prof', 'Inc', 'Corp', 'Co', 'Ltd', 'vs', 'No', 'etc')
ENWIK8_BYTES, ENWIK8_TEST = 100_000_000, 5_000_000  # text8 has as many


# Steps

def swap(pattern, first, second, line, natural):
    """Exchanges two spellings at the places of a pattern; its lookarounds rule out parts of a spelling."""
    return re.sub(pattern, lambda match: second if match[0] == first else first, line)


def frame(line, natural):
    """Exchanges ' words ' and 'words', ' ' and ''; a line with other spaces around it stays."""
    words = line.strip(' ')
    if not words:
        return {'': ' ', ' ': ''}.get(line, line)
    return {words: f' {words} ', f' {words} ': words}.get(line, line)


def quote(line, natural):
    """Exchanges '"' with '``' at the first, third, … mark of the line, with "''" at the others."""
    spellings = itertools.cycle(('``', "''"))

    def exchanged(match):
        spelling = next(spellings)
        return {'"': spelling, spelling: '"'}.get(match[0], match[0])
    # A mark beside (a part of) another one stays, so that the marks are the same before and after.
    return re.sub(r"""(?<![`'"])(?:``|''|")(?![`'"])""", exchanged, line)


def respace(rule, line, natural):
    """Changes the spaces of a line where rule(before, after, quotes) holds.

    before: up to BEHIND characters before a place, without spaces. after: up to AHEAD characters of the
    tokenised text after it. quotes: how many double quotation marks the line has before it.
    """
    # Each character with the spaces before it. Spaces at the end would cost the expression n² steps.
    places = re.findall('( *)([^ ])', line.rstrip(' '))
    characters = ''.join(character for _, character in places)
    quotes = list(itertools.accumulate((character == '"' for character in characters), initial=0))
    after = ' ' * (len(line) - len(line.rstrip(' ')))
    reversed_parts = [after]
    for i in range(len(places) - 1, -1, -1):
        space, character = places[i]
        new, after = space, (character + after)[:AHEAD]
        if i and len(space) < 2 and rule(characters[max(0, i - BEHIND):i], after, quotes[i]):
            new = '' if space else ' '
        reversed_parts += [character, new]
        after = ((space if natural else new) + after)[:AHEAD]
    return ''.join(reversed(reversed_parts))


# Rules of respace

def english(before, after, quotes, contraction=CONTRACTION):
    """Where the tokenizers of newspapers and of WikiText put a space that people do not write."""
    last, first = before[-1], after[0]
    if '@' in (last, first) or (first.isalnum() and last.isalnum()):  # '@,@' is for a swap
        return False
    if last == '"' and quotes % 2:  # the first, third, … mark of the line opens a quotation
        return True
    if first == '"':
        return quotes % 2 == 1 or last in OPENING
    if first == '.':  # not the end of an abbreviation: 'U.S.', 'J.', 'Mr.', 'e.g.'
        abbreviated = re.search(r'(?:^|[^A-Z])[A-Z]$|\.$|\.\w$', before) or before.endswith(ABBREVIATIONS)
        return not abbreviated and not after[1:].lstrip(' ')[:1].islower()
    if first == "'":
        return is_apostrophe(before, after, contraction)
    if first in '–/' or last in '–/':
        return is_joined(before, after)
    return first in CLOSING or last in OPENING


def is_apostrophe(before, after, contraction):  # "the boat 's length", "the boats ' length"
    return bool(contraction.match(after)) or (before[-1] == 's' and after[1:2] in ('', ' '))


def is_joined(before, after):
    """Whether '–' between digits, or '/' between letters or digits, is beside the place: '5 – 6' is '5–6'."""
    sign = after[0] if after[0] in '–/' else before[-1]
    left, right = (before[-1], after[1:].lstrip(' ')[:1]) if after[0] == sign else (before[-2:-1], after[0])
    return left.isdigit() and right.isdigit() if sign == '–' else left.isalnum() and right.isalnum()


def wikitext(before, after, quotes):
    return before[-1] == after[0] == '=' or english(before, after, quotes)  # '= = Title = =' is '== Title =='


def penn_treebank(before, after, quotes):
    if re.match(r"n't(?!\w)", after) and before[-1].isalpha():  # "was n't"
        return True
    if after[0] == "'":
        return is_apostrophe(before, after, PENN_CONTRACTION)
    return (before[-1] in '$#' and after[0] == 'N') or after[0] == '%'


def books(before, after, quotes):
    return penn_treebank(before, after, quotes) or english(before, after, quotes, PENN_CONTRACTION)


# Detokenizers

PLAIN = ()
NEWS = (functools.partial(respace, english),)
PENN_TREEBANK = (frame, functools.partial(respace, penn_treebank),
                 functools.partial(swap, r'(?<!\\)\\?/', '\\/', '/'))
WIKITEXT = (frame, functools.partial(respace, wikitext),  # @ is beside a sign that was split from words
            functools.partial(swap, r'(?<=[\w>])(?: @-@ |-)(?=[\w<])', ' @-@ ', '-'),
            functools.partial(swap, r'(?<=[\d>])(?: @,@ |,)(?=[\d<])', ' @,@ ', ','),
            functools.partial(swap, r'(?<=[\d>])(?: @\.@ |\.)(?=[\d<])', ' @.@ ', '.'))
BOOKS = (quote, functools.partial(swap, r'(?<!\S)(?:-LRB-|\()(?!\S)', '-LRB-', '('),
         functools.partial(swap, r'(?<!\S)(?:-RRB-|\))(?!\S)', '-RRB-', ')'),
         functools.partial(respace, books))


def detokenize(text: str, steps: tuple, natural: bool = True) -> str:
    """The text as people write it; where natural is false, the tokenised text of a natural one."""
    lines = text.split('\n')
    count = len(lines) if lines[-1].strip(' ') else len(lines) - 1  # nothing but spaces at the end is no line
    for step in steps if natural else reversed(steps):
        lines[:count] = [step(line, natural) for line in lines[:count]]
    return '\n'.join(lines)


# Files

class Document:
    """A text or its ids (int [n]) to be scored, and the counts of the published text that divide its loss."""

    def __init__(self, published: str, content: str | np.ndarray | None = None):
        self.content = published if content is None else content
        self.words, self.lines = len(published.split()), published.count('\n')
        self.bytes = len(published.encode())

    def ids(self, enc):  # -> int [n]
        return np.array(enc.encode(self.content), np.int32) if isinstance(self.content, str) else self.content


class TestSet(typing.NamedTuple):
    """A published test set. files: names, of which the first that a directory holds is read.

    by_line: each line is a document. bytewise: ENWIK8_TEST bytes are scored, and line ends are no words.
    """
    title: str
    source: str
    files: tuple[str, ...] = ()
    steps: tuple = PLAIN
    by_line: bool = False
    bytewise: bool = False


WIKITEXT_SOURCE = 'wikitext-2-v1.zip or wikitext-103-v1.zip; see huggingface.co/datasets/Salesforce/wikitext'
WIKITEXT_FILES = ('wiki.test.tokens', 'wiki.test.raw')
TEXTS = {
    'wikitext2': TestSet('WikiText-2', WIKITEXT_SOURCE, WIKITEXT_FILES, WIKITEXT),
    'wikitext103': TestSet('WikiText-103', WIKITEXT_SOURCE, WIKITEXT_FILES, WIKITEXT),
    'ptb': TestSet('Penn Treebank', 'www.fit.vutbr.cz/~imikolov/rnnlm/simple-examples.tgz, there in data',
                   ('ptb.test.txt',), PENN_TREEBANK),
    '1bw': TestSet('One Billion Word',
                   'www.statmt.org/lm-benchmark, there heldout-monolingual.tokenized.shuffled',
                   ('news.en.heldout-00000-of-00050',), NEWS, by_line=True),
    'enwik8': TestSet('enwik8', 'mattmahoney.net/dc/enwik8.zip', ('enwik8',), bytewise=True),
    'text8': TestSet('text8', 'mattmahoney.net/dc/text8.zip', ('text8',), bytewise=True)}
LAMBADA = TestSet('LAMBADA', 'openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl (natural) or '
                  'zenodo.org/record/2630551, there lambada_test_plain_text.txt (tokenised)')
CBT = TestSet("The Children's Book Test", 'CBTest.tgz, there cbtest_CN_valid_2500ex.txt or '
              'cbtest_NE_valid_2500ex.txt; see huggingface.co/datasets/cam-cst/cbt')


def files_of(test_set: TestSet, data: str) -> list[str]:
    """The files that `data` means. Raises InputError, with the source of the test set, if there are none."""
    directory, remedy = paths.expand(data), f'{test_set.title} comes from {test_set.source}'
    if test_set.files and os.path.isdir(directory):
        files = [path for name in test_set.files if os.path.exists(path := os.path.join(directory, name))]
        require(files, f'--data {data} has no {" or ".join(test_set.files)}; {remedy}')
        return files[:1]
    try:
        return load_dataset.find_files(data)
    except InputError as error:
        raise InputError(f'--data: {error}. {remedy}') from None


def read_utf8(path, bytewise=False):
    """The text of a file, or the test part of enwik8 and text8, without a byte-order mark."""
    data = paths.read_small(path, paths.TEXT_FILE, or_pipe=True)
    paths.check_text(data, f'{path}: ')
    if bytewise and len(data) == ENWIK8_BYTES:
        data = data[-ENWIK8_TEST:]
        while 0x80 <= data[0] < 0xC0:  # of a character that was cut
            data = data[1:]
    try:
        return data.decode('utf-8').removeprefix(paths.BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        raise InputError(f'{path}: not utf-8 at byte {error.start} of the scored text; take the file as it '
                         'was published') from None


def documents(name: str, data: str) -> Iterator[Document]:
    """The documents of a test set of TEXTS in the files that `data` means, detokenised."""
    test_set = TEXTS[name]
    for path in files_of(test_set, data):
        text = read_utf8(path, test_set.bytewise)
        for part in LINE.findall(text) if test_set.by_line else [text]:
            yield Document(part, detokenize(part, test_set.steps))


def text_documents(enc, files: list[str], encoding='utf-8', special_tokens=True) -> Iterator[Document]:
    """The documents of files that training reads, encoded as for training."""
    for parts in load_dataset.iter_chunks(enc, files, 1, encoding, special_tokens=special_tokens):
        chunk = np.concatenate(list(parts))
        for tokens in np.split(chunk, np.flatnonzero(chunk == enc.eot)):
            tokens = tokens[tokens != enc.eot]  # with which all but the first begin
            if len(tokens):
                yield Document(enc.decode(tokens), tokens)


def records(files: list[str]) -> Iterator[tuple[str, dict]]:
    """The place and the object of each JSON line (in .jsonl, .json), or {'text': line} of each other line."""
    for path in files:
        is_json = path.lower().endswith(('.jsonl', '.json'))
        for number, line in enumerate(LINE.findall(read_utf8(path)), 1):
            place, record = f'{path} line {number}', {'text': line.rstrip('\r\n')}
            if is_json and not line.strip():
                continue
            if is_json:
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise InputError(f'{place} is not JSON ({error}); give an object with a "text"') from None
                require(isinstance(record, dict) and isinstance(record.get('text'), str),
                        f'{place} is not an object with a "text" that is a string')
            yield place, record


def lambada_passages(data: str, tokenised: bool = False) -> Iterator[tuple[str, str]]:
    """The passages of LAMBADA: the context, and the last word with the space before it."""
    for place, record in records(files_of(LAMBADA, data)):
        text = detokenize(record['text'].strip(), BOOKS if tokenised else PLAIN)
        words = text.split()
        if words:
            require(len(words) > 1, f'{place} has a single word; a passage has words before its last')
            context = text[:-len(words[-1])].rstrip()
            yield context, text[len(context):]


class Question(typing.NamedTuple):
    """Twenty sentences, a sentence before and after its gap (XXXXX is the gap again), choices, the answer."""
    context: str
    before: str
    after: str
    candidates: list[str]
    answer: str


def cbt_questions(data: str) -> Iterator[Question]:
    """The questions of files of the Children's Book Test, detokenised. Raises InputError for another format.

    It is: lines '1 …' to '20 …', then '21 … XXXXX …', a tab, the answer, two tabs, choices with | between.
    """
    for path in files_of(CBT, data):
        sentences = []
        for number, line in enumerate(read_utf8(path).split('\n'), 1):
            place, start = f'{path} line {number}', f'{len(sentences) + 1} '
            if line.strip():
                require(line.startswith(start),
                        f'{place} does not begin with {start}and a space; lines are numbered from 1 to 21')
                sentences.append(line.removeprefix(start).removesuffix('\r'))
            if len(sentences) == 21:
                yield question(sentences, place)
                sentences = []
        require(not sentences, f'{path} ends within a question, after line {len(sentences)} of 21')


def question(sentences, place):  # list of 21 str, str -> Question
    *context, last = sentences
    fields = last.split('\t')
    require(len(fields) == 4 and 'XXXXX' in fields[0],
            f'{place}: line 21 is a sentence with XXXXX, tab, answer, two tabs, choices with | between')
    candidates, answer = fields[3].split('|'), fields[1]
    require(len(candidates) > 1 and answer in candidates,
            f'{place} has {len(candidates)} choices, and the answer {answer!r} must be among two or more')
    before, _, after = detokenize(fields[0], BOOKS).partition('XXXXX')
    context = ' '.join(detokenize(sentence, BOOKS) for sentence in context)
    return Question(context, before, after, candidates, answer)
