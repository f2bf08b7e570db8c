"""Training in several processes. Most of these start real ones, few times: a start takes seconds."""
import contextlib
import fcntl
import glob
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

from command_line.flags import TrainFlags

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import toy
from tiny_vocab import ENGLISH

import load_dataset
from storage import checkpoint
from storage.npz import write_npz
from training import trainer
from training.windows import Mixture, Sampler

pytestmark = pytest.mark.processes

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RANKS = os.path.join(ROOT, 'tests', 'ranks.py')
TWO_HOSTS = os.path.join(ROOT, 'tests', 'two_hosts.sh')
SCRIPT = os.path.join(ROOT, 'train-horovod.py')
TIMEOUT = 600  # seconds for a launch; one takes about ten
AS_ROOT = ['--allow-run-as-root', '--oversubscribe']
LAUNCHERS = {'mpi': ['mpirun', *AS_ROOT, '-bind-to', 'none', '-map-by', 'slot', '-mca', 'pml', 'ob1',
                     '-mca', 'btl', '^openib', '-np'],
             'gloo': ['horovodrun', '--gloo', '-np'],
             'hosts': [TWO_HOSTS, 'run', '-np']}
NOISE = ('WARNING:', 'oneDNN', 'cuda', 'rebuild TensorFlow', 'cpu_feature_guard')

with_horovod = pytest.mark.skipif(importlib.util.find_spec('horovod') is None,
                                  reason='Horovod is not installed: make horovod installs it')


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """A folder with models/toy and text/*.txt, whose documents are longer than a window or shorter."""
    folder = tmp_path_factory.mktemp('world')
    toy.write_model(folder / 'models' / 'toy')
    (folder / 'text').mkdir()
    for i, words in enumerate(ENGLISH.split('"')):
        (folder / 'text' / f'{i}.txt').write_text(words)
    (folder / 'text' / 'long.txt').write_text(ENGLISH.upper())
    return folder


@pytest.fixture
def flags(world, tmp_path):
    """A function that makes a dict of flags, with short runs and folders of this test's own."""
    def make(**changes):
        return toy.short_run(world, tmp_path, **changes)
    return make


