"""Models in the format of Hugging Face's transformers, which other programs read too: a folder with

  model.safetensors       the weights, or model.safetensors.index.json, which lists several files
  config.json             sizes and architecture; generation_config.json: how samples end
  vocab.json, merges.txt  the content of encoder.json and vocab.bpe; tokenizer.json may hold it, too, or alone
  tokenizer_config.json   special tokens; older versions: special_tokens_map.json, added_tokens.json

h0/ln_1/g is transformer.h.0.ln_1.weight; matrices are [n_in, n_out], without the checkpoint's axis of 1.
"""
import json
import math
import os
import re

import numpy as np
import safetensors

import encoder
import model
from errors import InputError, require
from hparams import HParams
from storage import checkpoint, new_model, paths, vocabulary_files

SAFETENSORS, INDEX = 'model.safetensors', 'model.safetensors.index.json'
VOCABULARY_FILES = ('vocab.json', 'merges.txt')
NAMED_TOKENS = ('bos_token', 'eos_token', 'unk_token', 'sep_token', 'pad_token', 'cls_token', 'mask_token')
LISTED_TOKENS = ('additional_special_tokens', 'extra_special_tokens', 'added_tokens_decoder')
ROOT = 'transformer.'  # stands before all names but that of the output layer
SIZES = {'n_vocab': 'vocab_size', 'n_ctx': 'n_positions', 'n_embd': 'n_embd', 'n_head': 'n_head',
         'n_layer': 'n_layer'}
ARCHITECTURE = {  # field of config.json: the values that this code computes, the default first
    'activation_function': ('gelu_new', 'gelu_pytorch_tanh'), 'layer_norm_epsilon': (1e-5,),
    'scale_attn_weights': (True,), 'scale_attn_by_inverse_layer_idx': (False,),
    'add_cross_attention': (False,), 'quantization_config': (None,)}
MASKS = re.compile(r'h\.\d+\.attn\.(bias|masked_bias)')  # older versions saved the causal mask
DTYPES = ('F32', 'F16', 'BF16')
ROWS_AT_A_TIME = 1 << 11  # of a tensor are read
NO_TEXT = '<|unused{}|>'  # names an id without a text: converters want a token for each row of the embedding


def tensor_name(name):  # of model.weight_shapes: h0/attn/c_attn/w -> h.0.attn.c_attn.weight
    name = re.sub(r'^h(\d+)', r'h.\1', name).replace('/', '.')
    return f'{name}ias' if name.endswith('.b') else re.sub(r'\.[gw]$', '', name) + '.weight'


# Writing

def write(folder: str, directory: str, checkpoint_name: str | None = None) -> str:
    """Writes the model or run of a directory into an empty folder; returns the checkpoint's path.

    checkpoint_name: see checkpoint.resolve_checkpoint. Raises InputError for files that are missing, damaged,
    or of different models.
    """
    _, hparams, enc = checkpoint.load_sizes_and_vocabulary(directory)
    prefix = checkpoint.resolve_checkpoint(directory, hparams, checkpoint_name)
    reader = checkpoint.weights_reader(prefix, hparams)
    vocabulary, merges, _ = vocabulary_files.load_vocabulary(directory)
    unused = sorted(set(range(hparams.n_vocab)) - enc.decoder.keys())
    vocabulary = {**vocabulary, **{NO_TEXT.format(id): id for id in unused}}
    vocabulary_files.write_vocabulary(folder, vocabulary, merges, names=VOCABULARY_FILES)
    for name, values in descriptions(hparams, enc, unused).items():
        with paths.replacing(os.path.join(folder, name)) as file:
            json.dump(values, file, indent=2)
    shapes = model.weight_shapes(hparams)
    with checkpoint.readable(prefix):
        write_safetensors(os.path.join(folder, SAFETENSORS),
                          {ROOT + tensor_name(name): shape[-2:] for name, shape in shapes.items()},
                          (reader.get_tensor(f'model/{name}') for name in shapes))
    return prefix


def descriptions(hparams, enc, unused):  # -> {name of a file: object}
    end = None if enc.eot is None else enc.decode([enc.eot])
    ids = {'bos_token_id': enc.eot, 'eos_token_id': enc.eot}
    flags = dict.fromkeys(['lstrip', 'rstrip', 'normalized', 'single_word'], False)
    return {
        'config.json': {  # older versions, and converters from this format, look for n_ctx and torch_dtype
            'model_type': 'gpt2', 'architectures': ['GPT2LMHeadModel'], 'n_ctx': hparams.n_ctx,
            'n_inner': None, **{field: getattr(hparams, name) for name, field in SIZES.items()},
            **{field: values[0] for field, values in ARCHITECTURE.items() if values[0] is not None},
            'tie_word_embeddings': True, 'torch_dtype': 'float32', **ids},
        'generation_config.json': {**ids, 'suppress_tokens': unused} if unused else ids,
        'tokenizer_config.json': {
            'tokenizer_class': 'GPT2Tokenizer', 'model_max_length': hparams.n_ctx, 'add_prefix_space': False,
            'add_bos_token': False, 'clean_up_tokenization_spaces': False, 'errors': 'replace',
            'bos_token': end, 'eos_token': end, 'unk_token': end, 'added_tokens_decoder': {
                str(id): {'content': text, 'special': True, **flags} for text, id in enc.special.items()}}}


