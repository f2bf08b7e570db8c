"""A model loaded once and sampled many times; docs/sampling.md has an example."""
import functools
import secrets

import numpy as np
import tensorflow.compat.v1 as tf

import model
import sample
from errors import require
from fast.kernels import kernel
from fast.quantized import QuantizedMatrix, quantize
from fast.session import rounds_products, session_config, set_precision
from generation.continuation import Continuation
from generation.prompt_lookup import PromptLookup
from storage import checkpoint

MIN_CACHE = 128  # positions; doubled when full: attention reads at most twice what is filled
PREFILL_TOKENS, MIN_PREFILL_TOKENS = 512, 64  # at once, for memory: all rows' sum; a row's least
DRAWING = {'temperature': 1, 'top_k': 0, 'top_p': 1, 'min_p': 0, 'typical_p': 1}  # of sample_token; defaults
CONTROLS = {**DRAWING, 'repetition_penalty': 1, 'no_repeat_ngram': 0, 'logit_bias': {}}


def load(model_name='124M', models_dir='models', checkpoint_name=None, precision='float32'):
    """A Generator of a model or run, in a new session. Raises InputError."""
    _, hparams, enc, prefix = checkpoint.find(model_name, models_dir, checkpoint_name)
    dtype, w, sources = set_precision(precision), {}, {}
    session = tf.Session(graph=tf.Graph(), config=session_config())
    with session.graph.as_default():
        for name, shape in model.weight_shapes(hparams).items():
            value = tf.placeholder(tf.float32, shape)
            variables = tf.nest.map_structure(variable, quantize(name, value, dtype))
            sources[f'model/{name}'] = value, [v.initializer for v in tf.nest.flatten(variables)]
            w[name] = tf.nest.map_structure(tf.convert_to_tensor, variables)
        checkpoint.load(session, prefix, sources, models_dir)
        return Generator(session, hparams, enc, w)


def variable(value, shape=None):  # in no collection, so in no checkpoint
    return tf.Variable(value, trainable=False, use_resource=True, collections=[], shape=shape)


