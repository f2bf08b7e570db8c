import gzip
import io
import itertools
import json
import os
import random
import re
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_encoder import APOSTROPHES, ODD_TEXTS, TEXT, tiny
from tiny_vocab import EOT, tiny_bpe

import load_dataset
from encoder import Encoder, bytes_to_unicode
from errors import InputError
from load_dataset import find_files, iter_chunks, split_text
from storage import npz, text_files
from storage.npz import PROMPT
from storage.vocabulary_files import SpecialTokens
from training.windows import Sampler


@pytest.fixture(scope='module')
def enc():
    return Encoder(*tiny_bpe())


def lists(chunks):
    return [chunk.tolist() for chunk in chunks]


def load(enc, path, *arguments, **flags):
    return load_dataset.load_dataset(enc, str(path), *arguments, **flags)


# Which files


def test_find_files(tmp_path, monkeypatch):
    for name in ('b.txt', 'a.txt', 'sub/c.txt', 'sub/deep/d.txt', 'e[1].txt'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)

    def found(path):
        return [os.path.relpath(name, tmp_path) for name in find_files(str(tmp_path / path))]
    assert found('a.txt') == ['a.txt']
    assert found('e[1].txt') == ['e[1].txt']
    assert found('') == ['a.txt', 'b.txt', 'e[1].txt', 'sub/c.txt', 'sub/deep/d.txt']
    assert found('[ab].txt') == ['a.txt', 'b.txt']
    assert found('*') == ['a.txt', 'b.txt', 'e[1].txt']
    assert found('**/*.txt') == ['a.txt', 'b.txt', 'e[1].txt', 'sub/c.txt', 'sub/deep/d.txt']
    monkeypatch.setenv('HOME', str(tmp_path))
    assert find_files('~/a.txt') == [str(tmp_path / 'a.txt')]


def test_find_files_of_several_paths(tmp_path, monkeypatch):
    for name in ('b.npz', 'a.txt', 'shards/1.npz', 'shards/2.npz', 'with,comma.txt', 'x,1', 'x,2'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)

    def found(*names):
        path = ','.join(str(tmp_path / name) for name in names)
        return [os.path.relpath(name, tmp_path) for name in find_files(path)]
    assert found('b.npz', 'a.txt') == ['b.npz', 'a.txt']
    assert found('shards/*.npz', 'a.txt', 'shards') == [
        'shards/1.npz',
        'shards/2.npz',
        'a.txt',
        'shards/1.npz',
        'shards/2.npz',
    ]
    assert found('with,comma.txt') == ['with,comma.txt'] and found('x,*') == ['x,1', 'x,2']
    with pytest.raises(InputError, match=r'nothing matches the path .*nowhere;'):
        found('a.txt', 'nowhere', 'b.npz')
    with pytest.raises(InputError, match=r'path  .*a\.txt; .* no blanks beside commas'):
        find_files(f'{tmp_path}/b.npz, {tmp_path}/a.txt')
    with pytest.raises(InputError, match=r'path .*b\.npz ; '):
        find_files(f'{tmp_path}/b.npz ,{tmp_path}/a.txt')
    (tmp_path / ' blank').write_text('')
    monkeypatch.chdir(tmp_path)
    assert find_files('b.npz, blank') == ['b.npz', ' blank']
    with pytest.raises(InputError, match='nothing matches the path ;'):
        find_files(f'{tmp_path / "a.txt"},')


def test_dataset_of_several_files(tmp_path, enc):
    for i in range(3):
        np.savez(tmp_path / f'{i}.npz', np.arange(i, 5))
    assert lists(load(enc, f'{tmp_path}/2.npz,{tmp_path}/[01].npz')) == lists(
        np.arange(i, 5) for i in (2, 0, 1)
    )