def write_safetensors(path, shapes, values):
    """Writes float32 tensors. shapes: {name: shape}. values: an iterator of the arrays, one in use at a time.

    The library wants all at once. The file is the header's length in 8 bytes, the header, and the data.
    """
    header: dict[str, dict] = {'__metadata__': {'format': 'pt'}}  # transformers asks for this format
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {'dtype': 'F32', 'shape': shape, 'data_offsets': [start, end]}
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)  # so that tensors are aligned
    with paths.replacing(path, 'wb') as file:
        file.write(len(text).to_bytes(8, 'little') + text)
        for value in values:
            file.write(np.ascontiguousarray(value, '<f4').data)


# Reading sizes and vocabulary

def read(source: str, folder: str) -> HParams:
    """Makes a model directory in an empty folder from a folder `source` of this format.

    Weights in float16 or bfloat16 become float32. Raises InputError, before a file is written, for another
    architecture, an output layer of its own, and for files that are missing, damaged, or of different models.
    """
    source = paths.expand(source)
    require(os.path.isdir(source), f'no folder {source}; give one with config.json and {SAFETENSORS}')
    hparams, tied, end_id = read_config(os.path.join(source, 'config.json'))
    vocabulary, merges, special, names = read_vocabulary(source, end_id)
    n_vocab = encoder.Encoder(vocabulary, merges, names=names, special=special).n_vocab
    require(n_vocab <= hparams.n_vocab, f'{names[0]} has ids up to {n_vocab - 1}, but config.json says '
                                        f'vocab_size is {hparams.n_vocab}')
    weights = find_weights(source, hparams, tied)
    vocabulary_files.write_vocabulary(folder, vocabulary, merges, special)
    new_model.write(folder, hparams, ((name, read_tensor(*weights[name]).reshape(shape))
                                      for name, shape in model.weight_shapes(hparams).items()))
    return hparams


def read_object(path, optional=False):  # -> the dict of a JSON file; {} where an optional file is missing
    try:
        data = b'{}' if optional and not os.path.exists(path) else paths.read_small(path)
    except FileNotFoundError:
        raise InputError(f'no {path}; copy it from where the model came from') from None
    try:
        values = json.loads(data)  # with a byte-order mark, too
        json.dumps(values)  # messages show values: so deeply nested ones are refused here
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path} is not JSON ({error}); copy it again from its source') from None
    require(isinstance(values, dict), f'{path} must hold an object, not {type(values).__name__}')
    return values


def read_config(path):  # -> HParams, whether the output layer is the token embedding, the id that ends a text
    values = read_object(path)
    kind = json.dumps(values.get('model_type'))[:80]
    require(kind == '"gpt2"', f'{path} says model_type is {kind}; the architecture here is "gpt2"')
    missing = [field for field in SIZES.values() if field not in values]
    require(not missing, f'{path} lacks {", ".join(missing)}')
    try:
        hparams = HParams().override_from_dict({name: values[field] for name, field in SIZES.items()})
    except InputError as error:
        raise InputError(f'{path}: {error}') from None
    for field, allowed in {**ARCHITECTURE, 'n_inner': (None, 4 * hparams.n_embd)}.items():
        value = values.get(field, allowed[0])
        require(value in allowed, f'{path} says {field} is {json.dumps(value)[:80]}, but this code computes '
                                  f'only {" or ".join(map(json.dumps, allowed))}')
    return hparams, values.get('tie_word_embeddings', True), values.get('eos_token_id')


