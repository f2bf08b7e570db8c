"""One update from several batches, for batches that are larger than memory."""
import tensorflow.compat.v1 as tf


class AccumulatingOptimizer:
    """Averages gradients over runs of compute_gradients, then applies them once with another optimizer.

    N batches of B give the update of one batch of N·B. In a session: run reset(), compute_gradients(loss) for
    each batch, then apply_gradients(). Each method adds its operation to the graph; call it once. Who has
    gradients, or changes them, calls add(gradients), and applies sums (a list of variables) divided by count.
    """

    def __init__(self, opt, var_list):
        self.opt, self.var_list = opt, list(var_list)
        # Local variables are zeroed at the start of each update, and no part of a checkpoint.
        self.sums = [local_zeros(v.shape.as_list(), v.op.name) for v in self.var_list]
        self.total_loss = local_zeros([], 'total_loss')
        self.count = local_zeros([], 'count')

    def reset(self):
        """The operation that begins an update."""
        return tf.group(*(v.initializer for v in [*self.sums, self.total_loss, self.count]))

    def compute_gradients(self, loss, gradients=tf.gradients):
        """The operation that adds one batch. loss: scalar. gradients: a function of (loss, variables)."""
        return self.add(gradients(loss, self.var_list), loss)

    def add(self, gradients, loss=0.0):
        """The operation that adds one batch. gradients: for each variable a tensor of its shape, or None."""
        added = [self.total_loss.assign_add(loss), self.count.assign_add(1)]
        for total, gradient in zip(self.sums, gradients, strict=True):
            if gradient is not None:
                added.append(total.assign_add(tf.convert_to_tensor(gradient)))
        return tf.group(*added)

    def apply_gradients(self):
        """The mean loss of the batches, once the update by the mean gradient has been applied."""
        means = [total / self.count for total in self.sums]
        with tf.control_dependencies([self.opt.apply_gradients(zip(means, self.var_list, strict=True))]):
            return self.total_loss / self.count


def local_zeros(shape, name):
    return tf.Variable(tf.zeros(shape), trainable=False, name=f'accumulated/{name}', use_resource=True,
                       collections=[tf.GraphKeys.LOCAL_VARIABLES])
