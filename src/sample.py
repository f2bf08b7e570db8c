"""Sampling, from controls to sample_sequence, a loop of decoding steps.

generation/generator.py loops in Python, and draws the same tokens. Controls are numbers or scalar
tensors. N candidates; other letters as in model.py.
"""
import functools

import numpy as np
import tensorflow.compat.v1 as tf

import model
from errors import require
from fast.kernels import float32, in_kernel, kernel, traced, xla

LAYERS_IN_KERNEL = 4  # docs/decisions/kernels.md
INFINITY_BITS = 0x7f800000  # the largest: from 0 up, the bits of float32 sort as its numbers
MAX_BIAS = 1e6  # above every logit; quotients by any temperature stay finite


# Controls

def largest(logits, k):  # -> [B, k], falling, and their tokens
    values, tokens = tf.math.top_k(logits, tf.minimum(k, tf.shape(logits)[-1]))
    return tf.ensure_shape(values, [logits.shape[0], None]), tokens


def top_k_logits(logits, k):  # [B, V] -> [B, V]
    """As in the original; unused here. Keeps equals of the k-th, too. k = 0: all."""
    logits = tf.convert_to_tensor(logits)
    least = tf.reduce_min(largest(logits, k)[0], -1, keepdims=True)
    return tf.where_v2(tf.greater(k, 0) & (logits < least), logits.dtype.min, logits)


def keep_mass(logits, p, priority):  # [B, N] -> [B, N]
    """Keeps the tokens of greatest priority that sum to p. p = 0 or 1: all. priority: a function of their
    probabilities, to int32 of at least 0."""
    logits, p = tf.convert_to_tensor(logits), float32(p)

    def cut():
        # If tf.cond's shapes are unknown, the graph's optimizer prints errors.
        probs = tf.nn.softmax(float32(tf.ensure_shape(logits, logits.shape)))
        priorities = priority(probs)
        return tf.where_v2(priorities < mass_threshold(priorities, probs, p), logits.dtype.min, logits)
    return tf.ensure_shape(tf.cond((p > 0) & (p < 1), cut, lambda: logits), logits.shape)


@kernel
def mass_threshold(priorities, probs, p):  # int32, float32 [B, N], scalar -> int32 [B, 1]
    """The least priority kept: tokens of greater ones sum to less than p."""
    # Bisects the integers. Sorting is slower.
    def halve(low, high):
        middle = low + (high - low) // 2  # low + high would overflow
        greater = tf.reduce_sum(tf.where_v2(priorities > middle, probs, 0.0), -1, keepdims=True)
        return tf.where_v2(greater < p, low, middle + 1), tf.where_v2(greater < p, middle, high)
    low = tf.zeros_like(priorities[:, :1])
    bounds = low, low + INFINITY_BITS
    return tf.while_loop(lambda *_: True, halve, bounds, maximum_iterations=31, back_prop=False)[0]


def top_p_logits(logits, p):  # [B, N] -> [B, N]
    """Keeps the likeliest that sum to p (Holtzman et al. 2019, section 3.1). p = 0 or 1: all."""
    return keep_mass(logits, p, lambda probs: tf.bitcast(probs, tf.int32))


def typical_p_logits(logits, p):  # [B, N] -> [B, N]
    """Keeps tokens that sum to p, those with information nearest to its mean, the entropy (Meister et al.
    2023, "Locally Typical Sampling"). p = 0 or 1: all."""
    def priority(probs):
        information = -tf.math.log(probs)  # infinite for what was cut
        entropy = tf.reduce_sum(tf.math.multiply_no_nan(information, probs), -1, keepdims=True)
        return INFINITY_BITS - tf.bitcast(tf.abs(information - entropy), tf.int32)
    return keep_mass(logits, p, priority)


def min_p_logits(logits, p):  # [B, N] -> [B, N]
    """Keeps tokens of at least p times the likeliest's probability (Nguyen et al. 2024). p = 0: all."""
    logits, log_p = tf.convert_to_tensor(logits), tf.math.log(float32(p))  # of 0: below every number
    least = tf.reduce_max(logits, -1, keepdims=True) + tf.cast(log_p, logits.dtype)
    return tf.where_v2(logits < least, logits.dtype.min, logits)


