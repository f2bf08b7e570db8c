"""A model loaded once, and log-probabilities of tokens after those before them.

R rows of T tokens, of which S are scored. Shapes are few, since each is compiled: batch_size rows of context
tokens, or more rows of a half, a quarter, … of it.
"""
import functools
import sys

import numpy as np
import tensorflow.compat.v1 as tf
from tqdm import tqdm

import model
from errors import require
from fast.quantized import with_precision
from fast.session import device, session_config, set_precision
from storage import checkpoint

MIN_SIZE = 16  # tokens
BATCHES_AHEAD = 16  # read while one is not full


class Likelihood:
    """A model or run in a session. The arguments are evaluate.py's flags. Raises InputError."""

    def __init__(self, model_name, models_dir='models', checkpoint_name=None, *, precision='float32',
                 batch_size=None, context=None):
        _, self.hparams, self.enc, self.prefix = checkpoint.find(model_name, models_dir, checkpoint_name)
        n_ctx = self.hparams.n_ctx
        self.context = n_ctx if context is None else context
        require(1 <= self.context <= n_ctx, f'--context must be from 1 to n_ctx, {n_ctx}, not {context}')
        self.batch_size = batch_size or max(1, 2048 // self.context)
        self.session = tf.Session(graph=tf.Graph(), config=session_config())
        self.function = functools.cache(self.build)
        with self.session.graph.as_default():
            self.weights = with_precision(model.weights(self.hparams), set_precision(precision))
            checkpoint.restore(self.session, self.prefix, checkpoint.model_variables(), models_dir)

    def score(self, spans, predictions=False):
        """Yields of each of metrics.spans the tokens and log-probabilities, float64 [S], in nats; with
        predictions also the likeliest ids, int32 [S], and the first logits, float32 [1, n_vocab]."""
        print(f'Device: {device()}', file=sys.stderr)
        waiting, done, first = {}, {}, 0
        for number, (ids, scored) in enumerate(tqdm(spans, desc='evaluating', disable=None)):
            T, S = self.size(len(ids) - 1), self.size(scored)
            shape = self.batch_size * self.context // T, T, S, predictions
            waiting.setdefault(shape, []).append((number, ids, scored))
            for shape, batch in list(waiting.items()):
                if len(batch) == shape[0] or number - batch[0][0] >= BATCHES_AHEAD * shape[0]:
                    done.update(self.run(shape, waiting.pop(shape)))
            while first in done:
                yield done.pop(first)
                first += 1
        for shape, batch in waiting.items():
            done.update(self.run(shape, batch))
        yield from map(done.get, sorted(done))

    def size(self, n):  # -> the context, or its smallest half, quarter, … of n or more
        size = self.context
        while size // 2 >= max(n, MIN_SIZE):
            size //= 2
        return size

    def run(self, shape, batch):  # arguments of `build`, [(number, ids, scored)] -> {number: results}
        R, T, S, _ = shape
        tokens, positions = np.zeros([R, T + 1], np.int32), np.ones([R, S], np.int32)
        for row, (_, ids, scored) in enumerate(batch):
            n = len(ids)
            tokens[row, :n], positions[row, :scored] = ids, range(n - scored, n)
        outputs = self.function(*shape)(tokens, positions)
        return {number: (ids, *(output[row, :scored] for output in outputs))
                for row, (number, ids, scored) in enumerate(batch)}

    def build(self, R, T, S, predictions):  # -> function of tokens [R, T + 1], scored positions [R, S]
        with self.session.graph.as_default():
            tokens, positions = (tf.placeholder(tf.int32, shape) for shape in ([R, T + 1], [R, S]))
            h, _ = model.transformer(self.hparams, self.weights, tokens[:, :-1])
            logits = model.output(self.weights, tf.gather(h, positions - 1, batch_dims=1))
            labels = tf.gather(tokens, positions, batch_dims=1)
            losses = model.cross_entropy(tf.reshape(logits, [R * S, -1]), tf.reshape(labels, [R * S]))
            outputs = [-tf.cast(tf.reshape(losses, [R, S]), tf.float64)]
            if predictions:
                outputs += [tf.argmax(logits, -1, output_type=tf.int32), tf.cast(logits[:, :1], tf.float32)]
        return self.session.make_callable(outputs, [tokens, positions])
