"""Activations of a model by name: read, replaced, differentiated.

Names and shapes are those of TransformerLens. B texts; T tokens of the longest; other letters as in model.py.
"""
import difflib
import fnmatch
import functools
import numbers

import numpy as np
import tensorflow.compat.v1 as tf

import model
from errors import InputError, require
from fast.kernels import float32
from fast.quantized import with_precision
from fast.session import session_config, set_precision
from storage import checkpoint


class Inspector:
    """A model, run or checkpoint in a session. Raises InputError."""

    def __init__(self, model_name, models_dir='models', checkpoint_name=None, *, precision='float32'):
        _, self.hparams, self.enc, self.prefix = checkpoint.find(model_name, models_dir, checkpoint_name)
        self.session = tf.Session(graph=tf.Graph(), config=session_config())
        self.forward, self.callable = functools.cache(self.build), functools.cache(self.make_callable)
        with self.session.graph.as_default():
            self.weights = with_precision(model.weights(self.hparams), set_precision(precision))
            checkpoint.restore(self.session, self.prefix, checkpoint.model_variables(), models_dir)

    def shapes(self, B='B', T='T'):
        """{name: shape} of all activations, in the order of the forward pass."""
        _, activations = self.forward(())
        shapes = {name: x.shape.as_list()[1:] for name, x in activations.items() if name != 'tokens'}
        return {name: (B, *(size or T for size in shape)) for name, shape in shapes.items()}

    def names(self, patterns):
        """A list of all names that these match, with * as in names of files. Raises InputError for none."""
        known, names = list(self.shapes()), []
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            matches = fnmatch.filter(known, pattern)
            nearest = ', '.join(difflib.get_close_matches(pattern, known, 3, 0)) if not matches else ''
            require(matches, f'no activation is named {pattern}; the nearest: {nearest}')
            names += matches
        return names

    def tokens(self, texts, special_tokens=False):
        """Of one text or several, each a string or token ids: int32 [B, T], with -1 after shorter ones.

        special_tokens: <|endoftext|> in a string is one id. Raises InputError for what cannot be read."""
        if isinstance(texts, str) or (len(texts) and isinstance(texts[0], numbers.Integral)):
            texts = [texts]
        rows: list[list[int]] = []
        for text in texts:
            ids = self.enc.encode(text, special_tokens) if isinstance(text, str) else [int(id) for id in text]
            while ids[-1:] == [-1]:  # an array that this made
                ids = ids[:-1]
            rows.append(ids)
        sizes, n_ctx, last = [*map(len, rows)], self.hparams.n_ctx, self.hparams.n_vocab - 1
        require(rows and min(sizes), 'an empty text has nothing to inspect; give one with tokens')
        require(max(sizes) <= n_ctx, f'a text has {max(sizes)} tokens; at most n_ctx, {n_ctx}, fit')
        require(all(0 <= id <= last for row in rows for id in row), f'token ids are from 0 to {last}')
        return np.array([row + [-1] * (max(sizes) - len(row)) for row in rows], np.int32)

    def run(self, texts, function, *args, patch=None):
        """function({name: tensor}, *args) of the activations of one pass, as arrays; 'tokens' are among them.

        texts: as for tokens. patch: {name: new values}: numbers that broadcast to its shape, with NaN for
        what stays; or a function of the tensor. The graph grows with each other function (of the patch, too)
        and arguments: give the same object again. Raises InputError."""
        tokens, patch, arrays = self.tokens(texts), {**(patch or {})}, []
        shapes = self.shapes(*tokens.shape) if patch else {}
        for name, value in patch.items():
            if name not in shapes:
                self.names([name])  # raises, unless it is a pattern
            require(name in shapes and name != 'logits', f'{name} cannot be patched; give the name of a hook')
            if not callable(value):
                arrays.append(self.check_patch(name, value, shapes[name]))
        changes = tuple((name, value if callable(value) else None) for name, value in patch.items())
        try:
            return self.callable(function, args, changes)(tokens, *arrays)
        except (ValueError, tf.errors.InvalidArgumentError) as error:
            require(not any(map(callable, patch.values())),
                    f'a function of the patch gives another shape or type ({str(error).splitlines()[0]})')
            raise

    def check_patch(self, name, value, expected):  # -> float32 array
        try:
            array = np.asarray(value, np.float32)
            np.broadcast_to(array, expected)
            return array
        except (ValueError, TypeError):
            raise InputError(f'the patch of {name} must be numbers that broadcast to shape {expected}, not '
                             f'{getattr(value, "shape", repr(value)[:60])}') from None

    def make_callable(self, function, args, changes):  # -> function of tokens and a patch's arrays
        placeholders, activations = self.forward(changes)
        with self.session.graph.as_default():
            return self.session.make_callable(function(activations, *args), placeholders)

    def build(self, changes):  # -> placeholders of tokens and of a patch's arrays, activations
        changes, activations = dict(changes), {}

        def hook(name, x):
            new = x
            if name in arrays:
                new = tf.where_v2(tf.is_nan(arrays[name]), x, tf.cast(arrays[name], x.dtype))
            elif name in changes:
                new = tf.broadcast_to(tf.cast(changes[name](x), x.dtype), tf.shape(x))
            # A new tensor, or the logits would not depend on scores and pattern.
            activations[name] = new = tf.identity(tf.ensure_shape(new, x.shape))
            return new
        with self.session.graph.as_default():
            tokens = tf.placeholder(tf.int32, [None, None])
            arrays = {name: tf.placeholder(tf.float32) for name, change in changes.items() if change is None}
            # A row of positions for each text, so that hook_pos_embed is [B, T, E].
            positions = tf.broadcast_to(tf.range(tf.shape(tokens)[1]), tf.shape(tokens))
            h, _ = model.transformer(self.hparams, self.weights, tf.maximum(tokens, 0), positions=positions,
                                     hook=hook)
            activations.update(tokens=tokens, logits=model.output(self.weights, h))
        return [tokens, *arrays.values()], activations


def trace(inspector, texts, names, patch=None):
    """{name: float32 array} of activations, after a patch; NaN at the positions of padding.

    texts: as for Inspector.tokens. names: as for Inspector.names. patch: as for Inspector.run."""
    tokens, names = inspector.tokens(texts), inspector.names(names)
    return nan_at_padding(tokens, inspector.run(tokens, read, tuple(names), patch=patch))


def read(activations, names):  # for run
    return {name: float32(activations[name]) for name in names}


def gradients(inspector, texts, metric, names, patch=None):
    """As trace, of the gradients of metric(logits): of tensors, float32 [B, T, n_vocab] -> a number, or one
    for each text. logits[:, -1] are those of padding in a shorter text."""
    tokens, names = inspector.tokens(texts), inspector.names(names)
    return nan_at_padding(tokens, inspector.run(tokens, differentiate, metric, tuple(names), patch=patch))


def differentiate(activations, metric, names):  # for run
    tensors = [activations[name] for name in names]
    values = tf.gradients(metric(float32(activations['logits'])), tensors, unconnected_gradients='zero')
    return dict(zip(names, map(float32, values), strict=True))


def nan_at_padding(tokens, arrays):  # {name: array} -> the same
    if (tokens < 0).any():
        for name, array in arrays.items():
            arrays[name] = array = np.array(array)
            by_position = array.swapaxes(1, 2) if name.endswith(('_scores', '_pattern')) else array  # a view
            by_position[tokens < 0] = np.nan
    return arrays
