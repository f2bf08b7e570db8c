"""Sampling: the controls, the decoding step, and a loop of steps as one operation of a graph.

`prefill` takes contexts to a KV cache (fast/cache.py), `step` takes one token a row to the next. Two loops
drive them: sample_sequence's in the graph, and generation/generator.py's in Python, since there text is
printed and stopped while it comes, and a row may outgrow n_ctx. Both draw the same tokens with the same
seed.

B batch, V n_vocab, N candidates, T length of the context; others as in model.py. A control (temperature,
top_k, top_p, repetition_penalty) is a number, or a scalar tensor that may change from run to run.
"""
import numpy as np
import tensorflow as tf2
import tensorflow.compat.v1 as tf

import model
from errors import InputError
from fast.blocks import in_layer_kernels
from fast.cache import empty_cache, positions_and_mask, row_starts, write_cache
from fast.kernels import kernel
from fast.nucleus import nucleus_threshold
from generation.checks import assert_or_raise, check_context, check_controls

# From logits to a token

def static_or_cond(condition, then, otherwise):
    """then() or otherwise(): decided now if the condition is a number, at each run if it is a tensor."""
    if tf.is_tensor(condition):
        return tf.cond(condition, then, otherwise)
    return then() if condition else otherwise()


def largest_logits(logits, k):  # -> [B, k], [B, k]: the largest logits in falling order, and their tokens
    values, tokens = tf.math.top_k(logits, tf.minimum(k, tf.shape(logits)[-1]))
    return tf.ensure_shape(values, [logits.shape[0], None]), tokens


def top_k_logits(logits, k):  # [B, V] -> [B, V]
    """The k largest logits of each row, and their equals; the others become the lowest number. k = 0: all."""
    logits = tf.convert_to_tensor(logits)

    def cut():
        return tf.where_v2(logits < largest_logits(logits, k)[0][:, -1:], logits.dtype.min, logits)
    return static_or_cond(k > 0, cut, lambda: logits)


def top_p_logits(logits, p):  # [B, N] -> [B, N]
    """The fewest tokens, from the likeliest down, whose probabilities reach p; the others become the lowest
    number. Nucleus sampling (Holtzman et al. 2019, section 3.1): the token that crosses p is kept. p of 0,
    1: all.
    """
    logits = tf.convert_to_tensor(logits)

    def cut():
        # Shapes are stated again: behind a condition the graph's optimizer misses them, and prints that.
        probabilities = tf.nn.softmax(tf.cast(tf.ensure_shape(logits, logits.shape), tf.float32))
        threshold = nucleus_threshold(probabilities, tf.convert_to_tensor(p, tf.float32))
        return tf.where_v2(tf.bitcast(probabilities, tf.int32) < threshold, logits.dtype.min, logits)
    return tf.ensure_shape(static_or_cond((p > 0) & (p < 1), cut, lambda: logits), logits.shape)


def apply_repetition_penalty(logits, tokens, penalty):  # [B, V], int32 [B, N] -> [B, V]
    """The logits of the row's tokens (below 0: none) divided by penalty, or multiplied if they are below 0,
    so that a penalty above 1 lowers all (after Keskar et al. 2019, "CTRL", section 4.1)."""
    logits = tf.cast(logits, tf.float32)
    rows = tf.broadcast_to(tf.range(tf.shape(tokens)[0])[:, None], tf.shape(tokens))
    places = tf.boolean_mask(tf.stack([rows, tokens], axis=-1), tokens >= 0)
    values = tf.gather_nd(logits, places)
    values = tf.where_v2(values > 0, values / penalty, values * penalty)
    return tf.tensor_scatter_nd_update(logits, places, values)


def sample_categorical(logits, uniform, top_p):  # [B, N], float64 [B] -> int32 [B]
    """By inverting the cumulative distribution, in float64, so that rare tokens keep their probability."""
    cumulative = tf.cumsum(tf.cast(tf.nn.softmax(top_p_logits(logits, top_p)), tf.float64), axis=-1)
    return tf.reduce_sum(tf.cast(cumulative <= uniform[:, None] * cumulative[:, -1:], tf.int32), axis=-1)


def sample_token(logits, uniform, *, temperature, top_k, top_p, vocabulary=None):
    """One token a row: logits [B, V], float64 [B] -> int32 [B].

    uniform: the place in the cumulative distribution that draws a token, from 0 to below 1. temperature 0:
    the likeliest. vocabulary: the ids that may be drawn, those that have a text; None for all.
    """
    logits = tf.convert_to_tensor(logits)
    allowed = vocabulary is None or np.isin(range(logits.shape.as_list()[-1]), list(vocabulary))
    if not np.all(allowed):
        logits = tf.where_v2(allowed, logits, logits.dtype.min)

    def drawn():
        # Within bounds that keep the quotients finite in float32.
        scaled = tf.cast(logits, tf.float32) / tf.clip_by_value(tf.cast(temperature, tf.float32), 1e-30, 1e30)

        def among_largest():
            values, tokens = largest_logits(scaled, top_k)
            return tf.gather(tokens, sample_categorical(values, uniform, top_p), batch_dims=1)
        return static_or_cond(top_k > 0, among_largest, lambda: sample_categorical(scaled, uniform, top_p))
    return static_or_cond(temperature > 0, drawn, lambda: tf.argmax(logits, axis=-1, output_type=tf.int32))


