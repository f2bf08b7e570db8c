"""A model loaded once, and the log-probability that it gives to each token after those before it.

    model = Likelihood('124M')
    for window, scores in model.score(windows(tokens, context=1024, stride=512)):
        scores.log_probabilities    # float64 [window.scored]

Windows are computed in batches of a few fixed shapes, since for every other shape kernels would be compiled anew: of
`batch_size` windows of `context` tokens, or as many more as are shorter by halves. The output layer, a third of the
arithmetic, is computed where tokens are scored and nowhere else.
"""
import collections
import dataclasses
from collections.abc import Collection, Iterable, Iterator

import numpy as np
import tensorflow.compat.v1 as tf

import model
from errors import require
from fast.precision import PRECISIONS, set_precision
from fast.quantized import with_precision
from fast.session import device, session_config
from storage import checkpoint
from training.windows import PADDING

SHORTEST = 16  # tokens in a shape
BATCH_TOKENS = 2048  # in a batch, where no batch_size is given
BATCHES_AHEAD = 16  # computed while the first window read waits for others of its shape
MASKED_LOGIT = -1e30  # added to a logit


@dataclasses.dataclass(frozen=True)
class Scores:
    """Of the scored tokens of a window, in order, each given those before it.

    log_probabilities: float64 [scored], in nats. best: int32 [scored], the likeliest tokens. filtered: both where some
    tokens are ruled out, so that the others share all probability; that of a token ruled out is about RULED_OUT.
    """
    log_probabilities: np.ndarray
    best: np.ndarray | None = None
    filtered: 'Scores | None' = None


