"""Sampling: temperature, top-k and top-p, and the decoding loop against a cache of fixed size.

Dimensions: B batch, V n_vocab, T length of the context, and those of model.py.
"""
import tensorflow.compat.v1 as tf

import model
from errors import require


def top_k_logits(logits, k):  # [B, V] -> [B, V]
    """The k largest logits of each row (and their equals); the others become the lowest number. k = 0: all."""
    logits = tf.convert_to_tensor(logits)
    if k == 0:
        return logits
    smallest = tf.math.top_k(logits, min(k, logits.shape[-1]))[0][:, -1:]
    return tf.where_v2(logits < smallest, logits.dtype.min, logits)


def top_p_logits(logits, p):  # [B, V] -> [B, V]
    """The fewest tokens, from the likeliest down, whose probabilities reach p; the others become the lowest number.

    Nucleus sampling (Holtzman et al. 2019, section 3.1): the token that crosses p belongs to them. p of 0 or 1: all.
    """
    logits = tf.convert_to_tensor(logits)
    if p in (0, 1):
        return logits
    ordered = tf.sort(logits, direction='DESCENDING')
    probabilities = tf.nn.softmax(ordered)
    before = tf.cumsum(probabilities, axis=-1, exclusive=True)
    kept = tf.maximum(tf.reduce_sum(tf.cast(before < p, tf.int32), axis=-1, keepdims=True), 1)
    smallest = tf.gather(ordered, kept - 1, batch_dims=1)
    return tf.where_v2(logits < smallest, logits.dtype.min, logits)


def sample_token(logits, uniform, *, temperature, top_k, top_p):  # [B, V], float64 [B] in [0, 1) -> int32 [B]
    """One token a row, drawn by inverting the cumulative distribution at `uniform`; temperature 0: the likeliest."""
    if temperature == 0:
        return tf.argmax(logits, axis=-1, output_type=tf.int32)
    logits = tf.cast(logits, tf.float32) / min(max(temperature, 1e-30), 1e30)  # so that float32 holds the quotients
    logits = top_p_logits(top_k_logits(logits, top_k), top_p)
    # Sums of 50,257 probabilities: in float64, so that rare tokens keep theirs.
    cumulative = tf.cumsum(tf.cast(tf.nn.softmax(logits), tf.float64), axis=-1)
    return tf.reduce_sum(tf.cast(cumulative <= uniform[:, None] * cumulative[:, -1:], tf.int32), axis=-1)


def random_keys(seed, batch_size):  # -> int64 [B, 2]
    """The key of each row's random numbers. seed: None (new ones at each run), a scalar s (row i has the key (s, i)),
    or the keys themselves, [B, 2]. What a row draws depends on its key alone."""
    if seed is None:
        return tf.random.uniform([batch_size, 2], maxval=tf.int64.max, dtype=tf.int64)
    seed = tf.cast(seed, tf.int64)
    if seed.shape.rank == 0:
        return tf.stack([tf.fill([batch_size], seed), tf.range(tf.cast(batch_size, tf.int64))], axis=1)
    return seed


def check_controls(hparams, *, length, temperature, top_k, top_p):
    """Raises InputError where a control is outside its range."""
    require(0 < length <= hparams.n_ctx, f'length must be from 1 to n_ctx, {hparams.n_ctx}, not {length}')
    require(temperature >= 0, f'temperature must be 0 (greedy) or more, not {temperature}')
    require(top_k >= 0, f'top_k must be 0 (off) or more, not {top_k}')
    require(0 <= top_p <= 1, f'top_p must be from 0 to 1 (both: off), not {top_p}')


def sample_sequence(*, hparams, length, start_token=None, batch_size=None, context=None, temperature=1, top_k=0,
                    top_p=1, seed=None, stop_token=None, scope='model'):
    """Adds to the graph the sampling of `length` tokens after a context.

    start_token, batch_size: for a context of this one token, batch_size times; or
    context: int32 [B, T]; T and length together may not exceed n_ctx.
    temperature: 0 is greedy. top_k, top_p: see their functions; both may be given, top-k applies first.
    seed: see random_keys. stop_token: after it a row goes on with nothing but stop_token; all rows stopped end the run.
    Returns int32 [B, T + length], the context included. Raises InputError for values out of range.
    """
    check_controls(hparams, length=length, temperature=temperature, top_k=top_k, top_p=top_p)
    require((start_token is None) != (context is None), 'give start_token or context, one of them')
    if context is None:
        context = tf.fill([batch_size, 1], start_token)
    else:
        T = context.shape.with_rank(2)[1] or 0
        require(T + length <= hparams.n_ctx, f'a context of {T} tokens and {length} more exceed n_ctx, {hparams.n_ctx}')
    with tf.name_scope('sample_sequence'):
        # Read here, once: a variable that is read inside the loop is copied at every step.
        w = model.weights(hparams, scope)
        uniforms = tf.map_fn(lambda key: tf.random.stateless_uniform([length], key, dtype=tf.float64),
                             random_keys(seed, model.shape_list(context)[0]), fn_output_signature=tf.float64)

        def choose(h, i):  # the last hidden states [B, E], the number of the step -> int32 [B]
            return sample_token(model.output(w, h), uniforms[:, i], temperature=temperature, top_k=top_k, top_p=top_p)

        continuation = decode(hparams, w, context, length, choose, stop_token)
        return tf.concat([context, continuation], axis=1)


def decode(hparams, w, context, length, choose, stop_token):  # int32 [B, T] -> int32 [B, length]
    """The context in one pass, then one token a step; keys and values are kept in buffers of T + length - 1."""
    B, T = model.shape_list(context)
    h, presents = model.transformer(hparams, w, context)
    cache = [tuple(tf.pad(each, [[0, 0], [0, 0], [0, length - 1], [0, 0]]) for each in pair) for pair in presents]
    token = choose(h[:, -1], 0)
    stop = -1 if stop_token is None else stop_token
    tokens = tf.concat([token[:, None], tf.fill([B, length - 1], stop)], axis=1)

    def unfinished(i, token, *_):
        return (i < length) & tf.reduce_any(tf.not_equal(token, stop))

    def step(i, token, tokens, cache):
        h, cache = model.transformer(hparams, w, token[:, None], past=cache, n_filled=T + i - 1)
        token = tf.where(tf.equal(token, stop), token, choose(h[:, -1], i))
        here = tf.stack([tf.range(B), tf.fill([B], i)], axis=1)
        return i + 1, token, tf.tensor_scatter_nd_update(tokens, here, token), cache

    return tf.while_loop(unfinished, step, (1, token, tokens, cache), back_prop=False, parallel_iterations=1)[2]
