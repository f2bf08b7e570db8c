from command_line.flags import TrainFlags

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import toy

import memory_saving_gradients
import model
from errors import InputError
from training import optimizer

# torch 2.13 and transformers 5.23: GPT2LMHeadModel with toy.weights(toy.hparams()), ten updates by the
# batches of
# np.random.RandomState(1).randint(0, 557, [10, 2, 32]); torch.optim.Adam(lr=1e-3), torch.optim.AdamW(lr=1e-3,
# weight_decay=5, but 0 for one-dimensional parameters), transformers.Adafactor(lr=1e-2, **ADAFACTOR) and
# torch.optim.SGD(lr=0.1).
LOSSES = {
    'adam': [6.46302, 6.50385, 6.42572, 6.46457, 6.56591, 6.33828, 6.49241, 6.47511, 6.4508, 6.44818],
    'adamw': [6.46302, 6.50255, 6.42355, 6.46151, 6.55928, 6.33144, 6.48411, 6.46261, 6.44114, 6.4334],
    'adafactor': [6.46302, 6.41812, 6.52076, 6.49605, 6.668, 6.41976, 6.49736, 6.54048, 6.46124, 6.39114],
    'sgd': [6.46302, 6.49194, 6.42243, 6.45931, 6.56576, 6.35609, 6.4765, 6.45796, 6.41743, 6.41112],
}
SETTINGS = {'adam': (1e-3, None), 'adamw': (1e-3, 5.0), 'adafactor': (1e-2, None), 'sgd': (0.1, None)}
ADAFACTOR = {'scale_parameter': False, 'relative_step': False, 'warmup_init': False}
NAMES = list(optimizer.OPTIMIZERS)
SHAPES = [[1, 5, 7], [4, 3], [6]]


def flags(**changes):
    return TrainFlags(dataset='none', **changes)


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
            _, update, _ = optimizer.update_operations(
                gradients, variables, flags(optimizer=name, weight_decay=decay), tf.constant(rate))
            toy.assign(s, toy.weights(hp))
            losses = [s.run([loss, update], {X: rows})[0] for rows in data]
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
    """The variables and the norms after updates by gradients, [update][batch][variable], at these learning
    rates."""
    with toy.session() as s:
        variables = [tf.Variable(value, use_resource=True) for value in values]
        inputs = [
            None if each is None else tf.placeholder(tf.float32, each.shape) for each in gradients[0][0]
        ]
        rate = tf.placeholder(tf.float32, [])
        reset, add, apply = optimizer.update_operations(
            inputs, variables, flags(accumulate_gradients=len(gradients[0]), **settings), rate)
        s.run([tf.global_variables_initializer(), tf.local_variables_initializer()])
        norms = []
        for batches, value in zip(gradients, rates, strict=True):
            s.run(reset)
            for batch in batches:
                feed = {X: each for X, each in zip(inputs, batch, strict=True) if X is not None}
                norm = s.run(add, {rate: value, **feed})
            if apply is not None:
                norm = s.run(apply, {rate: value})
            norms.append(norm)
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
    found, (norm,) = updates(
        values, [[gradient] * batches], [0.1], optimizer=name, clip_norm=1.0, weight_decay=0.1
    )
    np.testing.assert_array_equal(found[1], values[1])
    assert norm == pytest.approx(np.sqrt(np.sum(gradient[0] ** 2) + np.sum(gradient[2] ** 2)), rel=1e-6)
    assert all(np.all(found[i] != values[i]) for i in (0, 2))


@pytest.mark.parametrize('batches', [1, 2])
def test_only_matrices_decay_and_before_the_step(batches):
    values = [np.full(shape, 2, np.float32) for shape in ([1, 2, 2], [2, 2], [1, 2], [2])]
    gradient = [np.ones_like(value) for value in values]
    found, _ = updates(values, [[gradient] * batches], [0.5], optimizer='sgd', weight_decay=0.5)
    # 2 · (1 - 0.5 · 0.5) - 0.5 · 1, where the other order would give 1.125
    assert [np.unique(value).tolist() for value in found] == [[1.0], [1.0], [1.0], [1.5]]


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
        _, update, last = optimizer.update_operations(
            [X],
            [v],
            flags(optimizer='adamw', accumulate_gradients=batches, clip_norm=clip_norm),
            tf.constant(0.1),
        )
        (apply,) = [op for op in tf.get_default_graph().get_operations() if op.type == 'ResourceApplyAdam']
        needed = memory_saving_gradients.ancestors([apply])
        (norm,) = (last if batches > 1 else update).op.inputs
        assert (norm.op in needed) == bool(clip_norm)
        assert (X.op in needed) == (batches == 1)
        assert v.op in needed


def test_adafactor_keeps_rows_and_columns_of_matrices():
    with toy.session():
        variables = [tf.Variable(value, use_resource=True) for value in draw()]
        optimizer.update_operations(
            [tf.ones_like(v) for v in variables], variables, flags(optimizer='adafactor'), tf.constant(0.1)
        )
        kept = {
            v.op.name: v.shape.as_list() for v in tf.global_variables() if v not in tf.trainable_variables()
        }
    assert kept == {  # under these names, checkpoints have them
        'updates': [],
        'Variable/Adafactor_rows': [1, 5, 1],
        'Variable/Adafactor_columns': [1, 1, 7],
        'Variable_1/Adafactor_rows': [4, 1],
        'Variable_1/Adafactor_columns': [1, 3],
        'Variable_2/Adafactor_squares': [6],
    }


# By hand: 4 · (progress 0, 1/4, 1/2, 3/4) after two updates of warm-up.
@pytest.mark.parametrize('schedule, rates', [
    ('constant', [2, 4, 4, 4, 4, 4]), ('linear', [2, 4, 4, 3, 2, 1]),
    ('cosine', [2, 4, 4, 2 + np.sqrt(2), 2, 2 - np.sqrt(2)])])
def test_schedules(schedule, rates):
    drawn = [
        optimizer.learning_rate(step, flags(learning_rate=4.0, schedule=schedule, warmup_steps=2, steps=6))
        for step in range(1, 7)
    ]
    assert drawn == pytest.approx(rates) and all(isinstance(rate, float) for rate in drawn)


def test_schedules_without_warmup_or_without_end():
    def rates(*steps, **changes):
        return [optimizer.learning_rate(step, flags(learning_rate=4.0, **changes)) for step in steps]
    assert rates(1, 2, schedule='linear', steps=2) == [4, 2]
    assert rates(1, 3, 4, 9, warmup_steps=4) == [1, 3, 4, 4]
    assert rates(1, 2, schedule='cosine', warmup_steps=4, steps=2) == [1, 2]
