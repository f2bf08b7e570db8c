import gzip
import json
import os
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_vocab import shared, write_vocab

import load_dataset
from encoder import get_encoder
from errors import InputError
from evaluation import test_sets

DETOKENIZERS = {'wikitext': test_sets.WIKITEXT_STEPS, 'penn': test_sets.PENN_STEPS,
                'news': test_sets.NEWS_STEPS, 'books': test_sets.BOOK_STEPS, 'none': ()}
# What the rules look at, in any order, with and without spaces: where most can go wrong.
BITS = [' ', ' ', ' ', '  ', 'a', 's', 'S', 'H', 'Mr', "n't", "'s", "'ll", "'", '"', '``', "''", '`', '.',
        ',',
        '..', '...', '@-@', '@,@', '@.@', ' @-@ ', ' @,@ ', '@', '-', '1', '20', '–', '/', '\\/', '\\', '=',
        '<unk>', '(', ')', '-LRB-', '$', 'N', '%', ';', '\n', ' \n', '\r', '\t', '\u2028', '\xa0', 'é', '日',
        '😀', '\0']


def detokenize(name, text):
    return test_sets.detokenize(text, DETOKENIZERS[name])


def tokenize(name, text):
    return test_sets.detokenize(text, DETOKENIZERS[name], natural=False)


def records(path):
    return test_sets.records(load_dataset.find_files(str(path)))


def fields(documents):  # -> tuples: the text that is scored, or its ids; words, line ends, bytes as published
    return [(text, len(published.split()), published.count('\n'), len(published.encode()))
            for published, text in documents]


# Round trips

@pytest.mark.parametrize('name', DETOKENIZERS)
@settings(deadline=None, max_examples=100)
@given(bits=st.lists(st.sampled_from(BITS), max_size=40))
def test_what_rules_look_at_comes_back_in_any_order(name, bits):
    text = ''.join(bits)
    assert tokenize(name, detokenize(name, text)) == text


@pytest.mark.parametrize('name', DETOKENIZERS)
def test_a_long_run_of_spaces_takes_no_time(name):  # with n² steps the test would not end
    text = 'a' + ' ' * 10**6 + '\n' + ' ' * 10**6 + 'b'
    assert tokenize(name, detokenize(name, text)) == text


@pytest.mark.parametrize('name', DETOKENIZERS)
@settings(deadline=None, max_examples=30)
@given(text=st.text(max_size=60))
def test_any_text_comes_back(name, text):
    assert tokenize(name, detokenize(name, text)) == text


@pytest.mark.parametrize('name', DETOKENIZERS)
@settings(deadline=None, max_examples=60)
@given(bits=st.lists(st.sampled_from(BITS), max_size=30))
def test_every_text_is_that_of_a_tokenised_one(name, bits):
    """A bijection: the probability of all natural texts is shared out to tokenised ones without loss."""
    text = ''.join(bits)
    assert detokenize(name, tokenize(name, text)) == text


@pytest.fixture(scope='module')
def wikitext():
    with open(shared('corpus', 'wikitext2_valid.txt'), encoding='utf-8', newline='') as file:
        return file.read()


@pytest.mark.parametrize('name', ['penn', 'news', 'books'])
def test_a_part_of_wikitext_comes_back(wikitext, name):
    part = wikitext[-200_000:]
    assert tokenize(name, detokenize(name, part)) == part


def test_all_of_wikitext_looks_natural_and_comes_back(wikitext):
    (published, natural), = test_sets.documents('wikitext2', shared('corpus', 'wikitext2_valid.txt'))
    assert len(published.split()) + published.count('\n') == 217646  # as Merity et al. 2016, table 1
    assert published == wikitext
    assert tokenize('wikitext', natural) == wikitext
    assert natural.startswith('\n= Homarus gammarus =\n\nHomarus gammarus, known as the European lobster or '
                              'common lobster, is a species of <unk> lobster')
    for artifact in (' @-@ ', ' ;', ' )', '( <', ' ,', " 's ", '= =', '" .'):
        assert natural.count(artifact) <= wikitext.count(artifact) / 100, artifact
    # Words are not touched: the characters are the same, apart from spaces and the @ of signs.
    for spaced in (wikitext, natural):
        assert ''.join(spaced.replace('@', '').split()) == ''.join(natural.replace('@', '').split())


# What people would write

