"""A model loaded once and sampled many times, a token at a time.

    gpt2 = generator.load('124M', precision='int8')
    (continuation,) = gpt2.complete([gpt2.enc.encode('The lighthouse')], [[1]], length=100, top_k=40)
    print(continuation.text)

The loop of sample.prefill and sample.step is in Python here, as text is printed and stopped while it comes
and a row may outgrow n_ctx. The cache is kept in variables, which a kernel changes in place.
"""
import os
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf2
import tensorflow.compat.v1 as tf

import model
import sample
from errors import InputError, require
from fast.cache import empty_cache, write_cache
from fast.kernels import kernel
from fast.precision import WEIGHT_PRECISIONS, set_precision
from fast.quantized import quantize
from fast.session import session_config
from generation.checks import check_controls
from generation.continuation import Continuation
from storage import checkpoint

Rows = Sequence[Sequence[int]]
MIN_CACHE = 128  # positions; from there it is doubled, so that attention reads at most twice what is filled
PREFILL_TOKENS = 512  # over all rows, in a run of the session, which bounds its memory;
MIN_PREFILL_TOKENS = 64  # but not fewer of a row


def load(model_name: str = '124M', models_dir: str = 'models', checkpoint_name: str | None = None,
         precision: str = 'float32') -> 'Generator':
    """The Generator of a model directory or run, in a session of its own.

    checkpoint_name: see checkpoint.resolve_checkpoint. precision: of the weights; see fast.quantized for
    bfloat16 and int8. Raises InputError for what is missing, damaged or does not fit.
    """
    require(precision in WEIGHT_PRECISIONS,
            f'precision must be one of {", ".join(WEIGHT_PRECISIONS)}, not {precision!r}')
    directory, hparams, enc = checkpoint.load_sizes_and_vocabulary(model_name, models_dir)
    prefix = checkpoint.resolve_checkpoint(directory, hparams, checkpoint_name)
    dtype = set_precision(precision)
    session = tf.Session(graph=tf.Graph(), config=session_config())
    with session.graph.as_default():
        return Generator(session, hparams, enc, load_weights(session, prefix, hparams, dtype))


def load_weights(session, prefix, hparams, dtype):  # -> {name: tensor or QuantizedMatrix}
    w, sources = {}, {}
    for name, shape in model.weight_shapes(hparams).items():
        value = tf.placeholder(tf.float32, shape)
        stored = value if dtype == tf.float32 else quantize(name, value, dtype)
        variables = tf2.nest.map_structure(local_variable, stored)
        sources[f'model/{name}'] = value, [v.initializer for v in tf2.nest.flatten(variables)]
        w[name] = tf2.nest.map_structure(tf.convert_to_tensor, variables)
    checkpoint.load(session, prefix, sources)
    return w


def local_variable(value, shape=None):
    """A variable that is in no collection, and so in no checkpoint."""
    return tf.Variable(value, trainable=False, use_resource=True, collections=[], shape=shape)


