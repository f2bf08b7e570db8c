"""Sampling: what is drawn from the logits, and the decoding loop as one operation of a graph.

Dimensions: B batch, V n_vocab, N candidates, T length of the context, and those of model.py. A control (temperature,
top_k, top_p, repetition_penalty) is a number, or a scalar tensor that may change from run to run.
"""
import numpy as np
import tensorflow.compat.v1 as tf

import model
from errors import require
from fast.kernels import fused

ONE = 0x3f800000  # the bits of 1.0 in float32


def check_controls(*, length, temperature=1, top_k=0, top_p=1, repetition_penalty=1):  # -> assertions
    """As check, of each control and its range."""
    return [*assert_or_raise(length > 0, 'length must be 1 or more, not', length),
            *assert_or_raise(temperature >= 0, 'temperature must be 0 (greedy) or more, not', temperature),
            *assert_or_raise(top_k >= 0, 'top_k must be 0 (off) or more, not', top_k),
            *assert_or_raise((0 <= top_p) & (top_p <= 1), 'top_p must be from 0 to 1 (both: off), not', top_p),
            *assert_or_raise(repetition_penalty > 0, 'repetition_penalty must be above 0 (1: none), not', repetition_penalty)]


def assert_or_raise(condition, *message):  # -> operations, to be control dependencies of what needs the condition
    """Raises InputError(message) unless the condition holds. Of a tensor this is known when the graph is run: then it
    is an operation, which fails with the message. message: words, and numbers or tensors to be put between them."""
    if tf.is_tensor(condition):
        return [tf.debugging.Assert(condition, message)]
    require(condition, ' '.join(map(str, message)))
    return []


def check_tokens(tokens, n_vocab, padded):  # integers [B, T], a tensor or an array -> assertions
    """As check: each is an id of the model; or, if padded, -1 at the left of rows that are shorter than others."""
    every, least, most = ((tf.reduce_all, tf.reduce_min, tf.reduce_max) if tf.is_tensor(tokens) else
                          (np.all, np.min, np.max))
    known = every((tokens >= (-1 if padded else 0)) & (tokens < n_vocab))
    has_token = every(most(tokens, axis=1) >= 0)
    at_left = every((tokens[:, 1:] >= 0) | (tokens[:, :-1] < 0)) if padded else True
    padding, alone = (', or -1 at the left of shorter rows', ', and -1 at its left alone') if padded else ('', '')
    return [*assert_or_raise(known, f'tokens must be from 0 to {n_vocab - 1}{padding}; they are from', least(tokens), 'to',
                   most(tokens)),
            *assert_or_raise(has_token & at_left, f'each row must have a token{alone}; they are', tokens)]


def static_or_cond(condition, then, otherwise):
    """then() or otherwise(): decided now where the condition is a number, at each run where it is a tensor."""
    if tf.is_tensor(condition):
        return tf.cond(condition, then, otherwise)
    return then() if condition else otherwise()


def largest_logits(logits, k):  # -> [B, k], [B, k]: the largest logits in falling order, and their tokens
    values, tokens = tf.math.top_k(logits, tf.minimum(k, tf.shape(logits)[-1]))
    return tf.ensure_shape(values, [logits.shape[0], None]), tokens


def top_k_logits(logits, k):  # [B, V] -> [B, V]
    """The k largest logits of each row (and their equals); the others become the lowest number. k = 0: all."""
    logits = tf.convert_to_tensor(logits)
    return static_or_cond(k > 0, lambda: tf.where_v2(logits < largest_logits(logits, k)[0][:, -1:], logits.dtype.min, logits),
                  lambda: logits)


@fused
def nucleus_threshold(probabilities, p):  # float32 [B, N], scalar -> int32 [B, 1]
    """The bits of the least probability that belongs to the nucleus: that below which the likelier ones reach p.

    Found by halving, as numbers from 0 up are in the order of their bits: what sorts all the vocabulary takes longer.
    """
    bits = tf.bitcast(probabilities, tf.int32)

    def halve(low, high):
        middle = (low + high) // 2
        likelier = tf.reduce_sum(tf.where_v2(bits > middle, probabilities, 0.0), axis=-1, keepdims=True)
        return tf.where_v2(likelier < p, low, middle + 1), tf.where_v2(likelier < p, middle, high)
    low = tf.zeros_like(bits[:, :1])
    return tf.while_loop(lambda *_: True, halve, (low, low + ONE), maximum_iterations=30, back_prop=False)[0]


