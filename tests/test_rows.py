"""Rows are read as the libraries of their formats write them; what is none is told with file and line."""
import csv
import gzip
import io
import json
import lzma
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errors import InputError
from storage import rows, text_files

pyarrow = pytest.importorskip('pyarrow')
parquet = pytest.importorskip('pyarrow.parquet')
zstandard = pytest.importorskip('zstandard')
PACK = {'': bytes, '.gz': gzip.compress, '.xz': lzma.compress,
        '.zst': lambda data: zstandard.ZstdCompressor().compress(data[:10]) + zstandard.compress(data[10:])}
TEXTS = ['plain', 'two\nlines\r\n', 'a "quoted", word\t', '', ' ', 'häß 世界 \U0001F600', '\ufeffmark',
         'x' * 5000]


def read(path, encoding=None, fields=('text',)):
    return [row for _, row in rows.read_rows(str(path), encoding, fields)]


def encoded(kind, values):  # -> bytes of a file with the rows
    if kind == '.jsonl':
        lines = (json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(values))
        return '\n'.join(lines).encode()
    if kind == '.parquet':
        file = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(values), file, row_group_size=3)
        return file.getvalue()
    file = io.StringIO(newline='')
    writer = csv.DictWriter(file, values[0], delimiter={'.csv': ',', '.tsv': '\t'}[kind])
    writer.writeheader()
    writer.writerows(values)
    return file.getvalue().encode()


@pytest.mark.parametrize('packing', PACK)
@pytest.mark.parametrize('kind', rows.READERS)
def test_rows_are_those_that_were_written(tmp_path, kind, packing):
    values = [{'text': text, 'other': 'no'} for text in TEXTS]
    path = tmp_path / f'a{kind}{packing}'
    path.write_bytes(PACK[packing](encoded(kind, values)))
    assert text_files.suffixes(str(path).upper())[0] in rows.READERS
    assert [row['text'] for row in read(path)] == TEXTS
    assert [row.get('other', 'no') for row in read(path)] == ['no'] * len(TEXTS)


def test_a_parquet_of_one_large_answer_many_times_is_refused(tmp_path):
    """In messages, whose texts are within lists."""
    n, path = 200, tmp_path / 'bomb.parquet'
    contents = pyarrow.DictionaryArray.from_arrays(np.array([0, 1] * n, np.int32), ['q', 'a b ' * 250_000])
    messages = pyarrow.StructArray.from_arrays([['user', 'assistant'] * n, contents], ['role', 'content'])
    lists = pyarrow.ListArray.from_arrays(np.arange(0, 2 * n + 1, 2, np.int32), messages)
    parquet.write_table(pyarrow.table({'messages': lists}), path, compression='zstd')
    with pytest.raises(InputError, match=r'bomb\.parquet unpacks to more than 100 times its size'):
        for row in rows.read_rows(str(path), None, ('messages',)):
            assert row


def test_a_binary_file_under_the_name_of_another_kind_is_told(tmp_path):
    path = tmp_path / 'sheet.csv'
    for start in (b'PK\3\4', b'\xd0\xcf\x11\xe0'):  # of spreadsheets
        path.write_bytes(start + b'text\nrow\n')
        for encoding in (None, 'latin-1'):
            with pytest.raises(InputError, match=r'sheet\.csv: this is a packed or binary file, not text'):
                read(path, encoding)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(st.characters(exclude_categories=['Cs'], exclude_characters='\0')), min_size=1))
@pytest.mark.parametrize('kind', rows.READERS)
def test_odd_texts(tmp_path_factory, kind, texts):
    path = tmp_path_factory.getbasetemp() / f'odd{kind}'
    path.write_bytes(encoded(kind, [{'text': text, 'n': '1'} for text in texts]))
    assert [row['text'] for row in read(path)] == texts


def test_messages_of_a_parquet_are_lists(tmp_path):
    messages = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]
    (tmp_path / 'a.parquet').write_bytes(encoded('.parquet', [{'messages': messages, 'n': 3}]))
    assert read(tmp_path / 'a.parquet', fields=['text', 'messages']) == [{'messages': messages}]


