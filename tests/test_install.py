"""What Horovod's installation says where something is missing."""

import os
import shutil
import subprocess

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
with open(os.path.join(ROOT, 'install', 'horovod-debian.txt'), encoding='utf-8') as file:
    PACKAGES = file.read().split()


def install(path, **environment):
    command = [shutil.which('bash'), os.path.join(ROOT, 'install', 'horovod.sh')]
    return subprocess.run(command, env={'PATH': str(path), 'HOME': str(path), **environment},
                          capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(('mpi', 'expected'), [('1', PACKAGES), ('0', [p for p in PACKAGES if 'openmpi' not in p])])
def test_all_that_is_missing_is_named_in_one_line(tmp_path, mpi, expected):
    os.symlink(shutil.which('dirname'), tmp_path / 'dirname')  # and no compiler, no MPI
    result = install(tmp_path, MPI=mpi)
    assert (result.returncode, result.stdout, result.stderr.count('\n')) == (2, '', 1)
    named = result.stderr.split('apt-get install ')[1].split(';')[0].split()
    assert sorted(named) == sorted(expected)
    assert ('mpicc' in result.stderr) == ('MPI=0' in result.stderr) == (mpi == '1')


def test_an_unknown_mpi_is_refused(tmp_path):
    os.symlink(shutil.which('dirname'), tmp_path / 'dirname')
    result = install(tmp_path, MPI='yes')
    assert (result.returncode, result.stderr.count('\n')) == (2, 1)
    assert "'yes'" in result.stderr
