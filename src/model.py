"""GPT-2 as a TensorFlow graph: the transformer and the loss.

Weights are a dict of tensors named as in a checkpoint ('h0/attn/c_attn/w'). src/fast makes it quick.

B batch, T positions of X, P past positions, S = P + T, L n_layer, E n_embd, H n_head, D = E / H the size of a
head, V n_vocab.
"""
import os

import numpy as np
import tensorflow.compat.v1 as tf

from errors import InputError
from fast.blocks import in_query_blocks
from fast.gradients import cross_entropy_gradient, softmax_gradient
from fast.kernels import fused
from fast.quantized import lookup, matmul
from hparams import HParams, default_hparams  # noqa: F401  where the original has it


def shape_list(x):
    """The shape of x: numbers where they are known, scalar tensors where they are not."""
    dynamic = tf.shape(x)
    return [dynamic[i] if size is None else size for i, size in enumerate(x.shape.as_list())]


@fused
def gelu(x):
    """Gaussian error linear unit by its tanh approximation (Hendrycks & Gimpel 2016, section 2)."""
    dtype, x = x.dtype, tf.cast(x, tf.float32)
    return tf.cast(0.5 * x * (1 + tf.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x * x * x))), dtype)


@fused
def norm(x, g, b, epsilon=1e-5):  # [..., E], [E], [E] -> [..., E]
    """Layer normalization (Ba et al. 2016) of the last axis."""
    centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
    variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
    return centred * (tf.rsqrt(variance + epsilon) * g) + b