@pytest.mark.parametrize('tokenised, natural', [
    (' Homarus gammarus , known as the " European lobster " , is a lobster . \n',
     'Homarus gammarus, known as the "European lobster", is a lobster.\n'),
    (' = = Early life = = \n', '== Early life ==\n'), (' \n', '\n'), (' = Title = \n', '= Title =\n'),
    (' It weighs 0 @.@ 7 – 2 @.@ 2 kg ( 1 @.@ 5 – 4 @.@ 9 lb ) . \n', 'It weighs 0.7–2.2 kg (1.5–4.9 lb).\n'),
    (' 1 @,@ 000 black @-@ and @-@ white or <unk> @-@ based ones ; \n',
     '1,000 black-and-white or <unk>-based ones;\n'),
    (" the boat 's length , the boats ' length , it doesn 't , they 'll \n",
     "the boat's length, the boats' length, it doesn't, they'll\n"),
    (' H. americanus of the U.S. and Mr. Smith , etc. and so on . Then \n',
     'H. americanus of the U.S. and Mr. Smith, etc. and so on. Then\n'),
    (' songs ( " Mt. Olympus " ) . \n', 'songs ("Mt. Olympus").\n'),
    (' $ 5 and 50 % : yes ! \n', '$5 and 50%: yes!\n'),
    (' in 1990 , 20 of them and / or 30 \n', 'in 1990, 20 of them and/or 30\n'),
    # An opening bracket and a closing sign do not count beside . ' – and /, which have rules of their own.
    (' ( 1 – ) – , ( – 2 ) ( / x ) ( . a \n', '(1 – ) – , ( – 2) ( / x) ( . a\n'),
    (' The U.S. – ; km² – 5 – ² . é / ü _ / x \n', 'The U.S. – ; km²–5–² . é/ü _ / x\n'),
    # After an initial or abbreviation, and before a lower-case letter of any alphabet, a full stop stays.
    (' X . x . é . É . Capt . ... end . \n', 'X . x . é . É . Capt . ... end.\n'),
    (' “ so ” , " a " “ b " \n', '“ so ”, "a" “ b "\n'),
])
def test_wikitext(tokenised, natural):
    assert detokenize('wikitext', tokenised) == natural


@pytest.mark.parametrize('tokenised, natural', [
    (" no it was n't black monday \n", "no it wasn't black monday\n"),
    (" mr. <unk> 's bank does n't owe $ N million or N N\\/N % \n",
     "mr. <unk>'s bank doesn't owe $N million or N N/N%\n"),
    (" the banks ' u.s. units they 're in \n", "the banks' u.s. units they're in\n"),
])
def test_penn_treebank(tokenised, natural):
    assert detokenize('penn', tokenised) == natural


def test_news():
    assert detokenize('news', 'The U.S. said , " It isn \'t over ( yet ) . "\n') == (
        'The U.S. said, "It isn\'t over (yet)."\n')


def test_books():
    assert detokenize('books', 'He -LRB- the king -RRB- came .') == 'He (the king) came.'
    assert detokenize('books', "`` Do n't , '' said the king 's son .") == '"Don\'t," said the king\'s son.'


def test_a_text_of_bytes_or_letters_stays_as_it_is():
    text = '<page>\n  <title>A , B</title>\r\n &quot;x&quot; @-@ '
    for name in ('enwik8', 'text8'):
        *_, steps = test_sets.TEXTS[name]
        assert test_sets.detokenize(text, steps) == text


# Test sets

def test_a_document_is_counted_as_published_and_scored_as_written(tmp_path):
    (tmp_path / 'wiki.test.tokens').write_text(' \n = Name = \n \n It is 1 @,@ 000 – café . \n',
                                               encoding='utf-8')
    for name, data in (('wikitext2', tmp_path), ('wikitext103', tmp_path / 'wiki.test.tokens')):
        assert fields(test_sets.documents(name, str(data))) == [('\n= Name =\n\nIt is 1,000 – café.\n', 11, 4,
                                                                 45)]


def test_each_sentence_of_one_billion_words_is_a_document(tmp_path):
    (tmp_path / 'news').write_text('He said , " Yes . "\nSo .')
    assert fields(test_sets.documents('1bw', str(tmp_path / 'news'))) == [
        ('He said, "Yes."\n', 7, 1, 20), ('So.', 2, 0, 4)]


