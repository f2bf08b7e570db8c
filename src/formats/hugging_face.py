"""Models in Hugging Face's format; docs/formats.md says what is read and refused."""
import contextlib
import itertools
import json
import math
import os
import re

import numpy as np
import safetensors

import model
from encoder import EOT, Encoder, SpecialTokens, bytes_to_unicode
from errors import InputError, require
from hparams import HParams
from storage import checkpoint, new_model, paths, vocabulary_files

WEIGHTS, VOCABULARY = 'model.safetensors', ('vocab.json', 'merges.txt')
SIZES = {'n_vocab': 'vocab_size', 'n_ctx': 'n_positions'}  # by other names
ARCHITECTURE = {  # field of config.json: what model.py computes, the default first
    'model_type': ('gpt2',), 'activation_function': ('gelu_new', 'gelu_pytorch_tanh'),
    'layer_norm_epsilon': (1e-5,), 'scale_attn_weights': (True,), 'scale_attn_by_inverse_layer_idx': (False,),
    'add_cross_attention': (False,), 'quantization_config': (None,)}
UNSUPPORTED = (  # fields of tokenizers and tokens
    'normalizer', 'ignore_merges', 'continuing_subword_prefix', 'end_of_word_suffix', 'add_prefix_space',
    'lstrip', 'rstrip', 'single_word')
TOKENS = ('bos_token', 'eos_token', 'unk_token', 'sep_token', 'pad_token', 'cls_token', 'mask_token',
          'additional_special_tokens', 'extra_special_tokens', 'added_tokens_decoder')
ROOT = 'transformer.'  # before all names but lm_head
MASKS = re.compile(r'h\.\d+\.attn\.(masked_)?bias')  # of older versions
REMEDY = 'copy it from where the model came from'
NO_TEXT = '<|unused{}|>'  # of ids without text: converters want a token a row


def tensor_name(name):  # h0/attn/c_attn/w -> h.0.attn.c_attn.weight
    name = re.sub(r'^h(\d+)', r'h.\1', name).replace('/', '.')
    return name[:-1] + 'bias' if name.endswith('.b') else re.sub(r'\.[gw]$', '', name) + '.weight'


def write(folder, source, hp, enc, prefix, models_dir='models'):
    """Writes a model or run, as checkpoint.find gives it, into an empty folder."""
    unused = [id for id in range(hp.n_vocab) if id not in enc.decoder]
    vocab = {**enc.encoder, **{NO_TEXT.format(id): id for id in unused}}
    vocabulary_files.write_vocabulary(folder, vocab, enc.bpe_ranks, names=VOCABULARY)
    ids, end = {'bos_token_id': enc.eot, 'eos_token_id': enc.eot}, enc.decoder.get(enc.eot)
    paths.write_json(f'{folder}/config.json', {  # converters look for n_ctx and torch_dtype
        **{field: values[0] for field, values in ARCHITECTURE.items() if values[0] is not None},
        **{SIZES.get(name, name): size for name, size in hp.values().items()}, **ids,
        'architectures': ['GPT2LMHeadModel'], 'n_ctx': hp.n_ctx, 'n_inner': None,
        'tie_word_embeddings': True, 'torch_dtype': 'float32'})
    if unused:
        ids['suppress_tokens'] = unused
    paths.write_json(f'{folder}/generation_config.json', ids)
    paths.write_json(f'{folder}/tokenizer_config.json', {
        'tokenizer_class': 'GPT2Tokenizer', 'model_max_length': hp.n_ctx,
        'clean_up_tokenization_spaces': False, 'bos_token': end, 'eos_token': end, 'unk_token': end,
        'added_tokens_decoder': {id: {'content': text, 'special': True} for text, id in enc.special.items()}})
    shapes = model.weight_shapes(hp)
    named = {ROOT + tensor_name(name): shape[-2:] for name, shape in shapes.items()}
    with checkpoint.readable(prefix, models_dir) as reader:
        values = (reader.get_tensor(f'model/{name}') for name in shapes)
        write_safetensors(f'{folder}/{WEIGHTS}', named, values)


