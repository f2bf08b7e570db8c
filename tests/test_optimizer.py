import functools

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import toy

import memory_saving_gradients
import model
from command_line.flags import TrainFlags
from errors import InputError
from training import optimizer

# torch 2.13 and transformers 5.23: GPT2LMHeadModel with toy.weights(toy.hparams()), ten updates by the batches of
# np.random.RandomState(1).randint(0, 557, [10, 2, 32]); torch.optim.Adam(lr=1e-3), torch.optim.AdamW(lr=1e-3,
# weight_decay=5, but 0 for one-dimensional parameters), transformers.Adafactor(lr=1e-2, **ADAFACTOR) and
# torch.optim.SGD(lr=0.1).
LOSSES = {'adam': [6.46302, 6.50385, 6.42572, 6.46457, 6.56591, 6.33828, 6.49241, 6.47511, 6.4508, 6.44818],
          'adamw': [6.46302, 6.50255, 6.42355, 6.46151, 6.55928, 6.33144, 6.48411, 6.46261, 6.44114, 6.4334],
          'adafactor': [6.46302, 6.41812, 6.52076, 6.49605, 6.668, 6.41976, 6.49736, 6.54048, 6.46124, 6.39114],
          'sgd': [6.46302, 6.49194, 6.42243, 6.45931, 6.56576, 6.35609, 6.4765, 6.45796, 6.41743, 6.41112]}
SETTINGS = {'adam': (1e-3, None), 'adamw': (1e-3, 5.0), 'adafactor': (1e-2, None), 'sgd': (0.1, None)}
ADAFACTOR = {'scale_parameter': False, 'relative_step': False, 'warmup_init': False}
NAMES = list(optimizer.OPTIMIZERS)
SHAPES = [[1, 5, 7], [4, 3], [6]]


def test_the_flag_knows_the_optimizers_that_there_are():
    with pytest.raises(InputError, match=f'one of {", ".join(NAMES)}, not'):
        TrainFlags(dataset='x', optimizer='none of them')


def test_ten_losses_are_those_of_torch():
    hp = toy.hparams()
    data = np.random.RandomState(1).randint(0, 557, [10, 2, 32])
    with toy.session() as s:  # one for all, since most of the time goes into compiling the model
        X = tf.placeholder(tf.int32, [2, 32])
        total, count = model.loss(model.model(hp, X)['logits'], X)
        loss, variables = total / count, tf.trainable_variables()
        gradients = [tf.convert_to_tensor(each) for each in tf.gradients(loss, variables)]
        for name, expected in LOSSES.items():
            rate, decay = SETTINGS[name]
            update = optimizer.Update(gradients, variables, optimizer=name, learning_rate=tf.constant(rate),
                                      weight_decay=decay)
            toy.assign(s, toy.weights(hp))
            losses = [s.run([loss, update.batch], {X: rows})[0] for rows in data]
            np.testing.assert_allclose(losses, expected, atol=1e-4, err_msg=name)


def draw(*rows, scale=1.0, seed=0):
    """Values for SHAPES; with rows, nested lists of them in these sizes."""
    rng = np.random.RandomState(seed)

    def drawn(rows):
        if rows:
            return [drawn(rows[1:]) for _ in range(rows[0])]
        return [(rng.standard_normal(shape) * scale).astype(np.float32) for shape in SHAPES]
    return drawn(rows)


def updates(values, gradients, rates, **settings):
    """The variables and the norms after updates by gradients, [update][batch][variable], at these learning rates."""
    with toy.session() as s:
        variables = [tf.Variable(value, use_resource=True) for value in values]
        inputs = [None if each is None else tf.placeholder(tf.float32, each.shape) for each in gradients[0][0]]
        rate = tf.placeholder(tf.float32, [])
        update = optimizer.Update(inputs, variables, learning_rate=rate, batches=len(gradients[0]), **settings)
        s.run([tf.global_variables_initializer(), tf.local_variables_initializer()])
        norms = []
        for batches, value in zip(gradients, rates, strict=True):
            # As the trainer runs them: the norm comes with the last operation, whichever that is.
            last = [*update.before, *[update.batch] * len(batches), *update.after][-1]
            s.run(update.before, {rate: value})
            for batch in batches:
                feed = {X: each for X, each in zip(inputs, batch, strict=True) if X is not None}
                found = s.run([update.batch, *[update.norm] * (last is update.batch)], {rate: value, **feed})
            for operation in update.after:
                found = s.run([operation, update.norm], {rate: value})
            norms.append(found[-1])
        return s.run(variables), norms