def test_paths_without_files(tmp_path):
    with pytest.raises(InputError, match=r'nothing matches the path .*nowhere'):
        find_files(str(tmp_path / 'nowhere'))
    (tmp_path / 'empty' / 'sub').mkdir(parents=True)
    with pytest.raises(InputError, match=r'nothing matches the path .*empty; quote a glob'):
        find_files(str(tmp_path / 'empty'))
    os.mkfifo(tmp_path / 'empty' / 'pipe')
    (tmp_path / 'empty' / 'zero').symlink_to('/dev/zero')
    with pytest.raises(InputError, match=r'nothing matches the path .*empty/'):
        find_files(str(tmp_path / 'empty' / '*'))
    with pytest.raises(InputError, match=r'nothing matches the path .*empty; quote a glob'):
        find_files(str(tmp_path / 'empty'))
    with pytest.raises(InputError, match=r'nothing matches the path .*emp'):
        find_files(str(tmp_path / 'emp*'))


def test_what_is_hidden_in_a_folder_is_left_out(tmp_path):
    for name in ('.DS_Store', '.git/config', 'code/.cache/x', 'code/a.py', 'b.txt'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b'\0\xff')
    assert find_files(str(tmp_path)) == [str(tmp_path / 'b.txt'), str(tmp_path / 'code' / 'a.py')]
    assert find_files(str(tmp_path / '.DS_Store')) == [str(tmp_path / '.DS_Store')]  # by its name it is meant


@pytest.mark.parametrize('dtype, wrong', [(np.uint32, 2**32 - 5), (np.int64, 2**40), (np.int32, -5)])
def test_ids_that_no_window_can_hold_are_refused_wherever_they_are(tmp_path, enc, monkeypatch, dtype, wrong):
    monkeypatch.setattr(npz, 'CHECKED_BYTES', 0)
    np.savez(tmp_path / 'a.npz', np.array([1, 2, wrong, 3], dtype))
    sampler = Sampler(load(enc, tmp_path / 'a.npz'), seed=1)
    with pytest.raises(InputError, match=fr'the data has ids from .*{wrong}.*; encode it anew'):
        sampler.sample(4)


# Text


def test_documents_are_gathered_and_followed_by_end_of_text(tmp_path, enc):
    texts = {'1.txt': 'first', '2.txt': 'second one', '3.txt': '', '4.txt': 'the third', '5.txt': 'x'}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    ids = {name: [*enc.encode(text), enc.eot] for name, text in texts.items()}
    assert lists(load(enc, tmp_path)) == [ids['1.txt'] + ids['2.txt'] + ids['4.txt'] + ids['5.txt']]
    assert lists(load(enc, tmp_path, combine=15)) == [
        ids['1.txt'] + ids['2.txt'],
        ids['4.txt'] + ids['5.txt'],
    ]
    assert lists(load(enc, tmp_path, combine=16)) == [
        ids['1.txt'] + ids['2.txt'] + ids['4.txt'],
        ids['5.txt'],
    ]
    assert lists(load(enc, tmp_path, 1)) == [ids[name] for name in texts if texts[name]]


SEVERAL = f'{EOT}one {EOT}\ntwo{EOT}{EOT}\r\n {EOT}<|endof three<|endoftext|{EOT}\n'
DOCUMENTS = ['one ', '\ntwo', '<|endof three<|endoftext|']


@pytest.mark.parametrize('read_bytes', [1, 2, 5, 13, 1 << 18])
def test_end_of_text_in_a_file_ends_a_document_wherever_it_is_cut(tmp_path, enc, read_bytes, capsys):
    (tmp_path / 'a').write_bytes(SEVERAL.encode())
    with mock.patch.object(text_files, 'READ_CHARS', read_bytes):
        ids = [id for text in DOCUMENTS for id in (*enc.encode(text), enc.eot)]
        assert lists(load(enc, tmp_path / 'a')) == [ids]
    assert capsys.readouterr() == ('', 'the text has 6 special tokens; --special_tokens false takes them as '
                                       'text\n')


