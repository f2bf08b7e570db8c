"""A model loaded once and sampled many times.

    gpt2 = generator.load('124M', precision='int8')
    (continuation,) = gpt2.complete([gpt2.enc.encode('The lighthouse')], [[1]], length=100, top_k=40)
    print(continuation.text)
"""
import os
import platform
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf2
import tensorflow.compat.v1 as tf

import model
import sample
from command_line.flags import WEIGHT_PRECISIONS
from errors import InputError, require
from fast import kernels
from generation.continuation import Continuation
from load_dataset import cores
from storage import checkpoint

SMALLEST_CACHE = 128  # positions; from there it is doubled, so that attention reads at most twice what there is
ENCODED_TOGETHER = 512  # tokens of contexts, over all rows, in a run of the session: what bounds its memory;
SMALLEST_PART = 64  # but not less of a row than this


def load(model_name: str = '124M', models_dir: str = 'models', checkpoint_name: str | None = None,
         precision: str = 'float32') -> 'Generator':
    """The Generator of a model directory or run, in a session of its own.

    checkpoint_name: see checkpoint.choose. precision: that of the weights. float32, tf32 (see model.set_precision): as
    they are. bfloat16: rounded. int8: with a scale for each output of a matrix; both are multiplied by activations in
    bfloat16, and added up in float32. Raises InputError for what is missing, damaged or does not fit.
    """
    require(precision in WEIGHT_PRECISIONS,
            f'precision must be one of {", ".join(WEIGHT_PRECISIONS)}, not {precision!r}')
    directory, hparams, enc = checkpoint.load_sizes_and_vocabulary(model_name, models_dir)
    prefix = checkpoint.resolve_checkpoint(directory, hparams, checkpoint_name)
    if precision == 'int8' and platform.machine() in ('x86_64', 'AMD64'):
        # XLA's loops for AVX-512 read int8 at half the speed of those for AVX2. This counts if it is set before XLA
        # first compiles something.
        os.environ.setdefault('XLA_FLAGS', '--xla_cpu_max_isa=AVX2')
    session = tf.Session(graph=tf.Graph(), config=session_config())
    with session.graph.as_default():
        return Generator(session, hparams, enc, load_weights(session, prefix, hparams, model.set_precision(precision)))


def load_weights(session, prefix, hparams, dtype):  # -> {name: tensor or model.Packed}
    w, sources = {}, {}
    for name, shape in model.weight_shapes(hparams).items():
        value = tf.placeholder(tf.float32, shape)
        stored = value if dtype == tf.float32 else model.quantize(name, value, dtype)
        variables = tf2.nest.map_structure(lambda each: each if each is None else local_variable(each), stored)
        sources[f'model/{name}'] = value, [v.initializer for v in tf2.nest.flatten(variables) if v is not None]
        w[name] = tf2.nest.map_structure(lambda v: v if v is None else v.read_value(), variables)
    checkpoint.load(session, prefix, sources)
    return w


def local_variable(value, shape=None):
    """A variable that is in no collection, and so in no checkpoint."""
    return tf.Variable(value, trainable=False, use_resource=True, collections=[], shape=shape)


