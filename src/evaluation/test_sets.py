"""Published test sets, read and detokenized ("the boat 's length was 1 @,@ 000 ft .").

Detokenizers are invertible, as in the paper (Radford et al. 2019, section 3.1), so that probabilities
stay: tuples of steps, bijections on lines. step(line, natural) makes one natural, or undoes that.
"""
import io
import itertools
import os
import re
from collections.abc import Iterator

import numpy as np
import regex

import load_dataset
from errors import InputError, require
from storage import npz, paths, rows, text_files

SEEN = 6  # characters on both sides that a rule sees
ENWIK8_BYTES, ENWIK8_TEST = 100_000_000, 5_000_000  # text8, too


def swap(before, pairs, after=''):  # -> a step; `before` and `after` match around the spellings
    others = pairs | {second: first for first, second in pairs.items()}
    pattern = re.compile(f'{before}(?:{"|".join(map(re.escape, others))}){after}')

    def step(line, natural):
        return pattern.sub(lambda match: others[match[0]], line)
    return step


def frame(line, natural):  # ' words ' <-> 'words', ' ' <-> ''; a line with other spaces around it stays
    words = line.strip(' ')
    framed = f' {words} ' if words else ' '
    return {words: framed, framed: words}.get(line, line)


def quote(line, natural):  # '"' <-> '``' at the first, third, … mark of the line, "''" at the others
    marks = itertools.cycle(('``', "''"))

    def swapped(match):
        mark = next(marks)
        return {'"': mark, mark: '"'}.get(match[0], match[0])
    # A mark beside another stays, so that their number does.
    return re.sub(r"""(?<![`'"])(?:``|''|")(?![`'"])""", swapped, line)


def spacing(*rules):
    """A step that removes a space, or adds a missing one, where a rule matches between characters. Both ways
    go from right to left and see the same: tokenised text after a place, and text before it without spaces,
    with “ and ” in turn for ", and ~ for these."""
    rule = regex.compile('|'.join(rules))

    def step(line, natural):
        words = line.rstrip(' ')  # spaces at the end would cost n² steps
        places, after = re.findall('( *)([^ ])', words), line[len(words):]
        marks, parts, seen = itertools.cycle('“”'), [after], re.sub('[“”]', '~', words.replace(' ', ''))
        seen = re.sub('"', lambda _: next(marks), seen)
        for i in reversed(range(len(places))):
            space, char = places[i]
            new, after, before = space, (seen[i] + after)[:SEEN], seen[max(0, i - SEEN):i]
            is_word = char != 'n' and (before[-1:] + char).isalnum()  # then only n't could match
            if i and len(space) < 2 and not is_word and rule.match(before + after, len(before)):
                new = '' if space else ' '
            parts += [char, new]
            after = ((space if natural else new) + after)[:SEEN]
        return ''.join(reversed(parts))
    return step


# Rules: where tokenizers put a space that people do not
DIGIT, LETTER = r'[\d\p{nt=Digit}]', r'[\p{L}\p{N}]'
WORD_END = f'(?!{LETTER}|_)'
APOSTROPHES = rf"(?='(?i:s|ll|ve|re|d|m){WORD_END})|(?='(?: |\Z))(?<=s)"  # the boat's, the boats'
PENN = rf"{APOSTROPHES}|(?=n't{WORD_END})(?<=\p{{L}})|(?=N)(?<=[$#])|(?=%)"  # wasn't, $N
ENGLISH = (
    f"(?<!@)(?!@)(?:{APOSTROPHES}"  # '@,@' is for a swap
    r"|(?<=“)|(?=”)|(?<=[([{$£])(?![.'–/])|(?=[,;:!?)\]}%′″])(?<![–/])"
    f'|(?=– *{DIGIT})(?<={DIGIT})|(?<={DIGIT}–)(?={DIGIT})'  # 5–6
    f'|(?=/ *{LETTER})(?<={LETTER})|(?<={LETTER}/)(?={LETTER})'  # and/or
    r'|(?=\.(?! *\p{Lowercase}))(?<!Mrs?|Ms|Dr|St|Mt|Jr|Sr|Lt|Col|Gen|Capt|Sgt|Gov|Sen|Rep|Rev|Prof|Inc|Corp'
    rf'|Co|Ltd|vs|No|etc|(?<![A-Z])[A-Z]|\.|\.(?:{LETTER}|_)))')  # no end of an abbreviation
