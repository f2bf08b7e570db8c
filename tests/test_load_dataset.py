import collections
import io
import itertools
import os
import tempfile
import tracemalloc
import zipfile
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_vocab import EOT, tiny_bpe

import load_dataset
import npz
from encoder import Encoder, bytes_to_unicode
from errors import InputError
from load_dataset import find_files, iter_chunks
from npz import write_npz
from windows import PADDING, Sampler, hold_out, permuted


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


def test_find_files_of_several_paths(tmp_path):
    for name in ('b.npz', 'a.txt', 'shards/1.npz', 'shards/2.npz', 'with,comma.txt', 'x,1', 'x,2'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)

    def found(*names):
        path = ','.join(str(tmp_path / name) for name in names)
        return [os.path.relpath(name, tmp_path) for name in find_files(path)]
    assert found('b.npz', 'a.txt') == ['b.npz', 'a.txt']
    assert found('shards/*.npz', 'a.txt', 'shards') == ['shards/1.npz', 'shards/2.npz', 'a.txt', 'shards/1.npz',
                                                        'shards/2.npz']
    assert found('with,comma.txt') == ['with,comma.txt'] and found('x,*') == ['x,1', 'x,2']
    with pytest.raises(InputError, match=r'nothing matches the path .*nowhere;'):
        found('a.txt', 'nowhere', 'b.npz')
    with pytest.raises(InputError, match='nothing before, between or after its commas'):
        find_files(f'{tmp_path / "a.txt"},')


def test_dataset_of_several_files(tmp_path, enc):
    for i in range(3):
        np.savez(tmp_path / f'{i}.npz', np.arange(i, 5))
    assert lists(load(enc, f'{tmp_path}/2.npz,{tmp_path}/[01].npz')) == lists(np.arange(i, 5) for i in (2, 0, 1))


def test_paths_without_files(tmp_path):
    with pytest.raises(InputError, match=r'nothing matches the path .*nowhere'):
        find_files(str(tmp_path / 'nowhere'))
    (tmp_path / 'empty' / 'sub').mkdir(parents=True)
    with pytest.raises(InputError, match=r'directory .*empty holds no files'):
        find_files(str(tmp_path / 'empty'))
    with pytest.raises(InputError, match='matches only directories'):
        find_files(str(tmp_path / 'emp*'))


def test_what_is_hidden_in_a_folder_is_left_out(tmp_path):
    for name in ('.DS_Store', '.git/config', 'code/.cache/x', 'code/a.py', 'b.txt'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b'\0\xff')
    assert find_files(str(tmp_path)) == [str(tmp_path / 'b.txt'), str(tmp_path / 'code' / 'a.py')]
    assert find_files(str(tmp_path / '.DS_Store')) == [str(tmp_path / '.DS_Store')]  # by its name it is meant


@pytest.mark.parametrize('dtype, wrong', [(np.uint32, 2**32 - 5), (np.int64, 2**40), (np.int32, -5)])
def test_ids_that_no_window_can_hold_are_refused_wherever_they_are(tmp_path, enc, monkeypatch, dtype, wrong):
    monkeypatch.setattr(npz, 'CHECKED_TOKENS', 0)
    np.savez(tmp_path / 'a.npz', np.array([1, 2, wrong, 3], dtype))
    sampler = Sampler(load(enc, tmp_path / 'a.npz'), seed=1)
    with pytest.raises(InputError, match=fr'the data has ids from .*{wrong}.*; make it anew with encode\.py'):
        sampler.sample(4)


# Text


def test_documents_are_gathered_and_followed_by_end_of_text(tmp_path, enc):
    texts = {'1.txt': 'first', '2.txt': 'second one', '3.txt': '', '4.txt': 'the third', '5.txt': 'x'}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    ids = {name: [*enc.encode(text), enc.eot] for name, text in texts.items()}
    assert lists(load(enc, tmp_path)) == [ids['1.txt'] + ids['2.txt'] + ids['4.txt'] + ids['5.txt']]
    assert lists(load(enc, tmp_path, combine=15)) == [ids['1.txt'] + ids['2.txt'], ids['4.txt'] + ids['5.txt']]
    assert lists(load(enc, tmp_path, combine=16)) == [ids['1.txt'] + ids['2.txt'] + ids['4.txt'], ids['5.txt']]
    assert lists(load(enc, tmp_path, 1)) == [ids[name] for name in texts if texts[name]]


