import os
import random
import signal
import subprocess
import sys
import time
from unittest import mock

import numpy as np
import pytest
from tiny_vocab import write_vocab

import encode
import load_dataset as dataset
from encoder import get_encoder
from errors import InputError
from load_dataset import load_dataset
from storage import npz

SCRIPT = os.path.abspath(encode.__file__)


@pytest.fixture
def corpus(tmp_path):
    write_vocab(tmp_path / 'models' / 'tiny')
    folder = tmp_path / 'corpus'
    (folder / 'sub').mkdir(parents=True)
    (folder / 'a.txt').write_text('the first text\r\n' * 50, newline='')
    (folder / 'b.txt').write_text('x' * 600)
    (folder / 'sub' / 'c.txt').write_text('你好 ' * 100, encoding='utf-8')
    np.savez(folder / 'd.npz', np.arange(20))
    return folder


def flags(corpus, **others):
    return {'in_text': str(corpus), 'out_npz': str(corpus.parent / 'out.npz'), 'model_name': 'tiny',
            'models_dir': str(corpus.parent / 'models'), **others}


def run(*words, cwd=None):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=cwd, timeout=60)


@pytest.mark.parametrize('others', [{}, {'combine': 500}, {'compress': True}, {'combine': 1}])
def test_output_is_what_load_dataset_gives(corpus, others, capsys):
    encode.encode(**flags(corpus, **others))
    said = capsys.readouterr()
    enc = get_encoder('tiny', str(corpus.parent / 'models'))
    expected = load_dataset(enc, str(corpus), others.get('combine', 50000))
    found = load_dataset(enc, str(corpus.parent / 'out.npz'))
    assert [chunk.tolist() for chunk in found] == [chunk.tolist() for chunk in expected]
    assert {chunk.dtype for chunk in found} == {np.dtype(np.uint16)}
    assert said.out == ''
    assert said.err.splitlines()[-1] == (f'{sum(map(len, found))} tokens in {len(found)} chunks, '
                                         f'{os.path.getsize(corpus.parent / "out.npz")} bytes, written to '
                                         f'{corpus.parent / "out.npz"}')


def test_special_tokens_are_a_flag(corpus, capsys):
    (corpus / 'a.txt').write_text('one<|endoftext|>two<|endoftext|>')
    enc = get_encoder('tiny', str(corpus.parent / 'models'))
    for given in ({}, {'special_tokens': False}):
        encode.encode(**flags(corpus, in_text=str(corpus / 'a.txt'), **given))
        found, = load_dataset(enc, str(corpus.parent / 'out.npz'))
        assert found.tolist() == load_dataset(enc, str(corpus / 'a.txt'), **given)[0].tolist()
        assert ('the text has 2 special tokens;' in capsys.readouterr().err) == (not given)
    assert found.tolist() == [*enc.encode('one<|endoftext|>two<|endoftext|>'), enc.eot]


def test_the_output_names_its_vocabulary_and_an_input_of_another_is_refused(corpus):
    encode.encode(**flags(corpus, out_npz=str(corpus / 'e.npz')))
    enc = get_encoder('tiny', str(corpus.parent / 'models'))
    assert npz.vocabulary_of(str(corpus / 'e.npz')) == enc.fingerprint
    encode.encode(**flags(corpus, in_text=str(corpus / 'e.npz')))
    write_vocab(corpus.parent / 'models' / 'tiny', 290)
    with pytest.raises(InputError, match=rf'e\.npz is of the vocabulary {enc.fingerprint}'):
        encode.encode(**flags(corpus, in_text=str(corpus / 'e.npz')))


@pytest.mark.parametrize(
    'given, written', [('new', 'new.npz'), ('new.npz', 'new.npz'), ('new.NPZ', 'new.NPZ')]
)
def test_the_output_gets_its_ending_where_it_has_none(corpus, given, written):
    encode.encode(**flags(corpus, out_npz=str(corpus.parent / given)))
    assert (corpus.parent / written).exists()


def test_script_runs_from_anywhere_without_tensorflow(corpus):
    done = run(
        '-X', 'importtime', SCRIPT, 'corpus', 'new/folder/out', '--model_name', 'tiny', cwd=corpus.parent
    )
    assert done.returncode == 0 and done.stdout == ''
    assert (corpus.parent / 'new' / 'folder' / 'out.npz').exists()
    assert 'numpy' in done.stderr and 'tensorflow' not in done.stderr
    assert os.access(SCRIPT, os.X_OK)