NEWS = rf"{ENGLISH}|(?<!@)(?='[tT]{WORD_END})"  # "don 't" in WikiText, too; the Penn Treebank has "do n't"

NEWS_STEPS = (spacing(NEWS),)
PENN_STEPS = (frame, spacing(PENN), swap(r'(?<!\\)', {'\\/': '/'}))
WIKITEXT_STEPS = (
    frame, spacing('(?<==)(?==)', NEWS),  # '= = Title = =' is '== Title =='
    swap(r'(?<=[\w>])', {' @-@ ': '-'}, r'(?=[\w<])'),
    swap(r'(?<=[\d>])', {' @,@ ': ',', ' @.@ ': '.'}, r'(?=[\d<])'))
BOOK_STEPS = (quote, swap(r'(?<!\S)', {'-LRB-': '(', '-RRB-': ')'}, r'(?!\S)'), spacing(PENN, ENGLISH))


def detokenize(text, steps, natural=True) -> str:
    """The natural text of a tokenised one or, unless `natural`, the reverse."""
    lines = text.split('\n')
    end = [] if lines[-1].strip(' ') else [lines.pop()]  # spaces alone at the end are no line
    for step in steps if natural else reversed(steps):
        lines = [step(line, natural) for line in lines]
    return '\n'.join(lines + end)


WIKITEXT = ('wikitext-2-v1.zip; see huggingface.co/datasets/Salesforce/wikitext', 'wiki.test.tokens',
            WIKITEXT_STEPS)
TEXTS = {  # source; file of a folder; steps, none: of bytes
    'wikitext2': WIKITEXT, 'wikitext103': WIKITEXT,
    'ptb': ('www.fit.vutbr.cz/~imikolov/rnnlm/simple-examples.tgz', 'ptb.test.txt', PENN_STEPS),
    '1bw': ('www.statmt.org/lm-benchmark', 'news.en.heldout-00000-of-00050', NEWS_STEPS),
    'enwik8': ('mattmahoney.net/dc/enwik8.zip', 'enwik8', ()),
    'text8': ('mattmahoney.net/dc/text8.zip', 'text8', ())}
LAMBADA = ('openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl (natural), or '
           'zenodo.org/record/2630551, lambada_test_plain_text.txt (tokenised)')
HELLASWAG = 'github.com/rowanz/hellaswag, data/hellaswag_val.jsonl'
CBT = 'CBTest.tgz, cbtest_CN_valid_2500ex.txt or …_NE_…; see huggingface.co/datasets/cam-cst/cbt'


def files_of(data, source, name=''):  # -> files of --data; of a folder, if there is a name, that one
    if name and os.path.isdir(paths.expand(data)):
        data = os.path.join(data, name)
    try:
        return load_dataset.find_files(data)
    except InputError as error:
        raise InputError(f'--data: {error}. The test set is in {source}') from None


def read_lines(path, bytewise=False):  # -> lines, ending with \n alone; of enwik8, text8 the test part
    text = ''.join(text_files.read_text(path))
    if bytewise and len(data := text.encode()) == ENWIK8_BYTES:
        text = data[-ENWIK8_TEST:].decode(errors='ignore')  # it may begin within a character
    return io.StringIO(text)


def documents(name: str, data: str) -> Iterator[tuple[str, str]]:
    """Those of a test set, as published and detokenized."""
    source, file, steps = TEXTS[name]
    for path in files_of(data, source, file):
        lines = read_lines(path, bytewise=not steps)
        for text in lines if name == '1bw' else [lines.read()]:
            yield text, detokenize(text, steps)


