"""The losses that the picture shows are those that were trained with."""
import os

import pytest
import tensorflow.compat.v1 as tf

from benchmarks import loss_curve


def session(directory, start, **series):
    """Writes the events of a session of training that begins at an update; series: {update: value} by tag."""
    with tf.Graph().as_default():  # a FileWriter is refused where operations run at once
        events = tf.summary.FileWriter(str(directory))
    events.add_session_log(tf.SessionLog(status=tf.SessionLog.START), start)
    for tag, values in series.items():
        for step, value in values.items():
            events.add_summary(tf.Summary(value=[tf.Summary.Value(tag=tag, simple_value=value)]), step)
    events.close()


def test_what_was_logged_after_the_save_that_a_session_went_on_from_is_left_out(tmp_path):
    session(tmp_path / 'a', 0, loss={1: 5.0, 2: 4.0, 3: 9.0, 4: 9.0}, val_loss={2: 4.5, 4: 9.5},
            learning_rate={1: 1})
    session(tmp_path / 'b', 2, loss={3: 3.0}, val_loss={})
    files = [str(next((tmp_path / name).iterdir())) for name in 'ab']
    assert loss_curve.losses(files) == ({1: 5.0, 2: 4.0, 3: 3.0}, {2: 4.5})
    session(tmp_path / 'c', 0, loss={1: 7.0})
    assert loss_curve.losses([*files, str(next((tmp_path / 'c').iterdir()))]) == ({1: 7.0}, {})


def test_running_mean():
    assert list(loss_curve.running_mean([4.0, 2.0, 6.0])) == pytest.approx(
        [4, (0.99 * 4 + 2) / 1.99, (0.99 ** 2 * 4 + 0.99 * 2 + 6) / (0.99 ** 2 + 0.99 + 1)])


@pytest.mark.parametrize('form', ['svg', 'png'])
def test_a_picture(form, tmp_path):
    pytest.importorskip('matplotlib', reason='make test installs it')
    session(tmp_path / 'checkpoint' / 'run', 0, loss={1: 5.0, 2: 4.0}, val_loss={2: 4.5})
    out = tmp_path / f'loss.{form}'
    loss_curve.draw('run', str(out), str(tmp_path / 'checkpoint'))
    content = out.read_bytes()
    if form == 'png':
        assert content.startswith(b'\x89PNG')
    else:
        for label in ('updates', 'nats a token', 'training', 'running mean', 'validation'):
            assert label in content.decode()
    assert sorted(os.listdir(tmp_path)) == ['checkpoint', out.name]


@pytest.mark.parametrize('name, out, message', [
    ('none', 'a.svg', 'no TensorBoard events in '), ('run', 'a.pdf', "OUT must end in .svg or .png, not ")])
def test_what_cannot_be_drawn_is_refused(name, out, message, tmp_path):
    pytest.importorskip('matplotlib', reason='make test installs it')
    with pytest.raises(loss_curve.InputError, match=message):
        loss_curve.draw(name, str(tmp_path / out), str(tmp_path))