def test_end_of_text_in_a_file_is_text(tmp_path, enc):
    (tmp_path / 'a').write_text(f'a{EOT}b')
    assert lists(load(enc, tmp_path / 'a')) == [[*enc.encode(f'a{EOT}b'), enc.eot]]


def test_vocabulary_without_end_of_text(tmp_path):
    plain = Encoder({symbol: id for id, symbol in enumerate(bytes_to_unicode().values())}, [])
    for name in 'ab':
        (tmp_path / name).write_text(name)
    assert lists(load(plain, tmp_path)) == [plain.encode('ab')]


def test_chunks_are_compact(tmp_path, enc):
    (tmp_path / 'a').write_text('text')
    assert load(enc, tmp_path / 'a')[0].dtype == np.uint16
    wide = Encoder({**enc.encoder, 'far': 65536}, [])
    assert load(wide, tmp_path / 'a')[0].dtype == np.int32
    assert npz.token_dtype(65536) == np.uint16


@pytest.mark.parametrize('read_bytes', [1, 3, 1 << 18])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-16', 'utf-8-sig', 'shift_jis'])
def test_bytes_are_read_as_they_are(tmp_path, enc, encoding, read_bytes):
    text = 'line\r\nold\rnew\n\n日本語 テキスト、\r\n  end \r'
    (tmp_path / 'a').write_bytes(text.encode(encoding))
    with mock.patch.object(load_dataset, 'READ_BYTES', read_bytes):
        assert lists(load(enc, tmp_path / 'a', encoding=encoding)) == [[*enc.encode(text), enc.eot]]


def test_byte_order_mark_is_the_codecs_matter(tmp_path, enc):
    (tmp_path / 'a').write_bytes('\ufefftext'.encode())
    assert lists(load(enc, tmp_path / 'a')) == [[*enc.encode('\ufefftext'), enc.eot]]
    assert lists(load(enc, tmp_path / 'a', encoding='utf-8-sig')) == [[*enc.encode('text'), enc.eot]]
    assert lists(load(enc, tmp_path / 'a', encoding=None)) == lists(load(enc, tmp_path / 'a'))


@pytest.mark.parametrize('read_bytes', [1, 4, 1 << 18])
@pytest.mark.parametrize('encoding, content, at', [
    ('utf-8', b'good \xc3\xa9 bad \xff end', 12), ('utf-8', b'good \xe4\xbd\x41', 5), ('utf-8', b'cut \xf0\x9f\x98', 4),
    ('ascii', b'plain \xe9', 6), ('utf-16', '\ufeffabc'.encode('utf-16-le') + b'\x00\xdcxx', 8),
    ('utf-8-sig', b'\xef\xbb\xbfabc\xff', 6), ('shift_jis', '日本'.encode('shift_jis') + b'\x82\xff.', 4),
])
def test_wrong_encoding_is_told_with_its_offset(tmp_path, enc, read_bytes, encoding, content, at):
    (tmp_path / 'bad.txt').write_bytes(content)
    with mock.patch.object(load_dataset, 'READ_BYTES', read_bytes), pytest.raises(InputError) as caught:
        load(enc, tmp_path / 'bad.txt', encoding=encoding)
    assert f'{tmp_path / "bad.txt"}: not {encoding} at byte {at} ' in str(caught.value)


@pytest.mark.parametrize('encoding', ['klingon', 'hex', 'rot13', 'a\0b', 'zlib'])
def test_unknown_encoding(tmp_path, enc, encoding):
    (tmp_path / 'a').write_text('text')
    with pytest.raises(InputError, match='is not an encoding of text'):
        load(enc, tmp_path / 'a', encoding=encoding)


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


# .npz


def memory_map_below(array):
    while array is not None and not isinstance(array, np.memmap):
        array = array.base
    return array is not None


def test_stored_arrays_are_mapped_in_numeric_order(tmp_path, enc):
    arrays = [np.arange(i, 3 * i + 1, dtype=kind) for i, kind in
              zip(range(12), itertools.cycle(['<u2', '<i4', '<i8', '>i4', 'u1']), strict=False)]
    np.savez(tmp_path / 'a.npz', *arrays)
    chunks = load(enc, tmp_path / 'a.npz')
    assert lists(chunks) == lists(arrays)
    assert all(memory_map_below(chunk) for chunk in chunks)
    assert [chunk.dtype for chunk in chunks] == [array.dtype for array in arrays]
    with pytest.raises(ValueError, match='read-only'):
        chunks[0][:] = 0


