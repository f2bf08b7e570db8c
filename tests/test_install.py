"""What Horovod's installation says where something is missing, and what it builds with."""

import glob
import os
import shutil
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
with open(os.path.join(ROOT, 'install', 'horovod-debian.txt'), encoding='utf-8') as file:
    PACKAGES = file.read().split()


def install(path, root=ROOT, **environment):
    command = [shutil.which('bash'), os.path.join(root, 'install', 'horovod.sh')]
    return subprocess.run(command, env={'PATH': str(path), 'HOME': str(path), **environment},
                          capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(('mpi', 'expected'),
                         [('1', PACKAGES), ('0', [p for p in PACKAGES if 'openmpi' not in p])])
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


# With NCCL. What builds is stood in for, and what it would build with is kept in the file `built` of the home
# folder

@pytest.fixture
def home(tmp_path):
    """A home folder with commands in bin, CUDA in cuda-13, where nvcc says that it is, and NCCL among the
    packages."""
    commands = {
        'bin/nvcc': f'exec {tmp_path}/cuda-13/bin/nvcc "$@"',
        'cuda-13/bin/nvcc': 'echo "#$ TOP=${0%/*}/.." >&2',
        'bin/python3': f"""case "$*" in
            *' list '*) echo tensorflow==2.21.0 ;;
            *' wheel '*) env > $HOME/built; cat "$HOROVOD_NCCL_LIB/libnccl.so" >> $HOME/built; exit 1 ;;
            -c*) PYTHONPATH=$HOME/packages exec {sys.executable} "$@" ;; esac""",
        'bin/c++': 'test "$1" = --version || cat > /dev/null',
        **dict.fromkeys(['bin/make', 'bin/mpicc', 'bin/mpirun'], 'exit 0')}
    for name, text in commands.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!/bin/bash\n{text}\n')
        path.chmod(0o755)
    for name in ('include/nccl.h', 'lib/libnccl.so.2'):
        path = tmp_path / 'packages/nvidia/nccl' / name
        path.parent.mkdir(parents=True)
        path.write_text(f'this is {name}\n')
    return tmp_path


def install_for_gpus(home, *root):
    return install(home, *root, PATH=f'{home}/bin:/usr/bin:/bin', HOROVOD_GPU_OPERATIONS='NCCL')


def test_cuda_is_found_behind_a_wrapper_and_nccl_among_the_packages(home):
    result = install_for_gpus(home)
    assert result.returncode == 1, result.stderr  # as what stands for the build ends
    *environment, linked = (home / 'built').read_text().splitlines()
    built = dict(line.partition('=')[::2] for line in environment if '=' in line)
    assert os.path.samefile(built['HOROVOD_CUDA_HOME'], home / 'cuda-13')
    nccl = home / 'packages/nvidia/nccl'
    assert os.path.samefile(built['HOROVOD_NCCL_INCLUDE'],
                            nccl / 'include') and linked == 'this is lib/libnccl.so.2'
    assert os.listdir(nccl / 'lib') == ['libnccl.so.2']
    assert '$ORIGIN/../../nvidia/nccl/lib' in built['LDFLAGS']  # from horovod/tensorflow


@pytest.mark.parametrize('lost, named', [('bin/nvcc', 'nvcc'),
                                         ('packages', "pip install 'tensorflow[and-cuda]'")])
def test_what_nccl_needs_is_named_in_one_line(home, lost, named):
    os.rename(home / lost, home / 'away')
    if lost == 'bin/nvcc':  # else this machine's own
        os.symlink('/bin/false', home / lost)
    result = install_for_gpus(home)
    assert (result.returncode, result.stdout, result.stderr.count('\n')) == (2, '', 1)
    assert named in result.stderr


def test_a_wheel_is_kept_under_a_name_that_each_header_changes(home, tmp_path):
    headers = glob.glob(os.path.join(ROOT, 'install/include/**/*.h'), recursive=True)
    shutil.copytree(os.path.join(ROOT, 'install'), tmp_path / 'install')
    for changed in [None, *headers]:
        if changed:
            with open(tmp_path / os.path.relpath(changed, ROOT), 'a') as file:
                file.write('// changed\n')
        install_for_gpus(home, tmp_path)
    assert len(headers) == 2 and len(glob.glob(f'{home}/.cache/gpt-2/*.log')) == 3