def test_of_enwik8_the_last_five_million_bytes_are_the_test(tmp_path, monkeypatch):
    monkeypatch.setattr(test_sets, 'ENWIK8_BYTES', 20)
    monkeypatch.setattr(test_sets, 'ENWIK8_TEST', 5)
    path = tmp_path / 'enwik8'
    for data, expected in ((b'abcdefghijklmnopqrst', 'pqrst'),
                           (b'abcdefghijklm' + '日'.encode() + b'qrst', 'qrst'),
                           (b'shorter than 20', 'shorter than 20')):
        path.write_bytes(data)
        assert list(test_sets.documents('enwik8', str(tmp_path))) == [(expected, expected)]


@pytest.mark.parametrize('name', test_sets.TEXTS)
def test_what_is_missing_is_told_with_where_to_get_it(tmp_path, name):
    for data in (tmp_path, tmp_path / 'absent'):
        source = r'wikitext-2-v1\.zip|simple-examples|statmt|mattmahoney'
        with pytest.raises(InputError, match=source) as raised:
            list(test_sets.documents(name, str(data)))
        assert str(data) in str(raised.value) and '\n' not in str(raised.value)


def test_a_set_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / 'text8').write_bytes(b'abc\xff')
    with pytest.raises(InputError, match='text8: not utf-8 at byte 3'):
        list(test_sets.documents('text8', str(tmp_path)))


MARK = '\ufeff'.encode()


def test_a_byte_order_mark_is_no_text_and_no_byte_of_it(tmp_path):
    (tmp_path / 'text8').write_bytes(MARK + b' a b')
    assert fields(test_sets.documents('text8', str(tmp_path))) == [(' a b', 2, 0, 4)]
    for name, data in (('a.txt', b'one\r\ntwo\r'), ('b.jsonl', b'{"text": "one"}\n{"text": "two"}')):
        (tmp_path / name).write_bytes(MARK + data)
        assert [record for _, record in records(tmp_path / name)] == [{'text': 'one'}, {'text': 'two'}]
    (tmp_path / 'cbt').write_bytes(MARK + cbt_text(1).encode())
    assert len(list(test_sets.cbt_questions(str(tmp_path / 'cbt')))) == 1


def tiny_encoder(path):
    write_vocab(os.path.join(os.path.dirname(path), 'tiny'))
    return get_encoder('tiny', os.path.dirname(path))


@pytest.mark.parametrize('read', [
    lambda path: test_sets.documents('text8', path), records, test_sets.cbt_questions,
    test_sets.lambada_passages, lambda path: test_sets.text_documents(tiny_encoder(path), [path])])
def test_what_is_no_text_is_told_by_its_kind(tmp_path, read):
    (tmp_path / 'text8').write_bytes(gzip.compress(b'text'))
    with pytest.raises(InputError, match='text8: this is a packed or binary file, not text'):
        list(read(str(tmp_path / 'text8')))


@pytest.mark.parametrize('read', [lambda path: test_sets.documents('text8', path), records,
                                  test_sets.cbt_questions])
def test_a_set_is_read_from_a_pipe_but_not_without_end(tmp_path, read):
    reading, writing = os.pipe()
    os.write(writing, cbt_text(1).encode())
    os.close(writing)
    assert list(read(f'/dev/fd/{reading}'))
    os.close(reading)
    (tmp_path / 'zero').symlink_to('/dev/zero')
    with pytest.raises(InputError, match='zero is a pipe or a device; give a file'):
        list(read(str(tmp_path / 'zero')))


# Any text

def test_files_and_arrays_are_documents(tmp_path):
    write_vocab(tmp_path / 'tiny')
    enc = get_encoder('tiny', str(tmp_path))
    (tmp_path / 'a.txt').write_bytes('\ufeffOne two\r\n<|endoftext|>\nthree<|endoftext|>\n'.encode())
    first, second = enc.encode('the old lighthouse'), enc.encode('café\n')
    np.savez(tmp_path / 'b.npz', np.array([*first, enc.eot, enc.eot, *second], np.uint16),
             np.array([enc.eot]))
    files = [str(tmp_path / 'a.txt'), str(tmp_path / 'b.npz')]
    documents = list(test_sets.text_documents(enc, files))
    assert [(content.tolist(), *counts) for content, *counts in fields(documents)] == [
        (enc.encode('One two\r\n'), 2, 1, 9), (enc.encode('\nthree'), 1, 1, 6), (first, 3, 0, 18),
        (second, 1, 1, 6)]
    (_, ids), *_ = test_sets.text_documents(enc, files, 'utf-8', False)
    assert ids.tolist() == enc.encode((tmp_path / 'a.txt').read_bytes().decode('utf-8-sig'))


