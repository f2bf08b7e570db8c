"""Text is read as Python itself decodes it, in parts of any size, and what is no text is told."""
import bz2
import gzip
import lzma
import tarfile
from unittest import mock

import numpy as np
import pytest

from errors import InputError
from storage import text_files


def read(path, encoding=None):
    return ''.join(text_files.read_text(str(path), encoding))


@pytest.mark.parametrize('start', text_files.BINARY)
def test_a_file_of_another_kind_is_no_text(tmp_path, start):
    (tmp_path / 'a.txt').write_bytes(start + b'text')
    with pytest.raises(InputError, match=r'a\.txt: this is a packed or binary file, not text; convert it'):
        read(tmp_path / 'a.txt')
    (tmp_path / 'a.txt').write_bytes(start[:-1] + b' text')
    assert read(tmp_path / 'a.txt', 'latin-1') == (start[:-1] + b' text').decode('latin-1')


@pytest.mark.parametrize('read_bytes', [1, 3, 1 << 18])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-16', 'utf-8-sig', 'shift_jis'])
def test_bytes_are_read_as_they_are(tmp_path, encoding, read_bytes):
    text = 'line\r\nold\rnew\n\n日本語 テキスト、\r\n  end \r'
    (tmp_path / 'a').write_bytes(text.encode(encoding))
    with mock.patch.object(text_files, 'READ_CHARS', read_bytes):
        assert read(tmp_path / 'a', encoding) == text


@pytest.mark.parametrize('read_bytes', [1, 1 << 18])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-32-be'])
def test_a_byte_order_mark_is_no_text_but_at_another_place(tmp_path, encoding, read_bytes):
    text = 'te\ufeffxt'
    (tmp_path / 'a').write_bytes(
        ('\ufeff' * (encoding not in ('utf-8-sig', 'utf-16')) + text).encode(encoding)
    )
    (tmp_path / 'b').write_bytes('\ufeff'.encode())
    with mock.patch.object(text_files, 'READ_CHARS', read_bytes):
        assert read(tmp_path / 'a', encoding) == text
        assert read(tmp_path / 'b') == ''


def test_an_archive_is_no_text(tmp_path):
    with tarfile.open(tmp_path / 'a.tar.gz', 'w:gz') as archive:
        archive.add(__file__)
    with pytest.raises(InputError, match=r'a\.tar\.gz: this is a packed or binary file'):
        read(tmp_path / 'a.tar.gz')


def test_no_encoding_is_utf_8(tmp_path):
    (tmp_path / 'a').write_bytes('häß'.encode())
    assert read(tmp_path / 'a', None) == 'häß'


@pytest.mark.parametrize('encoding', ['utf-8', 'latin-1', 'utf-16'])
@pytest.mark.parametrize('write', [
    lambda path: path.write_bytes(gzip.compress(b'text')),
    lambda path: path.write_bytes(bz2.compress(b'text')),
    lambda path: path.write_bytes(lzma.compress(b'text')),
    lambda path: np.savez(path.open('wb'), [1]),
    lambda path: path.write_bytes(b'%PDF-1.7\n%\xe2\xe3\xcf\xd3\n'),
    lambda path: path.write_bytes(bytes.fromhex('28b52ffd2004210000') + b'text')])
def test_what_is_no_text_in_any_encoding_is_told(tmp_path, write, encoding):
    write(tmp_path / 'a.txt')
    with pytest.raises(InputError, match=r'a\.txt: this is a .* file, not text') as raised:
        read(tmp_path / 'a.txt', encoding)
    assert 'encoding' not in str(raised.value)


@pytest.mark.parametrize('read_bytes', [1, 4, 1 << 18])
@pytest.mark.parametrize(
    'encoding, content, at',
    [
        ('utf-8', b'good \xc3\xa9 bad \xff end', 12),
        ('utf-8', b'good \xe4\xbd\x41', 5),
        ('utf-8', b'cut \xf0\x9f\x98', 4),
        ('ascii', b'plain \xe9', 6),
        ('utf-16', '\ufeffabc'.encode('utf-16-le') + b'\x00\xdcxx', 8),
        ('utf-8-sig', b'\xef\xbb\xbfabc\xff', 6),
        ('shift_jis', '日本'.encode('shift_jis') + b'\x82\xff.', 4),
    ],
)
def test_wrong_encoding_is_told_with_its_offset(tmp_path, read_bytes, encoding, content, at):
    (tmp_path / 'bad.txt').write_bytes(content)
    with mock.patch.object(text_files, 'READ_CHARS', read_bytes), pytest.raises(InputError) as caught:
        read(tmp_path / 'bad.txt', encoding)
    assert f'{tmp_path / "bad.txt"}: not {encoding} at byte {at};' in str(caught.value)