class Likelihood:
    """The model of a name, or of a training run's directory, in a session of its own.

    checkpoint_name: see checkpoint.choose. precision: of matrix products, see flags.PRECISIONS.
    batch_size: windows of context tokens in a batch, None for as many as make BATCH_TOKENS. context: the most tokens
    that the model sees, None for n_ctx. Raises InputError for what cannot be loaded, and for values out of range.
    Attributes: prefix (of the checkpoint), hparams, enc, context, device (in words).
    """

    def __init__(self, model_name: str = '124M', models_dir: str = 'models', checkpoint_name: str | None = None, *,
                 precision: str = 'float32', batch_size: int | None = None, context: int | None = None):
        directory, self.hparams, self.enc = checkpoint.load_sizes_and_vocabulary(model_name, models_dir)
        self.context = self.hparams.n_ctx if context is None else context
        require(1 <= self.context <= self.hparams.n_ctx,
                f'--context must be from 1 to n_ctx, {self.hparams.n_ctx}, not {context}')
        require(batch_size is None or batch_size >= 1, f'--batch_size must be 1 or more, not {batch_size}')
        require(precision in PRECISIONS, f'--precision must be one of {", ".join(PRECISIONS)}, not {precision!r}')
        self.batch_size = batch_size or max(1, BATCH_TOKENS // self.context)
        self.prefix = checkpoint.resolve_checkpoint(directory, self.hparams, checkpoint_name)
        self.session = tf.Session(graph=tf.Graph(), config=session_config())
        self.device = device()
        self.batches = {}  # shape -> Batch
        with self.session.graph.as_default():
            self.weights = with_precision(model.weights(self.hparams), set_precision(precision))
            checkpoint.restore(self.session, self.prefix, checkpoint.model_variables())

    def score(self, windows: Iterable, best: bool = False, banned: Collection[int] = ()) -> Iterator[tuple]:
        """Yields pairs of a Window and its Scores, in order; the windows are read a few batches ahead.

        best: whether to find the likeliest tokens, too. banned: ids that Scores.filtered rules out. Raises InputError
        for a token that the model does not have.
        """
        waiting, done, first, seen = collections.defaultdict(list), {}, 0, 0
        for number, window in enumerate(windows):
            shape = self.shape(window)
            waiting[shape].append((number, window))
            seen += shape[0]
            if len(waiting[shape]) == self.rows(shape):
                done.update(self.run(shape, waiting.pop(shape), best, banned))
            if seen > BATCHES_AHEAD * self.batch_size * self.context and first not in done:
                # The one that all others wait for: its batch is not filled any further.
                shape = next(each for each, some in waiting.items() if some[0][0] == first)
                done.update(self.run(shape, waiting.pop(shape), best, banned))
            while first in done:
                seen -= self.shape(done[first][0])[0]
                yield done.pop(first)
                first += 1
        for shape, some in waiting.items():
            done.update(self.run(shape, some, best, banned))
        yield from (done[number] for number in sorted(done))

    def shape(self, window):  # -> tokens in a row, scored tokens in a row
        return self.size(len(window.tokens) - 1), self.size(window.scored)

    def size(self, n):
        """The smallest size of a shape that holds n tokens: the context, or it halved again and again."""
        size = self.context
        while size // 2 >= max(n, SHORTEST):
            size //= 2
        return size

    def rows(self, shape):
        return max(1, self.batch_size * self.context // shape[0])

    def run(self, shape, numbered, best, banned):  # -> {number: (Window, Scores)}
        if shape not in self.batches:
            with self.session.graph.as_default():
                self.batches[shape] = Batch(self.hparams, self.weights, self.rows(shape), *shape)
        batch = self.batches[shape]
        tokens, positions, targets = (np.full(each.shape, filler, np.int32) for each, filler in (
            (batch.tokens, 0), (batch.positions, 0), (batch.targets, PADDING)))
        for row, (_, window) in enumerate(numbered):
            self.check(window.tokens)
            n, scored = len(window.tokens) - 1, window.scored
            tokens[row, :n] = window.tokens[:-1]
            positions[row, :scored], targets[row, :scored] = np.arange(n - scored, n), window.tokens[-scored:]
        feed = {batch.tokens: tokens, batch.positions: positions, batch.targets: targets}
        if banned:
            feed[batch.added] = np.zeros(self.hparams.n_vocab, np.float32)
            feed[batch.added][list(banned)] = MASKED_LOGIT
        found = self.session.run(batch.fetches(best, banned), feed)
        return {number: (window, scores([each[row, :window.scored] for each in found]))
                for row, (number, window) in enumerate(numbered)}

    def check(self, tokens):
        wrong = [each for each in (np.min(tokens), np.max(tokens)) if not 0 <= each < self.hparams.n_vocab]
        require(not wrong, f'the data holds token {min(wrong, default="")}, but the model\'s n_vocab is '
                           f'{self.hparams.n_vocab}: encode it with the model\'s own vocabulary')


class Batch:
    """The graph of one shape: R rows of T tokens, of which S positions each are looked at.

    tokens: int32 [R, T]; positions, targets: int32 [R, S], where the hidden state is taken from, and the token to come
    after it or PADDING; added: float32 [V], to the logits of what is filtered.
    """

    def __init__(self, hparams, w, R, T, S):
        self.tokens = tf.placeholder(tf.int32, [R, T])
        self.positions, self.targets = tf.placeholder(tf.int32, [R, S]), tf.placeholder(tf.int32, [R, S])
        self.added = tf.placeholder(tf.float32, [hparams.n_vocab])
        h, _ = model.transformer(hparams, w, self.tokens)
        logits = model.output(w, tf.reshape(tf.gather(h, self.positions, batch_dims=1), [R * S, hparams.n_embd]))
        self.plain, self.filtered = (self.results(each) for each in (logits, tf.cast(logits, tf.float32) + self.added))

    def results(self, logits):  # [R S, V] -> float32 [R, S], int32 [R, S]
        losses = model.cross_entropy(logits, tf.reshape(self.targets, [-1]))
        best = tf.argmax(logits, axis=-1, output_type=tf.int32)
        return tf.reshape(losses, self.targets.shape), tf.reshape(best, self.targets.shape)

    def fetches(self, best, banned):
        return [*self.plain[:2 if best or banned else 1], *(self.filtered if banned else ())]


def scores(found):  # what Batch.fetches names, of one window -> Scores
    losses, *rest = found
    best = rest.pop(0) if rest else None
    return Scores(-losses.astype(np.float64), best, scores(rest) if rest else None)