def write_safetensors(path, shapes, values):
    """Writes float32 arrays of {name: shape}, one in memory at a time, not all as the library does."""
    header: dict[str, dict] = {'__metadata__': {'format': 'pt'}}  # transformers asks for it
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {'dtype': 'F32', 'shape': shape, 'data_offsets': [start, end]}
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)  # aligns the tensors
    with paths.replacing(path, 'wb') as file:
        file.write(len(text).to_bytes(8, 'little') + text)
        for value in values:
            file.write(np.ascontiguousarray(value, '<f4').data)


def read(source, folder):
    """Makes a model of the folder `source` in an empty one; returns its HParams. Raises InputError."""
    source = paths.expand(source)
    hp, config = read_config(f'{source}/config.json')
    vocab, merges, added, names = read_vocabulary(source)
    vocab = {text: id for text, id in {**added, **vocab}.items() if text != NO_TEXT.format(id)}
    special = read_special_tokens(source, vocab, merges, added, config.get('eos_token_id'))
    n_vocab = Encoder(vocab, merges, names=names, special=special).n_vocab
    require(n_vocab <= hp.n_vocab,
            f'{names[0]} has ids up to {n_vocab - 1}, but vocab_size in config.json is {hp.n_vocab}')
    weights = find_weights(source, hp, config.get('tie_word_embeddings', True))
    vocabulary_files.write_vocabulary(folder, vocab, merges, special)
    arrays = ((name, read_tensor(*weights[name]).reshape(shape))
              for name, shape in model.weight_shapes(hp).items())
    new_model.write(folder, hp, arrays)
    return hp


def read_config(path):  # -> HParams, dict
    config, hp = paths.read_json(path, REMEDY), HParams()
    hp.override_from_dict({name: config.get(SIZES.get(name, name)) for name in hp.values()}, f'{path}: ')
    config.setdefault('model_type')  # None is refused
    for field, allowed in {**ARCHITECTURE, 'n_inner': (None, 4 * hp.n_embd)}.items():
        value = config.get(field, allowed[0])
        require(value in allowed, f'{path}: {field} must be one of {allowed}, not {str(value)[:80]}')
    return hp, config


def check_fields(path, fields):
    used = ', '.join(field for field in UNSUPPORTED if fields.get(field))
    require(not used, f'{path}: {used} must be false or empty')


def read_vocabulary(source):  # -> {symbol: id}, pairs of symbols, {added text: id}, two files' names
    tokenizer, *names = (f'{source}/{name}' for name in ('tokenizer.json', *VOCABULARY))
    if os.path.exists(tokenizer):
        return *read_tokenizer(tokenizer), [tokenizer] * 2
    path = f'{source}/added_tokens.json'  # of older versions
    added = paths.read_json(path, REMEDY) if os.path.exists(path) else {}
    return paths.read_json(names[0], REMEDY), vocabulary_files.read_merges(names[1]), added, names


def read_tokenizer(path):  # -> {symbol: id}, pairs of symbols, {added text: id}
    values, kind = paths.read_json(path, REMEDY), ()
    with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):  # of other structures
        bpe, splitter = values['model'], values['pre_tokenizer']
        pairs = [pair.split(' ') if isinstance(pair, str) else pair for pair in bpe['merges']]
        merges, vocab = [(str(first), str(second)) for first, second in pairs], {**bpe['vocab']}
        added = [(token, token['id']) for token in values.get('added_tokens') or []]
        kind = bpe['type'], splitter['type'], splitter.get('use_regex', True)
    require(kind == ('BPE', 'ByteLevel', True), f'{path} is not the byte-level BPE of GPT-2')
    check_fields(path, {**values, **bpe, **splitter})
    return vocab, merges, {text: id for token, id in added for text in texts_of(path, token)}