class Generator:
    """Draws samples of B rows; its cache is variables, changed in place by a kernel.
    enc: an Encoder, whose ids alone are drawn. w: {name: tensor or QuantizedMatrix}."""

    def __init__(self, session, hparams, enc, w):
        self.session, self.hparams, self.enc, self.w = session, hparams, enc, w
        self.active_stream, self.function = None, functools.cache(self.build)
        dtype = w['h0/attn/c_attn/b'].dtype  # of keys and values
        # Rounded activations differ between a pass over several tokens and steps.
        self.rounds = isinstance(w['wte'], QuantizedMatrix) or rounds_products() or dtype != tf.float32
        H, D = hparams.n_head, hparams.n_embd // hparams.n_head
        with session.graph.as_default():
            keys = tf.placeholder(tf.int64, [None, 2])
            length, rows, positions = (tf.placeholder(tf.int32, []) for _ in range(3))
            random = sample.random_numbers(keys, tf.shape(keys)[0], length)
            self.random_numbers = session.make_callable(random, [keys, length])
            self.cache = [variable(tf.zeros([0, H, 0, D], dtype), [None, H, None, D])
                          for _ in range(2 * hparams.n_layer)]  # keys, values, …
            added = [[0, rows], [0, 0], [0, positions], [0, 0]]
            # Both made before make_callable: TensorFlow warns if it changes operations later.
            grow = tf.group(*[v.assign(tf.pad(v.read_value(), added), read_value=False) for v in self.cache])
            clear = tf.group(*[v.initializer for v in self.cache])
            parents = tf.placeholder(tf.int32, [None])
            gather = tf.group(*[v.assign(tf.gather(v.read_value(), parents), read_value=False)
                                for v in self.cache])
            self.clear = session.make_callable(clear)
            self.grow = session.make_callable(grow, [rows, positions])
            self.gather = session.make_callable(gather, [parents])

    def write(self, presents, n_past):  # -> n_past, once they are in the cache
        # After a slice is assigned, TensorFlow would copy the variable at each read.
        old = list(map(tf.convert_to_tensor, self.cache))
        pairs = zip(self.cache, sample.write_cache(old, tf.nest.flatten(presents), n_past), strict=True)
        with tf.control_dependencies([v.assign(new, read_value=False) for v, new in pairs]):
            return tf.identity(n_past)

    def build(self, B, T, size):
        """f(dict, outputs): tokens and their log-probabilities, 'drawn' or the top_k 'likeliest', these with
        scores first; or None. T, size: None in a prefill or a pass of guesses."""
        n_draws = B if T or B > 1 or self.rounds else None  # None: one row, with a draw a guess and one more
        ints = {'tokens': [B, T], 'history': [n_draws, None], 'start': [B], 'n_past': [], 'top_k': []}
        x = {name: tf.placeholder(tf.int32, shape) for name, shape in ints.items()}
        x |= {name: tf.placeholder(tf.float32, []) for name in (*DRAWING, 'repetition_penalty')
              if name not in x}
        x['biases'] = tf.placeholder(tf.float32, [None, None])
        x['uniform'] = tf.placeholder(tf.float64, [n_draws])
        n_drawn = 1 if n_draws else tf.size(x['uniform']) // B
        buffers = [tf.ensure_shape(v.read_value(), [B, v.shape[1], size, v.shape[3]]) for v in self.cache]
        cache = list(zip(buffers[::2], buffers[1::2], strict=True))
        decode, write = (sample.step, kernel(self.write)) if T else (sample.prefill, self.write)
        logits, presents = decode(self.hparams, self.w, x['tokens'], x['start'], cache, x['n_past'], n_drawn)
        logprobs = tf.nn.log_softmax(logits)

        def processed(scores):
            biased = tf.ensure_shape(scores + x['biases'], scores.shape)
            return sample.apply_repetition_penalty(biased, x['history'], x['repetition_penalty'])
        drawn = sample.sample_token(processed(logits), x['uniform'], vocabulary=self.enc.decoder,
                                    **{name: x[name] for name in DRAWING})
        scores = sample.allowed_logits(processed(logprobs), self.enc.decoder)
        scores, tokens = sample.largest(scores, x['top_k'])
        written = write(presents, x['n_past'])
        with tf.control_dependencies([written]):
            results = {
                'drawn': [tf.identity(drawn), tf.gather(logprobs, drawn, batch_dims=1)],
                'likeliest': [tf.identity(scores), tokens, tf.gather(logprobs, tokens, batch_dims=1)]}

        @functools.cache  # making one takes time
        def function(outputs):
            return self.session.make_callable(results.get(outputs, written), list(x.values()))
        return lambda values, outputs: function(outputs)(*(values[name] for name in x))

    def stream(self, contexts, seeds, *, length, prompt_lookup=True, **controls):
        """Yields `length` times the rows' next tokens, int32 [B], and the model's log-probabilities.

        contexts: lists of ids; the last n_ctx are used. seeds: lists of one or two numbers: [s, i] draws as
        row i of sample_sequence with seed s, [s] as [s, 0]. prompt_lookup: of one row in float32, several
        tokens are drawn in one pass where the text repeats itself. Raises InputError for values out of range.
        """
        controls, n_ctx = {**CONTROLS, **controls}, self.hparams.n_ctx
        sample.check_controls(length=length, n_vocab=self.hparams.n_vocab, **controls)
        contexts, last = [context[-n_ctx:] for context in contexts], self.hparams.n_vocab - 1
        tokens = padded(contexts)
        sizes, n_dropped = (tokens >= 0).sum(axis=1), np.array([])
        require(0 < sizes.min() and sizes.tolist() == [*map(len, contexts)] and tokens.max() <= last,
                f'contexts must be lists of ids from 0 to {last}')
        require(len(seeds) == len(sizes), f'{len(sizes)} contexts need as many seeds, not {len(seeds)}')
        keys = np.array([[*seed, 0][:2] for seed in seeds], np.int64)
        uniforms = np.zeros([len(seeds), 0])
        stride = max(1, n_ctx // 4)  # docs/decisions/sliding-window.md
        looks_up = prompt_lookup and len(seeds) == 1 and not self.rounds and not controls['no_repeat_ngram']
        lookup = PromptLookup() if looks_up else None
        this_stream, results = object(), []
        self.active_stream = this_stream
        for n in range(length):
            if self.active_stream is not this_stream:
                raise RuntimeError('another stream of this Generator has begun')
            if n == uniforms.shape[1]:
                uniforms = self.random_numbers(keys, max(2 * n, n_ctx))  # which begin as before
            values = self.inputs(tokens, controls, uniforms[:, n])
            before, beyond = n_dropped, np.maximum(0, sizes + n - n_ctx)
            n_dropped = -(-beyond // stride) * stride
            if not np.array_equal(before, n_dropped):
                results = [self.prefill(tokens, sizes + n - n_dropped, values)]
            elif not results and lookup:
                limit = min(length - n, uniforms.shape[1] - n, n_ctx - self.n_past) - 1
                results = self.look_up(lookup, limit, tokens, uniforms[0, n:], values)
            if not results:
                results = [self.run(tokens[:, -1:], values, self.n_past + 1, T=1)]
            drawn, logprobs = results.pop(0)
            tokens = np.concatenate([tokens, drawn[:, None]], axis=1)
            yield drawn, logprobs

    def inputs(self, tokens, controls, uniform, outputs='drawn'):  # int32 [B, T], float64 [B] -> for run
        history = tokens if controls['repetition_penalty'] != 1 else tokens[:, :0]
        logit_bias, n = controls['logit_bias'], controls['no_repeat_ngram']
        biases = np.zeros([len(tokens), self.hparams.n_vocab] if logit_bias or n else [1, 1], np.float32)
        biases[:, list(logit_bias)] = list(logit_bias.values())
        for row, bias in zip(tokens, biases, strict=True) if n else ():
            repeating = repeating_tokens(row[row >= 0], n)
            require(len(repeating) < len(self.enc.decoder),
                    f'after {len(row)} tokens, no_repeat_ngram {n} leaves no token; give a larger one')
            bias[repeating] = tf.float32.min
        return {**controls, 'uniform': uniform, 'history': history, 'biases': biases, 'outputs': outputs}

    def look_up(self, lookup, limit, tokens, uniforms, values):  # -> results of several steps, or none
        guesses = lookup.guess(tokens[0], limit)
        n = len(guesses)
        if not n:
            return []
        history = np.repeat(values['history'], n + 1, axis=0)  # guesses are of the text, so in it already
        values = {**values, 'uniform': uniforms[:n + 1], 'history': history}
        drawn, logprobs = self.run(np.append(tokens[:, -1:], guesses[None], 1), values, self.n_past + n + 1)
        n_right = int(np.argmin(np.append(drawn[:-1] == guesses, False)))
        lookup.learn(n_right)
        self.n_past -= n - n_right
        return [(drawn[i:i + 1], logprobs[i:i + 1]) for i in range(n_right + 1)]

    def prefill(self, tokens, n_seen, values):
        n = int(n_seen.max())
        self.start, self.n_past, self.cache_size = n - n_seen, 0, 0
        self.clear()
        part = max(MIN_PREFILL_TOKENS, PREFILL_TOKENS // len(tokens))
        for first in range(-n, 0, part):
            results = self.run(tokens[:, first:min(first + part, 0) or None], values, n)
        return results

    def select_rows(self, rows):  # of the cache
        self.start = self.start[rows]
        self.gather(rows)

    def run(self, tokens, values, n, T=None):  # has outputs once the cache has n positions
        B = len(tokens)
        if n > self.cache_size:
            size = min(max(MIN_CACHE, 1 << (n - 1).bit_length()), self.hparams.n_ctx)
            self.grow(0 if self.cache_size else B, size - self.cache_size)
            self.cache_size = size
        values = {**values, 'tokens': tokens, 'n_past': self.n_past, 'start': self.start}
        self.n_past += tokens.shape[1]
        with self.session.graph.as_default():
            function = self.function(B, T, T and self.cache_size)
        return function(values, values['outputs'] if self.n_past == n else None)

    def free_cache(self):  # and end the stream
        self.clear()
        self.active_stream = None

    def complete(self, contexts, seeds, **options):  # -> the last of continuations
        *_, rows = self.continuations(contexts, seeds, **options)
        return rows

    def continuations(self, contexts, seeds, *, stop=(), **options):
        """Yields one list of Continuations, after each token and at the end; options of stream."""
        rows = [Continuation(self.enc, stop) for _ in contexts]
        for results in self.stream(contexts, seeds, **options):
            for row, token, logprob in zip(rows, *results, strict=True):
                row.add(token, logprob)
            if all(row.finished for row in rows):
                break
            yield rows
        for row in rows:
            row.close()
        yield rows


def padded(rows):  # -> int32 [B, T], with -1 at the left of shorter rows
    T = max(map(len, rows))
    return np.array([[-1] * (T - len(row)) + list(row) for row in rows], np.int32)


def repeating_tokens(row, n):  # int32 [T] -> the tokens that would end an n-gram of the row again
    if n > len(row):
        return row[:0]
    ngrams = np.lib.stride_tricks.sliding_window_view(row, n)
    return np.unique(ngrams[(ngrams[:, :-1] == row[len(row) - n + 1:]).all(axis=1), -1])


def new_seed():  # -> int, below 2^32
    return secrets.randbits(32)