def test_what_is_no_row_is_told_with_its_place(tmp_path):
    for name, data, expected in [
            ('a.jsonl', b'{"text": "a"}\n\n{"text": \n', r'a\.jsonl line 3 is not JSON'),
            ('a.jsonl', b'{"text": "a"}\n["a"]\n', r'a\.jsonl line 2 must hold an object'),
            ('a.jsonl', b'[' * 100000, r'a\.jsonl line 1 is not JSON \(maximum recursion'),
            ('a.jsonl', b'{"text": "a"}\n{"text": "b"}\n{"text": "\xff"}\n{}\n', r'line 3: not utf-8; '),
            ('a.csv', b'text,n\na,1\nb\n', r'a\.csv line 3 has 1 fields, but the first line names 2'),
            ('a.csv', b'text,n\n"a\nb",1\n"c"d,2\n', r"a\.csv line 4: ',' expected after '\"'"),
            ('a.csv', b'text\n"never closed\n\n', r'a\.csv line 3: unexpected end of data'),
            ('a.tsv', 'text\nä\n'.encode('latin-1'), r'a\.tsv line 2: not utf-8'),
            ('a.parquet', b'PAR1 no PAR1', r'a\.parquet is no whole \.parquet file'),
            ('a.parquet', b'', r'a\.parquet is no whole \.parquet file'),
            ('a.parquet', encoded('.parquet', [{'n': 1, 'm': 2}]), r"parquet has no column text, but 'n, m'"),
            ('a.jsonl.gz', b'{"text": "a"}\n', r'a\.jsonl\.gz is damaged \(Not a gzipped file'),
            ('a.jsonl.gz', gzip.compress(b'{}\n' * 1000)[:-9], r'a\.jsonl\.gz is damaged \(Comp'),
            ('a.jsonl.xz', lzma.compress(b'{}\n' * 1000)[:-9], r'a\.jsonl\.xz is damaged'),
            ('a.jsonl.zst', zstandard.compress(b'{}\n' * 1000)[:-3], r'a\.jsonl\.zst is damaged \(it is cut'),
            ('a.jsonl.zst', zstandard.compress(b'{}\n') + b'junk', r'a\.jsonl\.zst is damaged')]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=expected) as caught:
            read(tmp_path / name)
        assert '\n' not in str(caught.value) and len(str(caught.value)) < 400


def test_a_column_that_python_cannot_hold_is_told(tmp_path):
    table = pyarrow.table({'text': pyarrow.array([2**60], pyarrow.duration('s'))})
    parquet.write_table(table, tmp_path / 'a.parquet')
    with pytest.raises(InputError, match=r'a\.parquet is no whole \.parquet file'):
        read(tmp_path / 'a.parquet')


def test_line_numbers_hold_far_into_a_file_in_any_encoding(tmp_path):
    for encoding, bad in (('utf-8', b'\xff\n'), ('utf-16-le', b'\x00\xdc\x20\x00')):
        lines = ''.join(f'{{"text": "{"é" * (i % 90)}"}}\n' for i in range(5000))
        (tmp_path / 'a.jsonl').write_bytes(lines.encode(encoding) + bad)
        with pytest.raises(InputError, match=f'line 5001: not {encoding}'):
            read(tmp_path / 'a.jsonl', encoding)


def test_a_line_or_field_without_end_takes_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, 'MAX_LINE', 1000)
    for name, data, expected in [
            ('a.jsonl', b'{"text": "' + b'x' * 1000, 'line 1 has 1,000 characters or more'),
            ('a.csv', b'text\n' + b'x' * 1000, 'line 2 has 1,000 characters or more'),
            ('b.csv', b'text\n"' + b'xx\n' * 400, 'line 335: field larger than field limit')]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=expected):
            read(tmp_path / name)


@pytest.mark.parametrize('name', ['a.jsonl.gz', 'a.jsonl.xz', 'a.jsonl.zst', 'a.parquet', 'b.parquet'])
def test_a_bomb_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(text_files, 'MIN_LIMIT', 1 << 20)
    row, n = {'text': 'x' * 10000}, 1000
    if name.endswith('.parquet'):
        file, is_dictionary = io.BytesIO(), name == 'a.parquet'  # one text, which all rows name
        texts = [row['text'] + f'{i}' * (not is_dictionary) for i in range(n)]
        table = pyarrow.table({'text': texts})
        parquet.write_table(table, file, compression='zstd', use_dictionary=is_dictionary)
        data = file.getvalue()
    else:
        data = PACK[os.path.splitext(name)[1]](encoded('.jsonl', [row] * n))
    (tmp_path / name).write_bytes(data)
    assert len(data) * 100 < n * 10000
    with pytest.raises(InputError, match=rf'{name} unpacks to more than 100 times its size'):
        read(tmp_path / name)


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    for name, package in (('a.parquet', 'pyarrow'), ('a.jsonl.zst', 'zstandard')):
        (tmp_path / name).write_bytes(b'')
        monkeypatch.setitem(__import__('sys').modules, package, None)
        with pytest.raises(InputError, match=rf'{name} needs the package {package}: pip install {package}'):
            read(tmp_path / name)


def test_bytes_that_are_read_are_told(tmp_path):
    for kind in rows.READERS:
        for packing in ('', '.gz'):
            path = tmp_path / f'a{kind}{packing}'
            texts = np.random.default_rng(1).bytes(3 << 20).hex()
            values = [{'text': texts[i:i + 3000]} for i in range(0, len(texts), 3000)]
            path.write_bytes(PACK[packing](encoded(kind, values)))
            told = []
            assert len(list(rows.read_rows(str(path), None, ['text'], told.append))) == len(values)
            assert len(told) > 1 and told == sorted(told) and told[-1] == path.stat().st_size, (kind, packing)