def split_heads(x, n_head):  # [B, T, E] -> [B, H, T, D]
    B, T, E = shape_list(x)
    return tf.transpose(tf.reshape(x, [B, T, n_head, E // n_head]), [0, 2, 1, 3])


def merge_heads(x):  # [B, H, T, D] -> [B, T, E]
    B, H, T, D = shape_list(x)
    return tf.reshape(tf.transpose(x, [0, 2, 1, 3]), [B, T, H * D])


def conv1d(x, w, b):  # [B, T, n_in], [1, n_in, n_out], [n_out] -> [B, T, n_out]
    """A dense layer; w has the shape of a convolution of width 1, as the released checkpoints have it."""
    B, T, n_in = shape_list(x)
    n_out = b.shape[0]
    if tf.is_tensor(w):
        w = tf.reshape(w, [n_in, n_out])
    return tf.reshape(matmul(tf.reshape(x, [-1, n_in]), w) + b, [B, T, n_out])


def attention_mask(T, S):  # -> bool [T, S]
    """The keys that each query sees: those up to its own position. The last query is at the last key."""
    return tf.range(S) <= S - T + tf.range(T)[:, None]


@fused(gradient=softmax_gradient)
def masked_softmax(scores, mask):  # [B, H, T, S], bool [T, S] or [B, 1, T, S] -> [B, H, T, S]
    scores, dtype = tf.cast(scores, tf.float32), scores.dtype
    return tf.cast(tf.nn.softmax(tf.where_v2(mask, scores, tf.float32.min)), dtype)


@in_query_blocks
def causal_attention(q, k, v):  # [B, H, T, D], [B, H, S, D], [B, H, S, D] -> [B, H, T, D]
    scores = tf.matmul(q, k, transpose_b=True)
    T, S = shape_list(scores)[2:]
    return tf.matmul(masked_softmax(scores, attention_mask(T, S)), v)


def attention_with_past(q, k, v, past, mask):  # as causal_attention; a pair of [B, H, P, D]; see transformer
    """Attention to past and own keys side by side: joining them would copy the past for each new token."""
    past_k, past_v = past
    P = shape_list(past_k)[2]
    scores = [tf.matmul(q, keys, transpose_b=True) for keys in (past_k, k)]
    p = masked_softmax(tf.concat(scores, axis=-1), mask)
    return tf.matmul(p[..., :P], past_v) + tf.matmul(p[..., P:], v)


def attn(x, w, n_head, past, mask):  # arguments and results as of block
    """Scaled dot-product attention of n_head heads (Vaswani et al. 2017, section 3.2)."""
    qkv = conv1d(x, w['attn/c_attn/w'], w['attn/c_attn/b'])
    q, k, v = (split_heads(part, n_head) for part in tf.split(qkv, 3, axis=-1))
    q = q * tf.cast(1 / np.sqrt(q.shape.as_list()[-1]), q.dtype)
    a = causal_attention(q, k, v) if past is None else attention_with_past(q, k, v, past, mask)
    return conv1d(merge_heads(a), w['attn/c_proj/w'], w['attn/c_proj/b']), (k, v)


def mlp(x, w):  # [B, T, E] -> [B, T, E]
    h = gelu(conv1d(x, w['mlp/c_fc/w'], w['mlp/c_fc/b']))
    return conv1d(h, w['mlp/c_proj/w'], w['mlp/c_proj/b'])


def block(x, w, n_head, past, mask):
    """One layer: attention and a perceptron, each on normalized input and added to the residual stream.

    x: [B, T, E]. w: {name: tensor}, 'h0/' left out. past: keys and values, a pair of [B, H, P, D], or None.
    Returns [B, T, E], and the keys and values of x, a pair of [B, H, T, D].
    """
    a, present = attn(norm(x, w['ln_1/g'], w['ln_1/b']), w, n_head, past, mask)
    x = x + tf.cast(a, x.dtype)
    return x + tf.cast(mlp(norm(x, w['ln_2/g'], w['ln_2/b']), w), x.dtype), present


def blocks(x, layers, n_head, pasts, mask):  # -> [B, T, E], a list of presents
    """Layers one after another; layers and pasts: for each, block's w and past."""
    presents = []
    for w, past in zip(layers, pasts, strict=True):
        tf.add_to_collection('checkpoints', x)  # for memory_saving_gradients
        x, present = block(x, w, n_head, past, mask)
        presents.append(present)
    return x, presents


def past_shape(*, hparams: HParams, batch_size: int | None = None, sequence: int | None = None):
    """The shape of model's `past` and `present`: [B, L, 2, H, P, D]."""
    return [batch_size, hparams.n_layer, 2, hparams.n_head, sequence, hparams.n_embd // hparams.n_head]


def of_scope(w, scope):  # the weights of a scope, without its name
    return {name.removeprefix(scope): value for name, value in w.items() if name.startswith(scope)}


def transformer(hparams, w, X, past=None, positions=None, mask=None, layers=blocks):
    """From tokens to the last hidden state.

    w: {name: tensor or QuantizedMatrix}. X: int32 [B, T]. past: None, or keys and values, L pairs of
    [B, H, P, D]. positions: of X, int32 [T] or [B, T]; None for those after the past. mask: the keys that each
    token sees if there is a past, bool [T, S] or [B, 1, T, S]; None for all up to its own. layers: `blocks`, or
    a faster function. Returns [B, T, E], and the keys and values of X, L pairs of [B, H, T, D].
    """
    P, T = shape_list(past[0][0])[2] if past else 0, shape_list(X)[1]
    positions = P + tf.range(T) if positions is None else positions
    mask = attention_mask(T, P + T) if past and mask is None else mask
    h = lookup(w['wte'], X) + tf.gather(w['wpe'], positions)
    of_layers = [of_scope(w, f'h{layer}/') for layer in range(hparams.n_layer)]
    h, presents = layers(h, of_layers, hparams.n_head, past or [None] * hparams.n_layer, mask)
    return norm(h, w['ln_f/g'], w['ln_f/b']), presents


def output(w, h):  # {name: tensor}, [..., E] -> [..., V]
    """Logits, by the token embedding transposed (by 'output', if there is one: quantized.with_precision)."""
    *rows, E = shape_list(h)
    logits = matmul(tf.reshape(h, [-1, E]), w.get('output', w['wte']), transposed=True)
    return tf.reshape(logits, [*rows, logits.shape[-1]])


def model(hparams, X, past=None, scope='model', reuse=tf.AUTO_REUSE):
    """The language model's graph.

    X: int32 [B, T]. past: None, or the 'present' of earlier calls, joined along axis 4. Returns 'logits',
    [B, T, V], and 'present', [B, L, 2, H, T, D]. Raises InputError if P + T is known and exceeds n_ctx.
    """
    with tf.name_scope(scope):
        T = X.shape.with_rank(2)[1] or 0
        if past is not None:
            T += past.shape.with_rank(6)[4] or 0
            past = [tf.unstack(layer, axis=1) for layer in tf.unstack(past, axis=1)]
        if T > hparams.n_ctx:
            raise InputError(f'{T} positions are more than n_ctx, {hparams.n_ctx}; shorten the input')
        w = weights(hparams, scope, reuse)
        h, presents = transformer(hparams, w, X, past)
        present = tf.stack([tf.stack(pair, axis=1) for pair in presents], axis=1)
        return {'logits': output(w, h), 'present': present}


def weight_shapes(hparams: HParams) -> dict[str, list[int]]:
    """Names and shapes of all weights, in the graph's order; in a checkpoint 'model/' precedes each name."""
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
    """As in the paper, section 2.3: projections into the residual stream are scaled by 1/sqrt(2 L)."""
    if name.endswith(('/g', '/b')):
        return tf.ones_initializer() if name.endswith('/g') else tf.zeros_initializer()
    seed = None
    if 'TF_DETERMINISTIC_OPS' in os.environ and tf.get_default_graph().seed is None:
        seed = int.from_bytes(os.urandom(4), 'little')  # TensorFlow then refuses operations without a seed
    scale = 1 / np.sqrt(2 * hparams.n_layer) if name.endswith('c_proj/w') else 1
    stddev = 0.01 if name == 'wpe' else 0.02 * scale
    return tf.random_normal_initializer(stddev=stddev, seed=seed)


def weights(hparams, scope='model', reuse=tf.AUTO_REUSE):  # -> {name: tensor}
    """The values of float32 variables under `scope`, which are made where they do not exist; read once."""
    with tf.variable_scope(scope, reuse=reuse):
        return {name: tf.get_variable(name, shape, initializer=initializer(name, hparams), use_resource=True)
                .read_value() for name, shape in weight_shapes(hparams).items()}


def loss(logits, X):  # [B, T, V], int32 [B, T] -> scalar, scalar
    """The sum of the tokens' cross-entropies, in nats, and their number; a token below 0 is padding."""
    # The last position's logits are not cut off, which would copy the others, but have no label.
    labels = tf.reshape(tf.pad(X[:, 1:], [[0, 0], [0, 1]], constant_values=-1), [-1])
    losses = cross_entropy(tf.reshape(logits, [-1, logits.shape[-1]]), labels)
    return tf.reduce_sum(losses), tf.reduce_sum(tf.cast(labels >= 0, tf.float32))


@fused(gradient=cross_entropy_gradient)
def cross_entropy(logits, labels):  # [N, V], int32 [N] -> float32 [N]
    """In nats; 0 if the label is negative."""
    logits, known = tf.cast(logits, tf.float32), tf.maximum(labels, 0)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=known, logits=logits)
    return tf.where_v2(labels >= 0, losses, 0.0)