def top_p_logits(logits, p):  # [B, N] -> [B, N]
    """The fewest tokens, from the likeliest down, whose probabilities reach p; the others become the lowest number.

    Nucleus sampling (Holtzman et al. 2019, section 3.1): the token that crosses p belongs to them. p of 0 or 1: all.
    """
    logits = tf.convert_to_tensor(logits)

    def cut():
        # Its shape is stated again, as below: of what is behind a condition the graph's optimizer does not know it, and
        # says so on the terminal.
        probabilities = tf.nn.softmax(tf.cast(tf.ensure_shape(logits, logits.shape), tf.float32))
        least = nucleus_threshold(probabilities, tf.convert_to_tensor(p, tf.float32))
        return tf.where_v2(tf.bitcast(probabilities, tf.int32) < least, logits.dtype.min, logits)
    return tf.ensure_shape(static_or_cond((p > 0) & (p < 1), cut, lambda: logits), logits.shape)


def apply_repetition_penalty(logits, tokens, penalty):  # [B, V], int32 [B, N] -> [B, V]
    """The logits of the row's tokens (below 0: none) divided by penalty, or multiplied where they are below 0 (Keskar
    et al. 2019, "CTRL", section 4.1, with the sign that makes a penalty above 1 one for all logits)."""
    logits = tf.cast(logits, tf.float32)
    rows = tf.broadcast_to(tf.range(tf.shape(tokens)[0])[:, None], tf.shape(tokens))
    places = tf.boolean_mask(tf.stack([rows, tokens], axis=-1), tokens >= 0)
    values = tf.gather_nd(logits, places)
    return tf.tensor_scatter_nd_update(logits, places, tf.where_v2(values > 0, values / penalty, values * penalty))


def of_vocabulary(logits, vocabulary):  # [B, V], ids or None -> [B, V]
    """The logits of the vocabulary's ids; all others (rows that pad a model, gaps between ids) become the lowest
    number, so that none of them is drawn. None: the logits as they are."""
    has_text = vocabulary is None or np.isin(range(logits.shape.as_list()[-1]), list(vocabulary))
    return logits if np.all(has_text) else tf.where_v2(has_text, logits, logits.dtype.min)


def sample_categorical(logits, uniform, top_p):  # [B, N], float64 [B] -> int32 [B]
    """By inverting the cumulative distribution."""
    # Sums of 50,257 probabilities: in float64, so that rare tokens keep theirs.
    cumulative = tf.cumsum(tf.cast(tf.nn.softmax(top_p_logits(logits, top_p)), tf.float64), axis=-1)
    return tf.reduce_sum(tf.cast(cumulative <= uniform[:, None] * cumulative[:, -1:], tf.int32), axis=-1)


def sample_token(logits, uniform, *, temperature, top_k, top_p, vocabulary=None):
    """One token a row: logits [B, V], float64 [B] -> int32 [B].

    uniform: the place in the cumulative distribution at which it is drawn, from 0 to below 1; with temperature 0 it is
    the likeliest. vocabulary: the ids that may be drawn; None for all.
    """
    logits = of_vocabulary(tf.convert_to_tensor(logits), vocabulary)

    def drawn():
        # Within what keeps the quotients finite in float32.
        scaled = tf.cast(logits, tf.float32) / tf.clip_by_value(tf.cast(temperature, tf.float32), 1e-30, 1e30)
        return static_or_cond(top_k > 0, lambda: among_largest(scaled), lambda: sample_categorical(scaled, uniform, top_p))

    def among_largest(scaled):
        values, tokens = largest_logits(scaled, top_k)
        return tf.gather(tokens, sample_categorical(values, uniform, top_p), batch_dims=1)
    return static_or_cond(temperature > 0, drawn, lambda: tf.argmax(logits, axis=-1, output_type=tf.int32))


def random_keys(seed, batch_size):  # -> int64 [B, 2]
    """The key of each row's random numbers. seed: None (new ones at each run), a scalar s (row i has the key (s, i)),
    or the keys themselves, [B, 2]. What a row draws depends on its key alone."""
    if seed is None:
        return tf.random.uniform([batch_size, 2], maxval=tf.int64.max, dtype=tf.int64)
    seed = tf.cast(seed, tf.int64)
    if seed.shape.rank == 0:
        return tf.stack([tf.fill([batch_size], seed), tf.range(tf.cast(batch_size, tf.int64))], axis=1)
    expected = [None if tf.is_tensor(batch_size) else batch_size, 2]
    require(seed.shape.is_compatible_with(expected),
            f'seed must be a number, or two for each row, {expected}; its shape is {seed.shape}')
    return seed


