"""From gradients to the operations of one update, and the learning rate of each."""
import math

import tensorflow.compat.v1 as tf

from accumulate import AccumulatingOptimizer
from errors import require


class Adafactor(tf.train.Optimizer):
    """Shazeer & Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", no momentum.

    Of a matrix's squared gradients, only means over rows and columns are kept (algorithm 4), which move at
    the rate t^-0.8 (section 7.2). An update's root mean square is at most learning_rate (section 6), not
    scaled by its parameters, so that learning_rate means about the same as with Adam.
    """

    def __init__(self, learning_rate, name='Adafactor'):
        super().__init__(use_locking=False, name=name)
        self.learning_rate = learning_rate

    def _create_slots(self, var_list):
        self._create_non_slot_variable(0.0, 'updates', colocate_with=min(var_list, key=lambda v: v.name))
        for v in var_list:
            shape = v.shape.as_list()
            slots = {'squares': shape}
            if is_matrix(v):
                slots = {'rows': [*shape[:-1], 1], 'columns': [*shape[:-2], 1, shape[-1]]}
            for name, size in slots.items():
                self._get_or_make_slot_with_initializer(
                    v, tf.zeros_initializer(), tf.TensorShape(size), tf.float32, name, f'{self._name}_{name}')

    def _prepare(self):
        self.updates = self._get_non_slot_variable('updates', graph=tf.get_default_graph())
        self.newest = tf.pow(self.updates + 1, -0.8)  # the weight of this update's squares

    def _resource_apply_dense(self, grad, variable):
        squares = tf.square(grad)  # freed before the update is made, where it is a matrix's
        if is_matrix(variable):
            rows = self.moving_mean(variable, 'rows', tf.reduce_mean(squares, axis=-1, keepdims=True))
            columns = self.moving_mean(variable, 'columns', tf.reduce_mean(squares, axis=-2, keepdims=True))
            update = grad * tf.rsqrt(rows / tf.reduce_mean(rows, axis=-2, keepdims=True)) * tf.rsqrt(columns)
        else:
            update = grad * tf.rsqrt(self.moving_mean(variable, 'squares', squares))
        root_mean_square = tf.sqrt(2 * tf.nn.l2_loss(update) / variable.shape.num_elements())
        rate = self.learning_rate / tf.maximum(1.0, root_mean_square)
        return variable.assign_sub(update * rate, read_value=False)

    def moving_mean(self, variable, name, squares):
        slot = self.get_slot(variable, name)
        return slot.assign((1 - self.newest) * slot + self.newest * (squares + 1e-30)).read_value()

    def _finish(self, update_ops, name_scope):
        with tf.control_dependencies(update_ops):
            return self.updates.assign_add(1, name=name_scope, read_value=False)


OPTIMIZERS = {'adam': tf.train.AdamOptimizer, 'adamw': tf.train.AdamOptimizer, 'adafactor': Adafactor,
              'sgd': tf.train.GradientDescentOptimizer}
WEIGHT_DECAY = {'adamw': 0.01}  # where none is given; 0 for the others


class Update:
    """One update by the mean gradient: run each of `before`, then `batch` once for each of `batches`, then
    each of `after`; fetch `norm`, the gradient's before clipping, with the last of these.

    gradients: of one batch, for each of variables: float32 of its shape, or None. learning_rate: scalar.
    clip_norm: the largest norm of all gradients together, which are scaled down to it (Pascanu et al. 2013,
        "On the difficulty of training recurrent neural networks", section 3.2); 0 for no limit.
    weight_decay: matrices are first multiplied by 1 - learning_rate * weight_decay (Loshchilov & Hutter 2019,
        "Decoupled weight decay regularization"); None for the default of WEIGHT_DECAY.
    reduce: a function of the list of gradients that returns their means over all processes.
    """

    def __init__(self, gradients, variables, *, optimizer, learning_rate, batches=1, clip_norm=0.0,
                 weight_decay=None, reduce=None):
        pairs = [pair for pair in zip(gradients, variables, strict=True) if pair[0] is not None]
        gradients, variables = zip(*pairs, strict=True)
        opt = OPTIMIZERS[optimizer](learning_rate)
        self.before, self.after, scale = [], [], 1.0
        if batches > 1:
            accumulating = AccumulatingOptimizer(opt, variables)
            self.before, self.batch = [accumulating.reset()], accumulating.add(gradients)
            gradients, scale = [total.read_value() for total in accumulating.sums], 1 / accumulating.count
        if reduce:
            gradients = reduce(gradients)
        # Without clipping, nothing waits for the norm: each gradient is applied, and freed, when it is there.
        self.norm = scale * tf.linalg.global_norm(gradients)
        if clip_norm:
            scale *= tf.minimum(1.0, clip_norm / self.norm)
        if batches > 1:  # in the place of the sums, or there would be a copy of them all
            gradients = [total.assign(gradient * scale).read_value()
                         for total, gradient in zip(accumulating.sums, gradients, strict=True)]
        elif clip_norm:
            gradients = [gradient * scale for gradient in gradients]
        decay = WEIGHT_DECAY.get(optimizer, 0.0) if weight_decay is None else weight_decay
        if decay:
            factor = 1 - learning_rate * decay
            gradients = [after_decay(*pair, factor) for pair in zip(gradients, variables, strict=True)]
        apply = opt.apply_gradients(zip(gradients, variables, strict=True))
        if batches > 1:
            self.after = [apply]
        else:
            self.batch = apply


def after_decay(gradient, variable, factor):  # -> the gradient, once a matrix has been multiplied by factor
    if not is_matrix(variable):
        return gradient
    with tf.control_dependencies([gradient]):  # the forward pass has read the old value
        decay = variable.assign(variable.read_value() * factor, read_value=False)
    with tf.control_dependencies([decay]):
        return tf.identity(gradient)


def is_matrix(variable):
    return sum(size > 1 for size in variable.shape.as_list()) > 1


def learning_rate(step: int, *, peak: float, schedule: str, warmup_steps: int, steps: int | None) -> float:
    """The learning rate of the update that makes model number `step` (the first: 1).

    It grows in equal parts up to peak, at update warmup_steps. Then it is constant, or falls to 0 in the
    update after `steps`, as schedule says: linear or cosine (Loshchilov & Hutter 2017, "SGDR: Stochastic
    gradient descent with warm restarts", equation 5). Raises InputError for these without steps.
    """
    require(schedule == 'constant' or steps is not None, f'--schedule {schedule} needs --steps, its end')
    if steps is not None:
        step = min(step, steps)
    if step <= warmup_steps:
        return peak * step / warmup_steps
    if schedule == 'constant' or steps is None:
        return peak
    progress = (step - 1 - warmup_steps) / (steps - warmup_steps)
    return peak * (1 - progress if schedule == 'linear' else (1 + math.cos(math.pi * progress)) / 2)
