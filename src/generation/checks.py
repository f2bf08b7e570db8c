"""The arguments of sampling, checked: numbers at once, tensors when the graph runs."""
import numpy as np
import tensorflow.compat.v1 as tf

import model
from errors import InputError


def assert_or_raise(condition, *message):  # -> operations, for tf.control_dependencies
    """Raises InputError(message) unless the condition holds; of a tensor, the operation fails with the
    message when the graph runs. message: words, and numbers or tensors."""
    if tf.is_tensor(condition):
        return [tf.debugging.Assert(condition, message)]
    if not condition:
        raise InputError(' '.join(map(str, message)))
    return []


def check_controls(*, length, temperature=1, top_k=0, top_p=1, repetition_penalty=1):  # -> assertions
    """As assert_or_raise, for each control and its range."""
    in_range = (0 <= top_p) & (top_p <= 1)
    return [*assert_or_raise(length > 0, 'length must be 1 or more, not', length),
            *assert_or_raise(temperature >= 0, 'temperature must be 0 (greedy) or more, not', temperature),
            *assert_or_raise(top_k >= 0, 'top_k must be 0 (off) or more, not', top_k),
            *assert_or_raise(in_range, 'top_p must be from 0 to 1 (both: off), not', top_p),
            *assert_or_raise(repetition_penalty > 0, 'repetition_penalty must be above 0 (1: none), not',
                             repetition_penalty)]


def check_tokens(tokens, n_vocab, padded):  # a tensor or an array [B, T] -> assertions
    """As assert_or_raise: all are ids of the model, or, if padded, -1 at the left of shorter rows."""
    every, least, most = np.all, np.min, np.max
    if tf.is_tensor(tokens):
        every, least, most = tf.reduce_all, tf.reduce_min, tf.reduce_max
    lowest, padding, at_left = 0, '', ''
    whole = every(most(tokens, axis=1) >= 0)
    if padded:
        lowest, padding, at_left = -1, ', or -1 at the left of shorter rows', ', and -1 at its left alone'
        whole = whole & every((tokens[:, 1:] >= 0) | (tokens[:, :-1] < 0))
    known = every((tokens >= lowest) & (tokens < n_vocab))
    return [*assert_or_raise(known, f'tokens must be from 0 to {n_vocab - 1}{padding}; they are from',
                             least(tokens), 'to', most(tokens)),
            *assert_or_raise(whole, f'each row must have a token{at_left}; they are', tokens)]


def check_context(context, length, hparams, padded):  # -> assertions
    """As assert_or_raise: token ids that leave room for `length` more."""
    if not tf.as_dtype(context.dtype).is_integer or len(context.shape) != 2 or 0 in context.shape:
        raise InputError(f'context must be token ids, a row for each sample, not {str(context)[:60]!r}')
    T, n_ctx = model.shape_list(tf.convert_to_tensor(context))[1], hparams.n_ctx
    return [*check_tokens(context, hparams.n_vocab, padded),
            *assert_or_raise(length <= n_ctx - T, 'a context of', T, 'tokens and', length,
                             f'more exceed n_ctx, {n_ctx}')]
