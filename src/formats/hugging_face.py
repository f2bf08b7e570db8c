"""Models in the format of Hugging Face's transformers, which other programs read too: a folder with

  model.safetensors        the weights; large models may have several files, listed in model.safetensors.index.json
  config.json              sizes and architecture; generation_config.json: tokens that end a text or are never drawn
  vocab.json, merges.txt   the content of encoder.json and vocab.bpe; tokenizer.json may hold it, too, or alone
  tokenizer_config.json    special tokens, which older versions name in special_tokens_map.json, added_tokens.json

Tensors have the checkpoint's names in another spelling (h0/ln_1/g is transformer.h.0.ln_1.weight), and matrices are
[n_in, n_out], without the checkpoint's axis of 1. Weights are written and read a tensor at a time.
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
from storage import checkpoint, new_model, paths

SAFETENSORS, INDEX = 'model.safetensors', 'model.safetensors.index.json'
VOCABULARY_FILES = ('vocab.json', 'merges.txt')
NAMED_TOKENS = ('bos_token', 'eos_token', 'unk_token', 'sep_token', 'pad_token', 'cls_token', 'mask_token')
LISTED_TOKENS = ('additional_special_tokens', 'extra_special_tokens', 'added_tokens_decoder')
ROOT = 'transformer.'  # stands before all names but that of the output layer
KINDS = {'b': 'bias', 'g': 'weight', 'w': 'weight'}  # last part of a name
SIZES = {'n_vocab': 'vocab_size', 'n_ctx': 'n_positions', 'n_embd': 'n_embd', 'n_head': 'n_head', 'n_layer': 'n_layer'}
ARCHITECTURE = {  # field of config.json: the values that this code computes, the default first
    'activation_function': ('gelu_new', 'gelu_pytorch_tanh'), 'layer_norm_epsilon': (1e-5,),
    'scale_attn_weights': (True,), 'scale_attn_by_inverse_layer_idx': (False,), 'add_cross_attention': (False,),
    'quantization_config': (None,)}
MASKS = re.compile(r'h\.\d+\.attn\.(bias|masked_bias)')  # older versions saved the causal mask beside the weights
DTYPES = ('F32', 'F16', 'BF16')
ROWS_AT_A_TIME = 1 << 11  # of a tensor are read
NO_TEXT = '<|unused{}|>'  # the name of an id without a text: converters want a token for each row of the embedding
REMEDY = 'copy it again from where the model came from'


def tensor_name(name):  # of model.weight_shapes: h0/attn/c_attn/w -> h.0.attn.c_attn.weight
    parts = re.sub(r'^h(\d+)/', r'h/\1/', name).split('/')
    return '.'.join([*parts[:-1], KINDS[parts[-1]]] if parts[1:] else [name, 'weight'])


# Writing

def write(folder: str, directory: str, checkpoint_name: str | None = None) -> str:
    """Writes the model or run of a directory into an empty folder; returns the checkpoint's path.

    checkpoint_name: see checkpoint.resolve_checkpoint. Raises InputError for files that are missing, damaged, or of
    different models.
    """
    _, hparams, enc = checkpoint.load_sizes_and_vocabulary(os.path.basename(directory), os.path.dirname(directory))
    prefix = checkpoint.resolve_checkpoint(directory, hparams, checkpoint_name)
    reader = checkpoint.weights_reader(prefix, hparams)
    vocabulary, merges, _ = encoder.load_vocabulary(directory)
    unused = sorted(set(range(hparams.n_vocab)) - enc.decoder.keys())
    vocabulary = {**vocabulary, **{NO_TEXT.format(id): id for id in unused}}
    encoder.write_vocabulary(folder, vocabulary, merges, names=VOCABULARY_FILES)
    ends = {'bos_token_id': enc.eot, 'eos_token_id': enc.eot}
    generation = {**ends, 'suppress_tokens': unused} if unused else ends
    for name, values in (('config', {**config(hparams), **ends}), ('generation_config', generation),
                         ('tokenizer_config', tokenizer_config(hparams, enc))):
        with paths.replacing(os.path.join(folder, f'{name}.json')) as file:
            json.dump(values, file, indent=2)
    shapes = model.weight_shapes(hparams)
    with checkpoint.readable(prefix):
        write_safetensors(os.path.join(folder, SAFETENSORS),
                          {ROOT + tensor_name(name): shape[-2:] for name, shape in shapes.items()},
                          (reader.get_tensor(f'model/{name}') for name in shapes))
    return prefix


def write_safetensors(path, shapes, values):
    """Writes float32 tensors. shapes: {name: shape}. values: an iterable of the arrays, one in memory at a time.

    The library wants all at once. The file is the length of the header in 8 bytes, the header, and the data.
    """
    header, end = {'__metadata__': {'format': 'pt'}}, 0  # transformers asks for this format
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {'dtype': 'F32', 'shape': shape, 'data_offsets': [start, end]}
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)  # so that tensors are aligned
    with paths.replacing(path, 'wb') as file:
        file.write(len(text).to_bytes(8, 'little') + text)
        for value in values:
            file.write(np.ascontiguousarray(value, '<f4').data)


def config(hparams):
    sizes = {field: getattr(hparams, name) for name, field in SIZES.items()}
    architecture = {field: values[0] for field, values in ARCHITECTURE.items() if values[0] is not None}
    # Older versions, and converters from this format, look for n_ctx and torch_dtype.
    return {'model_type': 'gpt2', 'architectures': ['GPT2LMHeadModel'], **sizes, 'n_ctx': hparams.n_ctx,
            'n_inner': None, **architecture, 'tie_word_embeddings': True, 'torch_dtype': 'float32'}


def tokenizer_config(hparams, enc):
    eot = None if enc.eot is None else enc.decode([enc.eot])
    flags = dict.fromkeys(['lstrip', 'rstrip', 'normalized', 'single_word'], False)
    added = {str(id): {'content': text, 'special': True, **flags} for text, id in enc.special.items()}
    return {'tokenizer_class': 'GPT2Tokenizer', 'model_max_length': hparams.n_ctx, 'add_prefix_space': False,
            'add_bos_token': False, 'clean_up_tokenization_spaces': False, 'errors': 'replace', 'bos_token': eot,
            'eos_token': eot, 'unk_token': eot, 'added_tokens_decoder': added}


# Reading sizes and vocabulary

def read(source: str, folder: str) -> HParams:
    """Makes a model directory in an empty folder from a folder `source` of this format.

    Weights in float16 or bfloat16 become float32. Raises InputError, before any file is written, for another
    architecture, an output layer of its own, and for files that are missing, damaged, or of different models.
    """
    source = paths.expand(source)
    require(os.path.isdir(source), f'no folder {source}; give one with config.json and {SAFETENSORS}')
    hparams, tied, end_id = read_config(os.path.join(source, 'config.json'))
    vocabulary, merges, special, names = read_vocabulary(source, end_id)
    n_vocab = encoder.Encoder(vocabulary, merges, names=names, special=special).n_vocab
    require(n_vocab <= hparams.n_vocab, f'{source}: {os.path.basename(names[0])} has ids up to {n_vocab - 1}, but '
                                        f'config.json says vocab_size is {hparams.n_vocab}')
    weights = find_weights(source, hparams, tied)
    encoder.write_vocabulary(folder, vocabulary, merges, special)
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
        json.dumps(values)  # for messages that show a value, so nothing is nested too deeply for that
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path} is not JSON ({error}); {REMEDY}') from None
    require(isinstance(values, dict), f'{path} must hold an object, not {type(values).__name__}')
    return values


def read_config(path):  # -> HParams, whether the output layer is the token embedding, the id that ends a text
    values = read_object(path)
    kind = json.dumps(values.get('model_type'))[:80]
    require(kind == '"gpt2"', f'{path} says model_type is {kind}; the architecture here is "gpt2"')
    missing = [field for field in SIZES.values() if field not in values]
    require(not missing, f'{path} lacks {", ".join(missing)}')
    try:
        hparams = model.default_hparams().override_from_dict({name: values[field] for name, field in SIZES.items()})
    except InputError as error:
        raise InputError(f'{path}: {error}') from None
    for field, allowed in {**ARCHITECTURE, 'n_inner': (None, 4 * hparams.n_embd)}.items():
        value = values.get(field, allowed[0])
        require(value in allowed, f'{path} says {field} is {json.dumps(value)[:80]}, but this code computes only '
                                  f'{" or ".join(map(json.dumps, allowed))}')
    return hparams, values.get('tie_word_embeddings', True), values.get('eos_token_id')


def read_vocabulary(source, end_id):  # -> {symbol: id}, pairs of symbols, SpecialTokens or None, file of each of the two
    """None is for GPT-2's own special token. end_id: the id that config.json has for the token that ends a text."""
    names = [os.path.join(source, name) for name in VOCABULARY_FILES]
    tokenizer, listed = os.path.join(source, 'tokenizer.json'), os.path.join(source, 'added_tokens.json')
    if os.path.exists(tokenizer):
        names = [tokenizer, tokenizer]
        vocabulary, merges, added = read_tokenizer(tokenizer)
    else:
        require(all(map(os.path.exists, names)),
                f'{source} has neither tokenizer.json nor {" and ".join(VOCABULARY_FILES)}: copy them from where the '
                'model came from, if its tokens are those of byte-level BPE; no others are read')
        vocabulary, merges = encoder.read_vocabulary(names[0]), encoder.read_merges(names[1])
        added = {token_text(listed, text): id for text, id in read_object(listed, optional=True).items()}
    encoder.check_vocabulary(vocabulary, names[0])
    vocabulary = {symbol: id for symbol, id in {**added, **vocabulary}.items() if symbol != NO_TEXT.format(id)}
    return vocabulary, merges, read_special_tokens(source, vocabulary, merges, added, end_id), names