def test_only_so_many_mapped_tokens_are_searched(tmp_path, enc):
    np.savez(tmp_path / 'a.npz', np.arange(5), np.arange(5), np.array([1, -2]))
    with mock.patch.object(npz, 'CHECKED_TOKENS', 11):
        assert lists(load(enc, tmp_path / 'a.npz'))[2] == [1, -2]
    with mock.patch.object(npz, 'CHECKED_TOKENS', 12), pytest.raises(InputError, match='negative id -2'):
        load(enc, tmp_path / 'a.npz')


def resident(path):  # kB of a mapped file that count as this process's
    with open('/proc/self/smaps') as file:
        entries = file.read().split(str(path))[1:]
    return sum(int(entry.split('Rss:')[1].split()[0]) for entry in entries)


@pytest.mark.skipif(not os.path.exists('/proc/self/smaps'), reason='memory is listed here by Linux only')
def test_release_gives_memory_back_and_changes_nothing(tmp_path, enc):
    path = tmp_path / 'a.npz'
    np.savez(path, np.arange(1 << 20, dtype=np.uint16), np.arange(100))
    training, validation = hold_out(load(enc, path), 0.2)
    sampler, total = Sampler(training, seed=1), int(training[0].sum(dtype=np.int64))
    first = sampler.sample(1000)
    assert resident(path) > 1000
    for chunks in (training, validation, sampler.chunks, [training[0][5:]]):
        assert int(training[0].sum(dtype=np.int64)) == total and resident(path) > 1000
        npz.release(chunks)
        assert resident(path) < 300
    sampler.position = 0
    assert np.array_equal(sampler.sample(1000), first)


def test_release_of_what_is_not_mapped():
    npz.release([])
    npz.release([np.arange(5), np.arange(5)[1:], np.frombuffer(b'ab', np.uint8)])


def test_writing_from_a_map_keeps_little_of_it_in_memory(tmp_path, enc):
    np.savez(tmp_path / 'a.npz', np.arange(1 << 22, dtype=np.uint16) % 500)
    write_npz(str(tmp_path / 'b.npz'), chunks := load(enc, tmp_path / 'a.npz'), 557)
    assert len(chunks) == 1 and (not os.path.exists('/proc/self/smaps') or resident(tmp_path / 'a.npz') < 2000)
    assert (tmp_path / 'b.npz').stat().st_size > 1 << 23


def test_deflated_arrays_are_narrowed(tmp_path, enc):
    arrays = [np.array([1, 2, 65535]), np.array([1, 65536]), np.array([], np.int64), np.array([7, 8])]
    np.savez_compressed(tmp_path / 'a.npz', *arrays)
    chunks = load(enc, tmp_path / 'a.npz')
    assert lists(chunks) == [[1, 2, 65535], [1, 65536], [7, 8]]
    assert [chunk.dtype for chunk in chunks] == [np.uint16, np.int32, np.uint16]


def test_mixture_keeps_the_order_of_files(tmp_path, enc):
    (tmp_path / 'a.txt').write_text('text a')
    np.savez(tmp_path / 'b.npz', np.array([5, 6, 7], np.uint16), np.array([8, 9], np.uint16))
    (tmp_path / 'c.txt').write_text('text c')
    (tmp_path / 'd.txt').write_text('text d')
    eot = enc.eot
    assert lists(load(enc, tmp_path)) == [
        [*enc.encode('text a'), eot], [5, 6, 7], [8, 9], [*enc.encode('text c'), eot, *enc.encode('text d'), eot]]