def test_script_tells_a_mistake_in_one_line(corpus):
    (corpus / 'bad.txt').write_bytes(b'good \xff')
    done = run(SCRIPT, str(corpus), str(corpus.parent / 'out.npz'), '--model_name=tiny', '--models_dir',
               str(corpus.parent / 'models'))
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr.startswith('encode.py: error: ') and done.stderr.count('\n') == 1
    assert 'bad.txt: not utf-8 at byte 5' in done.stderr
    assert sorted(os.listdir(corpus.parent)) == ['corpus', 'models']


def test_an_error_leaves_the_old_output_as_it_was(corpus):
    (corpus.parent / 'out.npz').write_text('old')
    (corpus / 'e.txt').write_bytes(b'\xff')
    with pytest.raises(InputError, match=r'e\.txt: not utf-8 at byte 0'):
        encode.encode(**flags(corpus, combine=1))
    assert (corpus.parent / 'out.npz').read_text() == 'old'
    assert sorted(os.listdir(corpus.parent)) == ['corpus', 'models', 'out.npz']


def test_output_may_not_be_an_input(corpus):
    for out in (corpus / 'd.npz', corpus / 'd', corpus / 'sub' / '..' / 'd.npz'):
        with pytest.raises(InputError, match='or an input; name another file'):
            encode.encode(**flags(corpus, out_npz=str(out)))
    encode.encode(**flags(corpus, out_npz=str(corpus / 'new.npz')))  # in the same folder it may be


@pytest.mark.parametrize('others, expected', [
    ({'in_text': 'nowhere/*.txt'}, 'nothing matches the path nowhere'),
    ({'encoding': 'klingon'}, "--encoding 'klingon' is not an encoding"),
    ({'model_name': 'none'}, 'no model directory'),
])
def test_mistakes(corpus, others, expected):
    with pytest.raises(InputError, match=expected):
        encode.encode(**flags(corpus, **others))
    assert sorted(os.listdir(corpus.parent)) == ['corpus', 'models']


def test_output_that_is_a_directory(corpus):
    (corpus.parent / 'out.npz').mkdir()
    with pytest.raises(InputError, match='is a directory'):
        encode.encode(**flags(corpus))


def test_output_that_is_a_pipe_or_a_device(corpus):
    os.mkfifo(corpus.parent / 'pipe')
    for out in (corpus.parent / 'pipe', '/dev/stdout'):
        with pytest.raises(InputError, match='is a directory, a device or an input'):
            encode.encode(**flags(corpus, out_npz=str(out)))
    assert sorted(os.listdir(corpus.parent)) == ['corpus', 'models', 'pipe']


def test_output_through_a_link(corpus):
    (corpus.parent / 'out.npz').symlink_to('there.npz')
    for _ in range(2):
        encode.encode(**flags(corpus))
        assert (corpus.parent / 'out.npz').is_symlink() and (corpus.parent / 'there.npz').is_file()
        (corpus.parent / 'there.npz').chmod(0o600)
    assert (corpus.parent / 'there.npz').stat().st_mode & 0o777 == 0o600


def test_no_text_at_all(corpus):
    empty = corpus.parent / 'empty.txt'
    empty.write_text('')
    with pytest.raises(InputError, match=r'empty\.txt holds no text'):
        encode.encode(**flags(corpus, in_text=str(empty), out_npz=str(corpus.parent / 'new' / 'out.npz')))
    assert not (corpus.parent / 'new').exists()


def test_ids_of_another_vocabulary(corpus):
    np.savez(corpus / 'd.npz', np.array([5, 50256]))
    with pytest.raises(InputError, match=r'token id \[50256\], expected 0 to 556'):
        encode.encode(**flags(corpus))
    assert not (corpus.parent / 'out.npz').exists()


# Several cores


WORDS = (
    'the old Lighthouse keeper ',
    'didn\'t "say" 1987; ',
    '你好，世界。今天天气很好！',
    'مرحبا ٣٤٥ ',
    '\r\n\t  \n',
    'नमस्ते ',
    '😀 👍🏽!',
    'x=1;//**--',
    '\x1c\x85\xa0',
    "'ll'll've",
    '한국어 ',
    'wörter²½',
)


@pytest.fixture(autouse=True)
def same_environment(monkeypatch):
    """encode.py sets the variable for gigatoken."""
    monkeypatch.setenv('RAYON_NUM_THREADS', '')
    monkeypatch.delenv('RAYON_NUM_THREADS')


