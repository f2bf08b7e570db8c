"""GPT-2 as a graph. w: {name in a checkpoint: tensor}, of the model or a layer.

B batch, T tokens, P past positions, S = P + T, L n_layer, E n_embd, H n_head, D = E / H, V n_vocab.
past: a layer's keys and values, [B, H, P, D] each; present: the same, with T for P.
hook(name, activation) -> what is used in its place (docs/inspection.md).
"""
import secrets

import numpy as np
import tensorflow.compat.v1 as tf

from errors import require
from fast.kernels import cross_entropy_grad, float32, fused, in_blocks, softmax_grad
from fast.quantized import lookup, matmul
from hparams import HParams, default_hparams  # noqa: F401  as in the original


def shape_list(x):  # -> numbers, or scalar tensors where unknown
    dynamic = tf.shape(x)
    return [dynamic[i] if size is None else size for i, size in enumerate(x.shape.as_list())]


def unhooked(name, x):  # the default hook, for which the fast operations are built
    return x


def layer_hook(hook, i):  # -> hook, with the names of layer i
    return hook if hook is unhooked else lambda name, x: hook(f'blocks.{i}.{name}', x)


@fused
def gelu(x):  # [...] -> [...], by tanh (Hendrycks & Gimpel 2016, section 2)
    dtype, x = x.dtype, float32(x)
    return tf.cast(0.5 * x * (1 + tf.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x * x * x))), dtype)


@fused
def norm(x, g, b):  # [..., E], [E], [E] -> [..., E]: layer normalization (Ba et al. 2016)
    centred = x - tf.reduce_mean(x, -1, keepdims=True)
    variance = tf.reduce_mean(tf.square(centred), -1, keepdims=True)
    return centred * (tf.rsqrt(variance + 1e-5) * g) + b


def hooked_norm(x, w, scope, name, hook):  # as norm; hook sees it before gain and bias
    g, b = w[f'{scope}/g'], w[f'{scope}/b']
    if hook is unhooked:
        return norm(x, g, b)
    return hook(name, norm(x, tf.ones_like(g), tf.zeros_like(b))) * g + b


