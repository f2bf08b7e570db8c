"""The losses that the picture shows are those of metrics.jsonl."""
import json
import os

from command_line import cli

import pytest

import plot_runs


def write(folder, name, lines):
    os.makedirs(folder / name)
    (folder / name / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / 'checkpoint', 'a', [{'step': 1, 'loss': 5.0, 'time': 1}, {'step': 2, 'loss': 4.0},
                                         {'step': 2, 'val_loss': 4.5}])
    write(tmp_path / 'checkpoint', 'b', [{'step': 1, 'loss': 6.0}])
    return tmp_path


def run(folder, *words):
    pytest.importorskip('matplotlib', reason='make test installs it')
    cli.run(plot_runs.plot_runs, [*words, '--checkpoint_dir', str(folder / 'checkpoint')])


def test_running_mean():
    assert list(plot_runs.running_mean([4.0, 2.0, 6.0])) == pytest.approx(
        [4, (0.99 * 4 + 2) / 1.99, (0.99 ** 2 * 4 + 0.99 * 2 + 6) / (0.99 ** 2 + 0.99 + 1)])


@pytest.mark.parametrize('form', ['svg', 'png'])
def test_a_picture_of_two_runs(form, folder):
    out = folder / f'loss.{form}'
    run(folder, 'a', 'b', '--output', str(out))
    content = out.read_bytes()
    if form == 'png':
        assert content.startswith(b'\x89PNG')
    else:
        text = content.decode()
        for label in ('updates', 'nats a token', 'training of a, running mean', 'validation of a',
                      'training of b, running mean'):
            assert label in text
        assert 'validation of b' not in text
    assert sorted(os.listdir(folder)) == ['checkpoint', out.name]


def test_runs_may_be_paths_with_odd_names(folder):
    write(folder, '_a$^$', [{'step': 1, 'loss': 5.0}])
    run(folder, str(folder / '_a$^$'), '--output', str(folder / 'a.svg'))
    assert 'training of ' in (folder / 'a.svg').read_text()


def test_what_is_drawn_are_the_values(folder):
    pytest.importorskip('matplotlib', reason='make test installs it')
    curves = {name: plot_runs.losses(str(folder / 'checkpoint' / name)) for name in 'ab'}
    (axes,) = plot_runs.picture(curves).axes
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    assert drawn == [([1, 2], [5.0, 4.0]), ([1, 2], [5.0, (0.99 * 5 + 4) / 1.99]), ([2], [4.5]),
                     ([1], [6.0]), ([1], [6.0])]


@pytest.mark.parametrize(('words', 'message'), [
    (['none'], 'none has no metrics.jsonl; give a run'), (['a', '--output', 'a.pdf'], 'ends in .svg or .png'),
    (['c'], 'line 2 is none that training writes'), ([], '--runs must be given')])
def test_what_cannot_be_drawn_is_refused(folder, words, message, capsys):
    write(folder / 'checkpoint', 'c', [{'step': 1, 'loss': 5.0}, ['step']])
    with pytest.raises(SystemExit):
        run(folder, *words)
    out, err = capsys.readouterr()
    assert (out, err.count('\n')) == ('', 1) and message in err
