"""One update from several batches, to fit in memory."""
import tensorflow.compat.v1 as tf


class AccumulatingOptimizer:
    """Applies mean gradients. Call once, and run, reset(), for each batch compute_gradients(loss), and
    apply_gradients()."""

    def __init__(self, opt, var_list):
        self.opt, self.var_list = opt, list(var_list)

        def local(shape, name):  # in no checkpoint
            return zeros(shape, f'accumulated/{name}', collections=[tf.GraphKeys.LOCAL_VARIABLES])
        self.sums = [local(v.shape, v.op.name) for v in self.var_list]
        self.total_loss, self.count = local([], 'total_loss'), local([], 'count')

    def reset(self):
        return tf.group(*(v.initializer for v in [*self.sums, self.total_loss, self.count]))

    def compute_gradients(self, loss, gradients=tf.gradients):  # of (loss, variables)
        return self.add(gradients(loss, self.var_list), loss)

    def add(self, grads, loss=0.0):  # gradients may be None
        added = [total.assign_add(tf.convert_to_tensor(grad))
                 for total, grad in zip(self.sums, grads, strict=True) if grad is not None]
        return tf.group(*added, self.total_loss.assign_add(loss), self.count.assign_add(1))

    def apply_gradients(self):  # -> the mean loss, once the mean gradient is applied
        means = [total / self.count for total in self.sums]
        with tf.control_dependencies([self.opt.apply_gradients(zip(means, self.var_list, strict=True))]):
            return self.total_loss / self.count


def zeros(shape, name, dtype=tf.float32, **options):  # -> a variable
    return tf.Variable(tf.zeros(shape, dtype), trainable=False, name=name, use_resource=True, **options)
