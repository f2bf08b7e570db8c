"""Which layer and head does it: logit lens, direct logit attribution, activation patching.

inspector: an Inspector. texts, patch: as for trace. Letters as in model.py.
"""
import contextlib
import re

import numpy as np
import tensorflow.compat.v1 as tf

import model
from errors import InputError, require
from fast.kernels import float32
from inspection.inspector import trace

ROW_TOKENS = 2048  # of the rows of one run


def logit_lens(inspector, texts, k=5, patch=None):
    """The k likeliest next tokens, had the model ended before layer 0, before 1, …, or after the last
    (nostalgebraist 2020, "interpreting GPT: the logit lens"): ids, int32, and log-probabilities, float32,
    both [B, L + 1, T, k]; past the end of a shorter text they mean nothing."""
    require(1 <= k <= inspector.hparams.n_vocab, f'k must be from 1 to {inspector.hparams.n_vocab}, not {k}')
    results = inspector.run(texts, lens, inspector, k, patch=patch)
    return [array.swapaxes(0, 1) for array in results]


def lens(activations, inspector, k):  # for run: [L + 1, B, T, k] each
    w, L = inspector.weights, inspector.hparams.n_layer
    streams = [activations[f'blocks.{i}.hook_resid_pre'] for i in range(L)]
    streams.append(activations[f'blocks.{L - 1}.hook_resid_post'])

    def likeliest(h):
        logits = float32(model.output(w, model.norm(h, w['ln_f/g'], w['ln_f/b'])))
        values, ids = tf.math.top_k(tf.nn.log_softmax(logits), k)
        return ids, values
    return tf.map_fn(likeliest, tf.stack(streams), fn_output_signature=(tf.int32, tf.float32),
                     parallel_iterations=1)  # the logits of all layers would take much memory


def direct_logit_attribution(inspector, texts, answers, wrong=None):
    """What each part of the model adds to the next token's logit of `answers`, less that of `wrong` if given
    (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"). The last normalization divides
    each part by what it divides their sum by.

    answers, wrong: token ids that broadcast to [B, T], or 'mean', of all tokens' logits. -> float32
    arrays that sum to it, to rounding: {'embed', 'pos_embed', 'ln_final bias': [B, T], 'heads': [B, L, H,
    T], 'attention bias', 'mlp': [B, L, T]}; NaN at padding."""
    tokens, L = inspector.tokens(texts), inspector.hparams.n_layer
    used = re.compile(r'wte|ln_f/.|h\d+/attn/c_proj/.')
    w = {name: value for name, value in inspector.weights.items() if used.fullmatch(name)}
    w = {name: np.asarray(value, np.float32) for name, value in inspector.session.run(w).items()}
    direction = readout(w['wte'], answers, tokens.shape)
    if wrong is not None:
        direction = direction - readout(w['wte'], wrong, tokens.shape)
    last = f'blocks.{L - 1}.hook_resid_post'
    names = ['hook_embed', 'hook_pos_embed', '*.attn.hook_z', '*.hook_mlp_out', last]
    a = trace(inspector, tokens, names)
    # ((part - mean(part)) / scale * g) · direction = part · (g * direction - mean(g * direction)) / scale
    scale = np.sqrt(a[last].var(-1, keepdims=True) + 1e-5)
    in_stream = direction * w['ln_f/g']
    in_stream = (in_stream - in_stream.mean(-1, keepdims=True)) / scale

    def added(part):  # [..., E], that broadcasts to [B, T, E] -> [B, T]
        return np.einsum('bte,bte->bt', np.broadcast_to(part, in_stream.shape), in_stream)
    heads, biases, mlps = [], [], []
    for i in range(L):
        z = a[f'blocks.{i}.attn.hook_z']
        in_heads = (in_stream @ w[f'h{i}/attn/c_proj/w'][0].T).reshape(z.shape)
        heads.append(np.einsum('bthd,bthd->bht', z, in_heads))
        biases.append(added(w[f'h{i}/attn/c_proj/b']))
        mlps.append(added(a[f'blocks.{i}.hook_mlp_out']))
    return {'embed': added(a['hook_embed']), 'pos_embed': added(a['hook_pos_embed']),
            'ln_final bias': direction @ w['ln_f/b'], 'heads': np.stack(heads, 1),
            'attention bias': np.stack(biases, 1), 'mlp': np.stack(mlps, 1)}


def readout(wte, ids, shape):  # -> the vectors that read these tokens' logits, [B, T, E], or of 'mean', [E]
    if isinstance(ids, str) and ids == 'mean':
        return wte.mean(0)
    with contextlib.suppress(ValueError):  # of other shapes
        ids = np.broadcast_to(ids, shape)
        if ids.dtype.kind in 'iu' and ids.min() >= 0 and ids.max() < len(wte):
            return wte[ids]
    raise InputError(f'answers and wrong must be token ids from 0 to {len(wte) - 1} that broadcast to shape '
                     f"{shape}, or 'mean'")


def activation_patching(inspector, clean, corrupted, metric, activation='hook_resid_pre'):
    """The metric on `corrupted`, one activation at a time taken from `clean`: float32 [L, T], of a layer and
    position; or [L, H], of a layer and head at all positions, for attn.hook_… (Vig et al. 2020; Meng et al.
    2022).

    clean, corrupted: texts of as many tokens. metric(logits): of tensors, float32 [B, T, n_vocab] -> [B].
    activation: a name without its layer."""
    clean, corrupted = inspector.tokens(clean), inspector.tokens(corrupted)
    require(clean.shape == corrupted.shape and len(clean) == 1,
            f'clean and corrupted must be one text, of as many tokens, not of shapes {clean.shape} and '
            f'{corrupted.shape}')
    names = [f'blocks.{i}.{activation}' for i in range(inspector.hparams.n_layer)]
    require(inspector.names(names) == names, f'{activation} is not the name of an activation of a layer')
    # Axis 1 has positions, or heads of scores and pattern; axis 2 has the heads of q, k, v and z.
    axis = 2 if activation.endswith(('_q', '_k', '_v', '_z')) else 1
    rows, result = max(1, ROW_TOKENS // clean.shape[1]), []
    for name in names:
        value, metrics = trace(inspector, clean, name)[name].swapaxes(1, axis), []
        for first in range(0, value.shape[1], rows):
            places = np.arange(first, min(first + rows, value.shape[1]))
            new = np.full([len(places), *value.shape[1:]], np.nan, np.float32)
            new[range(len(places)), places] = value[0, places]
            # One graph for all layers: NaN leaves an activation.
            patch = {**dict.fromkeys(names, np.nan), name: new.swapaxes(1, axis)}
            metrics.append(inspector.run(np.repeat(corrupted, len(places), 0), measure, metric, patch=patch))
            require(np.shape(metrics[-1]) == places.shape, 'the metric must give one number for each text')
        result.append(np.concatenate(metrics))
    return np.stack(result)


def measure(activations, metric):  # for run
    return metric(float32(activations['logits']))
