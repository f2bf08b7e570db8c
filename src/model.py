"""GPT-2 as a TensorFlow graph: the transformer and the loss.

The transformer is a function of its weights, a flat dict of tensors named as in a checkpoint ('h0/attn/c_attn/w'), so
that whoever calls it decides where they come from and when they are read: `model` takes them from variables, sampling
reads them once before its loop.

Dimensions: B batch, T positions of X, P past positions, S all positions attended to (P + T), L n_layer, E n_embd,
H n_head, D = E / H the size of a head, V n_vocab.
"""
import os
import typing

import numpy as np
import tensorflow.compat.v1 as tf

from errors import require
from fast.kernels import fused, in_kernel, kernel, materialized, optimization_barrier
from hparams import HParams, default_hparams  # noqa: F401  where the original has it

ATTENTION_BLOCK = 256
LAYERS_IN_KERNEL = 4


def set_precision(precision):  # a name of flags.PRECISIONS or 'int8' -> the type of matrix products
    """On GPUs TensorFlow computes products of float32 in TF32 (10 bits of mantissa) unless it is told not to; here TF32
    must be asked for. The switch is the whole process's, and counts from now on."""
    tf.config.experimental.enable_tensor_float_32_execution(precision == 'tf32')
    return tf.as_dtype('float32' if precision == 'tf32' else precision)


# The weights

def weight_shapes(hparams: HParams) -> dict[str, list[int]]:
    """Names and shapes of all weights, in the order of the graph, without the scope 'model/' that stands before them in
    a checkpoint."""
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
    seed = None
    if 'TF_DETERMINISTIC_OPS' in os.environ and tf.get_default_graph().seed is None:
        seed = int.from_bytes(os.urandom(4), 'little')  # then none may lack one, though the weights will be loaded
    residual = name.endswith('c_proj/w')
    stddev = 0.01 if name == 'wpe' else 0.02 / np.sqrt(2 * hparams.n_layer) if residual else 0.02
    return tf.random_normal_initializer(stddev=stddev, seed=seed)


def weights(hparams, scope='model', reuse=tf.AUTO_REUSE):  # -> {name: tensor}
    """The weights' values, read once from float32 variables under `scope`, which are made where they do not exist."""
    with tf.variable_scope(scope, reuse=reuse):
        return {name: tf.get_variable(name, shape, initializer=initializer(name, hparams), use_resource=True)
                .read_value() for name, shape in weight_shapes(hparams).items()}


def with_precision(w, dtype):  # {name: tensor} -> {name: tensor}
    """The weights as the transformer computes with them: those of matrix products in dtype, the others as they are.

    'output', the matrix of the output layer, is added: the token embedding, which is also looked up in float32.
    """
    products = {name: tf.cast(value, dtype) for name, value in w.items() if '/attn/' in name or '/mlp/' in name}
    return {**w, **products, 'output': tf.cast(w['wte'], dtype)}


class QuantizedMatrix(typing.NamedTuple):
    """A matrix as sampling reads it fastest, output by output: bfloat16 or int8 [n_out, n_in], and with int8 what each
    output is to be multiplied by, float32 [n_out], or None."""
    values: tf.Tensor
    scale: tf.Tensor | None


def quantize(name, value, dtype):  # a weight by its name -> Packed where it is a matrix; else as it is
    """int8: each output's weights in 255 steps, up to the one that is largest in size (Jacob et al. 2018, "Quantization
    and training of neural networks for efficient integer-arithmetic-only inference", section 3, with zero at 0)."""
    if not name.endswith(('/w', 'wte')):
        return value
    matrix = value if name == 'wte' else tf.transpose(value[0])
    if dtype != tf.int8:
        return QuantizedMatrix(tf.cast(matrix, dtype), None)
    largest = tf.reduce_max(tf.abs(matrix), axis=1)
    scale = tf.where_v2(largest > 0, largest / 127, 1.0)
    return QuantizedMatrix(tf.cast(tf.round(matrix / scale[:, None]), tf.int8), scale)


# The transformer

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
    mean = tf.reduce_mean(x, axis=-1, keepdims=True)
    centred = x - mean
    variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
    return centred * (tf.rsqrt(variance + epsilon) * g) + b