@pytest.mark.parametrize('read_bytes', [1, 1 << 18])
def test_end_of_text_in_a_file_can_be_text(tmp_path, enc, read_bytes, capsys):
    (tmp_path / 'a').write_bytes(SEVERAL.encode())
    with mock.patch.object(text_files, 'READ_CHARS', read_bytes):
        assert lists(load(enc, tmp_path / 'a', special_tokens=False)) == [[*enc.encode(SEVERAL), enc.eot]]
    assert capsys.readouterr() == ('', '')


def test_texts_are_split_at_tokens_wherever_they_are_cut():
    tokens = {'<a>', '<a>b', '<', 'a>b!', '!!!!!!!!'}
    draw = random.Random(5)
    pattern = re.compile('|'.join(map(re.escape, sorted(tokens, key=len, reverse=True))))
    for _ in range(300):
        text = ''.join(draw.choices('<a>b! ', k=draw.randrange(40)))
        expected, start = [], 0
        for match in pattern.finditer(text):
            expected += [text[start:match.start()], match[0]]
            start = match.end()
        cuts = sorted(draw.choices(range(len(text) + 1), k=draw.randrange(10)))
        parts = list(split_text((text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])), tokens))
        joined = []  # texts may be cut, tokens not
        for is_token, run in itertools.groupby(parts, tokens.__contains__):
            run = list(run)
            joined += run if is_token else [''.join(run)]
        assert '' not in parts and joined == [part for part in [*expected, text[start:]] if part]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.one_of(TEXT, APOSTROPHES).filter(bool), max_size=6))
def test_separate_texts_have_the_ids_of_the_whole(texts):
    enc, reference = tiny()
    parts = list(split_text(texts, []))
    assert all(parts) and ''.join(parts) == ''.join(texts)
    assert [id for part in parts for id in enc.encode(part)] == reference.encode_ordinary(''.join(texts))


def cut(text, length):
    return [text[i:i + length] for i in range(0, len(text), length)]


def test_separate_texts_of_odd_texts():
    enc, reference = tiny()
    text = ' '.join(ODD_TEXTS * 3)
    parts = list(split_text(cut(text, 50), []))
    assert len(parts) > 20 and max(map(len, parts)) < 150
    assert [id for part in parts for id in enc.encode(part)] == reference.encode_ordinary(text)


@pytest.mark.parametrize('piece', ['a', '1', '-', ' ', '世'])
def test_only_an_endless_piece_is_not_cut(piece):
    parts = list(split_text([*cut('x- ' * 20, 10), *cut(piece * 100, 10), *cut(' a.' * 20, 10)], []))
    assert [part for part in parts if len(part) > 30] == [part for part in parts if piece * 70 in part]
    assert len(parts) > 5


def test_documents_without_text(tmp_path, enc):
    (tmp_path / 'a').write_text(EOT * 3 + '\n')
    assert load(enc, tmp_path / 'a') == []
    (tmp_path / 'a').write_text(' \n')  # alone, it is what there is
    assert lists(load(enc, tmp_path / 'a')) == [[*enc.encode(' \n'), enc.eot]]


def test_other_special_tokens_are_themselves_and_another_may_end_a_text(tmp_path, capsys):
    vocabulary, merges = tiny_bpe()
    special = SpecialTokens(['</s>', '<a>'], '</s>')
    enc = Encoder({**vocabulary, '</s>': 600, '<a>': 601}, merges, special=special)
    (tmp_path / 'a').write_text('<a>one</s>\n<a></s>')
    (tmp_path / 'b').write_text('two')
    expected = [601, *enc.encode('one'), 600, *enc.encode('\n'), 601, 600, *enc.encode('two'), 600]
    assert lists(load(enc, tmp_path)) == [expected]
    assert capsys.readouterr().err.startswith('the text has 4 special tokens; ')
    load(enc, tmp_path / 'b')
    load(enc, tmp_path, progress=False)
    assert capsys.readouterr().err == ''


