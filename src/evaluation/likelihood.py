"""A model loaded once, and the log-probability that it gives to each token after those before it.

    model = Likelihood('124M')
    for span, scores in model.score(windows(tokens, context=1024, stride=512)):
        scores.log_probabilities    # float64 [span.scored]

Spans are computed in batches of a few fixed shapes, since kernels are compiled anew for each: `batch_size`
rows of `context` tokens, or more rows that are shorter by halves. The output layer, a third of the
arithmetic, is computed at scored tokens only.
"""
import collections
import dataclasses
from collections.abc import Collection, Iterable, Iterator

import numpy as np
import tensorflow.compat.v1 as tf

import model
from errors import InputError, require
from fast.precision import PRECISIONS, set_precision
from fast.quantized import with_precision
from fast.session import device, session_config
from storage import checkpoint
from training.windows import PADDING

MIN_SIZE = 16  # tokens in a shape
BATCH_TOKENS = 2048  # without a batch_size
BATCHES_AHEAD = 16  # computed while the first span read waits for others of its shape
MASKED_LOGIT = -1e30  # added to a logit


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scored tokens of a span, in order, each given those before it.

    log_probabilities: float64 [scored], in nats. best: int32 [scored], the likeliest tokens. filtered: both
    without the banned tokens, so that the others share all probability; a banned token's is about
    MASKED_LOGIT.
    """
    log_probabilities: np.ndarray
    best: np.ndarray | None = None
    filtered: 'Scores | None' = None


class Likelihood:
    """The model of a name, or of a training run's directory, in a session of its own.

    checkpoint_name: see checkpoint.resolve_checkpoint. precision: one of PRECISIONS. batch_size: rows of
    context tokens in a batch, None for BATCH_TOKENS in all. context: the most tokens that the model sees,
    None for n_ctx. Raises InputError for files that cannot be loaded, and for values out of range.
    Attributes: prefix (of the checkpoint), hparams, enc, context, device (in words).
    """

    def __init__(self, model_name: str = '124M', models_dir: str = 'models',
                 checkpoint_name: str | None = None, *, precision: str = 'float32',
                 batch_size: int | None = None, context: int | None = None):
        directory, self.hparams, self.enc = checkpoint.load_sizes_and_vocabulary(model_name, models_dir)
        self.context = self.hparams.n_ctx if context is None else context
        require(1 <= self.context <= self.hparams.n_ctx,
                f'--context must be from 1 to n_ctx, {self.hparams.n_ctx}, not {context}')
        require(batch_size is None or batch_size >= 1, f'--batch_size must be 1 or more, not {batch_size}')
        require(precision in PRECISIONS,
                f'--precision must be one of {", ".join(PRECISIONS)}, not {precision!r}')
        self.batch_size = batch_size or max(1, BATCH_TOKENS // self.context)
        self.prefix = checkpoint.resolve_checkpoint(directory, self.hparams, checkpoint_name)
        self.session = tf.Session(graph=tf.Graph(), config=session_config())
        self.device = device()
        self.graphs = {}  # shape -> BatchGraph
        with self.session.graph.as_default():
            self.weights = with_precision(model.weights(self.hparams), set_precision(precision))
            checkpoint.restore(self.session, self.prefix, checkpoint.model_variables())

    def score(self, spans: Iterable, best: bool = False, banned: Collection[int] = ()) -> Iterator[tuple]:
        """Yields pairs of a span and its Scores, in order; the spans are read a few batches ahead.

        spans: with `tokens`, of which the last `scored` are. best: find the likeliest tokens, too. banned:
        ids that Scores.filtered leaves out. Raises InputError for a token that the model does not have.
        """
        waiting, done, first, n_tokens = collections.defaultdict(list), {}, 0, 0
        for number, span in enumerate(spans):
            shape = self.shape(span)
            waiting[shape].append((number, span))
            n_tokens += shape[0]
            if len(waiting[shape]) == self.n_rows(shape):
                done.update(self.run(shape, waiting.pop(shape), best, banned))
            if n_tokens > BATCHES_AHEAD * self.batch_size * self.context and first not in done:
                # The batch of the span that all others wait for is not filled any further.
                shape = next(shape for shape, batch in waiting.items() if batch[0][0] == first)
                done.update(self.run(shape, waiting.pop(shape), best, banned))
            while first in done:
                n_tokens -= self.shape(done[first][0])[0]
                yield done.pop(first)
                first += 1
        for shape, batch in waiting.items():
            done.update(self.run(shape, batch, best, banned))
        yield from (done[number] for number in sorted(done))

    def shape(self, span):  # -> tokens in a row, scored tokens in a row
        return self.size(len(span.tokens) - 1), self.size(span.scored)

    def size(self, n):
        """The smallest size of a shape that holds n tokens: the context, or it halved again and again."""
        size = self.context
        while size // 2 >= max(n, MIN_SIZE):
            size //= 2
        return size

    def n_rows(self, shape):
        return max(1, self.batch_size * self.context // shape[0])

    def run(self, shape, batch, best, banned):  # [(number, span)] -> {number: (span, Scores)}
        if shape not in self.graphs:
            with self.session.graph.as_default():
                self.graphs[shape] = BatchGraph(self.hparams, self.weights, self.n_rows(shape), *shape)
        graph = self.graphs[shape]
        tokens, positions = np.zeros(graph.tokens.shape, np.int32), np.zeros(graph.positions.shape, np.int32)
        targets = np.full(graph.targets.shape, PADDING, np.int32)
        for row, (_, span) in enumerate(batch):
            self.check(span.tokens)
            n, scored = len(span.tokens) - 1, span.scored
            tokens[row, :n] = span.tokens[:-1]
            positions[row, :scored], targets[row, :scored] = np.arange(n - scored, n), span.tokens[-scored:]
        feed = {graph.tokens: tokens, graph.positions: positions, graph.targets: targets}
        if banned:
            feed[graph.added] = np.zeros(self.hparams.n_vocab, np.float32)
            feed[graph.added][list(banned)] = MASKED_LOGIT
        outputs = self.session.run(graph.outputs[:4 if banned else 2 if best else 1], feed)
        return {number: (span, scores_of(*(values[row, :span.scored] for values in outputs)))
                for row, (number, span) in enumerate(batch)}

    def check(self, tokens):
        for token in (np.min(tokens), np.max(tokens)):
            if not 0 <= token < self.hparams.n_vocab:
                raise InputError(f'the data holds token {token}, but the model\'s n_vocab is '
                                 f'{self.hparams.n_vocab}: encode it with the model\'s own vocabulary')


class BatchGraph:
    """R rows of T tokens, S of them scored.

    tokens: int32 [R, T]. positions, targets: int32 [R, S], of hidden states, and the tokens that come after
    them or PADDING. added: float32 [V], to filtered logits. outputs: losses and likeliest tokens, [R, S],
    and both filtered.
    """

    def __init__(self, hparams, w, R, T, S):
        self.tokens = tf.placeholder(tf.int32, [R, T])
        self.positions, self.targets = tf.placeholder(tf.int32, [R, S]), tf.placeholder(tf.int32, [R, S])
        self.added = tf.placeholder(tf.float32, [hparams.n_vocab])
        h, _ = model.transformer(hparams, w, self.tokens)
        h = tf.gather(h, self.positions, batch_dims=1)
        logits = model.output(w, tf.reshape(h, [R * S, hparams.n_embd]))
        self.outputs = []
        for values in (logits, tf.cast(logits, tf.float32) + self.added):
            losses = model.cross_entropy(values, tf.reshape(self.targets, [-1]))
            best = tf.argmax(values, axis=-1, output_type=tf.int32)
            self.outputs += [tf.reshape(losses, [R, S]), tf.reshape(best, [R, S])]


def scores_of(losses, best=None, *filtered):  # arrays [scored] -> Scores
    return Scores(-losses.astype(np.float64), best, scores_of(*filtered) if filtered else None)
