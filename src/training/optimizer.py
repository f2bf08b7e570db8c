"""From gradients to the operations of one update, and the learning rate of each."""
import math

import tensorflow.compat.v1 as tf

from accumulate import AccumulatingOptimizer
from errors import require


class Adafactor(tf.train.Optimizer):
    """Shazeer & Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", without momentum.

    Of a matrix's squared gradients only the means over rows and over columns are kept (algorithm 4), each a moving
    mean that forgets at the rate t^-0.8 (section 7.2); no update's root mean square is above learning_rate (section
    6). Updates are not scaled by their parameters, so that learning_rate means about what it means with Adam.
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
                self._get_or_make_slot_with_initializer(v, tf.zeros_initializer(), tf.TensorShape(size), tf.float32,
                                                        name, f'{self._name}_{name}')

    def _prepare(self):
        self.updates = self._get_non_slot_variable('updates', graph=tf.get_default_graph())
        self.newest = tf.pow(self.updates + 1, -0.8)  # the weight of this update's squares in the moving means

    def _resource_apply_dense(self, grad, variable):
        """In few passes and temporaries: a matrix's squares are gone before its update is made, in one array."""
        squares = tf.square(grad)
        if is_matrix(variable):
            rows = self.moving_mean(variable, 'rows', tf.reduce_mean(squares, axis=-1, keepdims=True))
            columns = self.moving_mean(variable, 'columns', tf.reduce_mean(squares, axis=-2, keepdims=True))
            update = grad * tf.rsqrt(rows / tf.reduce_mean(rows, axis=-2, keepdims=True)) * tf.rsqrt(columns)
        else:
            update = grad * tf.rsqrt(self.moving_mean(variable, 'squares', squares))
        root_mean_square = tf.sqrt(2 * tf.nn.l2_loss(update) / variable.shape.num_elements())
        return variable.assign_sub(update * (self.learning_rate / tf.maximum(1.0, root_mean_square)), read_value=False)

    def moving_mean(self, variable, name, squares):
        slot = self.get_slot(variable, name)
        return slot.assign((1 - self.newest) * slot + self.newest * (squares + 1e-30)).read_value()

    def _finish(self, update_ops, name_scope):
        with tf.control_dependencies(update_ops):
            return self.updates.assign_add(1, name=name_scope, read_value=False)


OPTIMIZERS = {'adam': tf.train.AdamOptimizer, 'adamw': tf.train.AdamOptimizer, 'adafactor': Adafactor,
              'sgd': tf.train.GradientDescentOptimizer}
WEIGHT_DECAY = {'adamw': 0.01}  # where none is given; of the others 0


class Update:
    """The operations of one update: run each of `before`, then `batch` once for each batch, then each of `after`.

    gradients: for each of variables the gradient of one batch's loss, a float32 tensor of its shape, or None where the
        variable stays as it is. The update is by their mean over the batches.
    optimizer: a name of OPTIMIZERS. learning_rate: scalar tensor. batches: how many make one update.
    clip_norm: gradients whose norm, over all variables together, is above it are scaled down to it (Pascanu et al.
        2013, "On the difficulty of training recurrent neural networks", section 3.2); 0 for no limit.
    weight_decay: matrices are first multiplied by 1 - learning_rate * weight_decay (Loshchilov & Hutter 2019,
        "Decoupled weight decay regularization"); None for 0.01 with adamw and 0 with the others.

    reduce: a function that is given the list of gradients (where there are several batches, of their sums), and returns
        a list of their means over all processes; None where there is one.

    norm: scalar, the norm before clipping; fetch it with the update's last operation or not at all.
    """

    def __init__(self, gradients, variables, *, optimizer, learning_rate, batches=1, clip_norm=0.0, weight_decay=None,
                 reduce=None):
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
        # Nothing below waits for the norm without need: a gradient is applied, and its memory free, when it is there.
        self.norm = scale * tf.linalg.global_norm(gradients)
        if clip_norm:
            scale *= tf.minimum(1.0, clip_norm / self.norm)
        if batches > 1:  # in their place, or there would be a copy of them all
            gradients = [total.assign(each * scale).read_value()
                         for total, each in zip(accumulating.sums, gradients, strict=True)]
        elif clip_norm:
            gradients = [each * scale for each in gradients]
        decay = WEIGHT_DECAY.get(optimizer, 0.0) if weight_decay is None else weight_decay
        if decay:
            factor = 1 - learning_rate * decay
            gradients = [decayed_first(*pair, factor) for pair in zip(gradients, variables, strict=True)]
        apply = opt.apply_gradients(zip(gradients, variables, strict=True))
        if batches > 1:
            self.after = [apply]
        else:
            self.batch = apply


def decayed_first(gradient, variable, factor):
    """The gradient, to be had only once the variable, if it is a matrix, has been multiplied by factor."""
    if not is_matrix(variable):
        return gradient
    with tf.control_dependencies([gradient]):  # the forward pass is done with the old value
        decay = variable.assign(variable.read_value() * factor, read_value=False)
    with tf.control_dependencies([decay]):
        return tf.identity(gradient)


def is_matrix(variable):
    return sum(size > 1 for size in variable.shape.as_list()) > 1


def learning_rate(step: int, *, peak: float, schedule: str, warmup_steps: int, steps: int | None) -> float:
    """The learning rate of the update that makes model number `step` (the first: 1).

    It grows in equal parts up to peak, at update warmup_steps; then it follows schedule: constant, or linear and cosine
    (Loshchilov & Hutter 2017, "SGDR: Stochastic gradient descent with warm restarts", equation 5, without restarts)
    fall towards 0, which they would reach one update after `steps`. From `steps` on it is constant.
    Raises InputError for one of these two where steps is None.
    """
    require(schedule == 'constant' or steps is not None, f'--schedule {schedule} needs --steps: it ends there')
    if steps is not None:
        step = min(step, steps)
    if step <= warmup_steps:
        return peak * step / warmup_steps
    # Constant: there may be no end to measure progress by.
    progress = 0.0 if steps is None else (step - 1 - warmup_steps) / (steps - warmup_steps)
    return peak * {'constant': 1.0, 'linear': 1 - progress, 'cosine': (1 + math.cos(math.pi * progress)) / 2}[schedule]
