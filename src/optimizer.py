"""From a loss to the operations of one update."""
import tensorflow.compat.v1 as tf

import memory_saving_gradients
from accumulate import AccumulatingOptimizer

OPTIMIZERS = {'adam': tf.train.AdamOptimizer, 'sgd': tf.train.GradientDescentOptimizer}


class Update:
    """The operations of one update: run each of `before`, then `batch` once for each batch, then each of `after`.

    loss: scalar. variables: those to train. optimizer: a name of OPTIMIZERS. batches: how many make one update.
    """

    def __init__(self, loss, variables, *, optimizer, learning_rate, batches=1, memory_saving=False):
        opt = OPTIMIZERS[optimizer](learning_rate)
        gradients = memory_saving_gradients.gradients if memory_saving else tf.gradients
        if batches == 1:
            # Dense: the token embedding's gradient has a dense part from the output layer in any case.
            found = [None if each is None else tf.convert_to_tensor(each) for each in gradients(loss, variables)]
            self.before, self.after = [], []
            self.batch = opt.apply_gradients(zip(found, variables, strict=True))
        else:
            accumulating = AccumulatingOptimizer(opt, variables)
            self.before, self.batch = [accumulating.reset()], accumulating.compute_gradients(loss, gradients)
            self.after = [accumulating.apply_gradients()]
