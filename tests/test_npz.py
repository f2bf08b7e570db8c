"""The files of encoded chunks: what is written is read again, and what is damaged or hostile is refused."""
import io
import itertools
import os
import tempfile
import threading
import tracemalloc
import zipfile
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_load_dataset import lists, load
from tiny_vocab import tiny_bpe

from encoder import Encoder
from errors import InputError
from storage import npz
from storage.npz import write_npz
from training.windows import Sampler, hold_out


@pytest.fixture(scope='module')
def enc():
    return Encoder(*tiny_bpe())


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


def test_the_order_is_that_of_the_file_and_headers_may_be_of_any_version(tmp_path, enc):
    with zipfile.ZipFile(tmp_path / 'a.npz', 'w') as archive:
        for number in (2, 9, 10):
            with archive.open(f'arr_{number}.npy', 'w') as file:
                np.lib.format.write_array(file, np.arange(number), version=(number % 3 + 1, 0))
    assert lists(load(enc, tmp_path / 'a.npz')) == [list(range(number)) for number in (2, 9, 10)]


def test_only_so_many_mapped_tokens_are_searched(tmp_path, enc):
    np.savez(tmp_path / 'a.npz', np.arange(5), np.arange(5), np.array([1, -2]))  # 168, 168 and 144 bytes
    with mock.patch.object(npz, 'CHECKED_BYTES', 479):
        assert lists(load(enc, tmp_path / 'a.npz'))[2] == [1, -2]
    with mock.patch.object(npz, 'CHECKED_BYTES', 480), pytest.raises(InputError, match='negative id -2'):
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
    assert len(chunks) == 1 and (
        not os.path.exists('/proc/self/smaps') or resident(tmp_path / 'a.npz') < 2000
    )
    assert (tmp_path / 'b.npz').stat().st_size > 1 << 23


def test_deflated_arrays_are_narrowed(tmp_path, enc):
    arrays = [np.array([1, 2, 65535]), np.array([1, 65536]), np.array([], np.int64), np.array([7, 8])]
    np.savez_compressed(tmp_path / 'a.npz', *arrays)
    chunks = load(enc, tmp_path / 'a.npz')
    assert lists(chunks) == [[1, 2, 65535], [1, 65536], [7, 8]]
    assert [chunk.dtype for chunk in chunks] == [np.uint16, np.int32, np.uint16]


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
    'not a zip': (b'PK not a zip', 'is not a zip file'),
    'empty': (b'', 'is not a zip file'),
    'objects': (saved(np.savez, OBJECTS), "array 'arr_0': Object arrays cannot be loaded"),
    'objects deflated': (saved(np.savez_compressed, OBJECTS), 'Object arrays cannot be loaded'),
    'second bad': (saved(np.savez, np.arange(3), np.ones(3)), "array 'arr_1': holds float64"),
    'bool': (saved(np.savez_compressed, np.ones(3, bool)), 'holds bool of shape (3,)'),
    'text': (saved(np.savez, np.array(['a'])), 'holds <U1'),
    'matrix': (saved(np.savez, np.ones((2, 2), int)), 'of shape (2, 2)'),
    'scalar': (saved(np.savez_compressed, np.array(5)), 'of shape ()'),
    'negative': (saved(np.savez, np.array([1, -2])), 'holds the negative id -2'),
    'negative deflated': (saved(np.savez_compressed, np.array([1, -2])), 'holds ids from -2 to 1'),
    'too large': (saved(np.savez_compressed, np.array([2**31])), 'holds ids from 0 to 2147483648'),
    'no array': (npz_of(readme=b'hello world, this is no array'), "array 'readme'"),
    'pickle': (npz_of(arr_0_npy=b'cos\nsystem\n(S"true"\ntR.'), "array 'arr_0'"),
    'short header': (npz_of(arr_0_npy=b'\x93NUMPY\x01\x00\xff\xff{'), "array 'arr_0'"),
    'version 3': (npz_of(arr_0_npy=b'\x93NUMPY\x03\x00' + bytes(40)), "array 'arr_0'"),
    'computed shape': (
        npz_of(arr_0_npy=npy("{'descr': '<i8', 'fortran_order': False, 'shape': (10**15,)}")),
        "array 'arr_0'",
    ),
    'lying shape': (
        npz_of(arr_0_npy=npy("{'descr': '<i8', 'fortran_order': False, 'shape': (99999999999999,)}")),
        "array 'arr_0'",
    ),
    'negative shape': (
        npz_of(arr_0_npy=npy("{'descr': '<i8', 'fortran_order': False, 'shape': (-1,)}") + b'x' * 8),
        "array 'arr_0'",
    ),
    'nested header': (npz_of(arr_0_npy=npy('(' * 9000)), "array 'arr_0'"),
    'code in header': (npz_of(arr_0_npy=npy("__import__('os').system('true')")), "array 'arr_0'"),
    'void': (npz_of(arr_0_npy=npy("{'descr': '|V0', 'fortran_order': False, 'shape': (5,)}")), '|V0'),
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
    names = [
        '../../up',
        '/root',
        'a²',
        '9' * 5000,
        '10' + '0' * 5000,
        'a\nb',
        '',
        'arr_10',
        'arr_9',
        'CON',
        'a' * 5000,
    ]
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


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_no_array_is_lost_in_a_damaged_length_of_a_comment(tmp_path, enc, save):
    content = bytearray(saved(save, np.arange(3), np.arange(4)))
    content[content.index(b'PK\1\2') + 32] = 55  # the next entry of the directory: 46 bytes and a name
    (tmp_path / 'a.npz').write_bytes(content)
    with pytest.raises(InputError, match="array 'arr_0': has a comment"):
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
    with pytest.raises(InputError, match=r'claims to hold 100,663,\d+ bytes, more than 100 times'):
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
    lie = (
        (tmp_path / 'a.npz')
        .read_bytes()
        .replace(len(content).to_bytes(4, 'little'), claimed.to_bytes(4, 'little'))
    )
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
    enc = mock.Mock(n_vocab=557, special={}, eot=None)
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
    assert write_npz(
        path, [arrays[0], iter([arrays[1][:3], arrays[1][3:]]), arrays[2]], enc.n_vocab, compress
    ) == (13, 3)
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
    with mock.patch.multiple(npz, SPOOL_BYTES=1000, STEP=777):
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


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full here')
def test_full_disk_is_told_with_the_path():
    with pytest.raises(OSError, match='No space left') as caught:
        write_npz('/dev/full', [np.arange(10)], 100)
    assert caught.value.filename == '/dev/full'


def test_into_a_pipe(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / 'pipe').read_bytes()), daemon=True)
    reader.start()
    write_npz(str(tmp_path / 'pipe'), [np.arange(10), np.arange(5000)], 5000)
    reader.join(10)
    assert os.listdir(tmp_path) == ['pipe']
    with np.load(io.BytesIO(*read)) as found:
        assert [array.tolist() for array in found.values()] == [list(range(10)), list(range(5000))]


def test_a_pipe_or_a_device_is_no_npz(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    for path in (tmp_path / 'pipe', '/dev/zero'):
        with pytest.raises(InputError, match='is a pipe or a device'):
            list(npz.npz_arrays(str(path)))