def npz_of(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        for name, content in members.items():
            archive.writestr(name.replace('_npy', '.npy'), content)
    return file.getvalue()


def saved(save, *arrays):
    file = io.BytesIO()
    save(file, *arrays)
    return file.getvalue()


def npy(text):  # a .npy whose header is this text
    return b'\x93NUMPY\x01\x00' + len(text).to_bytes(2, 'little') + text.encode()


OBJECTS = np.array([{}, None], object)
HOSTILE = {
    'not a zip': (b'PK not a zip', 'is not a .npz'),
    'empty': (b'', 'is not a .npz'),
    'objects': (saved(np.savez, OBJECTS), "array 'arr_0': holds pickled objects"),
    'objects deflated': (saved(np.savez_compressed, OBJECTS), 'holds pickled objects'),
    'second bad': (saved(np.savez, np.arange(3), np.ones(3)), "array 'arr_1': holds float64"),
    'bool': (saved(np.savez_compressed, np.ones(3, bool)), 'holds bool, not integers'),
    'text': (saved(np.savez, np.array(['a'])), 'holds <U1'),
    'matrix': (saved(np.savez, np.ones((2, 2), int)), r'has the shape (2, 2)'),
    'scalar': (saved(np.savez_compressed, np.array(5)), r'has the shape ()'),
    'negative': (saved(np.savez, np.array([1, -2])), 'holds the negative id -2'),
    'negative deflated': (saved(np.savez_compressed, np.array([1, -2])), 'holds the negative id -2'),
    'too large': (saved(np.savez_compressed, np.array([2**31])), 'holds the id 2147483648'),
    'no array': (npz_of(readme=b'hello world, this is no array'), "array 'readme'"),
    'pickle': (npz_of(arr_0_npy=b'cos\nsystem\n(S"true"\ntR.'), "array 'arr_0'"),
    'short header': (npz_of(arr_0_npy=b'\x93NUMPY\x01\x00\xff\xff{'), "array 'arr_0'"),
    'version 3': (npz_of(arr_0_npy=b'\x93NUMPY\x03\x00' + bytes(40)), 'version (3, 0)'),
    'computed shape': (npz_of(arr_0_npy=npy("{'descr': '<i8', 'fortran_order': False, 'shape': (10**15,)}")),
                       "array 'arr_0'"),
    'lying shape': (npz_of(arr_0_npy=npy("{'descr': '<i8', 'fortran_order': False, 'shape': (99999999999999,)}")),
                    'has not the size'),
    'negative shape': (npz_of(arr_0_npy=npy("{'descr': '<i8', 'fortran_order': False, 'shape': (-1,)}") + b'x' * 8),
                       'has not the size'),
    'nested header': (npz_of(arr_0_npy=npy('(' * 9000)), "array 'arr_0'"),
    'code in header': (npz_of(arr_0_npy=npy("__import__('os').system('true')")), "array 'arr_0'"),
    'void': (npz_of(arr_0_npy=npy("{'descr': '|V0', 'fortran_order': False, 'shape': (5,)}")), 'holds'),
}


@pytest.mark.parametrize('content, expected', HOSTILE.values(), ids=HOSTILE)
def test_unusable_npz_is_refused_by_name(tmp_path, enc, content, expected):
    (tmp_path / 'bad.npz').write_bytes(content)
    with pytest.raises(InputError) as caught:
        load(enc, tmp_path / 'bad.npz')
    message = str(caught.value)
    assert str(tmp_path / 'bad.npz') in message and expected in message and '\n' not in message
    assert 'encode.py' in message


def test_names_in_a_npz_may_be_anything(tmp_path, enc):
    names = ['../../up', '/root', 'a²', '9' * 5000, '10' + '0' * 5000, 'a\nb', '', 'arr_10', 'arr_9', 'CON', 'a' * 5000]
    np.savez(tmp_path / 'a.npz', **{name: np.arange(3) for name in names})
    np.savez(tmp_path / 'b.npz', **{name: np.zeros(3) for name in names})
    before = sorted(os.listdir(tmp_path))
    assert lists(load(enc, tmp_path / 'a.npz')) == [[0, 1, 2]] * len(names)
    with pytest.raises(InputError) as caught:
        load(enc, tmp_path / 'b.npz')
    assert '\n' not in str(caught.value) and len(str(caught.value)) < 1000
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
@pytest.mark.parametrize('find', [bytes.find, bytes.rfind])
def test_a_name_that_was_damaged_changes_no_order(tmp_path, enc, save, find):
    content = bytearray(saved(save, np.arange(3), np.arange(4)))
    content[find(bytes(content), b'arr_0') + 4] ^= 2  # arr_2, in one of the two places where it stands
    (tmp_path / 'a.npz').write_bytes(content)
    with pytest.raises(InputError, match=r"array 'arr_[02]': .*differ"):
        load(enc, tmp_path / 'a.npz')


def encrypted(content):  # says so in both headers
    content = bytearray(content)
    for signature, flags in ((b'PK\3\4', 6), (b'PK\1\2', 8)):
        content[content.find(signature) + flags] |= 1
    return bytes(content)


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_an_encrypted_npz_is_refused(tmp_path, enc, save):
    (tmp_path / 'a.npz').write_bytes(encrypted(saved(save, np.arange(50))))
    with pytest.raises(InputError, match='is encrypted'):
        load(enc, tmp_path / 'a.npz')


def test_a_npz_of_65_536_arrays_is_read(tmp_path, enc):
    write_npz(str(tmp_path / 'a.npz'), (np.array([i % 500]) for i in range(65536)), 557)
    assert [chunk.item() for chunk in load(enc, tmp_path / 'a.npz')] == [i % 500 for i in range(65536)]


def test_what_inflates_out_of_proportion_is_refused(tmp_path, enc):
    path = tmp_path / 'a.npz'
    np.savez_compressed(path, np.zeros(1 << 24, np.uint16))  # less than INFLATED_FREELY
    assert [len(chunk) for chunk in load(enc, path)] == [1 << 24]
    np.savez_compressed(path, *[np.zeros(1 << 24, np.uint16)] * 3)
    with pytest.raises(InputError, match=r'claims to hold 100,663,\d+, more than 100 times .* without --compress'):
        load(enc, path)
    np.savez(path, *[np.zeros(1 << 24, np.uint16)] * 3)
    assert len(load(enc, path)) == 3


def test_arrays_that_share_their_bytes_are_refused(tmp_path, enc):
    content = saved(np.savez, np.arange(1 << 16))
    start = content.index(b'PK\1\2')
    entry, end = content[start:content.index(b'PK\5\6')], content[content.index(b'PK\5\6'):]
    end = end[:8] + (2000).to_bytes(2, 'little') * 2 + (2000 * len(entry)).to_bytes(4, 'little') + end[16:]
    (tmp_path / 'a.npz').write_bytes(content[:start] + entry * 2000 + end)
    with pytest.raises(InputError, match='more than 100 times'):
        load(enc, tmp_path / 'a.npz')


def test_more_than_an_array_claims_is_not_inflated(tmp_path, enc):
    header = npy("{'descr': '<u2', 'fortran_order': False, 'shape': (10000,)}")
    content, claimed = header + bytes(1 << 25), len(header) + 20000
    with zipfile.ZipFile(tmp_path / 'a.npz', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('arr_0.npy', content)
    lie = (tmp_path / 'a.npz').read_bytes().replace(len(content).to_bytes(4, 'little'), claimed.to_bytes(4, 'little'))
    (tmp_path / 'a.npz').write_bytes(lie)
    tracemalloc.start()
    with pytest.raises(InputError, match="array 'arr_0': Bad CRC-32"):
        load(enc, tmp_path / 'a.npz')
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_damaged_npz_gives_arrays_or_an_input_error(tmp_path, enc, save):
    whole = saved(save, np.arange(50), np.arange(60, dtype=np.uint16))
    path = tmp_path / 'bad.npz'
    draw = np.random.default_rng(3)
    for cut in range(0, len(whole) - 1, 17):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError):
            load(enc, path)
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[draw.integers(len(whole))] = draw.integers(256)
        path.write_bytes(damaged)
        try:
            load(enc, path)
        except InputError as error:
            assert str(path) in str(error)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(0, 556), max_size=20)), st.booleans(), st.data())