def test_a_special_token_may_hold_control_characters(tmp_path, capsys):
    vocabulary, merges = tiny_bpe()
    enc = Encoder({**vocabulary, '\n\x1b[2J': 600}, merges, special=SpecialTokens(['\n\x1b[2J'], None))
    (tmp_path / 'a').write_bytes(b'one\n\x1b[2Jtwo')
    assert lists(load(enc, tmp_path / 'a')) == [[*enc.encode('one'), 600, *enc.encode('two')]]
    assert capsys.readouterr().err.startswith('the text has 1 special tokens; ')


def test_vocabulary_without_end_of_text(tmp_path, capsys):
    plain = Encoder({symbol: id for id, symbol in enumerate(bytes_to_unicode().values())}, [])
    for name, text in (('a', 'a'), ('b', f'b{EOT}')):
        (tmp_path / name).write_text(text)
    load(plain, tmp_path / 'a')
    load(plain, tmp_path, combine=1)
    assert capsys.readouterr().err == ''
    assert lists(load(plain, tmp_path)) == [plain.encode(f'ab{EOT}')]
    assert capsys.readouterr().err == 'no token of the vocabulary ends a text: documents run together\n'


def test_chunks_are_compact(tmp_path, enc):
    (tmp_path / 'a').write_text('text')
    assert load(enc, tmp_path / 'a')[0].dtype == np.uint16
    wide = Encoder({**enc.encoder, 'far': 65536}, [])
    assert load(wide, tmp_path / 'a')[0].dtype == np.int32
    assert npz.token_dtype(65536) == np.uint16


@pytest.mark.parametrize('encoding', ['klingon', 'hex', 'rot13', 'a\0b', 'zlib'])
def test_unknown_encoding(tmp_path, enc, encoding):
    (tmp_path / 'a').write_text('text')
    with pytest.raises(InputError, match='is not an encoding of text'):
        load(enc, tmp_path / 'a', encoding=encoding)
    np.savez(tmp_path / 'a.npz', np.array([1, 2]))
    with pytest.raises(InputError, match='is not an encoding of text'):
        load(enc, tmp_path / 'a.npz', encoding=encoding)


def test_lone_surrogate_names_the_file(tmp_path, enc):
    (tmp_path / 'a').write_bytes(b'ab+2D0-')
    with pytest.raises(InputError, match='a: '):
        load(enc, tmp_path / 'a', encoding='utf-7')


def test_unreadable_file_is_named(tmp_path, enc):
    (tmp_path / 'dir').mkdir()
    (tmp_path / 'dir' / 'gone').symlink_to(tmp_path / 'nowhere')
    with pytest.raises(OSError) as caught:
        load(enc, tmp_path / 'dir')
    assert caught.value.filename == str(tmp_path / 'dir' / 'gone')


def test_a_npz_of_another_vocabulary_is_refused(tmp_path, enc, capsys):
    other = Encoder({**enc.encoder, 'extra': 557}, tiny_bpe()[1])
    for name, compress in (('a.npz', False), ('b.npz', True)):
        path = str(tmp_path / name)
        npz.write_npz(path, [np.array([5, 6])], 557, compress, enc.fingerprint)
        assert lists(load(enc, path)) == [[5, 6]]
        with pytest.raises(InputError) as caught:
            load(other, path)
        for expected in (path, enc.fingerprint, other.fingerprint, '--model_name'):
            assert expected in str(caught.value)
        with np.load(path) as arrays:
            assert {name: arrays[name].tolist() for name in arrays} == {'arr_0': [5, 6]}
    assert capsys.readouterr().err == ''


def test_a_npz_that_does_not_name_its_vocabulary_is_read_and_told(tmp_path, enc, capsys):
    for number in range(3):
        np.savez(tmp_path / f'{number}.npz', np.array([number, 7]))
    assert lists(load(enc, tmp_path)) == [[0, 7], [1, 7], [2, 7]]
    said = capsys.readouterr().err
    assert said.count('\n') == 1
    assert said.startswith(f'{tmp_path}/0.npz does not name its vocabulary (3 such files)')


