r"""Published test sets: where they come from, how their files are read, and their detokenizers.

Test sets of language models are tokenised: "the boat 's length was 1 @,@ 000 ft ( 300 m ) ." A model of natural text
should not pay for that. The paper (Radford et al. 2019, section 3.1) uses "invertible de-tokenizers": since the text
can be restored from what they make, the probability of the one is that of the other.

A detokenizer here is a chain of steps each of which is a bijection on all strings, so that the chain is invertible
whatever it is given; how good its rules are decides only how natural the result looks. There are two kinds of steps.
 - A swap exchanges two spellings at places that are found by what surrounds them: '1 @,@ 000' ↔ '1,000'.
 - Spacing: between two characters that are not spaces, a rule says whether a tokenizer puts a space that people do not
   write ("boat 's" ↔ "boat's"). Where it is so, a space is taken away if there is one, and put there if there is none.
   The rule knows the tokenised text after that place, and the characters, but not the spaces, before it. Going from
   right to left, the inverse knows the same, and so undoes each change.

Needs no TensorFlow.
"""
import dataclasses
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator

import numpy as np

import load_dataset
from errors import InputError, require
from storage import paths

AHEAD, BEHIND = 6, 6  # characters that a spacing rule sees
CONTRACTION = re.compile(r"'(?:s|t|ll|ve|re|d|m)(?!\w)", re.IGNORECASE)  # "don't" is "don 't" in WikiText
PENN_CONTRACTION = re.compile(r"'(?:s|ll|ve|re|d|m)(?!\w)", re.IGNORECASE)  # and "do n't" in the Penn Treebank
CLOSING, OPENING = frozenset(',;:!?)]}%′″'), frozenset('([{$£')
ABBREVIATIONS = ('Mr', 'Mrs', 'Ms', 'Dr', 'St', 'Mt', 'Jr', 'Sr', 'Lt', 'Col', 'Gen', 'Capt', 'Sgt', 'Gov', 'Sen',
                 'Rep', 'Rev', 'Prof', 'Inc', 'Corp', 'Co', 'Ltd', 'vs', 'No', 'etc')
ENWIK8_BYTES, ENWIK8_TEST = 100_000_000, 5_000_000  # text8 has as many


# Steps of detokenizers: each a pair of functions of a line, there and back

def swap(pattern, first, second):
    """Exchanges the spellings `first` and `second` at the places of a pattern that matches both, and finds both at the
    same places: its lookarounds must rule out whatever could be part of a spelling."""
    expression = re.compile(pattern)

    def swapped(line):
        return expression.sub(lambda match: second if match[0] == first else first, line)
    return swapped, swapped


def framed(line):
    """Exchanges ' words ' and 'words', ' ' and ''; a line with other spaces around it stays. It is its own inverse."""
    words = line.strip(' ')
    if not words:
        return {'': ' ', ' ': ''}.get(line, line)
    return {words: f' {words} ', f' {words} ': words}.get(line, line)


def quoted(line):
    """Exchanges '"' with '``' at the first, third, … mark of the line, with "''" at the others. Its own inverse."""
    number = itertools.count()

    def exchanged(match):
        expected = ('``', "''")[next(number) % 2]
        return {'"': expected, expected: '"'}.get(match[0], match[0])
    # No mark or part of one stands beside: which marks there are is the same before and after.
    return re.sub(r"""(?<![`'"])(?:``|''|")(?![`'"])""", exchanged, line)


def spacing(rule):  # -> two functions of a line
    """The step of a rule(before, after, quotes); see the module's docstring.

    before: up to BEHIND characters before the place, without spaces; after: up to AHEAD of the tokenised text after it;
    quotes: how many double quotation marks the line has before it.
    """
    return (lambda line: respaced(line, rule, to_natural=True)), (lambda line: respaced(line, rule, to_natural=False))


def respaced(line, rule, to_natural):
    # Each character, with the spaces before it; at those after the last, the expression would take n² steps.
    places = re.findall('( *)([^ ])', line.rstrip(' '))
    characters = ''.join(character for _, character in places)
    quotes = list(itertools.accumulate((character == '"' for character in characters), initial=0))
    after = ' ' * (len(line) - len(line.rstrip(' ')))
    result = [after]
    for i in range(len(places) - 1, -1, -1):
        space, character = places[i]
        after = (character + after)[:AHEAD]
        new = space
        if i and len(space) < 2 and rule(characters[max(0, i - BEHIND):i], after, quotes[i]):
            new = '' if space else ' '
        result += [character, new]
        after = ((space if to_natural else new) + after)[:AHEAD]
    return ''.join(reversed(result))


