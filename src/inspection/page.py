"""One HTML file that shows how a model reads texts; page.html draws it. T tokens of a text."""
import base64
import json
import pathlib

import numpy as np
import tensorflow.compat.v1 as tf
from tqdm import tqdm

from fast.kernels import float32
from inspection import analyses

ALTERNATIVES = 10
RANKS = (10, 100, 1000)  # the last of each colour, as in GLTR (Gehrmann et al. 2019)
PART_BYTES = 12_000_000  # of attention, and of lens with attribution, of all texts; in base64 a third more
KEY_BYTES = 4  # a key and its weight, 16 bits each
MIN_KEYS = 4  # of a token's attention; fewer are no picture


def read_text(inspector, ids, max_keys=0):
    """How a model reads one text, T ids: a dict of arrays.

    'logprobs', float32, and 'ranks', int32, [T - 1], of the tokens after the first; the 'likeliest' next
    tokens, int32, and their 'likeliest_logprobs', float32, [T, 10]. With max_keys, 'keys', int32, and
    'weights', float32, [L, H, T, up to max_keys], of the tokens that each attends to most strongly."""
    return inspector.run(ids, figures, inspector.hparams.n_layer, max_keys)


def figures(activations, n_layer, max_keys):  # for run
    logits, tokens = float32(activations['logits'][0]), activations['tokens'][0]
    logprobs = tf.nn.log_softmax(logits)
    real = tf.gather(logprobs[:-1], tokens[1:], batch_dims=1)
    ranks = 1 + tf.reduce_sum(tf.cast(logprobs[:-1] > real[:, None], tf.int32), 1)
    values, likeliest = tf.math.top_k(logprobs, ALTERNATIVES)
    result = {'logprobs': real, 'ranks': ranks, 'likeliest': likeliest, 'likeliest_logprobs': values}
    if max_keys:
        n = tf.minimum(max_keys, tf.shape(tokens)[0])
        layers = [tf.math.top_k(float32(activations[f'blocks.{i}.attn.hook_pattern'][0]), n)
                  for i in range(n_layer)]
        result['weights'], result['keys'] = (tf.stack(parts) for parts in zip(*layers, strict=True))
    return result


def details(inspector, ids, likeliest):
    """The logit lens, and what each part adds to the logit of the token that follows, or after the last to
    that of the likeliest: a dict of arrays."""
    lens, lens_logprobs = analyses.logit_lens(inspector, ids, k=1)
    parts = analyses.direct_logit_attribution(inspector, ids, [*ids[1:], likeliest], 'mean')
    parts = {name: part[0] for name, part in parts.items()}
    rows = parts['heads'], parts['attention bias'][:, None], parts['mlp'][:, None]
    return {'lens': lens, 'lens_logprobs': lens_logprobs, 'attribution': np.concatenate(rows, 1),
            'other_parts': np.stack([parts[name] for name in ('embed', 'pos_embed', 'ln_final bias')])}


def make_page(models, texts, notes=()):
    """The page's HTML. models: pairs of name and Inspector, one, or two of one vocabulary to compare. texts:
    lists of ids. notes: sentences to show."""
    (name, inspector), *other_models = models
    L, H, n_tokens = inspector.hparams.n_layer, inspector.hparams.n_head, sum(map(len, texts))
    max_keys = PART_BYTES // (KEY_BYTES * L * H * n_tokens)
    max_keys = max_keys if max_keys >= MIN_KEYS else 0
    detailed = 4 * L * (H + 4) * n_tokens <= PART_BYTES
    used, records = set(), []
    for ids in tqdm(texts, desc='reading', unit='text', disable=None):
        arrays = read_text(inspector, ids, max_keys)
        if max_keys:
            arrays.update(keys=arrays['keys'].astype(np.uint16),
                          weights=np.round(arrays['weights'] * 65535).astype(np.uint16))
        if detailed:
            arrays.update(details(inspector, ids, arrays['likeliest'][-1, 0]))
        used.update(ids, arrays['likeliest'].flat, arrays['lens'].flat if detailed else ())
        records.append({'tokens': ids, 'n_keys': min(max_keys, len(ids)), **packed(arrays)})
        for _, other in other_models:
            arrays = read_text(other, ids)
            records[-1]['compared'] = packed(arrays)
            used.update(arrays['likeliest'].flat)
    if not (max_keys and detailed):
        left_out = 'attention' if detailed else 'attention, lens and attribution'
        notes = [*notes, f'So many tokens leave no room for {left_out}.']
    data = {'title': name, 'notes': [*notes], 'compared': other_models[0][0] if other_models else None,
            'attention': bool(max_keys), 'detailed': detailed, 'ranks': RANKS, 'alternatives': ALTERNATIVES,
            'n_layer': L, 'n_head': H, 'vocabulary': {int(id): piece(inspector.enc, id) for id in used},
            'texts': records}
    template = pathlib.Path(__file__).with_name('page.html').read_text('utf-8')
    return template.replace('$data', json.dumps(data).replace('<', r'\u003c'))


def piece(enc, id):
    """A token's text, with bytes that are a part of a character as \\x…; n_vocab may be larger than the
    vocabulary, whose ids alone have one."""
    return enc.token_bytes[id].decode('utf-8', 'backslashreplace') if id in enc.token_bytes else f'[{id}]'


def packed(arrays):  # -> {name: [type, base64]}
    return {name: [array.dtype.str, base64.b64encode(array.tobytes()).decode()]
            for name, array in arrays.items()}