def test_any_chunks_come_back_and_any_bytes_are_refused_or_loaded(lists_of_ids, compress, data):
    enc = mock.Mock(__len__=lambda enc: 557)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'a.npz')
        write_npz(path, [np.array(ids, np.int64) for ids in lists_of_ids], 557, compress)
        assert lists(load(enc, path)) == [ids for ids in lists_of_ids if ids]
        with open(path, 'rb') as file:
            whole = file.read()
        at, length = data.draw(st.integers(0, len(whole))), data.draw(st.integers(0, 40))
        with open(path, 'wb') as file:
            file.write(whole[:at] + data.draw(st.binary(max_size=40)) + whole[at + length:])
        try:
            assert lists(load(enc, path)) == [ids for ids in lists_of_ids if ids]
        except InputError as error:
            assert path in str(error) and '\n' not in str(error) and len(str(error)) < 1000


# Writing


@pytest.mark.parametrize('compress', [False, True])
def test_write_npz(tmp_path, enc, compress):
    arrays = [np.arange(5), np.arange(7, dtype=np.uint16), np.array([556])]
    path = str(tmp_path / 'a.npz')
    assert write_npz(path, [arrays[0], iter([arrays[1][:3], arrays[1][3:]]), arrays[2]], len(enc), compress) == (13, 3)
    with np.load(path, allow_pickle=False) as archive:
        assert archive.files == ['arr_0', 'arr_1', 'arr_2']
        assert lists(archive.values()) == lists(arrays)
        assert {array.dtype for array in archive.values()} == {np.dtype(np.uint16)}
    assert [info.compress_type for info in zipfile.ZipFile(path).infolist()] == [8 if compress else 0] * 3
    chunks = load(enc, path)
    assert lists(chunks) == lists(arrays) and all(memory_map_below(chunk) != compress for chunk in chunks)
    assert os.listdir(tmp_path) == ['a.npz']