def sample_sequence(*, hparams, length, start_token=None, batch_size=None, context=None, temperature=1, top_k=0,
                    top_p=1, seed=None, stop_token=None, padded=False, scope='model', vocabulary=None):
    """Adds to the graph the sampling of `length` tokens after a context, as one operation; generator.Generator goes
    token by token.

    start_token, batch_size: for a context of this one token, batch_size times; or
    context: int32 [B, T]; T and length together may not exceed n_ctx. padded: whether it may have -1 at the left of
    rows that are shorter than others.
    temperature: 0 is greedy. top_k, top_p: see their functions; both may be given, top-k applies first.
    vocabulary: the ids that may be drawn, such as Encoder.decoder, those that have a text; None for all of the model.
    seed: see random_keys. stop_token: after it a row goes on with nothing but stop_token; all rows stopped end the run.
    Returns int32 [B, T + length], the context included. length and the controls are numbers, or scalar tensors. Raises
    InputError for numbers out of range; with tensors that are, running the operation fails.
    """
    controls = {'temperature': temperature, 'top_k': top_k, 'top_p': top_p}
    n_ctx = hparams.n_ctx
    assertions = [*check_controls(length=length, **controls),
                  *assert_or_raise(length <= n_ctx, f'length must be from 1 to n_ctx, {n_ctx}, not', length)]
    require((start_token is None) != (context is None), 'give start_token or context, one of them')
    if context is None:
        assertions += assert_or_raise((0 <= start_token) & (start_token < hparams.n_vocab),
                            f'start_token must be from 0 to {hparams.n_vocab - 1}, not', start_token)
        context = tf.fill([batch_size, 1], start_token)
    else:
        context = context if tf.is_tensor(context) else np.asarray(context)
        require(tf.as_dtype(context.dtype).is_integer and len(context.shape) == 2 and 0 not in context.shape,
                f'context must be token ids, a row for each sample, not {str(context)[:60]!r}')
        assertions += check_tokens(context, hparams.n_vocab, padded)
        context = tf.cast(context, tf.int32)
        T = model.shape_list(context)[1]
        assertions += assert_or_raise(length <= n_ctx - T, 'a context of', T, 'tokens and', length, f'more exceed n_ctx, {n_ctx}')
    with tf.name_scope('sample_sequence'), tf.control_dependencies(assertions):
        # Read here, once: a variable that is read inside the loop is copied at every step.
        w = model.weights(hparams, scope)
        uniforms = tf.map_fn(lambda key: tf.random.stateless_uniform([length], key, dtype=tf.float64),
                             random_keys(seed, model.shape_list(context)[0]), fn_output_signature=tf.float64)

        def choose(h, i):  # the hidden states [B, T, E], the number of the step -> int32 [B]
            return sample_token(model.next_logits(w, h), uniforms[:, i], vocabulary=vocabulary, **controls)

        continuation = decode(hparams, w, context, length, choose, stop_token, padded)
        return tf.concat([context, continuation], axis=1)


def write_cache(buffer, new, position):  # [B, H, S, D], [B, H, 1, D], scalar -> [B, H, S, D]
    """The buffer with `new` at a position of axis 2; in place, as nothing else holds the buffer."""
    B, H, S, D = model.shape_list(buffer)
    rows = tf.range(B * H) * S + position
    flat = tf.tensor_scatter_nd_update(tf.reshape(buffer, [-1, D]), rows[:, None], tf.reshape(new, [-1, D]))
    return tf.reshape(flat, [B, H, S, D])


def prefill(hparams, w, context, padded):  # int32 [B, T] -> [B, T, E], presents, int32 [B] or None
    """The context in one pass: what model.transformer returns, and the `start` that is to go on with it."""
    if not padded:
        return *model.transformer(hparams, w, context), None
    start = tf.reduce_sum(tf.cast(context < 0, tf.int32), axis=1)
    nothing = tf.zeros([tf.shape(context)[0], hparams.n_head, 0, hparams.n_embd // hparams.n_head])
    past = [(nothing, nothing)] * hparams.n_layer  # `start` is for attention to a past
    return *model.transformer(hparams, w, tf.maximum(context, 0), past, 0, start), start


def decode(hparams, w, context, length, choose, stop_token, padded):  # int32 [B, T] -> int32 [B, length]
    """The context in one pass, then one token a step; keys and values are kept in buffers of T + length - 1."""
    B, T = model.shape_list(context)
    h, presents, start = prefill(hparams, w, context, padded)
    cache = [tuple(tf.pad(each, [[0, 0], [0, 0], [0, length - 1], [0, 0]]) for each in pair) for pair in presents]
    token = choose(h, 0)
    stop = -1 if stop_token is None else stop_token
    tokens = tf.concat([token[:, None], tf.fill([B, length - 1], stop)], axis=1)

    def unfinished(i, token, *_):
        return (i < length) & tf.reduce_any(tf.not_equal(token, stop))

    def step(i, token, tokens, cache):
        n_past = T + i - 1
        h, presents = model.transformer(hparams, w, token[:, None], past=cache, n_past=n_past, start=start)
        cache = [tuple(write_cache(*each, n_past) for each in zip(*pairs, strict=True))
                 for pairs in zip(cache, presents, strict=True)]
        token = tf.where(tf.equal(token, stop), token, choose(h, i))
        here = tf.stack([tf.range(B), tf.fill([B], i)], axis=1)
        return i + 1, token, tf.tensor_scatter_nd_update(tokens, here, token), cache

    return tf.while_loop(unfinished, step, (1, token, tokens, cache), back_prop=False, parallel_iterations=1)[2]