class Generator:
    """Draws samples, a token at a time, any number of rows side by side.

    session: with the model's weights. w: {name: tensor or QuantizedMatrix}; None for model.weights. enc: an
    Encoder, whose ids alone are drawn and which `continuations` needs; or None.

    Operations are added to the graph at the first call with a number of rows and a size of the cache, and
    then no more. The cache of the last call is kept in memory until free_cache.
    """

    def __init__(self, session, hparams, enc=None, w=None):
        self.session, self.hparams, self.enc = session, hparams, enc
        self.n_past = self.cache_size = 0
        self.active_stream, self.calls = None, {}
        with session.graph.as_default(), tf.name_scope('generator'):
            self.w = w or model.weights(hparams)
            shapes = {'tokens': [None, None], 'history': [None, None], 'start': [None], 'uniform': [None]}
            types = {'tokens': tf.int32, 'n_past': tf.int32, 'start': tf.int32, 'uniform': tf.float64,
                     'history': tf.int32, 'temperature': tf.float32, 'top_k': tf.int32, 'top_p': tf.float32,
                     'repetition_penalty': tf.float32}
            self.inputs = {name: tf.placeholder(types[name], shapes.get(name, [])) for name in types}
            keys, length = tf.placeholder(tf.int64, [None, 2]), tf.placeholder(tf.int32, [])
            self.random_numbers = session.make_callable(sample.random_numbers(keys, length), [keys, length])
            self.make_cache()

    # The graph

    def make_cache(self):
        """Makes self.cache, of variables, and the functions clear(rows, size) and grow(by)."""
        rows, size = tf.placeholder(tf.int32, []), tf.placeholder(tf.int32, [])
        clear, grow = [], []

        def variable(zeros):
            _, H, _, D = zeros.shape
            buffer = local_variable(zeros, [None, H, None, D])
            clear.append(buffer.assign(tf.zeros([rows, H, size, D]), read_value=False))
            larger = tf.pad(buffer.read_value(), [[0, 0], [0, 0], [0, size], [0, 0]])
            grow.append(buffer.assign(larger, read_value=False))
            return buffer
        self.cache = tf2.nest.map_structure(variable, empty_cache(self.hparams, 0, 0))
        self.clear = self.session.make_callable(tf.group(*clear), [rows, size])
        self.grow = self.session.make_callable(tf.group(*grow), [size])
        self.write_kernel = kernel(self.write)

    def write(self, presents, n_past):
        """Puts keys and values of new positions into the cache; as a kernel, in place."""
        # Not by assigning to a slice, after which TensorFlow would copy a variable each time that it is read.
        cache = tf2.nest.map_structure(tf.convert_to_tensor, self.cache)
        buffers = tf2.nest.flatten(write_cache(cache, presents, n_past))
        assigned = [v.assign(buffer, read_value=False)
                    for v, buffer in zip(tf2.nest.flatten(self.cache), buffers, strict=True)]
        with tf.control_dependencies(assigned):
            return tf.identity(n_past)

    def outputs(self, n_rows, n_tokens=None):
        """Two functions of the values of self.inputs that take n_tokens (1, or None for any number) of each row
        to the next tokens [B], or to these and their log-probabilities [B]."""
        key = n_rows, n_tokens and self.cache_size
        if key not in self.calls:
            with self.session.graph.as_default(), tf.name_scope('step'):
                fetches = self.build(n_rows, n_tokens)
            inputs = list(self.inputs.values())
            self.calls[key] = [self.session.make_callable(fetch, inputs) for fetch in fetches]
        return self.calls[key]

    def build(self, n_rows, n_tokens):
        x, size = self.inputs, self.cache_size if n_tokens else None

        def read(v):
            return tf.ensure_shape(v.read_value(), [n_rows, v.shape[1], size, v.shape[3]])
        cache = tf2.nest.map_structure(read, self.cache)
        tokens = tf.ensure_shape(x['tokens'], [n_rows, n_tokens])
        start = tf.ensure_shape(x['start'], [n_rows])
        decode, write = (sample.step, self.write_kernel) if n_tokens else (sample.prefill, self.write)
        logits, presents = decode(self.hparams, self.w, tokens, start, cache, x['n_past'])
        with tf.control_dependencies([logits]):  # all has been read
            written = write(presents, x['n_past'])

        def penalized():
            return sample.apply_repetition_penalty(logits, x['history'], x['repetition_penalty'])
        drawn = sample.sample_token(
            tf.cond(tf.not_equal(x['repetition_penalty'], 1), penalized, lambda: logits), x['uniform'],
            temperature=x['temperature'], top_k=x['top_k'], top_p=x['top_p'],
            vocabulary=self.enc and self.enc.decoder)
        logprobs = tf.gather(tf.nn.log_softmax(logits), drawn, batch_dims=1)
        with tf.control_dependencies([written]):
            drawn = tf.identity(drawn)
        return drawn, (drawn, logprobs)

    # Sampling

    def stream(self, contexts: Rows, seeds: Rows, *, length: int, temperature: float = 1, top_k: int = 0,
               top_p: float = 1, repetition_penalty: float = 1, logprobs: bool = False
               ) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Yields `length` times the next tokens of all rows, int32 [B], and their log-probabilities, [B] or
        None.

        contexts: lists of tokens, of which the last n_ctx are used. seeds: lists of whole numbers; [s, i]
        draws as row i of sample_sequence with the seed s. In float32, a row's samples depend on its own
        context and seed alone; in bfloat16 and int8, which round otherwise for other numbers of rows, on all
        contexts. Controls: see sample.py. Log-probabilities are the model's own, before the controls, and of
        all ids, with or without a text. Raises InputError for values out of range, and for ids that the
        model does not have.
        """
        controls = {'temperature': temperature, 'top_k': top_k, 'top_p': top_p,
                    'repetition_penalty': repetition_penalty}
        check_controls(length=length, **controls)
        check_rows(contexts, seeds, self.hparams.n_vocab)
        rows = [list(context)[-self.hparams.n_ctx:] for context in contexts]
        keys = [random_key(seed) for seed in seeds]
        this_stream = self.active_stream = object()
        uniforms, old_starts = np.zeros([len(rows), 0]), None
        for n in range(length):
            if self.active_stream is not this_stream:
                raise RuntimeError('another stream of this Generator has begun; finish one before the next')
            if n == uniforms.shape[1]:
                uniforms = self.random_numbers(keys, max(2 * n, self.hparams.n_ctx))
            history = padded(rows) if repetition_penalty != 1 else np.zeros([len(rows), 0], np.int32)
            values = {**controls, 'uniform': uniforms[:, n], 'history': history}
            starts = [self.window_start(len(row)) for row in rows]
            if starts == old_starts:
                result = self.run([row[-1:] for row in rows], values, bool(logprobs), n_tokens=1)
            else:
                windows = [row[start:] for row, start in zip(rows, starts, strict=True)]
                result, old_starts = self.prefill(windows, values, bool(logprobs)), starts
            tokens, token_logprobs = result if logprobs else (result, None)
            for row, token in zip(rows, tokens.tolist(), strict=True):
                row.append(token)
            yield tokens, token_logprobs

    def window_start(self, n):
        """The first token that the model sees of a row of n. It moves by quarters of n_ctx, since each time
        the keys and values of the others, whose positions change, are computed anew."""
        stride = max(1, self.hparams.n_ctx // 4)
        return -(-max(0, n - self.hparams.n_ctx) // stride) * stride

    def prefill(self, rows, values, logprobs):
        """Fills the cache with rows of tokens; returns the next tokens."""
        tokens = padded(rows)
        self.start = (tokens < 0).sum(axis=1)
        self.n_past, self.cache_size = 0, self.cache_size_for(tokens.shape[1])
        self.clear(len(rows), self.cache_size)
        part = max(MIN_PREFILL_TOKENS, PREFILL_TOKENS // len(rows))
        while self.n_past + part < tokens.shape[1]:
            self.run(tokens[:, self.n_past:self.n_past + part], values, logprobs)
        return self.run(tokens[:, self.n_past:], values, logprobs)

    def run(self, tokens, values, logprobs, n_tokens=None):
        size = self.cache_size_for(self.n_past + len(tokens[0]))
        if size > self.cache_size:
            self.grow(size - self.cache_size)
            self.cache_size = size
        values = {**values, 'tokens': tokens, 'n_past': self.n_past, 'start': self.start}
        result = self.outputs(len(tokens), n_tokens)[logprobs](*(values[name] for name in self.inputs))
        self.n_past += len(tokens[0])
        return result

    def cache_size_for(self, positions):
        size = MIN_CACHE
        while size < positions:
            size *= 2
        return min(size, self.hparams.n_ctx)

    def free_cache(self):
        """Frees the cache's memory, and ends the stream."""
        self.clear(0, 0)
        self.active_stream = None

    def complete(self, contexts: Rows, seeds: Rows, **options) -> list[Continuation]:
        """The last of what continuations yields."""
        *_, rows = self.continuations(contexts, seeds, **options)
        return rows

    def continuations(self, contexts: Rows, seeds: Rows, *, stop: str | Sequence[str] = (),
                      **controls) -> Iterator[list[Continuation]]:
        """Yields the same list of Continuations after each token, until all are finished or have `length`
        tokens.

        stop: see Continuation; the other arguments: see stream.
        """
        rows = [Continuation(self.enc, stop) for _ in contexts]
        for tokens, logprobs in self.stream(contexts, seeds, **controls):
            for i, row in enumerate(rows):
                row.add(tokens[i], None if logprobs is None else float(logprobs[i]))
            if all(row.finished for row in rows):
                break
            yield rows
        for row in rows:
            row.close()
        yield rows