def split_states(x, n_head):  # [B, T, E] -> [B, T, H, D]
    B, T, E = shape_list(x)
    return tf.reshape(x, [B, T, n_head, E // n_head])


def merge_states(x):  # [B, T, H, D] -> [B, T, E]
    B, T, H, D = shape_list(x)
    return tf.reshape(x, [B, T, H * D])


def conv1d(x, w, scope):  # [B, T, n_in] -> [B, T, n_out]
    B, T, n_in = shape_list(x)
    x = tf.reshape(x, [-1, n_in])
    h = matmul(x, w[f'{scope}/w']) + w[f'{scope}/b']
    if f'{scope}/lora_a' in w:  # Hu et al. 2021, section 4.1; lora_b is scaled already
        h += matmul(matmul(x, w[f'{scope}/lora_a']), w[f'{scope}/lora_b'])
    return tf.reshape(h, [B, T, h.shape[-1]])


def causal_mask(T, S):  # -> bool [T, S]; the last query sees all keys
    return tf.range(S) <= S - T + tf.range(T)[:, None]


@fused(gradient=softmax_grad)
def masked_softmax(scores, mask):  # [B, H, T, S], bool -> [B, H, T, S]
    return tf.cast(tf.nn.softmax(tf.where_v2(mask, float32(scores), tf.float32.min)), scores.dtype)


@fused(gradient=softmax_grad)
def causal_softmax(scores):  # [B, H, T, S] -> [B, H, T, S]
    return masked_softmax(scores, causal_mask(*shape_list(scores)[2:]))


def causal_attention(q, k, v):  # [B, H, T, D], two of [B, H, S, D] -> [B, H, T, D]
    return tf.matmul(causal_softmax(tf.matmul(q, k, transpose_b=True)), v)


def attention_with_past(q, k, v, past, mask):  # three of [B, H, T, D] -> [B, H, T, D]
    # Joining past and own keys would copy the past for each token.
    past_k, past_v = past or [tf.zeros_like(k[:, :, :0])] * 2
    P = shape_list(past_k)[2]
    scores = [tf.matmul(q, keys, transpose_b=True) for keys in (past_k, k)]
    p = masked_softmax(tf.concat(scores, -1), mask)
    return tf.matmul(p[..., :P], past_v) + tf.matmul(p[..., P:], v)


def hooked_attention(q, k, v, hook):  # as causal_attention; in blocks, unless hook changes what it gets
    if hook is not unhooked:  # what nobody reads of these is not computed
        scores = tf.matmul(q, k, transpose_b=True)
        scores = tf.where_v2(causal_mask(*shape_list(scores)[2:]), scores, -np.inf)  # as in TransformerLens
        used_scores = hook('attn.hook_attn_scores', scores)
        seen = float32(used_scores > -np.inf)  # a query that sees nothing has no pattern, in place of NaN
        pattern = tf.nn.softmax(tf.maximum(float32(used_scores), tf.float32.min)) * seen
        pattern = tf.cast(pattern, scores.dtype)
        used_pattern = hook('attn.hook_pattern', pattern)
        if used_scores is not scores or used_pattern is not pattern:
            return tf.matmul(used_pattern, v)
    return in_blocks(causal_attention, q, k, v)


def attn(x, w, n_head, past, mask, hook):  # [B, T, E] -> [B, T, E], present (Vaswani et al. 2017, 3.2)
    parts = zip('qkv', tf.split(conv1d(x, w, 'attn/c_attn'), 3, -1), strict=True)
    q, k, v = (tf.transpose(hook(f'attn.hook_{name}', split_states(part, n_head)), [0, 2, 1, 3])
               for name, part in parts)
    q = q * tf.cast(1 / np.sqrt(q.shape.as_list()[-1]), q.dtype)
    a = hooked_attention(q, k, v, hook) if mask is None else attention_with_past(q, k, v, past, mask)
    z = hook('attn.hook_z', tf.transpose(a, [0, 2, 1, 3]))
    return conv1d(merge_states(z), w, 'attn/c_proj'), (k, v)


def mlp(x, w, hook):  # [B, T, E] -> [B, T, E]
    h = hook('mlp.hook_post', gelu(hook('mlp.hook_pre', conv1d(x, w, 'mlp/c_fc'))))
    return conv1d(h, w, 'mlp/c_proj')


def block(x, w, n_head, past, mask, hook):  # [B, T, E] -> [B, T, E], present
    x = hook('hook_resid_pre', x)
    a, present = attn(hooked_norm(x, w, 'ln_1', 'ln1.hook_normalized', hook), w, n_head, past, mask, hook)
    x = hook('hook_resid_mid', x + tf.cast(hook('hook_attn_out', a), x.dtype))
    m = mlp(hooked_norm(x, w, 'ln_2', 'ln2.hook_normalized', hook), w, hook)
    return hook('hook_resid_post', x + tf.cast(hook('hook_mlp_out', m), x.dtype)), present


def blocks(x, layers, n_head, pasts, mask, block=block, hook=unhooked):  # [B, T, E] -> [B, T, E], presents
    presents = []
    for i, (w, past) in enumerate(zip(layers, pasts, strict=True)):
        tf.add_to_collection('checkpoints', x)  # for memory_saving_gradients
        x, present = block(x, w, n_head, past, mask, layer_hook(hook, i))
        presents.append(present)
    return x, presents


def past_shape(*, hparams, batch_size=None, sequence=None):  # -> [B, L, 2, H, P, D]
    return [batch_size, hparams.n_layer, 2, hparams.n_head, sequence, hparams.n_embd // hparams.n_head]


def transformer(hparams, w, X, pasts=None, positions=None, mask=None, blocks=blocks, hook=unhooked):
    """From int32 [B, T] to the last hidden state, [B, T, E], and all presents. pasts: one a layer. positions:
    int32 [T] or [B, T]; None: after the past. mask: keys that a token sees, bool [T, S] or [B, 1, T, S];
    None: up to its own. With a past or a mask hook sees no scores or pattern. blocks runs all layers."""
    P, T = shape_list(pasts[0][0])[2] if pasts else 0, shape_list(X)[1]
    positions = P + tf.range(T) if positions is None else positions
    mask = causal_mask(T, P + T) if pasts and mask is None else mask
    h = hook('hook_embed', lookup(w['wte'], X)) + hook('hook_pos_embed', tf.gather(w['wpe'], positions))
    layers = [layer_weights(w, f'h{i}/') for i in range(hparams.n_layer)]
    hooks = {} if hook is unhooked else {'hook': hook}  # blocks for sampling take none
    h, presents = blocks(h, layers, hparams.n_head, pasts or [None] * hparams.n_layer, mask, **hooks)
    return hooked_norm(h, w, 'ln_f', 'ln_final.hook_normalized', hook), presents


def output(w, h):  # [..., E] -> logits [..., V]; w['output']: wte in another precision
    *rows, E = shape_list(h)
    logits = matmul(tf.reshape(h, [-1, E]), w.get('output', w['wte']), transposed=True)
    return tf.reshape(logits, [*rows, logits.shape[-1]])


def model(hparams, X, past=None, scope='model', reuse=tf.AUTO_REUSE):
    """From int32 [B, T] to {'logits': [B, T, V], 'present': [B, L, 2, H, T, D]}. past: earlier presents,
    joined along axis 4. Raises InputError above n_ctx positions."""
    with tf.name_scope(scope):
        T = X.shape[1] or 0
        if past is not None:
            T += past.shape[4] or 0
            past = [tf.unstack(pair, axis=1) for pair in tf.unstack(past, axis=1)]
        require(T <= hparams.n_ctx, f'{T} positions are more than n_ctx, {hparams.n_ctx}')
        w = weights(hparams, scope, reuse)
        h, presents = transformer(hparams, w, X, past)
        pairs = [tf.stack(pair, 1) for pair in presents]
        return {'logits': output(w, h), 'present': tf.stack(pairs, 1)}


def weight_shapes(hparams: HParams) -> dict[str, list[int]]:  # in the graph's order
    E = hparams.n_embd
    layer = {
        'ln_1/g': [E], 'ln_1/b': [E],
        'attn/c_attn/w': [1, E, 3 * E], 'attn/c_attn/b': [3 * E],
        'attn/c_proj/w': [1, E, E], 'attn/c_proj/b': [E],
        'ln_2/g': [E], 'ln_2/b': [E],
        'mlp/c_fc/w': [1, E, 4 * E], 'mlp/c_fc/b': [4 * E],
        'mlp/c_proj/w': [1, 4 * E, E], 'mlp/c_proj/b': [E]}
    layers = {f'h{i}/{name}': shape for i in range(hparams.n_layer) for name, shape in layer.items()}
    return {'wpe': [hparams.n_ctx, E], 'wte': [hparams.n_vocab, E], **layers, 'ln_f/g': [E], 'ln_f/b': [E]}


def initializer(name, hparams):  # as in the paper, section 2.3; c_proj adds to the residual stream
    if name.endswith('/g'):
        return tf.ones_initializer()
    if name.endswith('/b'):
        return tf.zeros_initializer()
    # With TF_DETERMINISTIC_OPS=1 each operation needs a seed.
    seed = secrets.randbits(31) if tf.get_default_graph().seed is None else None
    scale = 1 / np.sqrt(2 * hparams.n_layer) if name.endswith('c_proj/w') else 1
    return tf.random_normal_initializer(stddev=0.01 if name == 'wpe' else 0.02 * scale, seed=seed)


def weights(hparams, scope='model', reuse=tf.AUTO_REUSE):  # -> {name: tensor}
    """Reads float32 variables, once; makes missing ones."""
    with tf.variable_scope(scope, reuse=reuse, use_resource=True):
        return {name: tf.get_variable(name, shape, initializer=initializer(name, hparams)).read_value()
                for name, shape in weight_shapes(hparams).items()}


def layer_weights(w, layer):  # -> {name in the layer: tensor}, of matrices [n_in, n_out]
    values = {name.removeprefix(layer): value for name, value in w.items() if name.startswith(layer)}
    for name, value in values.items():
        if tf.is_tensor(value) and value.shape.rank == 3:
            values[name] = tf.squeeze(value, 0)
    return values


def loss(logits, X):  # [B, T, V], int32 [B, T], below 0: padding -> sum in nats, number of tokens
    # The last label is padding: to cut the last logits off would copy all others.
    labels = tf.reshape(tf.pad(X[:, 1:], [[0, 0], [0, 1]], constant_values=-1), [-1])
    losses = cross_entropy(tf.reshape(logits, [-1, logits.shape[-1]]), labels)
    return tf.reduce_sum(losses), tf.reduce_sum(float32(labels >= 0))


@fused(gradient=cross_entropy_grad)
def cross_entropy(logits, labels):  # [N, V], int32 [N] -> float32 [N]; 0 for a label below 0
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
        logits=float32(logits), labels=tf.maximum(labels, 0))
    return tf.where_v2(labels >= 0, losses, 0.0)