@pytest.mark.parametrize('data, encoding, message', [(b'ab\xff', 'utf-8', r'x\.txt: not utf-8 at byte 2'),
                                                     (b'', 'klingon', "--encoding 'klingon' is not")])
def test_text_in_another_encoding_is_refused(tmp_path, data, encoding, message):
    (tmp_path / 'x.txt').write_bytes(data)
    write_vocab(tmp_path / 'tiny')
    enc = get_encoder('tiny', str(tmp_path))
    with pytest.raises(InputError, match=message):
        list(test_sets.text_documents(enc, [str(tmp_path / 'x.txt')], encoding))


# Lines

def test_lines_of_text_and_of_json(tmp_path):
    (tmp_path / 'a.txt').write_bytes(b'one\r\n\n {"text": 1}\x0b')
    (tmp_path / 'b.jsonl').write_text('{"text": "o\\nne", "prompt": "p"}\n\n{"text": ""}')
    assert [record for _, record in records(tmp_path)] == [
        {'text': 'one'}, {'text': ''}, {'text': ' {"text": 1}\x0b'}, {'text': 'o\nne', 'prompt': 'p'},
        {'text': ''}]


@pytest.mark.parametrize('name', ['a.jsonl', 'a.json'])
@pytest.mark.parametrize('line, message', [
    (b'{', ' is not JSON'), (b'[' * 100000, ' is not JSON'), (b'[1]', ' must hold an object'),
    (b'{"text": 1}', ' is not an object of JSON with a text "text"'), (b'\xff', ': not utf-8; convert it'),
    (b'{"text": "x", "prompt": 1}', ' is not an object of JSON with a text "text" (and "prompt")')])
def test_bad_json_is_named(tmp_path, name, line, message):
    (tmp_path / name).write_bytes(b'{"text": ""}\n' + line + b'\n')
    with pytest.raises(InputError) as raised:
        list(records(tmp_path))
    assert f'/{name} line 2{message}' in str(raised.value)


# LAMBADA

def test_lambada_in_both_forms(tmp_path):
    natural = '"Come here," he said.\n\nShe looked at\nGabriel'
    (tmp_path / 'a.jsonl').write_text(json.dumps({'text': natural}) + '\n')
    assert list(test_sets.lambada_passages(str(tmp_path / 'a.jsonl'))) == [(natural[:-8], '\nGabriel')]
    (tmp_path / 'a.txt').write_text("`` i do n't , '' he said to gabriel\n\n")
    assert list(test_sets.lambada_passages(str(tmp_path / 'a.txt'))) == [("`` i do n't , '' he said to",
                                                                          ' gabriel')]
    assert list(test_sets.lambada_passages(str(tmp_path / 'a.txt'),
                                           tokenised=True)) == [('"i don\'t," he said to',
                                                                                         ' gabriel')]


def test_a_passage_of_a_single_word_is_refused(tmp_path):
    (tmp_path / 'a.txt').write_text('two words\none\n')
    with pytest.raises(InputError, match=r'a\.txt line 2 has a single word'):
        list(test_sets.lambada_passages(str(tmp_path / 'a.txt')))
    with pytest.raises(InputError, match=r'absent.*lambada_test\.jsonl'):
        list(test_sets.lambada_passages(str(tmp_path / 'absent')))


# The Children's Book Test

CHOICES = 'king|son|bird|tree|road|well|horse|boat|ring|fox'


def cbt_text(questions, seed=0):
    """A file of the published format, with the answers at different places among the choices."""
    draw, choices, lines = random.Random(seed), CHOICES.split('|'), []
    for _ in range(questions):
        lines += [f"{number} The {draw.choice(choices)} did n't come , he said ." for number in range(1, 21)]
        lines += [f"21 `` So , '' said the XXXXX , `` we go . ''\t{draw.choice(choices)}\t\t{CHOICES}", '']
    return '\n'.join(lines) + '\n'


def test_questions_of_the_published_format(tmp_path):
    path = tmp_path / 'cbtest_CN_valid_2500ex.txt'
    path.write_text(cbt_text(2))
    questions = list(test_sets.cbt_questions(str(path)))
    answers = [line.split('\t')[1] for line in cbt_text(2).split('\n') if '\t' in line]
    assert [CHOICES.split('|')[answer] for _, _, answer in questions] == answers
    (context, endings, _), (second, *_) = questions
    assert context.endswith(' "So," said the ')
    assert endings == [f'{choice}, "we go."' for choice in CHOICES.split('|')]
    assert second.count(" didn't come, he said.") == 20
    assert second.startswith('The ')