def matmul(x, w, transposed=False):  # [N, n_in], [n_in, n_out] or (transposed) [n_out, n_in] or Packed -> [N, n_out]
    if not isinstance(w, QuantizedMatrix):
        return optimization_barrier(tf.matmul(optimization_barrier(tf.cast(x, w.dtype)), w, transpose_b=transposed))
    x = tf.cast(x, tf.bfloat16)  # wherever it is computed: activations in bfloat16, sums in float32
    if not in_kernel():
        result = tf.cast(tf.matmul(x, tf.cast(w.values, tf.bfloat16), transpose_b=True), tf.float32)
    elif x.shape[0] == 1:  # compiled into a loop that reads the values as they are stored
        result = optimization_barrier(tf.matmul(materialized(tf.cast(x, tf.float32)), tf.cast(w.values, tf.float32),
                                 transpose_b=True))
    elif w.scale is None:
        result = optimization_barrier(tf.matmul(optimization_barrier(x), w.values, transpose_b=True, output_type=tf.float32))
    else:
        result = int8_matmul(tf.cast(x, tf.float32), w.values)
    return result if w.scale is None else result * w.scale


def int8_matmul(x, values):  # float32 [N, n_in], int8 [n_out, n_in] -> float32 [N, n_out]
    """x in 2 · 127² steps up to each row's largest, as two numbers of int8: what int8 by int8 can be added up to in
    int32, exactly and at the processor's full speed, without the loss of one int8 for an activation."""
    largest = tf.reduce_max(tf.abs(x), axis=-1, keepdims=True)
    step = tf.where_v2(largest > 0, largest / 127 ** 2, 1.0)
    whole = tf.round(x / step)
    high = tf.round(whole / 127)
    parts = optimization_barrier(tf.cast(tf.concat([high, whole - 127 * high], axis=0), tf.int8))
    sums = optimization_barrier(tf.matmul(parts, values, transpose_b=True, output_type=tf.int32))
    high, low = tf.unstack(tf.reshape(tf.cast(sums, tf.float32), [2, x.shape[0], values.shape[0]]))
    return (127 * high + low) * step


def conv1d(x, w, b):  # [B, T, n_in], [1, n_in, n_out] or Packed, [n_out] -> [B, T, n_out]
    """A dense layer; a convolution of width 1 in name and shape of w, as the released checkpoints have it."""
    B, T, n_in = shape_list(x)
    n_out = b.shape[0]
    w = w if isinstance(w, QuantizedMatrix) else tf.reshape(w, [n_in, n_out])
    return tf.reshape(matmul(tf.reshape(x, [-1, n_in]), w) + b, [B, T, n_out])