def text_documents(enc, files: list[str], *options) -> Iterator[tuple]:
    """Those of files that training reads, as text and ids. options: of iter_chunks, after combine."""
    for parts in load_dataset.iter_chunks(enc, files, 1, *options):
        chunk = npz.ids_of(np.concatenate(list(parts)))
        for ids in np.split(chunk, np.flatnonzero(chunk == enc.eot)):
            ids = ids[ids != enc.eot]  # with which all but the first begin
            if len(ids):
                yield enc.decode(ids), ids


def records(files: list[str]) -> Iterator[tuple[str, dict]]:
    """Place and object of each line of a .jsonl or .json; {'text': line} of other files."""
    for path in files:
        if path.lower().endswith(('.jsonl', '.json')):
            for place, record in rows.json_rows(path):
                require(isinstance(record.get('text'), str) and isinstance(record.get('prompt', ''), str),
                        f'{place} is not an object of JSON with a text "text" (and "prompt")')
                yield place, record
        else:
            for number, line in enumerate(read_lines(path), 1):
                yield f'{path} line {number}', {'text': line.rstrip('\r\n')}


def lambada_passages(data: str, tokenised: bool = False) -> Iterator[tuple[str, str]]:
    """Pairs of a context, and the last word with the space before it."""
    for place, record in records(files_of(data, LAMBADA)):
        text = detokenize(record['text'].strip(), BOOK_STEPS if tokenised else ())
        if words := text.split():
            require(len(words) > 1, f'{place} has a single word; a passage has more')
            context = text[:-len(words[-1])].rstrip()
            yield context, text[len(context):]


def cbt_questions(data: str) -> Iterator[tuple[str, list[str], int]]:
    """Detokenized: text before the gap; choices, each with the text after it; the answer's index."""
    pattern = ''.join(f'{number} (.*)\n' for number in range(1, 21)) + (
        r'21 ([^\t]*XXXXX[^\t]*)\t([^\t]*)\t[^\t]*\t([^\t|]*\|[^\t]*)')
    for path in files_of(data, CBT):
        lines = [line.rstrip('\r\n') for line in read_lines(path) if line.strip()]
        for first in range(0, len(lines), 21):
            match = re.fullmatch(pattern, '\n'.join(lines[first:first + 21]))
            if not match or match[22] not in (choices := match[23].split('|')):
                raise InputError(f'{path}, question {first // 21 + 1} is not lines "1 …" to "20 …" and '
                                 '"21 … XXXXX …", tab, answer, two tabs, choices with |')
            *sentences, last = [detokenize(text, BOOK_STEPS) for text in match.groups()[:21]]
            before, _, after = last.partition('XXXXX')
            endings = [choice + after.replace('XXXXX', choice) for choice in choices]
            yield ' '.join([*sentences, before]), endings, choices.index(match[22])


def hellaswag_questions(data: str) -> Iterator[tuple[str, list[str], int]]:
    """Context, endings and the answer's index, cleaned as lm-evaluation-harness does."""
    for path in files_of(data, HELLASWAG, 'hellaswag_val.jsonl'):
        for place, question in rows.json_rows(path):
            try:
                first, second = question['ctx_a'], question['ctx_b'].capitalize()
                context = without_marks(question['activity_label'] + ': ' + first + ' ' + second)
                endings, answer = [*map(without_marks, question['endings'])], int(question['label'])
                require(type(question['endings']) is list and str(question['label']).isdigit()
                        and answer < len(endings) and all(endings), 'no answer, or an empty ending')
            except (InputError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
                raise InputError(f'{place} is not an object of JSON with activity_label, ctx_a, ctx_b, '
                                 'endings and label, as in hellaswag_val.jsonl') from None
            yield f'{context} ', endings, answer


def without_marks(text):  # of WikiHow: [title], [step], [substeps]
    return re.sub(r'\[.*?\]', '', text.strip().replace(' [title]', '. ')).replace('  ', ' ')