@pytest.fixture
def two_hosts():
    """A function that does one of the things that two_hosts.sh lists, with the hosts up."""
    needs = [name for name in ('ip', 'mpirun') if not shutil.which(name)] + ['root'] * (os.geteuid() != 0)
    if needs:
        pytest.skip(f'two hosts on this machine need {" and ".join(needs)}')

    def do(word):
        return subprocess.run([TWO_HOSTS, word], capture_output=True, text=True)
    with open(os.path.join(tempfile.gettempdir(), 'two_hosts.lock'), 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of the machine there is one pair
        try:
            do('down')  # what a test that was killed has left
            up = do('up')
            if up.returncode:
                pytest.skip(f'two hosts cannot be made on this machine: {up.stderr}')
            yield do
        finally:
            do('down')


@contextlib.contextmanager
def launched(launcher, n, *words):
    """The launcher's process; with the block ends whatever it has started."""
    command = LAUNCHERS[launcher]
    if not shutil.which(command[0]):
        pytest.skip(f'{command[0]} is not installed')
    process = subprocess.Popen(
        [*command, str(n), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, 'HOROVOD_CYCLE_TIME': '1'},
    )  # for updates as short as these
    try:
        yield process
    finally:
        for number in {process.pid, *processes(words[-1]).values()}:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(number, signal.SIGKILL)
        process.wait()


def processes(word):
    """{rank: process id} of those whose command line ends in a word."""
    found = {}
    for path in glob.glob('/proc/[0-9]*/cmdline'):
        with contextlib.suppress(OSError):
            with open(path) as file:
                words = file.read().split('\0')[:-1]
            with open(path.replace('cmdline', 'environ')) as file:
                environment = dict(entry.partition('=')[::2] for entry in file.read().split('\0'))
            rank = environment.get('OMPI_COMM_WORLD_RANK', environment.get('HOROVOD_RANK'))
            if words and words[-1] == word and 'python' in words[0] and rank:
                found[int(rank)] = int(path.split('/')[2])
    return found


def ran(launcher, n, *words):
    """Status, stdout and stderr; what Gloo's launcher puts before each line is taken away."""
    with launched(launcher, n, *words) as process:
        output = process.communicate(timeout=TIMEOUT)
    return process.returncode, *(re.sub(r'\[\d+\]<std(out|err)>:', '', text) for text in output)


def in_ranks(launcher, n, function, path, several):
    path.write_text(json.dumps(several))
    return ran(launcher, n, sys.executable, RANKS, function, str(path))


def words_of(flags):
    return [f'--{name}={value}' for name, value in flags.items()]


def single(made):
    trainer.train(TrainFlags(**made))


def final(made):
    """Arrays of all that the newest checkpoint of a run holds, and its state."""
    prefix = tf.train.latest_checkpoint(os.path.join(made['checkpoint_dir'], made['run_name']))
    training = prefix.replace('/model-', '/training-')
    tensors = {}
    for path in (prefix, training):
        if os.path.exists(f'{path}.index'):
            reader = tf.train.load_checkpoint(path)
            tensors.update({name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()})
    with open(f'{training}.json') as file:
        return tensors, json.load(file)


def assert_same(one, other):
    """To the bit."""
    (tensors, state), (others, other_state) = final(one), final(other)
    assert tensors.keys() == others.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(value, others[name], err_msg=name)
    told = {'flags': None, 'crc32': None}  # the second is that of the first, too
    assert {**state, **told} == {**other_state, **told}


def events(made, tag):
    values = {}
    for path in sorted(glob.glob(os.path.join(made['checkpoint_dir'], made['run_name'], 'events*'))):
        for event in tf.train.summary_iterator(path):
            for value in event.summary.value:
                if value.tag == tag:
                    values[event.step] = value.simple_value
    return values


# In one process

@pytest.mark.parametrize('size', [2, 3])
def test_ranks_draw_together_what_one_process_draws(size):
    chunks = [np.arange(100), np.arange(200, 250), np.arange(300, 310)]
    alone = Sampler(chunks, seed=5)
    ranks = [Mixture([(1, chunks)], 5, rank, size) for rank in range(size)]
    windows = 85 + 35 + 1
    expected = [alone.sample(16).tolist() for _ in range(windows // size * size)]
    together = [each.sample(16).tolist() for _ in range(windows // size) for each in ranks]
    assert together == expected
    assert len({tuple(window) for window in together}) == len(together)


def test_what_one_process_of_several_reads_is_a_map_of_what_was_encoded_once(world, tmp_path):
    enc = checkpoint.load_sizes_and_vocabulary('toy', str(world / 'models'))[2]
    source, directory = str(world / 'text'), str(tmp_path / 'run')
    os.mkdir(directory)

    def encoded(*sources, combine=50000):
        return load_dataset.encode_to_npz(enc, [*map(str, sources)], directory, combine)
    (path,) = encoded(source, combine=1)
    made = load_dataset.load_dataset(enc, path)
    assert [each.tolist() for each in made] == [
        each.tolist() for each in load_dataset.load_dataset(enc, source, 1)
    ]
    assert all(each.base is not None for each in made)
    before = os.stat(path).st_mtime_ns
    assert encoded(source, combine=1) == [path] and os.stat(path).st_mtime_ns == before
    assert encoded(source, combine=100) != [path]
    changed = tmp_path / 'text.txt'
    changed.write_text('one')
    both = encoded(source, changed)
    assert sorted(both) == sorted(glob.glob(f'{directory}/dataset-*'))  # those of another `combine` are gone
    assert encoded(*both) == both == encoded(source, changed)
    changed.write_text('two, and more')
    other = [os.path.join(directory, 'dataset-mine.npz'), f'{both[0]}.bak']
    for name in other:
        shutil.copy(both[0], name)
    latest = encoded(both[0], changed)  # the first is used, by its own name
    assert latest[0] == both[0] and latest[1] != both[1]
    assert sorted([*latest, *other]) == sorted(glob.glob(f'{directory}/dataset-*'))


def test_without_horovod_the_script_says_how_to_have_it(flags, tmp_path):
    (tmp_path / 'sitecustomize.py').write_text('import sys\nsys.modules["horovod"] = None\n')  # hides it
    done = subprocess.run([sys.executable, SCRIPT, *words_of(flags())], capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(tmp_path)}, timeout=TIMEOUT)
    assert done.returncode == 2 and done.stderr.count('\n') == 1 and 'make horovod' in done.stderr


# The same mathematics

COMBINATIONS = [
    {'optimizer': 'sgd', 'learning_rate': 0.5, 'clip_norm': 0.5},
    {'optimizer': 'adam', 'accumulate_gradients': 2, 'memory_saving_gradients': True},
    {'optimizer': 'adamw', 'clip_norm': 0.1, 'accumulate_gradients': 2, 'weight_decay': 1.0},
    {'optimizer': 'adafactor', 'learning_rate': 1e-2},
    {'optimizer': 'sgd', 'learning_rate': 0.5, 'precision': 'bfloat16', 'memory_saving_gradients': True},
    {'optimizer': 'sgd', 'learning_rate': 0.5, 'compression': 'bfloat16'},
    {'optimizer': 'sgd', 'learning_rate': 0.5, 'compression': 'float16'},
    {'optimizer': 'sgd', 'learning_rate': 0.5, 'lora_rank': 4, 'lora_targets': 'all'},
    {'optimizer': 'sgd', 'learning_rate': 0.5, 'lora_rank': 4, 'precision': 'bfloat16'},
]


@with_horovod
@pytest.mark.parametrize('launcher, n', [('mpi', 2), ('gloo', 3)])
def test_n_ranks_give_the_updates_of_one_process_with_n_times_the_batch(flags, tmp_path, launcher, n):
    """Of windows with and without padding. What one process gives is compared with others' in the tests of
    it."""
    several = [flags(run_name=f'{i}', steps=3, val_every=3, val_batch_count=4, **each)
               for i, each in enumerate(COMBINATIONS)]
    status, _, stderr = in_ranks(launcher, n, 'runs', tmp_path / 'several.json', several)
    assert status == 0, stderr
    start = tf.train.load_checkpoint(os.path.join(flags()['models_dir'], 'toy', 'model.ckpt'))
    for made in several:
        alone = {name: value for name, value in made.items() if name != 'compression'}
        alone.update(batch_size=n * made['batch_size'], run_name=f'alone{made["run_name"]}')
        single(alone)
        rounding = 2e-3 if {'compression', 'precision'} & made.keys() else 1e-4
        for tag in ('loss', 'val_loss', 'gradient_norm'):
            np.testing.assert_allclose(list(events(made, tag).values()), list(events(alone, tag).values()),
                                       rtol=rounding, err_msg=f'{made} {tag}')
        (tensors, state), (expected, expected_state) = final(made), final(alone)
        assert (state['position'], state['step']) == (expected_state['position'], 3)
        for name in expected:
            if not start.has_tensor(name) and not name.endswith('lora_b'):
                continue
            before = start.get_tensor(name) if start.has_tensor(name) else 0  # B of an adapter
            moved, should = (each[name] - before for each in (tensors, expected))
            if name.endswith('c_attn/b'):
                # Nothing depends on the keys' part, whose gradient is what rounding leaves;
                # some optimizers would
                # make it as large as any.
                moved, should = (
                    np.delete(each, np.s_[len(each) // 3 : 2 * len(each) // 3]) for each in (moved, should)
                )
            np.testing.assert_allclose(moved, should, rtol=0, atol=20 * rounding * np.abs(should).max(),
                                       err_msg=f'{made} {name}')


# Resuming

@with_horovod
def test_a_run_goes_on_with_as_many_ranks_to_the_bit_and_with_others(flags, tmp_path):
    options = {'accumulate_gradients': 2, 'val_every': 3, 'val_batch_count': 3, 'noise': 0.2}
    whole = flags(run_name='whole', **options)
    parts = [flags(run_name='parts', **{**options, 'steps': steps}) for steps in (3, 8)]
    compressed = [flags(run_name=name, compression='bfloat16', steps=steps)
                  for name, steps in (('whole16', 8), ('parts16', 5), ('parts16', 8))]
    single(flags(run_name='alone', steps=3))
    status, stdout, stderr = in_ranks('mpi', 3, 'runs', tmp_path / 'several.json',
                                      [whole, *parts, *compressed, flags(run_name='alone', steps=5)])
    assert status == 0, stderr
    assert_same(parts[0], whole)
    assert_same(compressed[1], compressed[0])
    assert stdout.count('8 steps done') == 4  # told by one rank
    # One process has drawn 3 · 2 windows, three 2 · 3 · 2; and one goes on after these.
    assert final(flags(run_name='alone'))[1]['position'] == 6 + 12
    single(flags(run_name='alone', steps=6))
    assert final(flags(run_name='alone'))[1]['position'] == 20
    single(flags(run_name='again', steps=9, val_every=3, val_batch_count=3,  # with the same data held out
                 restore_from=os.path.join(flags()['checkpoint_dir'], 'parts', 'model-8')))
    assert final(flags(run_name='again'))[1]['position'] == 8 * 2 * 2 * 3 + 2


# Ends

def wait_for_checkpoint(made, step, process):
    directory = os.path.join(made['checkpoint_dir'], made['run_name'])
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end and process.poll() is None:
        prefix = tf.train.latest_checkpoint(directory)
        if prefix and int(prefix.rpartition('-')[2]) >= step:
            return
        time.sleep(0.05)
    pytest.fail(
        f'no checkpoint of step {step}: {process.communicate(timeout=10)[1]}'
        if process.poll() is not None
        else f'no checkpoint of step {step}'
    )


@with_horovod
@pytest.mark.parametrize('launcher, n, victim', [('mpi', 2, 0), ('gloo', 3, 2)])
def test_a_rank_that_is_killed_ends_all_and_no_more_than_save_every_is_lost(flags, launcher, n, victim):
    made = flags(run_name='killed', save_every=2, steps=10000)
    words = [sys.executable, SCRIPT, *words_of(made)]
    with launched(launcher, n, *words) as process:
        wait_for_checkpoint(made, 2, process)
        os.kill(processes(words[-1])[victim], signal.SIGKILL)
        _, stderr = process.communicate(timeout=30)
        assert process.returncode > 0 and not processes(words[-1])
    if launcher == 'gloo':
        assert stderr.count('error: another of the 3 processes was lost') == 1
    else:
        assert 'mpirun noticed that process rank 0' in stderr
    assert 'Could not save' not in stderr
    kept = final(made)[1]['step']
    assert kept % 2 == 0  # nothing was saved of an update that was not whole
    single({**made, 'steps': kept})  # it can be read


@with_horovod
@pytest.mark.parametrize('launcher, victim', [('mpi', 2), ('gloo', 0)])
def test_a_rank_that_is_stopped_is_named_and_all_end(flags, tmp_path, launcher, victim):
    made = flags(timeout=10, run_name='hanging', save_every=2, steps=10000)
    words = [sys.executable, SCRIPT, *words_of(made)]
    with launched(launcher, 3, *words) as process:
        wait_for_checkpoint(made, 2, process)
        os.kill(processes(words[-1])[victim], signal.SIGSTOP)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 1 and not processes(words[-1])
    assert stderr.count('has not answered') == 1 and 'was lost' not in stderr
    assert f'rank {victim} on {socket.gethostname()} has not answered for 5 seconds' in stderr
    assert_goes_on(launcher, 3, made, tmp_path)


@with_horovod
def test_a_cable_that_is_pulled_ends_the_ranks_of_both_hosts_and_two_hosts_give_what_one_does(
        flags, tmp_path, two_hosts):
    made = flags(timeout=10, run_name='cable', save_every=2, steps=10000)
    words = [sys.executable, SCRIPT, *words_of(made)]
    with launched('hosts', 2, *words) as process:
        wait_for_checkpoint(made, 2, process)
        assert int(two_hosts('bytes').stdout) > 1e5
        two_hosts('cut')
        end = time.monotonic() + 30
        while time.monotonic() < end and processes(words[-1]):
            time.sleep(0.1)
        assert not processes(words[-1])
        two_hosts(
            'down'
        )  # with mpirun, which would wait for the other host's daemon for a quarter of an hour
        _, stderr = process.communicate(timeout=TIMEOUT)
    assert re.findall(r'rank (\d) on \S+ has not answered', stderr) == ['1']
    two_hosts('up')
    made['steps'] = final(made)[1]['step'] + 2
    status, _, stderr = in_ranks('hosts', 2, 'runs', tmp_path / 'several.json', [made])
    assert status == 0, stderr
    one_host = {**made, 'run_name': 'one-host'}
    status, _, stderr = in_ranks('mpi', 2, 'runs', tmp_path / 'several.json', [one_host])
    assert status == 0, stderr
    assert_same(made, one_host)


def assert_goes_on(launcher, n, made, tmp_path):
    """From a whole checkpoint, to what a run gives that nobody has disturbed."""
    made['steps'] = final(made)[1]['step'] + 2
    undisturbed = {**made, 'run_name': 'undisturbed'}
    status, _, stderr = in_ranks(launcher, n, 'runs', tmp_path / 'several.json', [made, undisturbed])
    assert status == 0, stderr
    assert_same(made, undisturbed)


@with_horovod
def test_a_rank_may_work_alone_for_longer_than_the_timeout(flags, tmp_path):
    made = flags(steps=1, val_every=1, val_batch_count=3, sample_every=1, sample_length=5, timeout=4)
    status, stdout, stderr = in_ranks('mpi', 3, 'works_alone', tmp_path / 'several.json', [made])
    assert status == 0 and '1 steps done' in stdout and 'SAMPLE 1' in stdout, stderr
    assert re.search(r'rank 2 on \S+ sends no UDP', stderr) and 'error' not in stderr


@with_horovod
@pytest.mark.parametrize('launcher', ['mpi', 'gloo'])
def test_sigterm_to_the_launcher_saves_once(flags, launcher):
    made = flags(run_name='stopped', save_every=2, steps=10000)
    words = [sys.executable, SCRIPT, *words_of(made)]
    with launched(launcher, 2, *words) as process:
        wait_for_checkpoint(made, 2, process)
        process.terminate()
        stdout, stderr = process.communicate(timeout=TIMEOUT)
        # Two threads of horovodrun wait for a rank: the first to do so keeps the status from the other, which
        # then takes it for 0.
        assert (process.returncode or launcher == 'gloo') and not processes(words[-1])
    (step,) = re.findall(r'Stopped by SIGTERM at step (\d+)', stdout)
    assert final(made)[1]['step'] == int(step) and final(made)[1]['position'] == int(step) * 4
    saved = re.findall(r'Saving \S+/model-(\d+)', stdout)
    assert saved[-1] == step and len(saved) == len(set(saved))
    assert launcher == 'gloo' or not any(noise in stderr for noise in NOISE)


@with_horovod
def test_a_folder_that_is_moved_is_told_once_and_ends_all(flags):
    made = flags(run_name='moved', sample_every=5, sample_length=5, steps=10000)  # no save while it is moved
    words = [sys.executable, SCRIPT, *words_of(made)]
    directory = os.path.join(made['checkpoint_dir'], 'moved')
    with launched('mpi', 2, *words) as process:
        assert any('SAMPLE 1' in line for line in process.stdout)
        os.rename(directory, f'{directory}-away')
        _, stderr = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 2 and not processes(words[-1])
    assert stderr.count(f'error: {directory} was removed or moved while it was trained') == 1
    assert 'Traceback' not in stderr
    assert not os.path.exists(directory)


@with_horovod
@pytest.mark.parametrize('launcher', ['mpi', 'gloo'])
def test_a_rank_that_raises_ends_all(flags, tmp_path, launcher):
    made = flags(run_name='raised', save_every=1, steps=10000)
    started = time.monotonic()
    status, _, stderr = in_ranks(launcher, 2, 'raises', tmp_path / 'several.json', [made])
    assert status > 0 and time.monotonic() - started < TIMEOUT
    assert stderr.count('ZeroDivisionError: from within') == 1
    assert final(made)[1]['step'] == 4


@with_horovod
@pytest.mark.parametrize('launcher, function, message', [
    ('mpi', 'disagrees', 'learning_rate is 0.001 on rank 0, but 0.5 on rank 1'),
    ('gloo', 'disagrees_in_data', 'the dataset is ')])
def test_what_differs_between_ranks_is_named_once_and_nothing_is_written(
    flags, tmp_path, launcher, function, message
):
    np.savez(tmp_path / 'data.npz', np.arange(500, dtype=np.uint16))
    made = flags(dataset=str(tmp_path / 'data.npz'))
    status, _, stderr = in_ranks(launcher, 2, function, tmp_path / 'several.json', [made])
    assert status > 0 and stderr.count('error: ' + message) == 1, stderr
    assert status == 2 or launcher == 'gloo'  # whose launcher has a status of its own
    assert 'was lost' not in stderr and not os.path.exists(made['checkpoint_dir'])


# The document

@with_horovod
def test_the_command_of_the_document(flags, tmp_path, world):
    """As it stands, but for two processes, with the flags of a small model, and as root."""
    with open(os.path.join(ROOT, 'docs', 'distributed.md'), encoding='utf-8') as file:
        (command,) = re.findall(r'^mpirun (.*?[^\\])\n', file.read(), re.MULTILINE | re.DOTALL)
    enc = checkpoint.load_sizes_and_vocabulary('toy', str(world / 'models'))[2]
    write_npz(str(tmp_path / 'encoded.npz'), load_dataset.load_dataset(enc, str(world / 'text')), enc.n_vocab)
    words = command.replace('\\\n', ' ').split()
    end = words.index('./train-horovod.py') + 1
    assert words[:2] == ['-np', '4'] and words[end] == '--dataset'
    made = flags(dataset=str(tmp_path / 'encoded.npz'), steps=2, sample_every=1, sample_length=5)
    words = [*AS_ROOT, '-np', '2', *words[2:end], *words_of(made)]
    if not shutil.which('mpirun'):
        pytest.skip('mpirun is not installed')
    # With this Python first, as in an environment that is activated.
    done = subprocess.run(['mpirun', *words], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, env={
        **os.environ, 'PATH': os.path.dirname(sys.executable) + os.pathsep + os.environ['PATH'],
        'LD_LIBRARY_PATH': os.environ.get('LD_LIBRARY_PATH', '')})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('2 steps done') == 1 and done.stdout.count('======== SAMPLE 1 ========') == 2
    assert not any(noise in done.stderr for noise in NOISE)
