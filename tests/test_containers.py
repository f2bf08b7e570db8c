"""A container's steps find what they need among the files that were copied before them."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DOCKERFILES = ['Dockerfile.cpu', 'Dockerfile.gpu']


def stages(name):
    """The instructions of the stages, each (word, rest)."""
    with open(os.path.join(ROOT, name), encoding='utf-8') as file:
        text = file.read().replace('\\\n', ' ')
    return [re.findall('^([A-Z]+) (.*)', stage, re.MULTILINE) for stage in re.split('^FROM .*', text,
                                                                                    flags=re.M)[1:]]


def copy(words, folder):
    """What COPY does, from the project to the folder; not from other stages."""
    *sources, target = [word for word in shlex.split(words) if not word.startswith('--chown=')]
    if sources[0].startswith('--from='):
        return
    for source in sources:
        path = os.path.join(ROOT, source)
        if os.path.isdir(path):
            shutil.copytree(path, folder / target, dirs_exist_ok=True,
                            ignore=shutil.ignore_patterns('.*', '__pycache__', 'models', 'checkpoint',
                                                          'data'))
        else:
            os.makedirs(folder / target, exist_ok=True)
            shutil.copy2(path, folder / target)


@pytest.mark.parametrize('name', DOCKERFILES)
def test_each_make_step_has_its_files(name, tmp_path):
    made = []
    for step, words in stages(name)[0]:
        if step == 'COPY':
            copy(words, tmp_path)
        elif step == 'RUN' and words.startswith('make '):
            subprocess.run([*shlex.split(words), '--dry-run'], cwd=tmp_path, check=True, timeout=60)
            made += shlex.split(words)
        elif step == 'RUN':
            for path in re.findall(r'--arg-file=(\S+)', words):
                assert (tmp_path / path).is_file()
    assert {'install', 'horovod'} <= set(made)


@pytest.mark.parametrize('name', DOCKERFILES)
def test_the_model_is_downloaded_by_what_is_there(name, tmp_path):
    """For --help and nothing else, a script imports all that it needs before its flags are checked."""
    environment = {**os.environ, 'PATH': os.path.dirname(sys.executable) + os.pathsep + os.environ['PATH']}
    downloads = 0
    for step, words in stages(name)[1]:
        if step == 'COPY':
            copy(words, tmp_path)
        elif step == 'RUN' and 'download_model' in words:
            subprocess.run(['sh', '-c', words], cwd=tmp_path, env={**environment, 'MODEL': ''}, check=True,
                           timeout=60)
            subprocess.run(['sh', '-c', words], cwd=tmp_path, env={**environment, 'MODEL': '--help'},
                           check=True,
                           timeout=60)
            downloads += 1
    assert downloads == 1
    assert (tmp_path / 'train.py').exists()


@pytest.mark.parametrize('name', DOCKERFILES)
def test_what_runs_is_nobody_special(name):
    instructions = stages(name)[1]
    users = [words for step, words in instructions if step == 'USER']
    (created,) = re.findall(r'useradd --uid (\d+)',
                            ' '.join(words for step, words in instructions if step == 'RUN'))
    assert users == [created]  # a number, which what starts containers can check
    owned = [words for step, words in instructions if step == 'COPY']
    assert all(f'--chown={created} ' in words for words in owned)