def test_write_npz_spools_long_chunks_and_repeats_itself(tmp_path):
    array = np.random.default_rng(1).integers(0, 70000, 100000)
    write_npz(str(tmp_path / 'a.npz'), [array], 70000)
    with mock.patch.multiple(npz, SPOOL_BYTES=1000, READ_BYTES=777):
        write_npz(str(tmp_path / 'b.npz'), [array], 70000)
    assert (tmp_path / 'a.npz').read_bytes() == (tmp_path / 'b.npz').read_bytes()
    with np.load(tmp_path / 'b.npz') as archive:
        assert archive['arr_0'].dtype == np.int32 and np.array_equal(archive['arr_0'], array)


def test_write_npz_leaves_nothing_after_an_error(tmp_path):
    def chunks():
        yield np.arange(5)
        raise KeyError
    with pytest.raises(KeyError):
        write_npz(str(tmp_path / 'a.npz'), chunks(), 100)
    for bad in (100, -1):
        with pytest.raises(InputError, match=rf'token id \[{bad}\]'):
            write_npz(str(tmp_path / 'a.npz'), [np.array([1, bad])], 100)
    assert os.listdir(tmp_path) == []


def test_full_disk_is_told_with_the_path():
    if not os.path.exists('/dev/full'):
        pytest.skip('no /dev/full here')
    with mock.patch.object(npz.paths, 'replacing', lambda path, mode: open('/dev/full', mode)), \
            pytest.raises(OSError) as caught:
        write_npz('out.npz', [np.arange(10)], 100)
    assert caught.value.filename == 'out.npz'


def test_chunks_come_in_parts(tmp_path, enc):
    (tmp_path / 'a').write_text('the text ' * 200000)
    chunks = iter_chunks(enc, find_files(str(tmp_path / 'a')))
    parts = list(next(chunks))
    assert len(parts) > 5 and next(chunks, None) is None
    assert np.concatenate(parts).tolist() == load(enc, tmp_path / 'a')[0].tolist()


# Training windows


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.floats(0.01, 0.99))
def test_hold_out(lengths, fraction):
    ends = np.cumsum(lengths)
    tokens = np.arange(ends[-1])
    chunks = np.split(tokens, ends[:-1])
    count = round(len(tokens) * fraction)
    if min(count, len(tokens) - count) < 2:
        with pytest.raises(InputError, match=rf'of {len(tokens)} tokens leaves'):
            hold_out(chunks, fraction)
        return
    training, validation = hold_out(chunks, fraction)
    assert np.concatenate(training + validation).tolist() == tokens.tolist()
    assert sum(map(len, validation)) == count
    assert len(training) + len(validation) <= len(chunks) + 1
    assert all(chunk.base is not None for chunk in training + validation)  # views
    assert len(chunks) == len(lengths)  # the caller's list is as it was


@pytest.mark.parametrize('fraction', [0, 1, -0.1, 1.5, float('nan')])
def test_hold_out_of_impossible_fractions(fraction):
    with pytest.raises(InputError, match='between 0 and 1'):
        hold_out([np.arange(10)], fraction)


CHUNKS = [np.arange(100, 110), np.arange(200, 203), np.array([300]), np.arange(400, 405), np.arange(500, 502)]


def windows(chunks, length):
    """Every window, written out."""
    result = []
    for chunk in chunks:
        if len(chunk) >= length and len(chunk) > 1:
            result += [tuple(chunk[i:i + length].tolist()) for i in range(len(chunk) - length + 1)]
        elif len(chunk) > 1:
            result.append((*chunk.tolist(), *[PADDING] * (length - len(chunk))))
    return sorted(result)