# Rules

def english(before, after, quotes, contraction=CONTRACTION):
    """Where newspapers' and WikiText's tokenizers put a space that people do not write."""
    last, first = before[-1], after[0]
    if '@' in (last, first) or (first.isalnum() and last.isalnum()):  # '@,@' is for a swap
        return False
    if last == '"' and quotes % 2:  # the first, third, … mark of the line opens a quotation
        return True
    if first == '"':
        return quotes % 2 == 1 or last in OPENING
    if first == '.':
        return ends_sentence(before, after)
    if first == "'":
        return bool(contraction.match(after)) or possessive(before, after)
    if first in '–/' or last in '–/':
        return joins(before, after)
    return first in CLOSING or last in OPENING


def possessive(before, after):
    return before[-1] == 's' and after[1:2] in ('', ' ')  # "the boats ' length"


def ends_sentence(before, after):
    """Whether a full stop is a token, and not the end of an abbreviation ('U.S.', 'J.', 'Mr.', 'e.g.')."""
    following = after[1:].lstrip(' ')[:1]
    initial = re.search(r'(?:^|[^A-Z])[A-Z]$', before)
    return not (initial or following.islower() or before[-1] == '.' or re.search(r'\.\w$', before)
                or before.endswith(ABBREVIATIONS))


def joins(before, after):
    """Whether '–' between figures, or '/' between letters or figures, is beside this place: '5 – 6' is '5–6'."""
    sign = after[0] if after[0] in '–/' else before[-1]
    left, right = (before[-1], after[1:].lstrip(' ')[:1]) if after[0] == sign else (before[-2:-1], after[0])
    return left.isdigit() and right.isdigit() if sign == '–' else left.isalnum() and right.isalnum()


def wikitext_spacing(before, after, quotes):
    return before[-1] == after[0] == '=' or english(before, after, quotes)  # '= = Title = =' is '== Title =='


def penn_spacing(before, after, quotes):
    """Of the Penn Treebank: "was n't" is "wasn't", "do n't", "the bank 's", "$ N"."""
    if re.match(r"n't(?!\w)", after) and before[-1].isalpha():
        return True
    if after[0] == "'":
        return bool(PENN_CONTRACTION.match(after)) or possessive(before, after)
    return (before[-1] in '$#' and after[0] == 'N') or after[0] == '%'


def book_spacing(before, after, quotes):
    return penn_spacing(before, after, quotes) or english(before, after, quotes, PENN_CONTRACTION)


# Detokenizers

class Detokenizer:
    """Steps that make tokenised text natural, and the way back. Each line, up to a '\\n', is changed by itself."""

    def __init__(self, *steps):
        self.steps = steps

    def detokenize(self, text: str) -> str:
        """The text as people write it."""
        return self.through(text, [there for there, _ in self.steps])

    def tokenize(self, text: str) -> str:
        """What detokenize was given."""
        return self.through(text, [back for _, back in reversed(self.steps)])

    def through(self, text, functions):
        lines = text.split('\n')
        for number, line in enumerate(lines):
            if number == len(lines) - 1 and not line.strip(' '):
                continue  # what follows the last line's end is no line
            for function in functions:
                line = function(line)
            lines[number] = line
        return '\n'.join(lines)


def wikitext_detokenizer():
    # A sign that was split from what stands on both sides of it is written with @.
    return Detokenizer((framed, framed), spacing(wikitext_spacing),
                       swap(r'(?<=[\w>])(?: @-@ |-)(?=[\w<])', ' @-@ ', '-'),
                       swap(r'(?<=[\d>])(?: @,@ |,)(?=[\d<])', ' @,@ ', ','),
                       swap(r'(?<=[\d>])(?: @\.@ |\.)(?=[\d<])', ' @.@ ', '.'))


def penn_detokenizer():
    return Detokenizer((framed, framed), spacing(penn_spacing), swap(r'(?<!\\)\\?/', '\\/', '/'))


def news_detokenizer():
    return Detokenizer(spacing(english))


def book_detokenizer():
    """Of the Children's Book Test and of LAMBADA as first published."""
    return Detokenizer((quoted, quoted), swap(r'(?<!\S)(?:-LRB-|\()(?!\S)', '-LRB-', '('),
                       swap(r'(?<!\S)(?:-RRB-|\))(?!\S)', '-RRB-', ')'), spacing(book_spacing))


def no_detokenizer():
    return Detokenizer()


