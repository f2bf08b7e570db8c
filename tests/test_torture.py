"""Short forms of the campaigns of tests/torture.py, and that these find what they look for."""
import contextlib
import functools
import os
import pathlib
import random

import damage
import fuzz
import long_run
import numpy as np
import pytest
import readers
import torture

from errors import InputError

pytestmark = pytest.mark.slow


def test_mutations():
    counts = damage.mutations(count=60, seed=0)
    assert counts['refused'] + counts['equal'] + counts['other content'] == 60
    assert counts['refused'] > 30


def test_special_files():
    assert damage.special_files()['refused'] > 80


def test_odd_states():
    counts = damage.odd_states(count=60, seed=0)
    assert counts['refused'] + counts['taken'] == 60
    assert counts['refused'] > 30


def test_inputs():
    assert fuzz.inputs(count=2000, seed=0)['mismatches'] == 0


def test_what_grows_in_a_long_run_is_told():
    steps = np.arange(0, 10_000, 100)
    still = [steps, np.full(100, 3e8) + 1e5 * np.sin(steps), np.full(100, 7), np.full(100, 3000)]
    assert long_run.counts(np.transpose(still), 10_000)['open files'] == 7
    for column, growth, what in (
        (1, 1200 * steps, 'memory grows by 1'),
        (2, steps // 5000, 'from 7 to 8 open files'),
        (3, steps, 'from 3000 to 12900 operations'),
    ):
        grown = [*still[:column], still[column] + growth, *still[column + 1:]]
        with pytest.raises(AssertionError, match=what):
            long_run.counts(np.transpose(grown), 10_000)


def test_a_short_run_opens_no_files_and_adds_no_operations(monkeypatch):
    monkeypatch.setattr(long_run, 'LARGEST_SLOPE', 1e6)  # caches fill in the first thousands of steps
    assert long_run.long_run(steps=200)['steps'] == 200


@pytest.mark.parametrize('name', readers.READERS)
def test_readers(tmp_path, name):
    readers.write_corpus(name, tmp_path / 'corpus')
    paths = sorted(map(str, (tmp_path / 'corpus').iterdir()))
    rng = random.Random(0)
    for number in range(40):
        path = rng.choice(paths)
        with damage.mutated(rng, path, paths) as what:
            data = pathlib.Path(path).read_bytes() if os.path.exists(path) else b''
        damage.attempt(functools.partial(readers.READERS[name], tmp_path, data), f'{name}, {number}: {what}')


def test_a_mutation_is_undone(tmp_path):
    (tmp_path / 'a').write_bytes(bytes(range(256)))
    rng, seen = random.Random(0), set()
    for _ in range(200):
        with damage.mutated(rng, tmp_path / 'a', [tmp_path / 'a']) as what:
            seen.add((tmp_path / 'a').read_bytes() if (tmp_path / 'a').exists() else what)
        assert (tmp_path / 'a').read_bytes() == bytes(range(256))
    assert len(seen) > 100


def refuse(message):
    raise InputError(message)


@pytest.mark.parametrize(
    'load, message',
    [
        (lambda: {}['a'], 'KeyError'),
        (lambda: refuse('two\nlines'), 'not a line'),
        (lambda: refuse(''), 'not a line'),
        (lambda: refuse('x' * 1000), 'not a line'),
        (lambda: len(b'x' * (damage.ALLOWANCE + (8 << 20))), r'took \d+ MB'),
    ],
)
def test_an_attempt_that_ends_otherwise_is_told(load, message):
    with pytest.raises(AssertionError, match=f'(?s)the fault: {message}'):
        damage.attempt(load, 'the fault')


def test_an_attempt_without_end_is_told(monkeypatch):
    monkeypatch.setattr(damage, 'SECONDS', 1)

    def forever():
        while True:
            pass
    with pytest.raises(AssertionError, match='still at it'):
        damage.attempt(forever, 'the fault')


def test_an_attempt_gives_what_was_loaded_or_nothing():
    assert damage.attempt(lambda: [1], '') == [1]
    assert damage.attempt(lambda: refuse('one line'), '') is None


def test_damage_that_is_not_noticed_is_told(tmp_path, monkeypatch):
    path = tmp_path / 'a'
    path.write_text('content without a checksum')

    @contextlib.contextmanager
    def targets(folder, sealed=True):
        yield [damage.Target('a', [str(path)], path.read_bytes, sealed=sealed)]

    monkeypatch.setattr(damage, 'make_targets', targets)
    with pytest.raises(AssertionError, match=r'mutation \d+ of seed 3 .* was not noticed'):
        damage.mutations(20, seed=3)
    monkeypatch.setattr(damage, 'make_targets', lambda folder: targets(folder, sealed=False))
    assert damage.mutations(20, seed=3)['other content of a, which has no checksum'] > 10


def test_all_campaigns_are_run_and_their_counts_printed(monkeypatch, capsys):
    given = []

    def campaign(name, **sizes):
        given.append((name, sizes))
        return {'things': 1234, 'not run': 'so'}

    campaigns = {
        name: (functools.partial(campaign, name), sizes) for name, (_, sizes) in torture.CAMPAIGNS.items()
    }
    monkeypatch.setattr(torture, 'CAMPAIGNS', campaigns)
    torture.every_campaign(seed=5)
    assert given == [(name, {**sizes, 'seed': 5}) for name, (_, sizes) in campaigns.items()]
    assert capsys.readouterr().out.splitlines() == [
        line for name in campaigns for line in (f'{name}: things: 1,234', f'{name}: not run: so')]