def read_special_tokens(source, vocabulary, merges, added, end_id):  # -> SpecialTokens; None for GPT-2's own
    """The added tokens, and those that the tokenizer's files name. config.json names the token that ends a text. Where
    it names none, or one made by merges (GPT-2's 50256 was left there), the tokenizer's eos_token ends a text."""
    named = dict.fromkeys(('bos_token', 'eos_token', 'unk_token'), encoder.EOT)  # where the files name none
    listed = [*added]
    for name in ('special_tokens_map.json', 'tokenizer_config.json'):
        path = os.path.join(source, name)
        values = read_object(path, optional=True)
        check_prefix_space(path, values)
        named |= {name: token_text(path, values[name]) for name in NAMED_TOKENS if name in values}
        for tokens in map(values.get, LISTED_TOKENS):
            tokens = list(tokens.values()) if isinstance(tokens, dict) else tokens or []
            require(isinstance(tokens, list), f'{path}: a list of special tokens is {json.dumps(tokens)[:80]}')
            listed += [token_text(path, token) for token in tokens]
    tokens = [text for text in dict.fromkeys([*listed, *named.values()]) if text in vocabulary]
    end_id = end_id[0] if isinstance(end_id, list) and end_id else end_id
    symbols = [symbol for symbol, id in vocabulary.items() if type(end_id) is int and id == end_id]
    spelt = {*encoder.bytes_to_unicode().values(), *map(''.join, merges)}
    for end in (*symbols, named['eos_token'], encoder.EOT):
        if end in tokens or (end in vocabulary and end not in spelt):
            break
    else:
        end = None
    usual = ([encoder.EOT], encoder.EOT) if encoder.EOT in vocabulary else ([], None)
    special = encoder.SpecialTokens(tokens if end is None or end in tokens else [*tokens, end], end)
    return None if special == usual else special