# Corpora

@dataclasses.dataclass(frozen=True)
class Document:
    """A text to be scored, and what of the published text its probability is divided by.

    tokens: in place of the text, ids (int [n]) of a .npz.
    """
    text: str | None
    words: int
    lines: int
    bytes: int
    tokens: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A published test set.

    files: names that are looked for in a directory given in place of a file; source: where to get them; detokenizer:
    makes one; by_line: each line is a document; part: of a file's bytes, those to be scored.
    """
    title: str
    files: tuple[str, ...]
    source: str
    detokenizer: Callable[[], Detokenizer]
    by_line: bool = False
    part: Callable[[bytes], bytes] = bytes


def last_bytes(data: bytes) -> bytes:
    """The test part of enwik8 and text8, by common use the last 5 of their 100 million bytes; of other files, all.

    What a cut within a character leaves of it is not part of it.
    """
    if len(data) != ENWIK8_BYTES:
        return data
    start = ENWIK8_BYTES - ENWIK8_TEST
    while 0x80 <= data[start] < 0xC0:
        start += 1
    return data[start:]


WIKITEXT_FILES = ('wiki.test.tokens', 'wiki.test.raw')
WIKITEXT_SOURCE = 'wikitext-2-v1.zip or wikitext-103-v1.zip; see huggingface.co/datasets/Salesforce/wikitext'
CORPORA = {
    'wikitext2': Corpus('WikiText-2', WIKITEXT_FILES, WIKITEXT_SOURCE, wikitext_detokenizer),
    'wikitext103': Corpus('WikiText-103', WIKITEXT_FILES, WIKITEXT_SOURCE, wikitext_detokenizer),
    'ptb': Corpus('Penn Treebank', ('ptb.test.txt',),
                  "simple-examples.tgz of www.fit.vutbr.cz/~imikolov/rnnlm, there data/ptb.test.txt", penn_detokenizer),
    '1bw': Corpus('One Billion Word', ('news.en.heldout-00000-of-00050',),
                  'www.statmt.org/lm-benchmark, there heldout-monolingual.tokenized.shuffled',
                  news_detokenizer, by_line=True),
    'enwik8': Corpus('enwik8', ('enwik8',), 'mattmahoney.net/dc/enwik8.zip', no_detokenizer, part=last_bytes),
    'text8': Corpus('text8', ('text8',), 'mattmahoney.net/dc/text8.zip', no_detokenizer, part=last_bytes),
}
LAMBADA_SOURCE = ('lambada_test.jsonl of openaipublic.blob.core.windows.net/gpt-2/data (natural text), or '
                  'lambada_test_plain_text.txt of zenodo.org/record/2630551 (tokenised)')
CBT_SOURCE = ('cbtest_CN_valid_2500ex.txt or cbtest_NE_valid_2500ex.txt of CBTest.tgz; see '
              'huggingface.co/datasets/cam-cst/cbt')


def corpus_documents(name: str, data: str) -> Iterator[Document]:
    """The documents of a published test set in the files that `data` means, detokenised, and counted as published."""
    corpus = CORPORA[name]
    detokenizer = corpus.detokenizer()
    for path in corpus_files(data, corpus.files, f'{corpus.title} comes from {corpus.source}'):
        for part in parts(read_utf8(path, corpus.part), corpus.by_line):
            yield counted(part, detokenizer.detokenize(part))


def parts(text: str, by_line: bool) -> list[str]:
    """The text, or its lines with their ends."""
    return re.findall('[^\n]*\n|[^\n]+', text) if by_line else [text]


def corpus_files(data: str, names: tuple[str, ...], source: str) -> list[str]:
    """The files that `data` means; of a directory, the first of `names`. InputError, with the source, without one."""
    path = paths.expand(data)
    if names and os.path.isdir(path):
        found = [os.path.join(path, name) for name in names if os.path.exists(os.path.join(path, name))]
        require(found, f'--data {data} has no {" or ".join(names)}; {source}')
        return found[:1]
    try:
        return load_dataset.find_files(data)
    except InputError as error:
        raise InputError(f'--data: {error}. {source}') from None


def read_utf8(path, part=bytes):
    """The text of a file, or of a part of its bytes, without a byte-order mark."""
    data = paths.read_small(path, paths.TEXT_FILE, or_pipe=True)
    paths.check_text(data, f'{path}: ')
    try:
        return part(data).decode('utf-8').removeprefix(paths.BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        raise InputError(f'{path}: not utf-8 at byte {error.start} of what is scored; take the file as it was published'
                         ) from None


def counted(original, text=None):
    """A Document of a text, with the words, line ends and bytes of the original."""
    return Document(text=original if text is None else text, words=len(original.split()), lines=original.count('\n'),
                    bytes=len(original.encode()))


def text_documents(enc, files: list[str], encoding: str = 'utf-8', special_tokens: bool = True
                   ) -> Iterator[Document]:
    """The documents of what training reads, encoded as there: what lies between tokens that end a text."""
    for parts in load_dataset.iter_chunks(enc, files, 1, encoding, special_tokens=special_tokens):
        for tokens in between(np.concatenate(list(parts)), enc.eot):
            yield dataclasses.replace(counted(enc.decode(tokens)), text=None, tokens=tokens)


def between(array, separator):  # -> iterator of arrays, none empty
    ends = (array == separator).nonzero()[0].tolist() if separator is not None else []
    for start, end in itertools.pairwise([-1, *ends, len(array)]):
        if end - start > 1:
            yield array[start + 1:end]


# Lines, LAMBADA and the Children's Book Test

def records(data: str, source: str | None = None) -> Iterator[tuple[str, dict]]:
    """The objects of JSON lines (in files .jsonl or .json), or {'text': line} for each line of other files; before each
    the place where it stands."""
    for path in corpus_files(data, (), source) if source else load_dataset.find_files(data):
        is_json = path.lower().endswith(('.jsonl', '.json'))
        for number, line in enumerate(parts(read_utf8(path), by_line=True), 1):
            line, place = line.rstrip('\r\n'), f'{path} line {number}'
            if not is_json:
                yield place, {'text': line}
            elif line.strip():
                yield place, json_record(line, place)


def json_record(line, place):
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f'{place} is not JSON ({error}); each line is an object with a "text"') from None
    require(isinstance(record, dict) and isinstance(record.get('text'), str),
            f'{place} is not an object with a "text" that is a string')
    return record


def lambada_passages(data: str, detokenize: bool = False) -> Iterator[tuple[str, str]]:
    """The passages of LAMBADA, a line or JSON object each: the context, and the last word with what separates it."""
    detokenizer = book_detokenizer() if detokenize else no_detokenizer()
    for place, record in records(data, f'LAMBADA is {LAMBADA_SOURCE}'):
        text = detokenizer.detokenize(record['text'].strip())
        words = text.split()
        if not words:
            continue
        require(len(words) > 1, f'{place} has a single word; a passage has words before its last')
        context = text[:len(text) - len(words[-1])].rstrip()
        yield context, text[len(context):]


@dataclasses.dataclass(frozen=True)
class Question:
    """Of the Children's Book Test: twenty sentences, the one with a gap (text before and after it), the choices and the
    right one. A further XXXXX in `after` is the same gap."""
    context: str
    before: str
    after: str
    candidates: tuple[str, ...]
    answer: str


def cbt_questions(data: str) -> Iterator[Question]:
    """The questions of a file, detokenised: lines '1 …' to '20 …', then '21 … XXXXX …', a tab, the answer, two tabs,
    the choices with | between. Raises InputError for another format."""
    detokenizer = book_detokenizer()
    for path in corpus_files(data, (), f"the Children's Book Test is {CBT_SOURCE}"):
        lines = read_utf8(path).split('\n')
        sentences = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            place = f'{path} line {number}'
            match = re.fullmatch(r'(\d{1,2}) (.*?)\r?', line)
            if not match or int(match[1]) != len(sentences) + 1:
                raise InputError(f'{place} does not begin with {len(sentences) + 1} and a space; lines are numbered '
                                 'from 1 to 21')
            if int(match[1]) < 21:
                sentences.append(detokenizer.detokenize(match[2]))
                continue
            yield question(sentences, match[2], detokenizer, place)
            sentences = []
        require(not sentences, f'{path} ends within a question, after line {len(sentences)} of 21')


def question(sentences, line, detokenizer, place):
    fields = line.split('\t')
    require(len(fields) == 4 and 'XXXXX' in fields[0],
            f'{place}: line 21 is a sentence with XXXXX, tab, answer, two tabs, choices with | between')
    candidates = tuple(fields[3].split('|'))
    require(len(candidates) > 1 and fields[1] in candidates,
            f'{place} has {len(candidates)} choices, and the answer {fields[1]!r} must be among two or more')
    before, _, after = detokenizer.detokenize(fields[0]).partition('XXXXX')
    return Question(' '.join(sentences), before, after, candidates, fields[1])