@pytest.mark.parametrize('length', [1, 2, 3, 4, 5, 9, 10, 11, 40])
def test_each_window_once_an_epoch(length):
    sampler = Sampler(CHUNKS, seed=5)
    expected = windows(CHUNKS, length)
    epochs = [[tuple(sampler.sample(length).tolist()) for _ in expected] for _ in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [expected] * 3
    if len(expected) > 6:
        assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_sample_is_a_fresh_int32_array():
    chunk = np.arange(10, dtype=np.int32)
    sampler = Sampler([chunk], seed=1)
    window = sampler.sample(10)
    assert window.dtype == np.int32 and window.shape == (10,)
    window[:] = 0
    assert chunk.tolist() == list(range(10))
    assert sampler.sample(15).tolist() == [*range(10), *[-1] * 5]
    assert sampler.total_size == 10 and Sampler(CHUNKS).total_size == 21


@pytest.mark.parametrize('size', [2, 3, 5])
def test_ranks_share_each_epoch(size):
    one = Sampler(CHUNKS, seed=7)
    stream = [one.sample(3).tolist() for _ in range(60)]
    ranks = [Sampler(CHUNKS, seed=7, rank=rank, size=size) for rank in range(size)]
    assert [sampler.sample(3).tolist() for _ in range(60 // size) for sampler in ranks] == stream
    assert all(sampler.position == 60 // size for sampler in ranks)


def test_position_is_the_whole_state():
    one, other = Sampler(CHUNKS, seed=7), Sampler(CHUNKS, seed=7)
    for _ in range(30):
        one.sample(4)
    other.position = one.position
    assert [one.sample(4).tolist() for _ in range(40)] == [other.sample(4).tolist() for _ in range(40)]


def test_seeds():
    def draws(seed):
        sampler = Sampler([np.arange(1000)], seed)
        return [int(sampler.sample(2)[0]) for _ in range(20)]
    assert draws(1) == draws(1) == draws(np.int64(1)) != draws(2)
    assert draws(-1) != draws(1) and draws(2**70) != draws(0)
    assert draws(None) != draws(None)
    sampler = Sampler(CHUNKS)
    assert Sampler(CHUNKS, sampler.seed).sample(5).tolist() == sampler.sample(5).tolist()


def test_first_draws_are_uniform_over_seeds():
    n, seeds = 7, 4000
    counts, pairs = np.zeros((3, n)), collections.Counter()
    for seed in range(seeds):
        sampler = Sampler([np.arange(n)], seed)
        drawn = [int(sampler.sample(1)[0]) for _ in range(3)]
        counts[range(3), drawn] += 1
        pairs[drawn[0], drawn[1]] += 1
    assert np.all(((counts - seeds / n)**2).sum(1) / (seeds / n) < 27.9)  # chi-squared, 6 degrees, p = 0.0001
    expected = seeds / (n * (n - 1))
    assert len(pairs) == n * (n - 1)
    assert sum((count - expected)**2 for count in pairs.values()) / expected < 85  # 41 degrees, p = 0.0001


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 300), st.integers(0, 2**64 - 1))
def test_permuted_is_a_permutation(n, key):
    assert sorted(permuted(i, n, key) for i in range(n)) == list(range(n))


def test_permuted_of_huge_ranges():
    n = 10**13 + 7
    results = {permuted(i, n, 3) for i in range(1000)}
    assert len(results) == 1000 and all(0 <= each < n for each in results)
    assert max(results) > 0.9 * n and min(results) < 0.1 * n


def test_sampler_does_not_copy_chunks(tmp_path, enc):
    np.savez(tmp_path / 'a.npz', np.arange(1000, dtype=np.uint16))
    sampler = load_dataset.Sampler(load(enc, tmp_path / 'a.npz'), seed=0)
    assert memory_map_below(sampler.chunks[0])


def test_too_little_data():
    for chunks, tokens in (([], 0), ([np.array([5])], 1), ([np.array([5]), np.array([6])], 2)):
        with pytest.raises(InputError, match=f'has {tokens} tokens .* at least 2 in one chunk'):
            Sampler(chunks)
    with pytest.raises(InputError, match='at least 1 token, not 0'):
        Sampler(CHUNKS).sample(0)
    with pytest.raises(InputError, match='rank 2 must be from 0 to 1'):
        Sampler(CHUNKS, rank=2, size=2)
