"""The lines of metrics.jsonl that are kept; test_log.py has those of runs."""
import pytest

from errors import InputError
from storage import metrics_file

GOOD = b'{"step": 1, "loss": 5.5}\n{"step": 2, "loss": 5.0}\n{"step": 2, "val_loss": 5.1}\n'


def cut(folder, content, step, validated=True):
    """What is left of the file, and what is told."""
    told = []
    (folder / 'metrics.jsonl').write_bytes(content)
    metrics_file.reopen(str(folder), step, validated, told.append).close()
    return (folder / 'metrics.jsonl').read_bytes(), told


def test_lines_to_a_step_are_kept(tmp_path):
    first, second, _ = GOOD.splitlines(keepends=True)
    assert cut(tmp_path, GOOD, 1) == (first, [])
    assert cut(tmp_path, GOOD, 2) == (GOOD, [])
    assert cut(tmp_path, GOOD, 2, validated=False) == (first + second, [])
    assert cut(tmp_path, GOOD + b'{"step": 3, "lo', 5) == (GOOD, [])  # a process was killed within a line
    assert cut(tmp_path, GOOD, 0) == (b'', [])


@pytest.mark.parametrize('line', [
    '[' * 3000, '3', '', '{"loss": 1}', '{"step": "1"}', '{"step": true}', '{"step": 1e999}',
    '{"step": 1, "loss": NaN}', '{"step": 1, "loss": ' + '9' * 400 + '}',
    '{"step": 1, "a": "' + 'b' * 10 ** 6 + '"}'])
def test_other_lines_are_told(tmp_path, line):
    content = GOOD + line.encode() + b'\n' + GOOD
    kept, (told,) = cut(tmp_path, content, 5)
    assert kept == GOOD and 'metrics.jsonl, line 4 is none that training writes: it is removed' in told
    (tmp_path / 'metrics.jsonl').write_bytes(content)
    with pytest.raises(InputError, match='line 4'):
        list(metrics_file.read(str(tmp_path)))


def test_a_link_is_neither_read_nor_written(tmp_path):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'left').mkdir()
    (tmp_path / 'thesis').write_bytes(GOOD)
    (tmp_path / 'run' / 'metrics.jsonl').symlink_to('../thesis')
    metrics_file.copy(str(tmp_path / 'run'), str(tmp_path / 'left'))
    assert list((tmp_path / 'left').iterdir()) == []
    told = []
    with metrics_file.reopen(str(tmp_path / 'run'), 5, True, told.append) as file:
        file.write(b'mine')
    assert told == [f'{tmp_path}/run/metrics.jsonl was a link: it is made anew']
    assert (tmp_path / 'run' / 'metrics.jsonl').read_bytes() == b'mine'
    assert (tmp_path / 'thesis').read_bytes() == GOOD


def test_a_line_that_the_system_cuts_off_is_an_error(tmp_path):  # which the next session removes
    resource = pytest.importorskip('resource')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with metrics_file.reopen(str(tmp_path), 0, True, None) as file:
        metrics_file.append(file, GOOD)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(GOOD) + 5, limits[1]))
            with pytest.raises(OSError, match='No space left on device'):
                metrics_file.append(file, GOOD)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / 'metrics.jsonl').read_bytes() == GOOD + GOOD[:5]
    assert [line for line, _ in metrics_file.read(str(tmp_path))] == GOOD.splitlines(keepends=True)


def test_numbers_of_a_run_that_diverged_are_read(tmp_path):
    line = b'{"step": 1, "loss": 3.4e+38, "gradient_norm": -3e+38}\n'
    assert cut(tmp_path, line, 1) == (line, [])


def test_a_copy_takes_the_place_of_what_is_there(tmp_path):
    for name, content in (('a', GOOD), ('b', b'{"step": 9}\n'), ('c', None)):
        (tmp_path / name).mkdir()
        if content:
            (tmp_path / name / 'metrics.jsonl').write_bytes(content)
    metrics_file.copy(str(tmp_path / 'a'), str(tmp_path / 'b'))
    assert (tmp_path / 'b' / 'metrics.jsonl').read_bytes() == GOOD
    metrics_file.copy(str(tmp_path / 'c'), str(tmp_path / 'b'))
    assert not (tmp_path / 'b' / 'metrics.jsonl').exists()
