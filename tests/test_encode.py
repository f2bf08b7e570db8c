import os
import subprocess
import sys

import numpy as np
import pytest
from tiny_vocab import write_vocab

import encode
from encoder import get_encoder
from errors import InputError
from load_dataset import load_dataset

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
    enc = get_encoder('tiny', str(corpus.parent / 'models'))
    expected = load_dataset(enc, str(corpus), others.get('combine', 50000))
    found = load_dataset(enc, str(corpus.parent / 'out.npz'))
    assert [chunk.tolist() for chunk in found] == [chunk.tolist() for chunk in expected]
    assert {chunk.dtype for chunk in found} == {np.dtype(np.uint16)}
    said = capsys.readouterr()
    assert said.out == ''
    assert said.err.splitlines()[-1] == (f'{sum(map(len, found))} tokens in {len(found)} chunks, '
                                         f'{os.path.getsize(corpus.parent / "out.npz")} bytes, written to '
                                         f'{corpus.parent / "out.npz"}')


def test_script_runs_from_anywhere_without_tensorflow(corpus):
    done = run('-X', 'importtime', SCRIPT, 'corpus', 'new/folder/out', '--model_name', 'tiny', cwd=corpus.parent)
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
        with pytest.raises(InputError, match='is among the files to be encoded'):
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


def test_no_text_at_all(corpus):
    empty = corpus.parent / 'empty.txt'
    empty.write_text('')
    with pytest.raises(InputError, match=r'empty\.txt holds no text'):
        encode.encode(**flags(corpus, in_text=str(empty), out_npz=str(corpus.parent / 'new' / 'out.npz')))
    assert not (corpus.parent / 'new').exists()


def test_ids_of_another_vocabulary(corpus):
    np.savez(corpus / 'd.npz', np.array([5, 50256]))
    with pytest.raises(InputError, match=r'token id \[50256\], and the vocabulary the ids 0 to 556'):
        encode.encode(**flags(corpus))
    assert not (corpus.parent / 'out.npz').exists()