def peer_optimizer(name, parameters):
    torch = pytest.importorskip('torch', reason='make test-all compares with torch')
    if name == 'adafactor':
        transformers = pytest.importorskip('transformers', reason='make test-all compares with transformers')
        return transformers.Adafactor(parameters, lr=1.0, **ADAFACTOR)
    if name == 'adamw':  # with its own default for matrices
        return torch.optim.AdamW([{'params': parameters[:2]}, {'params': parameters[2:], 'weight_decay': 0}])
    return {'adam': torch.optim.Adam, 'sgd': torch.optim.SGD}[name](parameters)


@pytest.mark.parametrize('clip_norm', [0.0, 5.0])
@pytest.mark.parametrize('name', NAMES)
def test_ten_updates_are_those_of_torch(name, clip_norm):
    torch = pytest.importorskip('torch', reason='make test-all compares with torch')
    values, gradients, rates = draw(seed=1), draw(10, 1, scale=0.7), np.linspace(0.3, 0.01, 10)
    parameters = [torch.nn.Parameter(torch.tensor(value)) for value in values]
    peer, norms = peer_optimizer(name, parameters), []
    for (batch,), rate in zip(gradients, rates, strict=True):
        for parameter, gradient in zip(parameters, batch, strict=True):
            parameter.grad = torch.tensor(gradient)
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, clip_norm or np.inf).item())
        for group in peer.param_groups:
            group['lr'] = float(rate)
        peer.step()
    assert min(norms) < 5 < max(norms)
    found, shown = updates(values, gradients, rates, optimizer=name, clip_norm=clip_norm)
    np.testing.assert_allclose(shown, norms, rtol=1e-6)
    for variable, parameter in zip(found, parameters, strict=True):
        np.testing.assert_allclose(variable, parameter.detach(), atol=1e-5)


@pytest.mark.parametrize('clip_norm', [0.0, 5.0])
@pytest.mark.parametrize('name', NAMES)
def test_n_batches_give_the_update_of_one_batch_of_all(name, clip_norm):
    values, gradients, rates = draw(seed=1), draw(5, 3, scale=1.5), [0.1] * 5
    means = [[[np.mean(each, axis=0) for each in zip(*batches, strict=True)]] for batches in gradients]
    expected, norms = updates(values, means, rates, optimizer=name, clip_norm=clip_norm)
    found, shown = updates(values, gradients, rates, optimizer=name, clip_norm=clip_norm)
    assert min(norms) < 5 < max(norms)
    np.testing.assert_allclose(shown, norms, rtol=1e-6)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize('batches', [1, 2])