def apply_repetition_penalty(logits, tokens, penalty):  # [B, V], int32 [B, N] -> [B, V]
    """Divides the tokens' logits, or multiplies negative ones (after Keskar et al. 2019, section 4.1)."""
    logits = float32(logits)
    rows = tf.broadcast_to(tf.range(tf.shape(tokens)[0])[:, None], tf.shape(tokens))
    places = tf.boolean_mask(tf.stack([rows, tokens], -1), tokens >= 0)
    values = tf.gather_nd(logits, places)
    values = tf.where_v2(values > 0, values / penalty, values * penalty)
    return tf.tensor_scatter_nd_update(logits, places, values)


def asserted(*checks):  # (condition, words…)… -> operations, for those that are tensors
    for condition, *words in checks:
        require(tf.is_tensor(condition) or condition, ' '.join(map(str, words)))
    return [tf.Assert(condition, words) for condition, *words in checks if tf.is_tensor(condition)]


def check_controls(*, length, temperature=1, top_k=0, top_p=1, min_p=0, typical_p=1, repetition_penalty=1,
                   no_repeat_ngram=0, logit_bias=None, n_vocab=2**31):  # as asserted
    return asserted(
        (length > 0, 'length must be 1 or more, not', length),
        (temperature >= 0, 'temperature must be 0 or more, not', temperature),
        (top_k >= 0, 'top_k must be 0 or more, not', top_k),
        *(((p >= 0) & (p <= 1), f'{name} must be from 0 to 1, not', p)
          for name, p in (('top_p', top_p), ('min_p', min_p), ('typical_p', typical_p))),
        (repetition_penalty > 0, 'repetition_penalty must be above 0, not', repetition_penalty),
        (no_repeat_ngram >= 0, 'no_repeat_ngram must be 0 or more, not', no_repeat_ngram),
        *((0 <= token < n_vocab and abs(bias) <= MAX_BIAS,
           f'logit_bias must be of ids below {n_vocab} and numbers up to {MAX_BIAS:,.0f}, not {token}:{bias}')
          for token, bias in (logit_bias or {}).items()))


# One token

def categorical(logits, uniform, top_p, min_p, typical_p):  # [B, N], float64 [B] -> int32 [B]
    kept = typical_p_logits(min_p_logits(top_p_logits(logits, top_p), min_p), typical_p)
    # Inverts the cumulative distribution: float64 for rare tokens.
    cumulative = tf.cumsum(tf.cast(tf.nn.softmax(kept), tf.float64), -1)
    return tf.reduce_sum(tf.cast(cumulative <= uniform[:, None] * cumulative[:, -1:], tf.int32), -1)


def allowed_logits(logits, vocabulary):  # [B, V], ids or None: all -> [B, V], the lowest elsewhere
    allowed = vocabulary is None or np.isin(range(logits.shape.as_list()[-1]), list(vocabulary))
    return logits if np.all(allowed) else tf.where_v2(allowed, logits, logits.dtype.min)


def sample_token(logits, uniform, *, temperature, top_k, top_p, min_p=0, typical_p=1, vocabulary=None):
    """[B, V] -> int32 [B]. Controls apply in this order; temperature 0: the likeliest. uniform: float64 [B],
    in [0, 1). vocabulary: the ids to draw from; None: all."""
    logits = allowed_logits(tf.convert_to_tensor(logits), vocabulary)
    divisor = tf.clip_by_value(float32(temperature), 1e-30, 1e30)  # keeps quotients finite
    scaled = float32(logits) / divisor
    draw = functools.partial(categorical, uniform=uniform, top_p=top_p, min_p=min_p, typical_p=typical_p)

    def of_largest():
        values, tokens = largest(scaled, top_k)
        return tf.gather(tokens, draw(values), batch_dims=1)

    def drawn():
        return tf.cond(tf.greater(top_k, 0), of_largest, lambda: draw(scaled))
    return tf.cond(tf.greater(temperature, 0), drawn, lambda: tf.argmax(logits, -1, output_type=tf.int32))