def check_rows(contexts, seeds, n_vocab):
    """Raises InputError unless each row has a context, a list of ids below n_vocab, and a seed."""
    require(len(contexts), 'there is no context; give a list of token ids for each row')
    require(len(contexts) == len(seeds),
            f'{len(contexts)} contexts have {len(seeds)} seeds; give each its own')
    for i, (context, seed) in enumerate(zip(contexts, seeds, strict=True)):
        if not whole_numbers(context):
            raise InputError(f'contexts[{i}] must be a list of token ids, not {repr(context)[:60]}; of a '
                             'text they are what enc.encode gives')
        require(len(context), f'contexts[{i}] is empty; give at least one token')
        unknown = [token for token in context if not 0 <= token < n_vocab]
        if unknown:
            raise InputError(f'contexts[{i}] holds the token {unknown[0]}, but those of the model are 0 to '
                             f'{n_vocab - 1}')
        if not whole_numbers(seed) or min(seed, default=0) < 0:
            raise InputError(f'seeds[{i}] must be a list of whole numbers, 0 or more, not {repr(seed)[:60]}')


def whole_numbers(values):
    """Whether this is a list or an array of them."""
    is_list = isinstance(values, (Sequence, np.ndarray))
    return is_list and all(isinstance(value, (int, np.integer)) for value in values)


def padded(rows: Rows) -> np.ndarray:  # int32 [B, T]
    """With -1 at the left of the shorter ones."""
    T = max(map(len, rows))
    return np.array([[-1] * (T - len(row)) + list(row) for row in rows], np.int32)


def random_key(seed):  # whole numbers -> two of 64 bits
    """The key for sample.random_numbers: one or two numbers themselves, others mixed."""
    if len(seed) <= 2 and max(seed, default=0) < 2 ** 63:
        return [*seed, 0, 0][:2]
    return np.random.SeedSequence(seed).generate_state(2, np.uint64).view(np.int64)


def new_seed() -> int:
    """A number below 2^32 from the operating system's randomness."""
    return int.from_bytes(os.urandom(4), 'little')