@pytest.mark.parametrize('scale', [0.0, 0.1, 10.0])
def test_a_large_gradient_is_scaled_down_to_the_norm(scale, batches):
    values, (gradient,) = draw(seed=1), draw(1, scale=scale)
    found, (norm,) = updates(values, [[gradient] * batches], [0.5], optimizer='sgd', clip_norm=2.0)
    expected = np.sqrt(sum(np.sum(each.astype(np.float64) ** 2) for each in gradient))
    assert norm == pytest.approx(expected, rel=1e-6)
    factor = 2.0 / expected if expected > 2 else 1.0
    for after, before, each in zip(found, values, gradient, strict=True):
        np.testing.assert_allclose(after, before - 0.5 * factor * each, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('batches', [1, 2])
@pytest.mark.parametrize('name', NAMES)
def test_what_has_no_gradient_stays_as_it_is(name, batches):
    values, (gradient,) = draw(seed=1), draw(1)
    gradient[1] = None
    found, (norm,) = updates(values, [[gradient] * batches], [0.1], optimizer=name, clip_norm=1.0, weight_decay=0.1)
    np.testing.assert_array_equal(found[1], values[1])
    assert norm == pytest.approx(np.sqrt(np.sum(gradient[0] ** 2) + np.sum(gradient[2] ** 2)), rel=1e-6)
    assert all(np.all(found[i] != values[i]) for i in (0, 2))


@pytest.mark.parametrize('batches', [1, 2])
def test_only_matrices_decay_and_before_the_step(batches):
    values = [np.full(shape, 2, np.float32) for shape in ([1, 2, 2], [2, 2], [1, 2], [2])]
    gradient = [np.ones_like(value) for value in values]
    found, _ = updates(values, [[gradient] * batches], [0.5], optimizer='sgd', weight_decay=0.5)
    # 2 · (1 - 0.5 · 0.5) - 0.5 · 1, where the other order would give 1.125
    assert [np.unique(value).tolist() for value in found] == [[1.0], [1.0], [1.5], [1.5]]


@pytest.mark.parametrize('name, decay', [('adam', 0), ('adamw', 0.01), ('adafactor', 0), ('sgd', 0)])
def test_only_adamw_decays_by_default(name, decay):
    zero = [np.zeros(shape, np.float32) for shape in SHAPES]
    found, _ = updates(draw(), [[zero]], [1.0], optimizer=name)
    for after, before, factor in zip(found, draw(), [1 - decay, 1 - decay, 1], strict=True):
        np.testing.assert_allclose(after, before * factor, rtol=1e-6)


@pytest.mark.parametrize('clip_norm', [0.0, 1.0])
@pytest.mark.parametrize('batches', [1, 2])
def test_gradients_wait_for_the_norm_only_to_be_clipped_and_what_comes_after_for_no_input(batches, clip_norm):
    with toy.session():
        v = tf.Variable(tf.ones([2, 2]), use_resource=True)
        X = tf.placeholder(tf.float32, [2, 2])
        update = optimizer.Update([X], [v], optimizer='adamw', learning_rate=tf.constant(0.1), batches=batches,
                                  clip_norm=clip_norm)
        apply = update.after[0] if batches > 1 else update.batch
        needed = memory_saving_gradients.ancestors([apply])
        assert (update.norm.op in needed) == bool(clip_norm)
        assert (X.op in needed) == (batches == 1)
        assert v.op in needed


def test_adafactor_keeps_rows_and_columns_of_matrices():
    with toy.session():
        variables = [tf.Variable(value, use_resource=True) for value in draw()]
        optimizer.Update([tf.ones_like(v) for v in variables], variables, optimizer='adafactor',
                         learning_rate=tf.constant(0.1))
        kept = [v.shape.as_list() for v in tf.global_variables() if v not in tf.trainable_variables()]
    assert sorted(kept, key=str) == sorted([[], [1, 5, 1], [1, 1, 7], [4, 1], [1, 3], [6]], key=str)


# By hand: 4 · (progress 0, 1/4, 1/2, 3/4) after two updates of warm-up.
@pytest.mark.parametrize('schedule, rates', [
    ('constant', [2, 4, 4, 4, 4, 4, 4, 4]),
    ('linear', [2, 4, 4, 3, 2, 1, 1, 1]),
    ('cosine', [2, 4, 4, 2 + np.sqrt(2), 2, 2 - np.sqrt(2), 2 - np.sqrt(2), 2 - np.sqrt(2)])])
def test_schedules(schedule, rates):
    rate = functools.partial(optimizer.learning_rate, peak=4.0, schedule=schedule, warmup_steps=2, steps=6)
    assert [rate(step) for step in range(1, 9)] == pytest.approx(rates)
    assert all(isinstance(rate(step), float) for step in range(1, 9))


def test_schedules_without_warmup_or_without_end():
    rate = functools.partial(optimizer.learning_rate, peak=4.0)
    assert [rate(step, schedule='linear', warmup_steps=0, steps=2) for step in (1, 2, 3)] == [4, 2, 2]
    assert [rate(step, schedule='constant', warmup_steps=4, steps=None) for step in (1, 3, 4, 9)] == [1, 3, 4, 4]
    assert [rate(step, schedule='cosine', warmup_steps=4, steps=2) for step in (1, 2, 3)] == [1, 2, 2]
    for schedule in ('linear', 'cosine'):
        with pytest.raises(InputError, match=f'--schedule {schedule} needs --steps'):
            rate(1, schedule=schedule, warmup_steps=4, steps=None)