@pytest.fixture
def many(tmp_path):
    """Texts and arrays of all sorts, in more groups than are in flight."""
    write_vocab(tmp_path / 'models' / 'tiny')
    folder = tmp_path / 'corpus'
    folder.mkdir()
    draw = random.Random(4)
    texts = [''.join(draw.choices(WORDS, k=40)) for _ in range(100)]
    write = {'big': ''.join(draw.choices(texts, k=2000)), 'no space': '你好，世界。' * 70000,
             'documents': ''.join(f'{text}<|endoftext|>' for text in texts * 30),
             'one piece': 'ab' * 300000, 'spaces': ' ' * 300000 + 'x', 'empty': '', 'newline': '\n',
             **{f'small {i}': text for i, text in enumerate(texts)}}
    for name, text in write.items():
        (folder / f'{name}.txt').write_bytes(text.encode())
    np.savez(folder / 'm.npz', np.arange(20), np.arange(0), np.arange(30))
    np.savez_compressed(folder / 'small 5.npz', np.arange(500))
    return folder


@pytest.mark.parametrize('others', [{}, {'combine': 1}], ids=str)
def test_any_number_of_workers_writes_the_same_bytes(many, others):
    written = []
    for workers in (1, 2, 3) if others else (1, 2):
        with mock.patch.object(dataset, 'MAX_GROUP_SIZE', 1 << 17):
            encode.encode(**flags(many, workers=workers, **others))
        written.append((many.parent / 'out.npz').read_bytes())
    assert len(set(written)) == 1
    enc = get_encoder('tiny', str(many.parent / 'models'))
    whole = [(path, path.read_bytes().decode()) for path in sorted(many.iterdir()) if path.suffix == '.txt']
    assert sum(map(len, load_dataset(enc, str(many.parent / 'out.npz')))) == 550 + sum(
        len(enc.encode(part)) + 1 for _, text in whole for part in text.split('<|endoftext|>') if part)


@pytest.mark.parametrize('workers', [1, 2])
def test_the_first_mistake_is_told_whatever_is_read_ahead(corpus, workers):
    (corpus / 'c.txt').write_text('word ' * 100000)
    np.savez(corpus / 'd.npz', np.array([5, 50256]))
    (corpus / 'e.txt').write_bytes(b'good ' * 60000 + b'\xff')
    with mock.patch.object(dataset, 'MAX_GROUP_SIZE', 1 << 16):
        with pytest.raises(InputError, match=r'token id \[50256\], expected 0 to 556'):
            encode.encode(**flags(corpus, workers=workers))
        (corpus / 'd.npz').unlink()
        with pytest.raises(InputError, match=r'e\.txt: not utf-8 at byte 300000;'):
            encode.encode(**flags(corpus, workers=workers))
    assert sorted(os.listdir(corpus.parent)) == ['corpus', 'models']


def test_a_lone_surrogate_is_told_with_its_file(corpus):
    (corpus / 'a.txt').write_bytes(b'word ' * 60000 + b'ab+2D0-')
    for workers in (1, 2):
        with pytest.raises(InputError, match=r'a\.txt: not utf-7; give its --encoding'):
            encode.encode(**flags(corpus, in_text=str(corpus / 'a.txt'), encoding='utf-7', workers=workers))


def test_workers_must_not_be_negative(corpus):
    with pytest.raises(InputError, match='--workers must be 0 or more, not -1'):
        encode.encode(**flags(corpus, workers=-1))


def test_ctrl_c_ends_it_at_once_and_quietly(tmp_path):
    write_vocab(tmp_path / 'models' / 'tiny')
    (tmp_path / 'a.txt').write_text(' '.join(map(str, range(10**6))))
    names = ','.join(['a.txt'] * 1000)  # which would take minutes
    code = ('import signal, sys, runpy\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n'
            f'sys.argv = {[SCRIPT, names, "out", "--model_name=tiny", "--workers=2"]}\n'
            f'runpy.run_path({SCRIPT!r}, run_name="__main__")')
    process = subprocess.Popen([sys.executable, '-c', code], cwd=tmp_path, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 60
        while not list(tmp_path.glob('*.tmp')):
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, out, err.strip()) == (130, '', '')
    assert sorted(os.listdir(tmp_path)) == ['a.txt', 'models']
