"""The graph of an update, from tokens to the optimizer's operations."""
import numpy as np
import tensorflow.compat.v1 as tf

import model
from accumulate import zeros
from fast.quantized import with_precision
from fast.session import set_precision
from memory_saving_gradients import gradients
from training.optimizer import update_operations


class Graph:
    """Placeholders: batch (input, tokens), rate. Operations: those of update_operations; losses: sum and
    number (update_losses: in an update); finite: are all trained weights? weights: for samples.
    base: variables of an Adapter's base, which are to be loaded."""

    def __init__(self, flags, hparams, reduce, end=None, adapter=None):
        """end: the id after a document, if documents are isolated."""
        self.flags, self.hparams, self.end, self.adapter = flags, hparams, end, adapter
        self.batch = tuple(tf.placeholder(tf.int32, [None, hparams.n_ctx]) for _ in range(2))
        self.rate = tf.placeholder(tf.float32, [], 'learning_rate')
        self.dtype = set_precision(flags.precision)
        w = self.adapted_weights() if adapter else model.weights(hparams)
        self.weights = self.factors(w) if adapter else w
        variables = tf.trainable_variables('model/h' if flags.only_train_transformer_layers else 'model/')
        self.trained = [v.op.name.removeprefix('model/') for v in variables]
        inputs = *self.batch, w
        *self.update_losses, grads = self.compiled(self.losses_and_gradients)(*inputs)
        # No part of XLA's kernel can be run alone.
        self.losses = self.compiled(self.losses_of)(*inputs) if flags.xla else self.update_losses
        self.reset, self.update, self.apply = update_operations(grads, variables, flags, self.rate, reduce)
        self.finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(w[name])) for name in self.trained])

    def adapted_weights(self):  # -> {name: tensor}, of the base and the adapter
        shapes, w = model.weight_shapes(self.hparams), {}
        for name, shape in shapes.items():  # outside all collections: no optimizer or save sees them
            # Kept in the type of products, as a cast would be a second copy in memory.
            dtype = self.dtype if '/attn/' in name or '/mlp/' in name else tf.float32
            w[name] = zeros(shape, f'model/{name}', dtype, collections=[])
        self.base = [*w.values()]
        rng = np.random.default_rng(self.flags.seed)
        for name, shape in self.adapter.shapes(shapes).items():  # A as in peft; B is 0: it begins as the base
            bound = shape[0] ** -0.5 if name.endswith('/lora_a') else 0.0
            initial = tf.random.uniform(shape, -bound, bound, seed=int(rng.integers(1 << 31)))
            w[name] = tf.Variable(initial, name=f'model/{name}', use_resource=True)
        return {name: v.read_value() for name, v in w.items()}

    def factors(self, w):  # -> w as products take it
        scaled = {name: w[name] * self.adapter.scale for name in w if name.endswith('/lora_b')}
        return with_precision({**w, **scaled}, self.dtype)

    def compiled(self, function):
        return tf.function(function, jit_compile=True, autograph=False) if self.flags.xla else function

    def losses_of(self, inputs, tokens, w):
        w = self.factors(w)
        positions = mask = None
        if self.end is not None:
            positions, mask = self.isolated(tokens)
            tokens = tf.where_v2(positions > 0, tokens, -1)  # nothing before it tells a document's first
        h, _ = model.transformer(self.hparams, w, inputs, positions=positions, mask=mask)
        return model.loss(model.output(w, h), tokens)

    def isolated(self, tokens):  # -> positions and mask of documents one by one
        T = self.hparams.n_ctx
        document = tf.cumsum(tf.cast(tf.equal(tokens, self.end), tf.int32), 1, exclusive=True)
        mask = tf.equal(document[:, :, None], document[:, None]) & model.causal_mask(T, T)
        return tf.reduce_sum(tf.cast(mask, tf.int32), 2) - 1, mask[:, None]

    def losses_and_gradients(self, inputs, tokens, w):
        total, count = self.losses_of(inputs, tokens, w)
        # All tokens count the same; means would favour padded batches.
        loss = total / tf.cast(tf.size(tokens[:, 1:]), tf.float32)
        return total, count, gradients(
            loss, [w[name] for name in self.trained], recompute=self.flags.memory_saving_gradients)