def split_heads(x, n_head):  # [B, T, E] -> [B, H, T, D]
    B, T, E = shape_list(x)
    return tf.transpose(tf.reshape(x, [B, T, n_head, E // n_head]), [0, 2, 1, 3])


def merge_heads(x):  # [B, H, T, D] -> [B, T, E]
    B, H, T, D = shape_list(x)
    return tf.reshape(tf.transpose(x, [0, 2, 1, 3]), [B, T, H * D])


def softmax_gradient(dp, p):  # [..., S], [..., S] -> [..., S]
    """The gradient with respect to a softmax's argument, from that with respect to its result, and the result."""
    dtype, p, dp = p.dtype, tf.cast(p, tf.float32), tf.cast(dp, tf.float32)
    return tf.cast(p * (dp - tf.reduce_sum(p * dp, axis=-1, keepdims=True)), dtype)


@fused(gradient=softmax_gradient)
def causal_softmax(scores):  # [B, H, T, S] -> [B, H, T, S]
    """Softmax over the keys up to each query's own position; the last query is at the position of the last key."""
    T, S = shape_list(scores)[2:]
    return masked_softmax(scores, tf.range(S) <= S - T + tf.range(T)[:, None])


def masked_softmax(scores, visible):  # [B, H, T, S], bool [T, S] or [B, 1, T, S] -> [B, H, T, S]
    return tf.cast(tf.nn.softmax(tf.where_v2(visible, tf.cast(scores, tf.float32), tf.float32.min)), scores.dtype)


def attend_with_past(q, k, v, past, n_past, start):  # [B, H, T, D] three times, ... -> [B, H, T, D]
    """As attend, with n_past positions before those of q, k and v. See transformer for past and start."""
    T, P = shape_list(q)[2], shape_list(past[0])[2]
    own = n_past + tf.range(T)
    earlier = tf.range(P)
    # The rest of a buffer is taken for a position that comes after all queries.
    positions = tf.concat([tf.where_v2(earlier < n_past, earlier, n_past + T), own], axis=0)
    visible = positions <= own[:, None]  # [T, S]
    if start is not None:
        visible = visible & (positions >= start[:, None, None, None])  # [B, 1, T, S]
    scores = tf.concat([tf.matmul(q, each, transpose_b=True) for each in (past[0], k)], axis=-1)
    p = masked_softmax(scores, visible)
    return tf.matmul(p[..., :P], past[1]) + tf.matmul(p[..., P:], v)


def attend(q, k, v):  # [B, H, T, D] three times -> [B, H, T, D]
    """Scaled dot-product attention; each query sees the keys up to its own position."""
    if not q.shape[2]:
        return tf.matmul(causal_softmax(tf.matmul(q, k, transpose_b=True)), v)
    # A block of queries at a time, so that the keys that none of them sees cost nothing.
    results = []
    for start in range(0, q.shape[2], ATTENTION_BLOCK):
        end = min(start + ATTENTION_BLOCK, q.shape[2])
        # tf.slice, since the gradient of q[:, :, start:end] is slow.
        block, keys, values = (tf.slice(x, [0, 0, first, 0], [-1, -1, end - first, -1])
                               for x, first in ((q, start), (k, 0), (v, 0)))
        results.append(tf.matmul(causal_softmax(tf.matmul(block, keys, transpose_b=True)), values))
    return tf.concat(results, axis=2)


def attention(x, w, n_head, past=None, n_past=None, start=None):
    """Masked multi-head self-attention.

    x: [B, T, E]. w: {name: tensor}, the names as 'attn/c_attn/w'.
    past: keys and values of earlier positions, a pair of [B, H, P, D], or None; n_past, start: see transformer.
    Returns [B, T, E] and the keys and values of x, a pair of [B, H, T, D].
    """
    qkv = conv1d(x, w['attn/c_attn/w'], w['attn/c_attn/b'])
    q, k, v = (split_heads(each, n_head) for each in tf.split(qkv, 3, axis=-1))
    q = q * tf.cast(1 / np.sqrt(q.shape.as_list()[-1]), q.dtype)
    a = attend(q, k, v) if past is None else attend_with_past(q, k, v, past, n_past, start)
    return conv1d(merge_heads(a), w['attn/c_proj/w'], w['attn/c_proj/b']), (k, v)


def block(x, w, n_head, past=None, n_past=None, start=None):  # arguments and results as of attention
    """One layer: attention and a two-layer perceptron, each on normalized input and added to the residual stream."""
    a, present = attention(norm(x, w['ln_1/g'], w['ln_1/b']), w, n_head, past, n_past, start)
    x = x + tf.cast(a, x.dtype)
    hidden = gelu(conv1d(norm(x, w['ln_2/g'], w['ln_2/b']), w['mlp/c_fc/w'], w['mlp/c_fc/b']))
    return x + tf.cast(conv1d(hidden, w['mlp/c_proj/w'], w['mlp/c_proj/b']), x.dtype), present


def blocks(x, layers, n_head, pasts, n_past, start):  # -> [B, T, E], a list of presents
    """Layers one after another; layers and pasts: what block takes as w and past, for each."""
    presents = []
    for w, past in zip(layers, pasts, strict=True):
        tf.add_to_collection('checkpoints', x)
        x, present = block(x, w, n_head, past, n_past, start)
        presents.append(present)
    return x, presents


@kernel
def blocks_kernel(*arguments):
    return blocks(*arguments)


def decode_blocks(x, layers, n_head, pasts, n_past, start):  # as blocks
    """The same by kernels of LAYERS_IN_KERNEL layers, which are alike and so compiled once. A larger kernel is faster
    (each costs 0.3 ms to start), but takes longer to compile."""
    # Without their axis of 1: a product by what is reshaped in the kernel is slow there.
    layers = [{name: tf.squeeze(value, 0) if name.endswith('/w') and not isinstance(value, QuantizedMatrix) else value
               for name, value in w.items()} for w in layers]
    presents = []
    for first in range(0, len(layers), LAYERS_IN_KERNEL):
        some = slice(first, first + LAYERS_IN_KERNEL)
        x, more = blocks_kernel(x, layers[some], n_head, pasts[some], n_past, start)
        presents += more
    return x, presents


def embedding(w, X, positions):  # int32 [B, T], int32 [T] or [B, T] -> [B, T, E]
    wte = w['wte']
    if not isinstance(wte, QuantizedMatrix):
        return tf.gather(wte, X) + tf.gather(w['wpe'], positions)
    scale = 1.0 if wte.scale is None else tf.gather(wte.scale, X)[..., None]
    return tf.cast(tf.gather(wte.values, X), tf.float32) * scale + tf.gather(w['wpe'], positions)


def transformer(hparams, w, X, past=None, n_past=None, start=None):
    """From tokens to the last hidden state.

    w: {name: tensor, or Packed}. X: int32 [B, T].
    past: keys and values of earlier positions, a list of L pairs of [B, H, P, D], or None.
    n_past: how many of the P are filled, a scalar; None for all of them.
    start: int32 [B], or None. The position at which each row begins, rows of different lengths being padded at their
        left; nothing is seen of what is before it, and the position embeddings are counted from it. With past only.
    Returns [B, T, E] and the list of L pairs of keys and values of X, [B, H, T, D]. The input of every layer is added
    to the graph's collection 'checkpoints', for memory_saving_gradients.
    """
    T = shape_list(X)[1]
    one_step = n_past is not None and X.shape[1] == 1
    if past and n_past is None:
        n_past = shape_list(past[0][0])[2]
    positions = (n_past if past else 0) + tf.range(T)
    if start is not None:
        positions = tf.maximum(positions - start[:, None], 0)
    layers = [{name.removeprefix(f'h{layer}/'): value for name, value in w.items() if name.startswith(f'h{layer}/')}
              for layer in range(hparams.n_layer)]
    h, presents = (decode_blocks if one_step else blocks)(embedding(w, X, positions), layers, hparams.n_head,
                                                          past or [None] * hparams.n_layer, n_past, start)
    return norm(h, w['ln_f/g'], w['ln_f/b']), presents


def output(w, h):  # [..., E] -> [..., V]
    """Logits, by the token embedding transposed."""
    *rows, E = shape_list(h)
    logits = matmul(tf.reshape(h, [-1, E]), w.get('output', w['wte']), transposed=True)
    return tf.reshape(logits, [*rows, logits.shape[-1]])


@kernel
def output_kernel(w, h):
    return output(w, h)


def next_logits(w, h):  # [B, T, E] -> [B, V]
    """Those of the last position."""
    return output_kernel({'wte': w.get('output', w['wte'])}, h[:, -1])


def past_shape(*, hparams: HParams, batch_size: int | None = None, sequence: int | None = None) -> list[int | None]:
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
    # The last position's logits are not cut off but left without a label: no copy of the rest is made.
    labels = tf.reshape(tf.pad(X[:, 1:], [[0, 0], [0, 1]], constant_values=-1), [-1])
    losses = cross_entropy(tf.reshape(logits, [-1, logits.shape[-1]]), labels)
    return tf.reduce_sum(losses), tf.reduce_sum(tf.cast(labels >= 0, tf.float32))


def cross_entropy_gradient(upstream, losses, logits, labels):  # [N], [N], [N, V], [N] -> [N, V]
    """Of the logits: probability minus 1 for the label, minus 0 for the others. One pass, without sums or copies."""
    x, label = tf.cast(logits, tf.float32), tf.maximum(labels, 0)
    log_sum = losses + tf.gather(x, label, batch_dims=1)  # what the exponentials of the logits add up to
    gradients = tf.exp(x - log_sum[:, None]) - tf.one_hot(label, logits.shape[-1])
    return tf.cast(tf.where_v2(labels[:, None] >= 0, gradients * upstream[:, None], 0.0), logits.dtype)


@fused(gradient=cross_entropy_gradient)
def cross_entropy(logits, labels):  # [N, V], int32 [N] -> float32 [N]
    """In nats; 0 where the label is negative."""
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.maximum(labels, 0),
                                                            logits=tf.cast(logits, tf.float32))
    return tf.where_v2(labels >= 0, losses, 0.0)
