"""GPT-2 as a TensorFlow graph: hyperparameters, the transformer, the loss.

The transformer is a function of its weights, a flat dict of tensors named as in a checkpoint ('h0/attn/c_attn/w'), so
that whoever calls it decides where they come from and when they are read: `model` takes them from variables, sampling
reads them once before its loop.

Dimensions: B batch, T positions of X, P past positions, S all positions attended to (P + T), L n_layer, E n_embd,
H n_head, D = E / H the size of a head, V n_vocab.
"""
import dataclasses
import json

import numpy as np
import tensorflow.compat.v1 as tf

from errors import InputError, require


@dataclasses.dataclass
class HParams:
    """Sizes of a model; the defaults are those of 124M."""
    n_vocab: int = 50257
    n_ctx: int = 1024
    n_embd: int = 768
    n_head: int = 12
    n_layer: int = 12

    def values(self):
        return dataclasses.asdict(self)

    def override_from_dict(self, values):
        """Sets fields from a dict. Raises InputError for an unknown field, or sizes that make no model."""
        for name, value in values.items():
            require(name in self.values(), f'unknown hyperparameter {name!r}; known are {", ".join(self.values())}')
            require(type(value) is int and value > 0, f'hyperparameter {name} must be a whole number above 0, '
                                                      f'not {value!r}')
            setattr(self, name, value)
        require(self.n_embd % self.n_head == 0, f'hyperparameter n_embd ({self.n_embd}) must be divisible by n_head '
                                                f'({self.n_head})')
        return self


def default_hparams():
    return HParams()


def load_hparams(path):
    """HParams of an hparams.json. Raises InputError if it is missing, malformed or incomplete."""
    try:
        with open(path, encoding='utf-8') as file:
            values = json.load(file)
    except FileNotFoundError:
        raise InputError(f'no {path}; a model directory has one: fetch or create the model again') from None
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path} is not JSON ({error}); fetch or create the model again') from None
    require(isinstance(values, dict), f'{path} must hold an object of sizes, not {type(values).__name__}')
    missing = sorted(HParams().values().keys() - values.keys())
    require(not missing, f'{path} lacks {", ".join(missing)}')
    try:
        return HParams().override_from_dict(values)
    except InputError as error:
        raise InputError(f'{path}: {error}') from None


# The weights

def weight_shapes(hparams):  # -> {name: shape}, in the order of the graph
    """Names and shapes of all weights, without the scope 'model/' that stands before them in a checkpoint."""
    E = hparams.n_embd
    shapes = {'wpe': [hparams.n_ctx, E], 'wte': [hparams.n_vocab, E]}
    for layer in range(hparams.n_layer):
        for name, n_in, n_out in (('ln_1', None, E), ('attn/c_attn', E, 3 * E), ('attn/c_proj', E, E),
                                  ('ln_2', None, E), ('mlp/c_fc', E, 4 * E), ('mlp/c_proj', 4 * E, E)):
            shapes[f'h{layer}/{name}/{"w" if n_in else "g"}'] = [1, n_in, n_out] if n_in else [n_out]
            shapes[f'h{layer}/{name}/b'] = [n_out]
    shapes.update({'ln_f/g': [E], 'ln_f/b': [E]})
    return shapes


def initializer(name, hparams):
    """The paper's initialization (section 2.3): projections into the residual stream are scaled by 1/sqrt(2 L)."""
    kind = name.rsplit('/', 1)[-1]
    if kind in ('g', 'b'):
        return tf.ones_initializer() if kind == 'g' else tf.zeros_initializer()
    if name == 'wpe':
        return tf.random_normal_initializer(stddev=0.01)
    residual = name.endswith('c_proj/w')
    return tf.random_normal_initializer(stddev=0.02 / np.sqrt(2 * hparams.n_layer) if residual else 0.02)


def weights(hparams, scope='model', reuse=tf.AUTO_REUSE):  # -> {name: tensor}
    """The weights' values, read once from float32 variables under `scope`, which are made where they do not exist."""
    with tf.variable_scope(scope, reuse=reuse):
        return {name: tf.get_variable(name, shape, initializer=initializer(name, hparams), use_resource=True)
                .read_value() for name, shape in weight_shapes(hparams).items()}