def read_vocabulary(source, end_id):
    """{symbol: id}, pairs of symbols, SpecialTokens (None for GPT-2's own), the files of the first two."""
    tokenizer, listed = (os.path.join(source, name) for name in ('tokenizer.json', 'added_tokens.json'))
    names = [os.path.join(source, name) for name in VOCABULARY_FILES]
    if os.path.exists(tokenizer):
        names = [tokenizer, tokenizer]
        vocabulary, merges, added = read_tokenizer(tokenizer)
    else:
        require(all(map(os.path.exists, names)),
                f'{source} has neither tokenizer.json nor {" and ".join(VOCABULARY_FILES)}: copy them from '
                'where the model came from; no tokens but those of byte-level BPE are read')
        vocabulary, merges = vocabulary_files.read_vocabulary(names[0]), vocabulary_files.read_merges(names[1])
        added = {token_text(listed, text): id for text, id in read_object(listed, optional=True).items()}
    vocabulary_files.check_vocabulary(vocabulary, names[0])
    vocabulary = {text: id for text, id in {**added, **vocabulary}.items() if text != NO_TEXT.format(id)}
    return vocabulary, merges, read_special_tokens(source, vocabulary, merges, added, end_id), names


def read_special_tokens(source, vocabulary, merges, added, end_id):  # -> SpecialTokens; None for GPT-2's own
    """The added tokens, and those that the tokenizer's files name.

    config.json names the token that ends a text. Where it names none, or one made by merges (GPT-2's 50256
    was left there), the tokenizer's eos_token ends a text.
    """
    named = dict.fromkeys(('bos_token', 'eos_token', 'unk_token'), encoder.EOT)  # where the files name none
    listed = [*added]
    for file in ('special_tokens_map.json', 'tokenizer_config.json'):
        path = os.path.join(source, file)
        values = read_object(path, optional=True)
        check_prefix_space(path, values)
        named |= {name: token_text(path, values[name]) for name in NAMED_TOKENS if name in values}
        for tokens in map(values.get, LISTED_TOKENS):
            tokens = list(tokens.values()) if isinstance(tokens, dict) else tokens or []
            listing = json.dumps(tokens)[:80]
            require(isinstance(tokens, list), f'{path}: a list of special tokens is {listing}')
            listed += [token_text(path, token) for token in tokens]
    tokens = [text for text in dict.fromkeys([*listed, *named.values()]) if text in vocabulary]
    end_id = end_id[0] if isinstance(end_id, list) and end_id else end_id
    by_id = [text for text, id in vocabulary.items() if type(end_id) is int and id == end_id]
    spelt = {*encoder.bytes_to_unicode().values(), *map(''.join, merges)}
    ends = [text for text in (*by_id, named['eos_token'], encoder.EOT)
            if text in tokens or (text in vocabulary and text not in spelt)]
    special = encoder.SpecialTokens(list(dict.fromkeys([*tokens, *ends[:1]])), ends[0] if ends else None)
    usual = ([encoder.EOT], encoder.EOT) if encoder.EOT in vocabulary else ([], None)
    return None if special == usual else special


def check_prefix_space(path, values):
    require(not values.get('add_prefix_space'), f'{path} puts a space before each text (add_prefix_space); '
                                                'set that to false, and begin prompts with a space')


def token_text(path, token):  # str, object or None -> str or None
    """Raises InputError where the text around a special token changes how it is read."""
    fields = token if isinstance(token, dict) else {'content': token}
    text, flags = fields.get('content'), list(filter(fields.get, ('lstrip', 'rstrip', 'single_word')))
    valid = token is None or (text and isinstance(text, str))
    require(valid, f'{path}: one of the special tokens has no content')
    require(not flags, f'{path}: {json.dumps(text)[:80]} is read by the text around it ({", ".join(flags)}); '
                       'set this to false')
    return text


def read_tokenizer(path):  # -> {symbol: id}, list of pairs of symbols, {added text: id}
    """Raises InputError unless a tokenizer.json splits and merges as GPT-2 does."""
    values = read_object(path)
    bpe, splitter = (values.get(name) or {} for name in ('model', 'pre_tokenizer'))
    kinds = [part.get('type') if isinstance(part, dict) else None for part in (bpe, splitter)]
    require(kinds == ['BPE', 'ByteLevel'] and splitter.get('use_regex', True) and not values.get('normalizer')
            and not any(map(bpe.get, ('ignore_merges', 'continuing_subword_prefix', 'end_of_word_suffix'))),
            f'{path} is not the byte-level BPE of GPT-2; no other is read')
    check_prefix_space(path, splitter)
    merges, added = bpe.get('merges', ()), values.get('added_tokens') or []
    require(isinstance(merges, list) and isinstance(added, list), f'{path}: merges and tokens must be lists')
    pairs = [pair.split(' ') if isinstance(pair, str) else pair for pair in merges]
    for number, pair in enumerate(pairs, 1):
        if not isinstance(pair, list) or list(map(type, pair)) != [str, str]:
            raise InputError(f'{path}: merge {number} is not two symbols')
    require(all(isinstance(token, dict) for token in added), f'{path}: one of added_tokens is no object')
    return bpe.get('vocab'), pairs, {token_text(path, token): token.get('id') for token in added}


# Reading weights