class Generator:
    """Draws samples, a token at a time and as many rows side by side as are asked for.

    session: with the model's weights in its variables. w: {name: tensor, or model.Packed}; None for those of
    model.weights. enc: an Encoder, whose ids alone are drawn, and which `continuations` needs; or None.

    Operations are added to the graph at the first call with a number of rows and a size of the cache, and then no
    more. Between calls, the cache of the last one is kept in memory; release() frees it.
    """

    def __init__(self, session, hparams, enc=None, w=None):
        self.session, self.hparams, self.enc = session, hparams, enc
        self.n_past = self.cache_size = 0
        self.steps, self.current = {}, None
        with session.graph.as_default(), tf.name_scope('generator'):
            self.w = w or model.weights(hparams)
            self.inputs = {
                'tokens': tf.placeholder(tf.int32, [None, None]), 'n_past': tf.placeholder(tf.int32, []),
                'start': tf.placeholder(tf.int32, [None]), 'uniform': tf.placeholder(tf.float64, [None]),
                'history': tf.placeholder(tf.int32, [None, None]), 'temperature': tf.placeholder(tf.float32, []),
                'top_k': tf.placeholder(tf.int32, []), 'top_p': tf.placeholder(tf.float32, []),
                'repetition_penalty': tf.placeholder(tf.float32, [])}
            self.size = tf.placeholder(tf.int32, [4])  # B, H, S, D
            H, D = hparams.n_head, hparams.n_embd // hparams.n_head
            cache = [[local_variable(tf.zeros([0, H, 0, D]), [None, H, None, D]) for _ in range(2)]
                     for _ in range(hparams.n_layer)]
            self.cache, self.write_kernel = cache, kernels.kernel(self.write)
            flat = tf2.nest.flatten(cache)  # need no initial value: each context begins with `clear`
            self.clear = tf.group(*(v.assign(tf.zeros(self.size), read_value=False) for v in flat))
            self.grow = tf.group(*(v.assign(tf.pad(v.read_value(), [[0, 0], [0, 0], [0, self.size[2]], [0, 0]]),
                                            read_value=False) for v in flat))

    # The graph

    def step(self, rows, n_tokens=None):
        """The calls of the session that take n_tokens (1, or None for any number) of each row to the next token.

        Three functions of the values of self.inputs, which return nothing, tokens [B], or these and log-probabilities.
        """
        key = rows, n_tokens and self.cache_size
        if key not in self.steps:
            with self.session.graph.as_default(), tf.name_scope('step'):
                made = self.make_step(rows, n_tokens)
            feeds = list(self.inputs.values())
            self.steps[key] = [self.session.make_callable(fetches, feeds) for fetches in made]
        return self.steps[key]

    def make_step(self, rows, n_tokens):
        x = self.inputs
        S = self.cache_size if n_tokens else None
        past = tf2.nest.map_structure(lambda v: tf.ensure_shape(v.read_value(), [rows, *v.shape[1:2], S, v.shape[3]]),
                                      self.cache)
        if not n_tokens:  # attention without a kernel: only of what there is
            past = tf2.nest.map_structure(lambda each: each[:, :, :x['n_past']], past)
        tokens = tf.ensure_shape(x['tokens'], [rows, n_tokens])
        h, presents = model.transformer(self.hparams, self.w, tokens, past, x['n_past'],
                                        tf.ensure_shape(x['start'], [rows]))
        with tf.control_dependencies([h]):  # all has been read
            written = (self.write_kernel if n_tokens else self.write)(tf2.nest.flatten(presents), x['n_past'])
        logits = model.next_logits(self.w, h)
        penalty = x['repetition_penalty']
        drawn = sample.sample_token(
            tf.cond(tf.not_equal(penalty, 1), lambda: sample.apply_repetition_penalty(logits, x['history'], penalty), lambda: logits),
            x['uniform'], temperature=x['temperature'], top_k=x['top_k'], top_p=x['top_p'],
            vocabulary=self.enc and self.enc.decoder)
        logprobs = tf.gather(tf.nn.log_softmax(logits), drawn, batch_dims=1)
        with tf.control_dependencies([written]):
            drawn = tf.identity(drawn)
        return written, drawn, (drawn, logprobs)

    def write(self, presents, n_past):
        """Puts keys and values of new positions into the cache; as a kernel, in place."""
        # Not by assigning to a slice, after which TensorFlow would copy a variable each time that it is read.
        assigned = [v.assign(kernels.write_cache(v.read_value(), new, n_past), read_value=False)
                    for v, new in zip(tf2.nest.flatten(self.cache), presents, strict=True)]
        with tf.control_dependencies(assigned):
            return tf.identity(n_past)

    # Sampling

    def stream(self, contexts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], *, length: int,
               temperature: float = 1, top_k: int = 0, top_p: float = 1, repetition_penalty: float = 1,
               logprobs: bool = False) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Yields `length` times the next tokens of all rows, int32 [B], and their log-probabilities, [B] or None.

        contexts: for each row a list of tokens, of which the last n_ctx are used. seeds: for each row a list of whole
        numbers. In float32, what a row draws depends on its own context and seed alone; in bfloat16 and int8, whose
        products are rounded otherwise for other numbers of rows, on all contexts. temperature, top_k, top_p: see
        sample.sample_token; repetition_penalty: see sample.penalized; 1 for none. Log-probabilities are those that
        the model itself gives, before any of these, and of all ids up to n_vocab, with or without a text.

        A row that has come to n_ctx tokens goes on with the last 3/4 of them: see `window`.
        Raises InputError for values out of range, and for ids that the model does not have.
        """
        controls = {'temperature': temperature, 'top_k': top_k, 'top_p': top_p,
                    'repetition_penalty': repetition_penalty}
        sample.check_controls(length=length, **controls)
        check_rows(contexts, seeds, self.hparams.n_vocab)
        rows = [list(context)[-self.hparams.n_ctx:] for context in contexts]
        random = [np.random.Generator(np.random.PCG64([*seed, *row])) for seed, row in zip(seeds, rows, strict=True)]
        before, self.current = None, random
        for _ in range(length):
            if self.current is not random:
                raise RuntimeError('another stream of this Generator has begun; finish one before the next')
            offsets = [self.window(len(row)) for row in rows]
            rest = {**controls, 'uniform': [each.random() for each in random],
                    'history': padded(rows) if repetition_penalty != 1 else np.zeros([len(rows), 0], np.int32)}
            if offsets != before:
                result = self.encode([row[offset:] for row, offset in zip(rows, offsets, strict=True)], rest, logprobs)
            else:
                result = self.run([row[-1:] for row in rows], rest, 1 + logprobs, n_tokens=1)
            before = offsets
            tokens, values = result if logprobs else (result, None)
            for row, token in zip(rows, tokens.tolist(), strict=True):
                row.append(token)
            yield tokens, values

    def window(self, n):
        """The first position that counts of a row of n tokens. It moves by quarters of n_ctx, as each time the keys and
        values of all that stays, whose positions change, are computed anew."""
        stride = max(1, self.hparams.n_ctx // 4)
        return -(-max(0, n - self.hparams.n_ctx) // stride) * stride

    def encode(self, rows, rest, logprobs):
        """Fills the cache with rows of tokens; returns what step's last or last but one function does."""
        tokens = np.maximum(padded(rows), 0)
        self.start = [tokens.shape[1] - len(row) for row in rows]
        self.n_past, self.cache_size = 0, self.fitting(tokens.shape[1])
        self.session.run(self.clear, {self.size: self.shape(len(rows), self.cache_size)})
        part = max(SMALLEST_PART, ENCODED_TOGETHER // len(rows))
        for first in range(0, tokens.shape[1] - part, part):
            self.run(tokens[:, first:first + part], rest, 0)
        return self.run(tokens[:, self.n_past:], rest, 1 + logprobs)

    def run(self, tokens, rest, which, n_tokens=None):
        n = len(tokens[0])
        size = self.fitting(self.n_past + n)
        if size > self.cache_size:
            self.session.run(self.grow, {self.size: self.shape(len(tokens), size - self.cache_size)})
            self.cache_size = size
        values = {**rest, 'tokens': tokens, 'n_past': self.n_past, 'start': self.start}
        result = self.step(len(tokens), n_tokens)[which](*(values[name] for name in self.inputs))
        self.n_past += n
        return result

    def release(self):
        """Frees the cache's memory."""
        self.session.run(self.clear, {self.size: self.shape(0, 0)})
        self.current = None

    def fitting(self, positions):
        size = SMALLEST_CACHE
        while size < positions:
            size *= 2
        return min(size, self.hparams.n_ctx)

    def shape(self, rows, positions):
        return [rows, self.hparams.n_head, positions, self.hparams.n_embd // self.hparams.n_head]

    def complete(self, contexts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], **options
                 ) -> list[Continuation]:
        """The last of what continuations yields."""
        *_, rows = self.continuations(contexts, seeds, **options)
        return rows

    def continuations(self, contexts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], *,
                      stop: str | Sequence[str] = (), **controls) -> Iterator[list[Continuation]]:
        """Yields after each token the same list of Continuations, until all are finished or `length` is reached.

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
    require(len(contexts) == len(seeds), f'{len(contexts)} contexts have {len(seeds)} seeds; give each its own')
    for i, (context, seed) in enumerate(zip(contexts, seeds, strict=True)):
        if not whole_numbers(context):
            raise InputError(f'contexts[{i}] must be a list of token ids, not {shown(context)}; of a text they are '
                             'what enc.encode gives')
        require(len(context), f'contexts[{i}] is empty; give at least one token')
        unknown = [id for id in context if not 0 <= id < n_vocab]
        if unknown:
            raise InputError(f'contexts[{i}] holds the token {unknown[0]}, but those of the model are 0 to '
                             f'{n_vocab - 1}')
        if not whole_numbers(seed) or min(seed, default=0) < 0:
            raise InputError(f'seeds[{i}] must be a list of whole numbers, 0 or more, not {shown(seed)}')


def whole_numbers(values):
    """Whether this is a list or an array of them."""
    return isinstance(values, (Sequence, np.ndarray)) and all(isinstance(value, (int, np.integer)) for value in values)


def shown(value):
    return repr(value)[:60]


def padded(rows: Sequence[Sequence[int]]) -> np.ndarray:  # int32 [B, T]
    """With -1 at the left of the shorter ones."""
    result = np.full([len(rows), max(map(len, rows))], -1, np.int32)
    for i, row in enumerate(rows):
        result[i, result.shape[1] - len(row):] = row
    return result


def new_seed() -> int:
    """A number below 2^32 from the operating system's randomness."""
    return int.from_bytes(os.urandom(4), 'little')


def device(gpu: int = 0) -> str:
    """What sessions compute on, in words: the GPU of this number, or the CPU where there is none."""
    gpus = tf.config.list_physical_devices('GPU')
    if not gpus:
        return f'CPU, {cores()} cores'
    details = tf.config.experimental.get_device_details(gpus[gpu])
    capability = '.'.join(map(str, details.get('compute_capability', ())))  # which only CUDA's have
    return ', '.join([f'GPU {gpu}', details.get('device_name', 'unknown'),
                      *([f'compute capability {capability}'] if capability else [])])


def session_config():
    """TensorFlow takes the memory of a GPU as it is needed, not all of it at once."""
    config = tf.ConfigProto()
    config.gpu_options.allow_growth = True
    return config
