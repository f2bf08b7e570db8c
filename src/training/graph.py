"""The graph of an update: from a batch of tokens to losses, gradients and the optimizer's operations."""
import tensorflow as tf2
import tensorflow.compat.v1 as tf
from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig

import memory_saving_gradients
import model
from fast import session as sessions
from fast.precision import set_precision
from fast.quantized import with_precision
from storage import checkpoint
from training import optimizer


class Graph:
    """Attributes: inputs, tokens, rate (placeholders); weights; update (an optimizer.Update); batch_total and
    batch_count (in an update: the sum of losses, their number); total and count (without one); finite."""

    def __init__(self, flags, hparams, reduce):
        self.flags, self.hparams = flags, hparams
        self.inputs = tf.placeholder(tf.int32, [None, hparams.n_ctx], 'inputs')
        self.tokens = tf.placeholder(tf.int32, [None, hparams.n_ctx], 'tokens')
        self.rate = tf.placeholder(tf.float32, [], 'learning_rate')
        self.weights, self.dtype = model.weights(hparams), set_precision(flags.precision)
        variables = checkpoint.model_variables()
        if flags.only_train_transformer_layers:
            variables = [v for v in variables if v.op.name.startswith('model/h')]
        self.trained = {v.op.name.removeprefix('model/') for v in variables}
        arguments = [self.inputs, self.tokens, *self.weights.values()]
        self.batch_total, self.batch_count, *gradients = self.compiled(self.losses_and_gradients)(*arguments)
        self.total, self.count = self.batch_total, self.batch_count
        if flags.xla:  # of one kernel, no part can be run alone
            self.total, self.count = self.compiled(self.losses_of)(*arguments)
        self.update = optimizer.Update(
            gradients, variables, optimizer=flags.optimizer, learning_rate=self.rate,
            batches=flags.accumulate_gradients, clip_norm=flags.clip_norm, weight_decay=flags.weight_decay,
            reduce=reduce)
        # Of the weights, as those that an update has spoilt show in the loss of the next one only.
        self.finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(w)) for w in self.weights.values()])

    def compiled(self, function):  # as one kernel with --xla
        return tf2.function(function, jit_compile=True, autograph=False) if self.flags.xla else function

    def losses_of(self, inputs, tokens, *values):  # -> scalar, scalar: the sum of the losses, their number
        w = with_precision(dict(zip(self.weights, values, strict=True)), self.dtype)
        h, _ = model.transformer(self.hparams, w, inputs)
        return model.loss(model.output(w, h), tokens)

    def losses_and_gradients(self, inputs, tokens, *values):  # as losses_of, and gradients of what is trained
        total, count = self.losses_of(inputs, tokens, *values)
        # Every token counts the same; means over each batch's tokens would favour batches with padding.
        loss = total / tf.cast(tf.size(tokens[:, 1:]), tf.float32)
        trained = [value for name, value in zip(self.weights, values, strict=True) if name in self.trained]
        return [total, count, *memory_saving_gradients.gradients(
            loss, trained, recompute=self.flags.memory_saving_gradients)]


def session_config(worker):
    """The ConfigProto of a session that trains, with the worker's GPU and threads."""
    config = sessions.session_config()
    if worker.gpu is not None:
        config.gpu_options.visible_device_list = str(worker.gpu)
    config.intra_op_parallelism_threads = worker.threads
    # Folded, the zeros that the optimizer's variables start from would be kept, for Adam twice the model's
    # size. Found equal, they would share memory until the first update copies it between its activations.
    config.graph_options.rewrite_options.constant_folding = RewriterConfig.OFF
    config.graph_options.rewrite_options.common_subgraph_elimination = RewriterConfig.OFF
    config.graph_options.optimizer_options.opt_level = tf.OptimizerOptions.L0
    return config
