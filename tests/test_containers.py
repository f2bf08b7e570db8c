"""A container's steps find what they need among the files that were copied before them."""

import os
import re
import shlex
import shutil
import subprocess

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.mark.parametrize('name', ['Dockerfile.cpu', 'Dockerfile.gpu'])
def test_each_make_step_has_its_files(name, tmp_path):
    with open(os.path.join(ROOT, name), encoding='utf-8') as file:
        build, final = re.split(r'^FROM .*', file.read().replace('\\\n', ' '), flags=re.MULTILINE)[1:]
    made = []
    for step, words in re.findall(r'^(COPY|RUN) (.*)', build, re.MULTILINE):
        if step == 'COPY':
            *sources, target = shlex.split(words)
            for source in sources:
                path = os.path.join(ROOT, source)
                if os.path.isdir(path):
                    shutil.copytree(path, tmp_path / target, dirs_exist_ok=True)
                else:
                    os.makedirs(tmp_path / target, exist_ok=True)
                    shutil.copy2(path, tmp_path / target)
        elif words.startswith('make '):
            subprocess.run([*shlex.split(words), '--dry-run'], cwd=tmp_path, check=True, timeout=60)
            made += shlex.split(words)
        else:
            for path in re.findall(r'--arg-file=(\S+)', words):
                assert (tmp_path / path).is_file()
    assert {'install', 'horovod'} <= set(made)
    for script in re.findall(r'\./(\S+)', final):
        assert os.access(os.path.join(ROOT, script), os.X_OK), script