def random_numbers(seed, B, length):  # -> float64 [B, length], in [0, 1)
    """seed: a number, for keys (seed, row); or keys, int64 [B, 2]; or None: new ones at each run."""
    if seed is None:
        seed = tf.random.uniform([B, 2], maxval=tf.int64.max, dtype=tf.int64)
    keys = tf.cast(seed, tf.int64)
    if keys.shape.rank == 0:
        keys = tf.stack([tf.fill([B], keys), tf.range(tf.cast(B, tf.int64))], 1)
    require(keys.shape.is_compatible_with([tf.get_static_value(B), 2]),
            f'seed must be a number, or two for each row, not of shape {keys.shape}')
    return tf.map_fn(lambda key: tf.random.stateless_uniform([length], key, dtype=tf.float64), keys,
                     fn_output_signature=tf.float64)


# KV cache: a pair of [B, H, P, D] a layer, with n_past positions filled. Shorter rows begin with -1, up to
# `start`, int32 [B].

def empty_cache(hparams, B, size):  # -> the cache
    empty = tf.zeros([B, hparams.n_head, size, hparams.n_embd // hparams.n_head])
    return [(empty, empty)] * hparams.n_layer


def row_starts(context):  # int32 [B, T] -> int32 [B]
    return tf.reduce_sum(tf.cast(context < 0, tf.int32), 1)


def write_cache(cache, presents, position):  # -> the cache with presents from position on
    buffers, presents = tf.nest.flatten(cache), tf.nest.flatten(presents)
    if in_kernel():
        start = tf.stack([0, 0, position, 0])
        written = [xla.dynamic_update_slice(buffer, new, start)
                   for buffer, new in zip(buffers, presents, strict=True)]
    else:
        shape = B, H, P, D = tf.unstack(tf.shape(buffers[0]))
        rows = (tf.range(B * H) * P + position)[:, None] + tf.range(tf.shape(presents[0])[2])

        def write(buffer, new):  # in place in a loop
            new = tf.reshape(new, [B * H, -1, D])
            flat = tf.tensor_scatter_nd_update(tf.reshape(buffer, [-1, D]), rows[..., None], new)
            return tf.ensure_shape(tf.reshape(flat, shape), buffer.shape)
        written = map(write, buffers, presents)
    return tf.nest.pack_sequence_as(cache, list(written))


# A decoding step

blocks_kernel, output_kernel = kernel(model.blocks), kernel(model.output)
prefill_block = traced(model.block)


def decode_blocks(x, layers, n_head, pasts, mask):  # as model.blocks
    presents = []
    for first in range(0, len(layers), LAYERS_IN_KERNEL):  # equal kernels are compiled once
        part = slice(first, first + LAYERS_IN_KERNEL)
        x, new = blocks_kernel(x, layers[part], n_head, pasts[part], mask)
        presents += new
    return x, presents


def step(hparams, w, tokens, start, cache, n_past, n_drawn=1, blocks=decode_blocks):  # int32 [B, T]
    # -> logits of each row's last n_drawn tokens, [B * n_drawn, V], and presents
    B, T = model.shape_list(tokens)
    slots, own = tf.range(tf.shape(cache[0][0])[2]), n_past + tf.range(T)
    old = tf.where_v2(slots < n_past, slots, n_past + T)  # empty slots come after all queries
    seen = tf.concat([old, own], 0)
    mask = (seen <= own[:, None]) & (seen >= start[:, None, None, None])  # [B, 1, T, P + T]
    positions = tf.maximum(own - start[:, None], 0)
    h, presents = model.transformer(hparams, w, tf.maximum(tokens, 0), cache, positions, mask, blocks)
    last = tf.reshape(h[:, -n_drawn:], [B * n_drawn, hparams.n_embd])
    output = model.output if tf.is_tensor(n_drawn) else output_kernel  # each number would be compiled
    return output({'wte': w['wte']}, last), presents  # a kernel would read all weights that it gets


def prefill(hparams, w, context, start, cache, n_past=0, n_drawn=1):  # as step
    # Without kernels: each length would be compiled.
    filled = [(k[:, :, :n_past], v[:, :, :n_past]) for k, v in cache]
    blocks = functools.partial(model.blocks, block=prefill_block)
    return step(hparams, w, context, start, filled, n_past, n_drawn, blocks)


# A loop of steps

def check_context(context, n_more, hparams):  # integers [B, T] -> as asserted
    T, V, n_ctx = model.shape_list(context)[1], hparams.n_vocab, hparams.n_ctx
    any_token = tf.reduce_all(tf.reduce_any(context >= 0, 1))
    known = tf.reduce_all((context >= -1) & (context < V))
    at_left = tf.reduce_all((context[:, 1:] >= 0) | (context[:, :-1] < 0))
    return asserted(
        (any_token & known & at_left,
         f'each row must have tokens from 0 to {V - 1}, and -1 at its left alone, not', context),
        (n_more <= n_ctx - T, 'a context of', T, 'tokens and', n_more, f'more exceed n_ctx, {n_ctx}'))


def sample_sequence(*, hparams, length, start_token=None, batch_size=None, context=None, temperature=1,
                    top_k=0, top_p=1, min_p=0, typical_p=1, logit_bias=None, seed=None, vocabulary=None):
    """Samples `length` tokens after a context; returns int32 [B, T + length]. context: integers [B, T], with
    -1 at the left of shorter rows; or start_token and batch_size. logit_bias: {id: number to be added}.
    seed: see random_numbers; vocabulary: see sample_token. Raises InputError for numbers out of range; with
    tensors that are, running fails."""
    controls = {'temperature': temperature, 'top_k': top_k, 'top_p': top_p, 'min_p': min_p,
                'typical_p': typical_p}
    n_more, logit_bias = length, logit_bias or {}
    require((start_token is None) != (context is None), 'give start_token or context')
    if context is None:  # only here T + length may be n_ctx + 1: the last is not fed back
        context, n_more = tf.fill([batch_size, 1], start_token), length - 1
    context = tf.convert_to_tensor(context)
    require(context.dtype.is_integer and context.shape.rank == 2,
            f'context must be token ids, a row for each sample, not {context}')
    checked = check_controls(length=length, logit_bias=logit_bias, n_vocab=hparams.n_vocab, **controls)
    assertions = checked + check_context(context, n_more, hparams)
    with tf.name_scope('sample_sequence'), tf.control_dependencies(assertions):
        # Weights are read here: read in the loop, they would be copied at every step.
        w, context = model.weights(hparams), tf.cast(context, tf.int32)
        B, T = model.shape_list(context)
        random, start = random_numbers(seed, B, length), row_starts(context)
        cache, biases = empty_cache(hparams, B, T + length - 1), np.zeros(hparams.n_vocab, np.float32)
        biases[list(logit_bias)] = list(logit_bias.values())

        def draw(logits, i):
            logits = logits + biases if logit_bias else logits
            return sample_token(logits, random[:, i], vocabulary=vocabulary, **controls)

        def decode(i, token, tokens, cache):
            n_past = T + i - 1
            logits, presents = step(hparams, w, token[:, None], start, cache, n_past)
            token = draw(logits, i)
            tokens = tf.tensor_scatter_nd_update(tokens, [[i]], token[None])
            return i + 1, token, tokens, write_cache(cache, presents, n_past)
        logits, presents = prefill(hparams, w, context, start, cache)
        token = draw(logits, 0)
        tokens = tf.concat([token[None], tf.zeros([length - 1, B], tf.int32)], 0)  # [length, B]
        first = 1, token, tokens, write_cache(cache, presents, 0)
        last = tf.while_loop(lambda i, *_: i < length, decode, first, back_prop=False, parallel_iterations=1)
        return tf.concat([context, tf.transpose(last[2])], 1)
