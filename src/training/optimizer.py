"""From gradients to the operations of an update, and its learning rate."""
import math

import tensorflow.compat.v1 as tf

from accumulate import AccumulatingOptimizer, zeros


class Adafactor:
    """Shazeer & Stern 2018: algorithm 4, but absolute steps; the decay of section 7.2."""

    def __init__(self, rate):
        self.rate = rate

    def apply_gradients(self, grads_and_vars):
        updates = zeros([], 'updates')
        newest = tf.pow(updates + 1, -0.8)  # the weight of its squares
        with tf.control_dependencies([self.apply(grad, v, newest) for grad, v in grads_and_vars]):
            return updates.assign_add(1, read_value=False)

    def apply(self, grad, v, newest):
        def moving_mean(name, squares):
            mean = zeros(squares.shape, f'{v.op.name}/Adafactor_{name}')
            return mean.assign((1 - newest) * mean + newest * (squares + 1e-30)).read_value()
        squares = tf.square(grad)
        if v.shape.rank > 1:
            rows = moving_mean('rows', tf.reduce_mean(squares, -1, keepdims=True))
            columns = moving_mean('columns', tf.reduce_mean(squares, -2, keepdims=True))
            rows /= tf.reduce_mean(rows, -2, keepdims=True)
            update = grad * tf.rsqrt(rows) * tf.rsqrt(columns)
        else:
            update = grad * tf.rsqrt(moving_mean('squares', squares))
        rms = tf.sqrt(2 * tf.nn.l2_loss(update) / v.shape.num_elements())
        return v.assign_sub(update * (self.rate / tf.maximum(1.0, rms)), read_value=False)


OPTIMIZERS = {'adam': tf.train.AdamOptimizer, 'adamw': tf.train.AdamOptimizer, 'adafactor': Adafactor,
              'sgd': tf.train.GradientDescentOptimizer}


def update_operations(grads, variables, flags, rate, reduce=None):  # -> reset, update, apply
    """Run reset, update for each batch, and apply (None without sums). The last one run gives the mean
    gradient's norm before clipping. Weight decay: Loshchilov & Hutter 2019, of matrices alone."""
    pairs = zip(grads, variables, strict=True)
    grads, variables = zip(*(pair for pair in pairs if pair[0] is not None), strict=True)
    opt, sums, scale = OPTIMIZERS[flags.optimizer](rate), None, 1.0
    if flags.accumulate_gradients > 1:
        sums = AccumulatingOptimizer(opt, variables)
        reset, batch = sums.reset(), sums.add(grads)
        grads, scale = [total.read_value() for total in sums.sums], 1 / sums.count
    if reduce:
        grads = reduce(grads)
    # Unless clipping waits for the norm, each gradient is applied, and freed, at once.
    norm = scale * tf.linalg.global_norm(grads)
    if flags.clip_norm:
        scale *= tf.minimum(1.0, flags.clip_norm / norm)
    if sums or flags.clip_norm:
        grads = [grad * scale for grad in grads]
    if sums:  # kept in the sums, or all would be copied
        grads = [total.assign(grad).read_value() for total, grad in zip(sums.sums, grads, strict=True)]
    decay = 0.01 * (flags.optimizer == 'adamw') if flags.weight_decay is None else flags.weight_decay
    pairs = list(zip(grads, variables, strict=True))
    if decay:
        pairs = [(after_decay(grad, v, 1 - rate * decay), v) for grad, v in pairs]
    with tf.control_dependencies([opt.apply_gradients(pairs)]):
        norm = tf.identity(norm)
    return (reset, batch, norm) if sums else (tf.no_op(), norm, None)


def after_decay(grad, v, factor):  # -> grad, once a matrix is multiplied by factor
    if v.shape.rank < 2:
        return grad
    with tf.control_dependencies([grad]):  # the forward pass has read v
        decay = v.assign(v.read_value() * factor, read_value=False)
    with tf.control_dependencies([decay]):
        return tf.identity(grad)


def learning_rate(step: int, flags) -> float:
    """Of update `step`, from 1 on; 0 after the last. Cosine: Loshchilov & Hutter 2017, equation 5."""
    peak, warmup = flags.learning_rate, flags.warmup_steps
    if step <= warmup:
        return peak * step / warmup
    if flags.schedule == 'constant':
        return peak
    progress = (step - 1 - warmup) / (flags.steps - warmup)
    return peak * (1 - progress if flags.schedule == 'linear' else (1 + math.cos(math.pi * progress)) / 2)