def random_keys(seed, batch_size):  # -> int64 [B, 2]
    """The keys of the rows' random numbers. seed: None (new ones at each run), a scalar s (row i has the key
    (s, i)), or the keys themselves, [B, 2]."""
    if seed is None:
        return tf.random.uniform([batch_size, 2], maxval=tf.int64.max, dtype=tf.int64)
    seed = tf.cast(seed, tf.int64)
    if seed.shape.rank == 0:
        return tf.stack([tf.fill([batch_size], seed), tf.range(tf.cast(batch_size, tf.int64))], axis=1)
    expected = [None if tf.is_tensor(batch_size) else batch_size, 2]
    if not seed.shape.is_compatible_with(expected):
        raise InputError(f'seed must be a number, or two for each row, {expected}; its shape is {seed.shape}')
    return seed


def random_numbers(keys, length):  # int64 [B, 2], scalar -> float64 [B, length]
    """From 0 to below 1, of each row's key and the position alone: a greater length begins with the same."""
    def of_row(key):
        return tf.random.stateless_uniform([length], key, dtype=tf.float64)
    return tf.map_fn(of_row, keys, fn_output_signature=tf.float64)


# The decoding step

@in_layer_kernels
def decode_layers(x, layers, n_head, pasts, mask):  # as model.blocks
    return model.blocks(x, layers, n_head, pasts, mask)


@kernel
def output_kernel(wte, h):  # [V, E], [B, E] -> [B, V]
    return model.output({'wte': wte}, h)


def next_logits(hparams, w, tokens, *arguments, **layers):  # of model.transformer -> [B, V], presents
    h, presents = model.transformer(hparams, w, tokens, *arguments, **layers)
    return output_kernel(w.get('output', w['wte']), h[:, -1]), presents


def prefill(hparams, w, context, start=None, cache=None, n_past=0):  # int32 [B, T] -> [B, V], presents
    """Contexts, or their next part after n_past positions, in one pass: the next token's logits, and the keys
    and values for write_cache. start: None if no row is padded and there is no past."""
    if start is None:
        return next_logits(hparams, w, context)
    cache = cache or empty_cache(hparams, tf.shape(context)[0], 0)
    filled = tf2.nest.map_structure(lambda buffer: buffer[:, :, :n_past], cache)
    place = positions_and_mask(model.shape_list(context)[1], filled, n_past, start)
    return next_logits(hparams, w, tf.maximum(context, 0), filled, *place)


def step(hparams, w, token, start, cache, n_past):  # int32 [B, 1] -> [B, V], presents
    """As prefill, of one token a row, by kernels that read all of the cache."""
    place = positions_and_mask(1, cache, n_past, start)
    return next_logits(hparams, w, token, cache, *place, layers=decode_layers)


# A loop of steps

def sample_sequence(*, hparams, length, start_token=None, batch_size=None, context=None, temperature=1,
                    top_k=0, top_p=1, seed=None, stop_token=None, padded=False, scope='model',
                    vocabulary=None):
    """Adds to the graph the sampling of `length` tokens after a context, as one operation.

    start_token, batch_size: for a context of this one token, batch_size times; or
    context: int32 [B, T]; T + length may not exceed n_ctx. padded: shorter rows may have -1 at their left.
    temperature: 0 is greedy. top_k, top_p: see their functions; of both, top-k applies first.
    seed: see random_keys. vocabulary: see sample_token.
    stop_token: a row that has drawn it repeats it; if all have, the run ends.
    Returns int32 [B, T + length], the context included. Raises InputError for numbers out of range; with
    tensors that are, running the operation fails.
    """
    controls = {'temperature': temperature, 'top_k': top_k, 'top_p': top_p}
    assertions = [*check_controls(length=length, **controls), *assert_or_raise(
        length <= hparams.n_ctx, f'length must be from 1 to n_ctx, {hparams.n_ctx}, not', length)]
    if (start_token is None) == (context is None):
        raise InputError('give start_token or context, one of them')
    if context is None:
        assertions += assert_or_raise(
            (0 <= start_token) & (start_token < hparams.n_vocab),
            f'start_token must be from 0 to {hparams.n_vocab - 1}, not', start_token)
        context = tf.fill([batch_size, 1], start_token)
    else:
        context = context if tf.is_tensor(context) else np.asarray(context)
        assertions += check_context(context, length, hparams, padded)
    with tf.name_scope('sample_sequence'), tf.control_dependencies(assertions):
        context = tf.cast(context, tf.int32)
        # Read here, once: a variable that is read inside the loop is copied at every step.
        w = model.weights(hparams, scope)
        random = random_numbers(random_keys(seed, model.shape_list(context)[0]), length)

        def draw(logits, i):
            return sample_token(logits, random[:, i], vocabulary=vocabulary, **controls)
        tokens = decode(hparams, w, context, length, draw, -1 if stop_token is None else stop_token, padded)
        return tf.concat([context, tokens], axis=1)


def decode(hparams, w, context, length, draw, stop, padded):  # int32 [B, T] -> int32 [B, length]
    """draw: from the logits [B, V] and the number of the token to the tokens [B]."""
    B, T = model.shape_list(context)
    start, cache = row_starts(context), empty_cache(hparams, B, T + length - 1)
    logits, presents = prefill(hparams, w, context, start if padded else None)
    token = draw(logits, 0)
    tokens = tf.concat([token[:, None], tf.fill([B, length - 1], stop)], axis=1)

    def unfinished(i, token, *_):
        return (i < length) & tf.reduce_any(tf.not_equal(token, stop))

    def decode_token(i, token, tokens, cache):
        logits, presents = step(hparams, w, token[:, None], start, cache, T + i - 1)
        token = tf.where(tf.equal(token, stop), token, draw(logits, i))
        here = tf.stack([tf.range(B), tf.fill([B], i)], axis=1)
        tokens = tf.tensor_scatter_nd_update(tokens, here, token)
        return i + 1, token, tokens, write_cache(cache, presents, T + i - 1)

    loop = (1, token, tokens, write_cache(cache, presents, 0))
    return tf.while_loop(unfinished, decode_token, loop, back_prop=False, parallel_iterations=1)[2]
