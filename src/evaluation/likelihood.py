"""A model loaded once, and the log-probability of each token after those before it.

R rows of T tokens, of which S are scored. There are few shapes, since each is compiled: batch_size rows of
context tokens, or more rows of a half, a quarter, … of it.
"""
import collections
import functools
import sys

import numpy as np
import tensorflow.compat.v1 as tf
from tqdm import tqdm

import model
from errors import require
from fast.precision import set_precision
from fast.quantized import with_precision
from fast.session import device, session_config
from storage import checkpoint

MIN_SIZE = 16  # tokens in a row
BATCHES_AHEAD = 16  # that are read while a batch is not full


class Likelihood:
    """A model or run in a session. The arguments are flags of evaluate.py. Raises InputError."""

    def __init__(self, model_name, models_dir='models', checkpoint_name=None, *, precision='float32',
                 batch_size=None, context=None):
        folder, self.hparams, self.enc = checkpoint.load_sizes_and_vocabulary(model_name, models_dir)
        n_ctx = self.hparams.n_ctx
        self.context = n_ctx if context is None else context
        require(1 <= self.context <= n_ctx, f'--context must be from 1 to n_ctx, {n_ctx}, not {context}')
        self.batch_size = batch_size or max(1, 2048 // self.context)
        self.prefix = checkpoint.resolve_checkpoint(folder, self.hparams, checkpoint_name)
        self.session = tf.Session(graph=tf.Graph(), config=session_config())
        self.function = functools.cache(self.build)
        with self.session.graph.as_default():
            self.weights = with_precision(model.weights(self.hparams), set_precision(precision))
            checkpoint.restore(self.session, self.prefix, checkpoint.model_variables())

    def score(self, spans, predictions=False):
        """Yields of each of metrics.spans the tokens and log-probabilities, float64 [S], in nats; with
        predictions also the likeliest ids, int32 [S], and the first logits, float32 [1, n_vocab]."""
        print(f'Device: {device()}', file=sys.stderr)
        waiting, done, first = collections.defaultdict(list), {}, 0
        for number, (ids, scored) in enumerate(tqdm(spans, desc='evaluating', disable=None)):
            T, S = self.size(len(ids) - 1), self.size(scored)
            waiting[self.batch_size * self.context // T, T, S].append((number, ids, scored))
            for shape, batch in list(waiting.items()):
                if len(batch) == shape[0] or number - batch[0][0] >= BATCHES_AHEAD * shape[0]:
                    done.update(self.run(shape, waiting.pop(shape), predictions))
            while first in done:
                yield done.pop(first)
                first += 1
        for shape, batch in waiting.items():
            done.update(self.run(shape, batch, predictions))
        yield from (done[number] for number in sorted(done))

    def size(self, n):  # -> the context, or the smallest half, quarter, … that holds n tokens
        size = self.context
        while size // 2 >= max(n, MIN_SIZE):
            size //= 2
        return size

    def run(self, shape, batch, predictions):  # (R, T, S), [(number, ids, scored)] -> {number: results}
        R, T, S = shape
        tokens, positions = np.zeros([R, T + 1], np.int32), np.ones([R, S], np.int32)
        for row, (_, ids, scored) in enumerate(batch):
            n = len(ids)
            tokens[row, :n], positions[row, :scored] = ids, np.arange(n - scored, n)
        outputs = self.function(R, T, S, predictions)(tokens, positions)
        return {number: (ids, *(output[row, :scored] for output in outputs))
                for row, (number, ids, scored) in enumerate(batch)}

    def build(self, R, T, S, predictions):  # -> function of tokens [R, T + 1], those that are scored [R, S]
        with self.session.graph.as_default():
            inputs = [tf.placeholder(tf.int32, shape) for shape in ([R, T + 1], [R, S])]
            tokens, positions = inputs
            h, _ = model.transformer(self.hparams, self.weights, tokens[:, :-1])
            logits = model.output(self.weights, tf.gather(h, positions - 1, batch_dims=1))
            labels = tf.gather(tokens, positions, batch_dims=1)
            losses = model.cross_entropy(tf.reshape(logits, [R * S, -1]), tf.reshape(labels, [R * S]))
            outputs = [-tf.cast(tf.reshape(losses, [R, S]), tf.float64)]
            if predictions:
                best = tf.argmax(logits, axis=-1, output_type=tf.int32)
                outputs += [best, tf.cast(logits[:, :1], tf.float32)]
        return self.session.make_callable(outputs, inputs)