@pytest.mark.parametrize('old, new', [
    ('2 The', '3 The'), ('21 ', '20 '), ('XXXXX', 'X'), ('|road|well|horse|boat|ring|fox', '|fox\t'),
    ('|son|bird|tree|road|well|horse|boat|ring|fox', ''), ('\t\t', '\t'), ('\tking\t', '\temperor\t')])
def test_another_format_is_refused(tmp_path, old, new):
    path = tmp_path / 'a.txt'
    sentence = cbt_text(1).split('\t')[1]
    path.write_text(cbt_text(1).replace(f'\t{sentence}\t', '\tking\t').replace(old, new, 1))
    with pytest.raises(InputError, match=r'a\.txt, question 1 is not lines "1 …" to "20 …" and "21 … XXXXX'):
        list(test_sets.cbt_questions(str(path)))


def test_a_question_that_is_cut_off_is_refused(tmp_path):
    (tmp_path / 'a.txt').write_text('\n'.join(cbt_text(1).split('\n')[:12]))
    with pytest.raises(InputError, match='question 1 is not lines'):
        list(test_sets.cbt_questions(str(tmp_path / 'a.txt')))
    with pytest.raises(InputError, match=r'absent.*cbtest_CN'):
        list(test_sets.cbt_questions(str(tmp_path / 'absent')))


# HellaSwag

QUESTION = {'activity_label': 'Sailing', 'ctx_a': 'A man stands in a boat.', 'ctx_b': 'he', 'label': 2,
            'endings': ['pulls a rope.', 'sings [x] loudly.', 'falls into the sea.', 'is a lamp.']}
OF_WIKIHOW = {'activity_label': 'Home', 'ctx_a': 'How to light a lamp [title] Find oil. [step] Pour  it.',
              'ctx_b': '', 'label': '0',
              'endings': ['[substeps] Wait an hour.', ' Light it.', 'Sleep [title] Wake.', 'Go.']}


def test_hellaswag_without_wikihow_s_marks(tmp_path):
    (tmp_path / 'hellaswag_val.jsonl').write_text(json.dumps(OF_WIKIHOW))
    assert list(test_sets.hellaswag_questions(str(tmp_path))) == [(
        'Home: How to light a lamp. Find oil. Pour it. ',
        [' Wait an hour.', 'Light it.', 'Sleep. Wake.', 'Go.'], 0)]


def test_hellaswag_is_cleaned_as_the_harness_does(tmp_path):
    harness = pytest.importorskip('lm_eval.tasks.hellaswag.utils',
                                  reason='make test-all compares with lm-evaluation-harness')
    datasets = pytest.importorskip('datasets')
    rows = [{**row, 'label': str(row['label'])} for row in (QUESTION, OF_WIKIHOW)]
    (tmp_path / 'hellaswag_val.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    theirs = harness.process_docs(datasets.Dataset.from_list(rows))
    ours = list(test_sets.hellaswag_questions(str(tmp_path)))
    assert ours == [(f'{row["query"]} ', row['choices'], row['gold']) for row in theirs]


NO_QUESTION = 'is not an object of JSON with activity_label, ctx_a, ctx_b, endings and label'


@pytest.mark.parametrize('line, message', [
    ('{', 'is not JSON'), ('[]', 'must hold an object'), ('[' * 99999, 'is not JSON'),
    *((json.dumps({**QUESTION, **wrong}), NO_QUESTION) for wrong in (
        {'label': 4}, {'label': -1}, {'endings': []}, {'ctx_b': 7}, {'endings': [3]}, {'label': None},
        {'label': float('inf')}, {'ctx_a': None}, {'activity_label': ['a']},
        {'endings': ['a', '[step]', 'c']}))])
def test_a_line_that_is_no_question_is_told(tmp_path, line, message):
    path = tmp_path / 'hellaswag_val.jsonl'
    path.write_text(f'{json.dumps(QUESTION)}\n\n{line}\n')
    with pytest.raises(InputError, match=rf'val\.jsonl line 3 {message}'):
        list(test_sets.hellaswag_questions(str(path)))