def test_mixture_keeps_the_order_of_files(tmp_path, enc):
    (tmp_path / 'a.txt').write_text('text a')
    np.savez(tmp_path / 'b.npz', np.array([5, 6, 7], np.uint16), np.array([8, 9], np.uint16))
    (tmp_path / 'c.txt').write_text('text c')
    (tmp_path / 'd.txt').write_text('text d')
    eot = enc.eot
    assert lists(load(enc, tmp_path)) == [
        [*enc.encode('text a'), eot],
        [5, 6, 7],
        [8, 9],
        [*enc.encode('text c'), eot, *enc.encode('text d'), eot],
    ]


def test_chunks_come_in_parts(tmp_path, enc):
    (tmp_path / 'a').write_text('the text ' * 200000)
    chunks = iter_chunks(enc, find_files(str(tmp_path / 'a')))
    parts = list(next(chunks))
    assert len(parts) > 5 and next(chunks, None) is None
    assert np.concatenate(parts).tolist() == load(enc, tmp_path / 'a')[0].tolist()


# Rows

def write_rows(path, rows):
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def test_a_row_is_a_document(tmp_path, enc):
    texts = ['first', ' \n', 'two<|endoftext|>three', '', 'last']
    ids = [id for text in ['first', ' \n', 'two', 'three', 'last'] for id in (*enc.encode(text), enc.eot)]
    write_rows(tmp_path / 'a.jsonl', [{'text': text, 'n': 1} for text in texts])
    assert lists(load(enc, tmp_path / 'a.jsonl')) == [ids]
    write_rows(tmp_path / 'b.jsonl', [{'body': text} for text in texts])
    assert lists(load(enc, tmp_path / 'b.jsonl', text_field='body')) == [ids]
    with pytest.raises(InputError, match=r"b\.jsonl line 1 has no \"text\", .* 'body'; give --text_field"):
        load(enc, tmp_path / 'b.jsonl')
    (tmp_path / 'c.csv').write_text('text\nfirst\n" \n"\ntwo<|endoftext|>three\n""\nlast\n')
    assert lists(load(enc, tmp_path / 'c.csv')) == [ids]


def test_a_packed_text_is_its_text(tmp_path, enc):
    (tmp_path / 'a.txt').write_text(SEVERAL * 50)
    (tmp_path / 'a.txt.gz').write_bytes(gzip.compress((SEVERAL * 50).encode()))
    assert lists(load(enc, tmp_path / 'a.txt.gz')) == lists(load(enc, tmp_path / 'a.txt'))


def test_prompts_are_marked_in_chunks_of_their_own(tmp_path, enc):
    write_rows(tmp_path / 'a.jsonl', [
        {'text': 'plain'}, {'prompt': '', 'completion': 'said'}, {'text': 'more'},
        {'prompt': 'what?<|endoftext|>', 'completion': 'that'}])
    (tmp_path / 'b.txt').write_text('end')
    plain, asked, end = load(enc, tmp_path, template='<|endoftext|>Q{prompt}A{completion}.')
    assert plain.tolist() == [*enc.encode('plain'), enc.eot] and end.tolist() == [*enc.encode('end'), enc.eot]
    assert (plain.dtype, asked.dtype, end.dtype) == (np.uint16, np.int32, np.uint16)
    expected = [(True, '<|endoftext|>QA'), (False, 'said.<|endoftext|>'), (False, 'more<|endoftext|>'),
                (True, '<|endoftext|>Qwhat?<|endoftext|>A'), (False, 'that.<|endoftext|>')]
    ids = [(is_prompt, id) for is_prompt, text in expected for id in enc.encode(text, allowed_special=True)]
    assert [(bool(id & PROMPT), id & ~PROMPT) for id in asked.tolist()] == ids
    options = 50000, 'utf-8', True, 'text', '<|endoftext|>Q{prompt}A{completion}.'
    load_dataset.encode_to_npz(enc, [str(tmp_path)], str(tmp_path), *options)
    (path,) = tmp_path.glob('*.npz')
    encoded = load(enc, path)
    assert lists(encoded) == lists([plain, asked, end]) and encoded[1].dtype == np.int32