def check_prefix_space(path, values):
    require(not values.get('add_prefix_space'), f'{path} puts a space before each text (add_prefix_space); '
                                                'set that to false, and begin prompts with a space')


def token_text(path, token):  # str, object or None -> str or None
    """Raises InputError where the text around a special token changes how it is read."""
    fields = token if isinstance(token, dict) else {'content': token}
    text, flags = fields.get('content'), list(filter(fields.get, ('lstrip', 'rstrip', 'single_word')))
    require(token is None or (text and isinstance(text, str)), f'{path}: one of the special tokens has no content')
    require(not flags, f'{path}: {json.dumps(text)[:80]} is read by the text around it ({", ".join(flags)}); set this '
                       'to false')
    return text


def read_tokenizer(path):  # -> {symbol: id}, list of pairs of symbols, {added text: id}
    """Raises InputError unless a tokenizer.json splits and merges as GPT-2 does."""
    values = read_object(path)
    bpe, splitter = (values.get(name) or {} for name in ('model', 'pre_tokenizer'))
    require(isinstance(bpe, dict) and isinstance(splitter, dict) and bpe.get('type') == 'BPE'
            and splitter.get('type') == 'ByteLevel' and splitter.get('use_regex', True) and not values.get('normalizer')
            and not any(map(bpe.get, ('ignore_merges', 'continuing_subword_prefix', 'end_of_word_suffix'))),
            f'{path} is not the byte-level BPE of GPT-2; no other is read')
    check_prefix_space(path, splitter)
    merges, added = bpe.get('merges', ()), values.get('added_tokens') or []
    require(isinstance(merges, list) and isinstance(added, list), f'{path}: merges and added_tokens must be lists')
    pairs = [pair.split(' ') if isinstance(pair, str) else pair for pair in merges]
    for number, pair in enumerate(pairs, 1):
        if not isinstance(pair, list) or list(map(type, pair)) != [str, str]:
            raise InputError(f'{path}: merge {number} is not two symbols')
    require(all(isinstance(token, dict) for token in added), f'{path}: one of added_tokens is no object')
    return bpe.get('vocab'), pairs, {token_text(path, token): token.get('id') for token in added}


# Reading weights