def read_special_tokens(source, vocab, merges, added, end_id):  # -> SpecialTokens; None for GPT-2's own
    """end_id: eos_token_id of config.json. If merges spell its token, GPT-2's 50256 was left there."""
    named = {'added': [*texts_of(source, [*added])], **{field: [EOT] for field in TOKENS[:3]}}
    files = f'{source}/special_tokens_map.json', f'{source}/tokenizer_config.json'
    for path in filter(os.path.exists, files):
        fields = paths.read_json(path, REMEDY)
        check_fields(path, fields)
        named |= {field: [*texts_of(path, fields[field])] for field in TOKENS if field in fields}
    tokens = [*dict.fromkeys(text for text in itertools.chain(*named.values()) if text in vocab)]
    spelt = {*bytes_to_unicode().values(), *map(''.join, merges)}
    can_end = {*tokens, *(vocab.keys() - spelt)}
    ends = [text for text, id in vocab.items() if id == end_id] + [*named['eos_token'], EOT]
    end = next((text for text in ends if text in can_end), None)
    if end and end not in tokens:
        tokens.append(end)
    return None if tokens in ([EOT], []) else SpecialTokens(tokens, end)


def texts_of(path, tokens):  # a text, an object with one, None, or a list or object of these: yields texts
    if isinstance(tokens, dict) and 'content' not in tokens:
        tokens = [*tokens.values()]
    for token in tokens if isinstance(tokens, list) else [tokens]:
        if isinstance(token, dict):
            check_fields(path, token)
            token = token.get('content', '')
        require(token is None or (token and isinstance(token, str)),
                f'{path}: a special token must be a text, not {str(token)[:80]!r}')
        yield token


def find_weights(source, hp, tied):  # -> {name: (PySafeSlice, is it transposed)}
    tensors, shapes, weights = open_tensors(source), model.weight_shapes(hp), {}
    roots = [name.removesuffix('wte.weight') for name in tensors if f'.{name}'.endswith('.wte.weight')]
    root = min(roots, default='')
    names = {name: root + tensor_name(name) for name in shapes}
    head = root.removesuffix(ROOT) + 'lm_head.weight'
    if head in tensors or not tied:
        names['head'], shapes['head'] = head, shapes['wte']
    wrong = [name for name in tensors.keys() ^ names.values() if not MASKS.fullmatch(name.removeprefix(root))]
    require(not wrong, f'{source} has {len(wrong)} tensors too many or too few, such as '
            f'{min(wrong, default="")[:80]!r}')
    # torch has [n_out, n_in]. c_attn, never square, tells the layout of all.
    as_torch = tensors[names['h0/attn/c_attn/w']].get_shape() == [3 * hp.n_embd, hp.n_embd]
    for name, shape in shapes.items():
        tensor, transposed = tensors[names[name]], as_torch and name.endswith('/w')
        dtype, actual = tensor.get_dtype(), tensor.get_shape()
        expected = shape[-2:][::-1] if transposed else shape[-2:]
        require(dtype in ('F32', 'F16', 'BF16') and actual == expected, f'{source}: {names[name]} is {dtype} '
                f'{str(actual)[:80]}, but must be F32, F16 or BF16 {expected}')
        weights[name] = tensor, transposed
    require('head' not in weights or np.array_equal(weights['head'][0][:], weights['wte'][0][:]),
            f'{source}: {head} must be the same as {names["wte"]}')
    return weights


def open_tensors(source, name=WEIGHTS):  # -> {name: PySafeSlice}, which keep the files open
    path, tensors = f'{source}/{name}', {}
    files, index = [path], f'{path}.index.json'
    if os.path.exists(index) and not os.path.exists(path):
        names = paths.read_json(index, REMEDY).get('weight_map')
        if not isinstance(names, dict):
            raise InputError(f'{index} has no weight_map')
        names = sorted(set(map(str, names.values())))
        files = [paths.child(source, name, f'{index}: the file') for name in names]
    for path in files:
        require(os.path.isfile(path), f'no {path}; copy it, or save it so: a .bin may run any program')
        try:  # the library checks the header against the file's size
            file = safetensors.safe_open(path, 'np')
            tensors |= {name: file.get_slice(name) for name in list(file.keys())}
        except safetensors.SafetensorError as error:
            raise InputError(f'{path} is damaged ({str(error)[:80]}); {REMEDY}') from None
    return tensors


def read_tensor(tensor, transposed):  # PySafeSlice -> float32 array
    return np.ascontiguousarray(tensor[:].T if transposed else tensor[:], np.float32)