def test_what_ends_documents_ends_an_answer_once_and_no_turn_of_a_conversation(tmp_path, enc):
    write_rows(tmp_path / 'a.jsonl', [{'prompt': 'a', 'completion': 'b<|endoftext|>'}])
    (chunk,) = load(enc, tmp_path / 'a.jsonl')
    assert chunk.tolist() == [enc.encode('a')[0] | PROMPT, *enc.encode('b'), enc.eot]
    turns = [{'role': role, 'content': role[0]} for role in ('user', 'assistant') * 2]
    write_rows(tmp_path / 'b.jsonl', [{'messages': turns}])
    with pytest.raises(InputError, match=r'b\.jsonl: the text that ends documents stands between answers'):
        load(enc, tmp_path / 'b.jsonl', template='{prompt}:{completion}<|endoftext|>')


def test_a_prompt_that_is_empty_still_makes_a_chunk_that_can_be_written(tmp_path, enc):
    write_rows(tmp_path / 'a.jsonl', [{'prompt': prompt, 'completion': 'said'} for prompt in ('', 'x')])
    (chunk,) = load(enc, tmp_path / 'a.jsonl')
    npz.write_npz(str(tmp_path / 'a.npz'), iter_chunks(enc, [str(tmp_path / 'a.jsonl')]), enc.n_vocab)
    assert lists(load(enc, tmp_path / 'a.npz')) == [chunk.tolist()]


def test_a_text_without_a_place_to_cut_takes_bounded_memory(tmp_path, enc, monkeypatch):
    monkeypatch.setattr(load_dataset, 'MAX_PIECE', 1 << 16)
    monkeypatch.setattr(text_files, 'READ_CHARS', 1 << 14)
    (tmp_path / 'a.txt').write_bytes(b'word ' + b'\0' * (1 << 17))
    with pytest.raises(InputError, match=r'a\.txt: 65,536 characters are one piece'):
        load(enc, tmp_path / 'a.txt')


def test_parts_of_a_mixture(tmp_path):
    find = load_dataset.find_parts
    assert find('a/:0.7,b.jsonl:0.3') == [('a/', 0.7), ('b.jsonl', 0.3)]
    assert find('a.txt:2,b:.5') == [('a.txt', 2), ('b', 0.5)]
    for path in ('a', 'a,b', '5', 'C:\\texts', 'a:b', 'a:-1', 'a:1e3'):
        assert find(path) == [(path, 1)]
    (tmp_path / 'a:3').write_text('')
    assert find(f'{tmp_path}/a:3') == [(f'{tmp_path}/a:3', 1)]
    for path in ('a:1,b', 'a,b:1', 'a:0,b:1', ':1,b:1'):
        with pytest.raises(InputError, match='each part of a mixture needs a decimal above 0'):
            find(path)


def test_bytes_done_are_those_of_files(tmp_path, enc, monkeypatch):
    (tmp_path / 'a.txt').write_text('word ' * 100000)
    (tmp_path / 'b.txt.gz').write_bytes(gzip.compress(os.urandom(100000).hex().encode()))
    write_rows(tmp_path / 'c.jsonl', [{'text': 'word'}] * 1000)
    np.savez(tmp_path / 'd.npz', np.arange(500))
    bars = []

    class Bar(load_dataset.tqdm):
        def __init__(self, *args, **options):
            super().__init__(*args, **{**options, 'disable': False, 'file': io.StringIO()})
            bars.append(self)
    monkeypatch.setattr(load_dataset, 'tqdm', Bar)
    load(enc, tmp_path)
    assert [bar.n for bar in bars] == [bar.total for bar in bars] == [
        sum(path.stat().st_size for path in tmp_path.iterdir())]