def find_weights(source, hparams, tied):  # -> {name of weight_shapes: (slice of a safetensors file, is transposed)}
    """Raises InputError unless all weights are there in their shapes, and nothing unknown is.

    tied: whether config.json says that the output layer is the token embedding.
    """
    stored = {}
    for path in weight_files(source):
        stored |= open_slices(path)
    shapes = model.weight_shapes(hparams) if hparams.n_layer <= len(stored) else {}
    require(shapes, f'{source}: config.json says n_layer is {hparams.n_layer}, but there are only {len(stored)} tensors')
    roots = [name.removesuffix('wte.weight') for name in stored if re.search(r'(^|\.)wte\.weight$', name)]
    require(len(roots) == 1, f'{source} has {len(roots)} tensors named wte.weight; a GPT-2 has one')
    names = {name: roots[0] + tensor_name(name) for name in shapes}
    head = roots[0].removesuffix(ROOT) + 'lm_head.weight'
    missing = [name for name in [*names.values(), *([] if tied else [head])] if name not in stored]
    if missing:
        raise InputError(f'{source} lacks {len(missing)} tensors that config.json asks for, such as {missing[0]}')
    unknown = sorted(name for name in stored.keys() - {*names.values(), head}
                     if not MASKS.fullmatch(name.removeprefix(roots[0])))
    if unknown:
        raise InputError(f'{source} has {len(unknown)} tensors that a GPT-2 of the sizes in config.json has not, such '
                         f'as {unknown[0][:80]!r}')
    # Linear layers of torch have matrices [n_out, n_in]. c_attn, which is never square, tells the layout of all.
    transposed = stored[names['h0/attn/c_attn/w']].get_shape() == [3 * hparams.n_embd, hparams.n_embd]
    weights = {name: (stored[names[name]], transposed and name.endswith('/w')) for name in shapes}
    for name, (tensor, is_transposed) in weights.items():
        place, shape, dtype = f'{source}: {names[name]}', tensor.get_shape(), tensor.get_dtype()
        expected = shapes[name][-2:][::-1] if is_transposed else shapes[name][-2:]
        require(shape == expected, f'{place} has shape {str(shape)[:80]}, but config.json makes it {expected}')
        require(dtype in DTYPES, f'{place} is {dtype}; have the model saved in one of {", ".join(DTYPES)}')
    if head in stored and not are_equal(stored[head], weights['wte'][0]):
        raise InputError(f'{source}: {head} is not the same as {names["wte"]}; the model of this code has no output '
                         'layer apart from its token embedding (it is tied)')
    return weights


def weight_files(source):  # -> paths
    """Raises InputError where the weights are not in safetensors."""
    files, index = [os.path.join(source, SAFETENSORS)], os.path.join(source, INDEX)
    if not os.path.exists(files[0]) and os.path.exists(index):
        names = read_object(index).get('weight_map')
        names = names.values() if isinstance(names, dict) else ()
        require(names and all(isinstance(name, str) and name.endswith('.safetensors') for name in names),
                f'{index} has no weight_map of tensors to files *.safetensors')
        files = [os.path.join(source, paths.child('', name, f'{index}: the file')) for name in sorted(set(names))]
    elif not os.path.exists(files[0]):
        for name in sorted(os.listdir(source)):
            require(not name.endswith(('.bin', '.pt', '.pth', '.ckpt', '.pkl')),
                    f'{source} has its weights in {name}, a pickle: reading one runs whatever program it holds, so '
                    'none is read; have them saved as safetensors, as save_pretrained of transformers does')
        raise InputError(f'{source} has neither {SAFETENSORS} nor {INDEX}; give the folder of a model in that format')
    return files


def open_slices(path):  # -> {name: PySafeSlice}, which keep the file open
    """Raises InputError unless the header is whole, and agrees with the size of the file."""
    require(os.path.isfile(path), f'no {path}; copy it from where the model came from')
    try:
        file = safetensors.safe_open(path, 'np')
        names = file.keys()
        return {name: file.get_slice(name) for name in names}
    except safetensors.SafetensorError as error:
        raise InputError(f'{path} is damaged, or not whole; {REMEDY} ({" ".join(str(error).split())[:200]})') from None


def parts(tensor):
    """Yields the number of a first row, and up to ROWS_AT_A_TIME rows from there, until all rows have come."""
    count = tensor.get_shape()[0]
    for first in range(0, count, ROWS_AT_A_TIME):
        yield first, tensor[first:min(first + ROWS_AT_A_TIME, count)]


def read_tensor(tensor, transposed):  # PySafeSlice -> float32 array
    shape = tensor.get_shape()
    result = new_model.aligned(shape[::-1] if transposed else shape)
    rows = result.T if transposed else result
    for first, part in parts(tensor):
        rows[first:first + len(part)] = part
    return result


def are_equal(a, b):
    return (a.get_shape(), a.get_dtype()) == (b.get_shape(), b.get_dtype()) and all(
        np.array_equal(part, other) for (_, part), (_, other) in zip(parts(a), parts(b), strict=True))