# The transformer

def shape_list(x):
    """The shape of x: numbers where they are known, scalar tensors where they are not."""
    dynamic = tf.shape(x)
    return [dynamic[i] if size is None else size for i, size in enumerate(x.shape.as_list())]


def gelu(x):
    """Gaussian error linear unit by its tanh approximation (Hendrycks & Gimpel 2016, section 2)."""
    return 0.5 * x * (1 + tf.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x * x * x)))


def norm(x, g, b, epsilon=1e-5):  # [..., E], [E], [E] -> [..., E]
    """Layer normalization (Ba et al. 2016) of the last axis."""
    mean = tf.reduce_mean(x, axis=-1, keepdims=True)
    centred = x - mean
    variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
    return centred * (tf.rsqrt(variance + epsilon) * g) + b


def conv1d(x, w, b):  # [B, T, n_in], [1, n_in, n_out], [n_out] -> [B, T, n_out]
    """A dense layer; a convolution of width 1 in name and shape of w, as the released checkpoints have it."""
    B, T, n_in = shape_list(x)
    n_out = w.shape[-1]
    return tf.reshape(tf.matmul(tf.reshape(x, [-1, n_in]), tf.reshape(w, [n_in, n_out])) + b, [B, T, n_out])


def split_heads(x, n_head):  # [B, T, E] -> [B, H, T, D]
    B, T, E = shape_list(x)
    return tf.transpose(tf.reshape(x, [B, T, n_head, E // n_head]), [0, 2, 1, 3])


def merge_heads(x):  # [B, H, T, D] -> [B, T, E]
    B, H, T, D = shape_list(x)
    return tf.reshape(tf.transpose(x, [0, 2, 1, 3]), [B, T, H * D])


def attend(q, k, v, n_past):  # [B, H, T, D], [B, H, S, D], [B, H, S, D], scalar -> [B, H, T, D]
    """Scaled dot-product attention; query i, at position n_past + i, sees the keys up to its own position."""
    T, S = shape_list(q)[2], shape_list(k)[2]
    scores = tf.matmul(q, k, transpose_b=True) * (1 / np.sqrt(q.shape.as_list()[-1]))
    visible = tf.range(S)[None, :] <= n_past + tf.range(T)[:, None]  # [T, S]
    scores = tf.where_v2(visible, tf.cast(scores, tf.float32), tf.float32.min)
    return tf.matmul(tf.cast(tf.nn.softmax(scores), v.dtype), v)


def write_at(buffer, new, position):  # [B, H, S, D], [B, H, T, D], scalar -> [B, H, S, D]
    """The buffer with `new` at position, position + 1, ... of axis 2; in place where nothing else holds the buffer."""
    B, H, S, D = shape_list(buffer)
    T = shape_list(new)[2]
    rows = tf.range(B * H)[:, None] * S + position + tf.range(T)  # [B H, T], into [B H S, D]
    flat = tf.tensor_scatter_nd_update(tf.reshape(buffer, [-1, D]), tf.reshape(rows, [-1, 1]), tf.reshape(new, [-1, D]))
    return tf.reshape(flat, [B, H, S, D])


def attention(x, weight, n_head, past=None, n_filled=None):
    """Masked multi-head self-attention.

    x: [B, T, E]. weight: a function from 'attn/c_attn/w' and its like to a tensor.
    past: keys and values of earlier positions, a pair of [B, H, P, D], or None.
    n_filled: None where all of past counts; else past is a pair of buffers [B, H, S, D] of which the first n_filled
        (scalar) positions are filled and the next T are for x.
    Returns [B, T, E] and a pair: keys and values of x alone, or with n_filled the buffers with those of x put in.
    """
    qkv = conv1d(x, weight('attn/c_attn/w'), weight('attn/c_attn/b'))
    q, k, v = (split_heads(each, n_head) for each in tf.split(qkv, 3, axis=-1))
    present = k, v
    n_past = 0
    if n_filled is not None:
        n_past = n_filled
        present = k, v = write_at(past[0], k, n_filled), write_at(past[1], v, n_filled)
    elif past is not None:
        n_past = shape_list(past[0])[2]
        k, v = tf.concat([past[0], k], axis=2), tf.concat([past[1], v], axis=2)
    return conv1d(merge_heads(attend(q, k, v, n_past)), weight('attn/c_proj/w'), weight('attn/c_proj/b')), present


def block(x, weight, n_head, past=None, n_filled=None):  # arguments and results as of attention
    """One layer: attention and a two-layer perceptron, each on normalized input and added to the residual stream."""
    a, present = attention(norm(x, weight('ln_1/g'), weight('ln_1/b')), weight, n_head, past, n_filled)
    x = x + a
    hidden = gelu(conv1d(norm(x, weight('ln_2/g'), weight('ln_2/b')), weight('mlp/c_fc/w'), weight('mlp/c_fc/b')))
    return x + conv1d(hidden, weight('mlp/c_proj/w'), weight('mlp/c_proj/b')), present


def transformer(hparams, w, X, past=None, n_filled=None):
    """From tokens to the last hidden state.

    w: {name: tensor}. X: int32 [B, T]. past, n_filled: None, or as in attention, past being a list of L pairs.
    Returns [B, T, E] and the list of L pairs that attention returns. The input of every layer is added to the graph's
    collection 'checkpoints', for memory_saving_gradients.
    """
    first = n_filled if n_filled is not None else shape_list(past[0][0])[2] if past else 0
    h = tf.gather(w['wte'], X) + tf.gather(w['wpe'], first + tf.range(shape_list(X)[1]))
    presents = []
    for layer in range(hparams.n_layer):
        tf.add_to_collection('checkpoints', h)
        h, present = block(h, lambda name, layer=layer: w[f'h{layer}/{name}'], hparams.n_head,
                           past[layer] if past else None, n_filled)
        presents.append(present)
    return norm(h, w['ln_f/g'], w['ln_f/b']), presents


def output(w, h):  # [..., E] -> [..., V]
    """Logits, by the token embedding transposed."""
    *rows, E = shape_list(h)
    return tf.reshape(tf.matmul(tf.reshape(h, [-1, E]), w['wte'], transpose_b=True), [*rows, w['wte'].shape[0]])


def past_shape(*, hparams, batch_size=None, sequence=None):
    """The shape of model's `past` and `present`: [B, L, 2, H, P, D]."""
    return [batch_size, hparams.n_layer, 2, hparams.n_head, sequence, hparams.n_embd // hparams.n_head]


def model(hparams, X, past=None, scope='model', reuse=tf.AUTO_REUSE):
    """The language model's graph.

    X: int32 [B, T], tokens. past: None, or what earlier calls returned as 'present', [B, L, 2, H, P, D], joined along
    axis 4. Returns {'logits': [B, T, V], 'present': [B, L, 2, H, T, D]}, the keys and values of X. Raises InputError
    if P + T is known and exceeds n_ctx.
    """
    with tf.name_scope(scope):
        T = X.shape.with_rank(2)[1] or 0
        if past is not None:
            T += past.shape.with_rank(6)[4] or 0
            past = [tf.unstack(layer, axis=1) for layer in tf.unstack(past, axis=1)]
        require(T <= hparams.n_ctx, f'{T} positions are more than n_ctx, {hparams.n_ctx}; shorten the input')
        w = weights(hparams, scope, reuse)
        h, presents = transformer(hparams, w, X, past)
        present = tf.stack([tf.stack(pair, axis=1) for pair in presents], axis=1)
        return {'logits': output(w, h), 'present': present}


# The loss

def loss(logits, X):  # [B, T, V], int32 [B, T] -> scalar, scalar
    """Cross-entropy of each token given those before it: the sum in nats, and the number of tokens predicted.

    A negative number in place of a token pads the row and is not predicted. The one result divided by the other is
    the loss per token.
    """
    labels = X[:, 1:]
    real = tf.cast(labels >= 0, tf.float32)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.maximum(labels, 0),
                                                            logits=tf.cast(logits[:, :-1], tf.float32))
    return tf.reduce_sum(losses * real), tf.reduce_sum(real)