def find_weights(source, hparams, tied):  # -> {name of weight_shapes: (slice of the library, is transposed)}
    """Raises InputError unless all weights are there in their shapes, and nothing unknown is.

    tied: whether config.json says that the output layer is the token embedding.
    """
    tensors, shapes = {}, model.weight_shapes(hparams)
    for path in weight_files(source):
        tensors |= open_tensors(path)
    roots = [name.removesuffix('wte.weight') for name in tensors if re.search(r'(^|\.)wte\.weight$', name)]
    require(len(roots) == 1, f'{source} has {len(roots)} tensors named wte.weight; a GPT-2 has one')
    names = {name: roots[0] + tensor_name(name) for name in shapes}
    head = roots[0].removesuffix(ROOT) + 'lm_head.weight'
    missing = [name for name in [*names.values(), *([] if tied else [head])] if name not in tensors]
    if missing:
        raise InputError(f'{source} lacks {len(missing)} tensors that config.json asks for, such as '
                         f'{missing[0]}')
    unknown = sorted(name for name in tensors.keys() - {*names.values(), head}
                     if not MASKS.fullmatch(name.removeprefix(roots[0])))
    if unknown:
        raise InputError(f'{source} has {len(unknown)} tensors that a GPT-2 of the sizes in config.json has '
                         f'not, such as {unknown[0][:80]!r}')
    # Linear layers of torch are [n_out, n_in]. c_attn, which is never square, tells the layout of all.
    transposed = tensors[names['h0/attn/c_attn/w']].get_shape() == [3 * hparams.n_embd, hparams.n_embd]
    weights = {name: (tensors[names[name]], transposed and name.endswith('/w')) for name in shapes}
    for name, (tensor, is_transposed) in weights.items():
        place, shape, dtype = f'{source}: {names[name]}', tensor.get_shape(), tensor.get_dtype()
        expected = shapes[name][-2:][::-1] if is_transposed else shapes[name][-2:]
        require(shape == expected,
                f'{place} has shape {str(shape)[:80]}, but config.json makes it {expected}')
        require(dtype in DTYPES, f'{place} is {dtype}; have the model saved in one of {", ".join(DTYPES)}')
    if head in tensors and not are_equal(tensors[head], weights['wte'][0]):
        raise InputError(f'{source}: {head} is not the same as {names["wte"]}; the model of this code has no '
                         'output layer apart from its token embedding (it is tied)')
    return weights


def weight_files(source):  # -> paths
    """Raises InputError where the weights are not in safetensors."""
    path, index = os.path.join(source, SAFETENSORS), os.path.join(source, INDEX)
    if os.path.exists(path):
        return [path]
    if os.path.exists(index):
        names = read_object(index).get('weight_map')
        names = sorted(set(map(str, names.values()))) if isinstance(names, dict) else []
        require(names and all(name.endswith('.safetensors') for name in names),
                f'{index} has no weight_map of tensors to files *.safetensors')
        return [paths.child(source, name, f'{index}: the file') for name in names]
    for name in sorted(os.listdir(source)):
        if name.endswith(('.bin', '.pt', '.pth', '.ckpt', '.pkl')):
            raise InputError(f'{source} has its weights in {name}, a pickle: reading one runs whatever '
                             'program it holds; have them saved as safetensors, as save_pretrained does')
    raise InputError(f'{source} has neither {SAFETENSORS} nor {INDEX}; give a folder that has')


def open_tensors(path):  # -> {name: PySafeSlice}, which keep the file open
    """Raises InputError unless the header is whole, and agrees with the size of the file."""
    require(os.path.isfile(path), f'no {path}; copy it from where the model came from')
    try:
        file = safetensors.safe_open(path, 'np')
        names = file.keys()
        return {name: file.get_slice(name) for name in names}
    except safetensors.SafetensorError as error:
        raise InputError(f'{path} is damaged, or not whole; copy it again ({str(error)[:200]})') from None


def row_ranges(tensor):  # -> list of (first, end), so that a part of a tensor is read at a time
    count = tensor.get_shape()[0]
    return [(first, min(first + ROWS_AT_A_TIME, count)) for first in range(0, count, ROWS_AT_A_TIME)]


def read_tensor(tensor, transposed):  # PySafeSlice -> float32 array
    shape = tensor.get_shape()
    result = new_model.aligned(shape[::-1] if transposed else shape)
    rows = result.T if transposed else result
    for first, end in row_ranges(tensor):
        rows[first:end] = tensor[first:end]
    return result


def are_equal(a, b):  # PySafeSlices
    same_form = (a.get_shape(), a.get_dtype()) == (b.get_shape(), b.get_dtype())
    return same_form and all(np.array_equal(a[first:end], b[first:end]) for first, end in row_ranges(a))
