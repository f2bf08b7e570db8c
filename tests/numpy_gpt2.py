"""GPT-2's forward pass in NumPy and float64, written from the papers alone, to compare with."""
import numpy as np


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def layer_norm(x, gain, bias):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * gain + bias


def attention(x, w_qkv, b_qkv, w_out, b_out, n_head):
    """One query after the other, so that nothing is to mask. n tokens, H heads, D head size."""
    n, width = x.shape
    q, k, v = np.split((x @ w_qkv + b_qkv).reshape(n, 3 * n_head, width // n_head), 3, axis=1)  # [n, H, D]
    result = np.zeros_like(q)
    for i in range(n):
        scores = np.einsum('hd,jhd->hj', q[i], k[:i + 1]) / np.sqrt(width // n_head)
        result[i] = np.einsum('hj,jhd->hd', softmax(scores), v[:i + 1])
    return result.reshape(n, width) @ w_out + b_out


def logits(weights, tokens, n_head):
    """weights: {'model/h0/ln_1/g': array, …} as in a checkpoint. tokens: a list of n. -> [n, n_vocab]"""
    w = {name.removeprefix('model/'): np.asarray(value, np.float64) for name, value in weights.items()}
    x = w['wte'][tokens] + w['wpe'][:len(tokens)]
    layer = 0
    while f'h{layer}/ln_1/g' in w:
        p = {name.removeprefix(f'h{layer}/'): value
             for name, value in w.items() if name.startswith(f'h{layer}/')}
        x = x + attention(layer_norm(x, p['ln_1/g'], p['ln_1/b']), p['attn/c_attn/w'][0], p['attn/c_attn/b'],
                          p['attn/c_proj/w'][0], p['attn/c_proj/b'], n_head)
        u = layer_norm(x, p['ln_2/g'], p['ln_2/b']) @ p['mlp/c_fc/w'][0] + p['mlp/c_fc/b']
        u = u / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u ** 3)))
        x = x + u @ p['mlp/c_proj/w'][0] + p['mlp/c_proj/b']
        layer += 1
    return layer_norm(x, w['ln_f/g'], w['ln_f/b']) @ w['wte'].T


def mean_loss(weights, windows, n_head):
    """Mean cross-entropy in nats of the tokens after the first of windows, without padding (below 0)."""
    losses = []
    for window in windows:
        real = [token for token in window if token >= 0]
        p = softmax(logits(weights, real, n_head))
        losses += [-np.log(p[i, token]) for i, token in enumerate(real[1:])]
    return np.mean(losses)


def truncated(p, top_k, top_p):
    """Probabilities [n_vocab] of the top_k likeliest (0: all), and of these the top_p; 0 for the others."""
    order = np.argsort(-p)
    chosen = order[:top_k or len(p)]
    share = p[chosen] / p[chosen].sum()
    chosen = chosen[:np.searchsorted(np.cumsum(share), top_p - 1e-12) + 1]
    result = np.zeros_like(p)
    result[chosen] = p[chosen] / p[chosen].sum()
    return result


def greedy(weights, tokens, n_head, length):
    """The likeliest continuation: a list of `length` tokens."""
    tokens = list(tokens)
    for _ in range(length):
        tokens.append(int(logits(weights, tokens, n_head)[-1].argmax()))
    return tokens[-length:]


def rounded(values):
    """To the nearest bfloat16, ties to even, by its bits."""
    bits = np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000).astype(np.uint32).view(np.float32)


def in_steps(values, axis):
    """To 127 steps up to the largest of each output, which are along `axis`."""
    largest = np.abs(values).max(axis=axis, keepdims=True).astype(np.float64)
    step = np.where(largest > 0, largest, 1) / 127
    return np.round(values / step) * step


def with_rounded_matrices(values, precision):
    matrices = {name: value for name, value in values.items() if value.ndim == 3 or name == 'model/wte'}
    if precision == 'int8':
        return {**values, **{name: in_steps(value, -1 if name == 'model/wte' else -2)
                             for name, value in matrices.items()}}
    return {**values, **{name: rounded(value) for name, value in matrices.items()}}
