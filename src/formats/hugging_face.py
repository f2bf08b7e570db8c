"""Models in the format of Hugging Face's transformers, which much else reads too: a folder with

  model.safetensors        the weights; large models may have several files, listed in model.safetensors.index.json
  config.json              the sizes, and what else there is to know of the architecture
  generation_config.json   which tokens begin and end a text, and which are never drawn
  vocab.json, merges.txt   what encoder.json and vocab.bpe hold; instead, or besides, tokenizer.json holds it all
  tokenizer_config.json    how they are used, and the special tokens, some of which older versions name in
                           special_tokens_map.json and added_tokens.json

A safetensors file is the length of its header in 8 bytes, the header, which is JSON ({name: type, shape, place}), and
the data. It is written and read a tensor at a time.

Tensors have the checkpoint's names in another spelling (h0/ln_1/g is transformer.h.0.ln_1.weight), and matrices are
[n_in, n_out], without the checkpoint's axis of 1.
"""
import dataclasses
import json
import math
import os
import re

import numpy as np
import safetensors
import tensorflow.compat.v1 as tf

import encoder
import model
from errors import InputError, require
from hparams import HParams
from storage import checkpoint, new_model, paths, vocabulary_files

SAFETENSORS, INDEX = 'model.safetensors', 'model.safetensors.index.json'
VOCABULARY_FILES = ('vocab.json', 'merges.txt')
NAMED_TOKENS = ('bos_token', 'eos_token', 'unk_token', 'sep_token', 'pad_token', 'cls_token', 'mask_token')
LISTED_TOKENS = ('additional_special_tokens', 'extra_special_tokens', 'added_tokens_decoder')
ROOT = 'transformer.'  # before all names but the output layer's
SIZES = {'n_vocab': 'vocab_size', 'n_ctx': 'n_positions', 'n_embd': 'n_embd', 'n_head': 'n_head', 'n_layer': 'n_layer'}
ARCHITECTURE = {  # field of config.json: what it may be here; the first where it is not given
    'activation_function': ('gelu_new', 'gelu_pytorch_tanh'), 'layer_norm_epsilon': (1e-5,),
    'scale_attn_weights': (True,), 'scale_attn_by_inverse_layer_idx': (False,), 'add_cross_attention': (False,),
    'quantization_config': (None,)}
BUFFERS = re.compile(r'h\.\d+\.attn\.(bias|masked_bias)')  # older versions saved the causal mask beside the weights
DTYPES = {'F32': tf.float32, 'F16': tf.float16, 'BF16': tf.bfloat16}
ROWS_AT_A_TIME = 1 << 11  # of a tensor are read
NO_TEXT = '<|unused{}|>'  # what an id without a text is called: converters want a token for each row of the embedding


def their_name(name):
    """A name of model.weight_shapes in their spelling, without ROOT: h0/attn/c_attn/w → h.0.attn.c_attn.weight."""
    *path, kind = re.sub(r'^h(\d+)/', r'h/\1/', name).split('/')
    return '.'.join([*path, {'b': 'bias', 'g': 'weight', 'w': 'weight'}[kind]] if path else [kind, 'weight'])


# Writing

def write(folder: str, directory: str, checkpoint_name: str | None = None) -> str:
    """Writes the model or run of a directory into an empty folder; returns the checkpoint's path.

    checkpoint_name: see checkpoint.choose. Raises InputError for what is missing, damaged or does not fit.
    """
    _, hparams, enc = checkpoint.load_sizes_and_vocabulary(os.path.basename(directory), os.path.dirname(directory))
    prefix = checkpoint.resolve_checkpoint(directory, hparams, checkpoint_name)
    reader = checkpoint.weights_reader(prefix, hparams)
    vocabulary, merges, _ = vocabulary_files.load_vocabulary(directory)
    without_text = sorted(set(range(hparams.n_vocab)) - enc.decoder.keys())
    vocabulary = {**vocabulary, **{NO_TEXT.format(id): id for id in without_text}}
    vocabulary_files.write_vocabulary(folder, vocabulary, merges, names=VOCABULARY_FILES)
    ends = {'bos_token_id': enc.eot, 'eos_token_id': enc.eot}
    never_drawn = {'suppress_tokens': without_text} if without_text else {}
    for name, values in (('config', {**config(hparams), **ends}), ('generation_config', {**ends, **never_drawn}),
                         ('tokenizer_config', tokenizer_config(hparams, enc))):
        with paths.replacing(os.path.join(folder, f'{name}.json')) as file:
            json.dump(values, file, indent=2)
    shapes = model.weight_shapes(hparams)
    with checkpoint.readable(prefix):
        write_safetensors(os.path.join(folder, SAFETENSORS),
                          {ROOT + their_name(name): shape[-2:] for name, shape in shapes.items()},
                          (reader.get_tensor(f'model/{name}') for name in shapes))
    return prefix


def write_safetensors(path, shapes, values):
    """Writes float32 tensors. shapes: {name: shape}; values: an iterable of arrays in that order, used as it comes."""
    end = 0
    header: dict[str, dict] = {'__metadata__': {'format': 'pt'}}  # transformers asks whose the names and shapes are
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {'dtype': 'F32', 'shape': shape, 'data_offsets': [start, end]}
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)  # tensors are to lie at multiples of their size
    with paths.replacing(path, 'wb') as file:
        file.write(len(text).to_bytes(8, 'little') + text)
        for value in values:
            file.write(np.ascontiguousarray(value, '<f4').data)


def config(hparams):
    sizes = {theirs: getattr(hparams, ours) for ours, theirs in SIZES.items()}
    architecture = {name: allowed[0] for name, allowed in ARCHITECTURE.items() if allowed[0] is not None}
    # n_ctx and torch_dtype are what older versions, and converters from this format, look for.
    return {'model_type': 'gpt2', 'architectures': ['GPT2LMHeadModel'], **sizes, 'n_ctx': hparams.n_ctx,
            'n_inner': None, **architecture, 'tie_word_embeddings': True, 'torch_dtype': 'float32'}


def tokenizer_config(hparams, enc):
    eot = None if enc.eot is None else enc.decode([enc.eot])
    ways = dict.fromkeys(['lstrip', 'rstrip', 'normalized', 'single_word'], False)
    added = {str(id): {'content': text, 'special': True, **ways} for text, id in enc.special.items()}
    return {'tokenizer_class': 'GPT2Tokenizer', 'model_max_length': hparams.n_ctx, 'add_prefix_space': False,
            'add_bos_token': False, 'clean_up_tokenization_spaces': False, 'errors': 'replace', 'bos_token': eot,
            'eos_token': eot, 'unk_token': eot, 'added_tokens_decoder': added}


# Reading

def read(source: str, folder: str) -> HParams:
    """Makes a model directory of their format's folder `source` in the empty folder `folder`.

    Weights in float16 or bfloat16 become float32. Raises InputError, before any is written, for another architecture,
    an output layer of its own, and for what is missing, damaged or does not fit.
    """
    source = paths.expand(source)
    require(os.path.isdir(source), f'no folder {source}; give one with config.json and {SAFETENSORS}')
    hparams, tied, end = read_config(os.path.join(source, 'config.json'))
    vocabulary, merges, special, names = read_vocabulary(source, end)
    n_vocab = encoder.Encoder(vocabulary, merges, names=names, special=special).n_vocab
    require(n_vocab <= hparams.n_vocab, f'{source}: {os.path.basename(names[0])} has ids up to {n_vocab - 1}, but '
                                        f'config.json says vocab_size is {hparams.n_vocab}')
    weights = find_weights(source, hparams, tied)
    vocabulary_files.write_vocabulary(folder, vocabulary, merges, special)
    new_model.write(folder, hparams, ((name, weights[name].read().reshape(shape))
                                       for name, shape in model.weight_shapes(hparams).items()))
    return hparams


def read_object(path):
    """The object of a JSON file. Raises InputError if there is none."""
    try:
        data = paths.read_small(path)
    except FileNotFoundError:
        raise InputError(f'no {path}; copy it from where the model came from') from None
    try:
        values = json.loads(data)  # also with a byte-order mark
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path} is not JSON ({error}); copy it again from where the model came from') from None
    require(isinstance(values, dict), f'{path} must hold an object, not {type(values).__name__}')
    return values


def read_config(path):  # -> HParams, whether the output layer is the token embedding, the id that ends a text
    values = read_object(path)
    kind = values.get('model_type')
    require(kind == 'gpt2', f'{path} says model_type is {shown(kind)}; the architecture here is "gpt2"')
    missing = [name for name in SIZES.values() if name not in values]
    require(not missing, f'{path} lacks {", ".join(missing)}')
    try:
        hparams = model.default_hparams().override_from_dict({ours: values[name] for ours, name in SIZES.items()})
    except InputError as error:
        raise InputError(f'{path}: {error}') from None
    for name, allowed in {**ARCHITECTURE, 'n_inner': (None, 4 * hparams.n_embd)}.items():
        value = values.get(name, allowed[0])
        require(value in allowed, f'{path} says {name} is {shown(value)}, but this code computes only '
                                  f'{" or ".join(map(json.dumps, allowed))}')
    return hparams, values.get('tie_word_embeddings', True), values.get('eos_token_id')


def shown(value):
    try:
        return json.dumps(value)[:80]
    except RecursionError:  # nested as deep as can just be read
        return type(value).__name__


def read_vocabulary(source, end_id):
    """{symbol: id}, list of pairs of symbols, SpecialTokens (None for GPT-2's own), and the names of the files that
    hold the first two. end_id: what config.json has as the id of the token that ends a text."""
    path = os.path.join(source, 'tokenizer.json')
    if os.path.exists(path):
        vocabulary, merges, added = read_tokenizer(path)
        names = [path, path]
    else:
        names = [os.path.join(source, name) for name in VOCABULARY_FILES]
        require(all(map(os.path.exists, names)),
                f'{source} has neither tokenizer.json nor {" and ".join(VOCABULARY_FILES)}: copy them from where the '
                'model came from, if its tokens are those of byte-level BPE; no others are read')
        vocabulary = vocabulary_files.read_vocabulary(names[0])
        merges = vocabulary_files.read_merges(names[1])
        vocabulary_files.check_vocabulary(vocabulary, names[0])
        path = os.path.join(source, 'added_tokens.json')
        listed = read_object(path) if os.path.exists(path) else {}
        added = {token_text(path, text): id for text, id in listed.items()}
    vocabulary = {symbol: id for symbol, id in {**added, **vocabulary}.items() if symbol != NO_TEXT.format(id)}
    return vocabulary, merges, read_special_tokens(source, vocabulary, merges, added, end_id), names


def read_special_tokens(source, vocabulary, merges, added, end_id):  # -> SpecialTokens; None for GPT-2's own
    """The added tokens and those that the tokenizer's files name. A text ends with the one of config.json, or,
    where that is none or made by merges (GPT-2's 50256 was left there), with the tokenizer's eos_token."""
    named = dict.fromkeys(('bos_token', 'eos_token', 'unk_token'), encoder.EOT)  # where the files do not say
    listed = [*added]
    for path in (os.path.join(source, name) for name in ('special_tokens_map.json', 'tokenizer_config.json')):
        values = read_object(path) if os.path.exists(path) else {}
        check_prefix_space(path, values)
        named |= {name: token_text(path, values[name]) for name in NAMED_TOKENS if name in values}
        for several in map(values.get, LISTED_TOKENS):
            several = list(several.values()) if isinstance(several, dict) else several or []
            require(isinstance(several, list), f'{path}: a list of special tokens is {shown(several)}')
            listed += [token_text(path, each) for each in several]
    tokens = [text for text in dict.fromkeys([*listed, *named.values()]) if text in vocabulary]
    end_id = end_id[0] if isinstance(end_id, list) and end_id else end_id
    symbol = next((symbol for symbol, id in vocabulary.items() if type(end_id) is int and id == end_id), None)
    spelt = {*encoder.bytes_to_unicode().values(), *map(''.join, merges)}
    end = next((text for text in (symbol, named['eos_token'], encoder.EOT)
                if text in tokens or (text in vocabulary and text not in spelt)), None)
    special = vocabulary_files.SpecialTokens(tokens if end is None or end in tokens else [*tokens, end], end)
    usual = ([encoder.EOT], encoder.EOT) if encoder.EOT in vocabulary else ([], None)
    return None if special == usual else special


def check_prefix_space(path, values):
    require(not values.get('add_prefix_space'), f'{path} puts a space before each text (add_prefix_space); '
                                                'set that to false, and begin prompts with a space')


def token_text(path, token):  # -> text, or None for None
    """A special token is its text, or an object with it. Raises InputError where what is around it changes
    how it is read."""
    fields = token if isinstance(token, dict) else {'content': token}
    text, ways = fields.get('content'), list(filter(fields.get, ('lstrip', 'rstrip', 'single_word')))
    require(token is None or (text and isinstance(text, str)),
            f'{path}: one of the special tokens has no content')
    require(not ways, f'{path}: {shown(text)} is read by what is around it ({", ".join(ways)}); set this to '
                      'false')
    return text


def read_tokenizer(path):  # -> {symbol: id}, list of pairs of symbols, {added text: id}
    """What a tokenizer.json holds. Raises InputError unless it splits and merges as GPT-2 does."""
    values = read_object(path)
    bpe, splitter = (values.get(name) or {} for name in ('model', 'pre_tokenizer'))
    require(isinstance(bpe, dict) and isinstance(splitter, dict) and bpe.get('type') == 'BPE'
            and splitter.get('type') == 'ByteLevel' and splitter.get('use_regex', True) and not values.get('normalizer')
            and not any(map(bpe.get, ('ignore_merges', 'continuing_subword_prefix', 'end_of_word_suffix'))),
            f'{path} is not the byte-level BPE of GPT-2; no other is read')
    check_prefix_space(path, splitter)
    vocabulary_files.check_vocabulary(bpe.get('vocab'), path)
    merges, added = bpe.get('merges', ()), values.get('added_tokens') or []
    require(isinstance(merges, list) and isinstance(added, list), f'{path}: merges and added_tokens must be lists')
    merges = [tuple(pair.split(' ')) if isinstance(pair, str) else pair for pair in merges]
    for number, pair in enumerate(merges, 1):
        require(isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(each, str) for each in pair),
                f'{path}: merge {number} is not two symbols')
    require(all(isinstance(each, dict) for each in added), f'{path}: one of added_tokens is no object')
    return bpe['vocab'], merges, {token_text(path, each): each.get('id') for each in added}


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file: where its data begins, and whether it is to be transposed."""
    path: str
    name: str
    dtype: str
    shape: list
    offset: int
    transposed: bool = False

    def read(self):  # -> float32 array
        result = new_model.aligned(self.shape[::-1] if self.transposed else self.shape)
        rows = result.T if self.transposed else result
        for first, some in self.parts():
            rows[first:first + len(some)] = some
        return result

    def parts(self):
        """Yields the number of a first row, and some rows from there on as they are stored, until all have been."""
        dtype, width = DTYPES[self.dtype], math.prod(self.shape[1:])
        for first in range(0, self.shape[0], ROWS_AT_A_TIME):
            n = min(ROWS_AT_A_TIME, self.shape[0] - first)
            some = np.fromfile(self.path, dtype.as_numpy_dtype, n * width,
                               offset=self.offset + first * width * dtype.size)
            require(len(some) == n * width, f'{self.path} ended early while it was read; copy it again')
            yield first, some.reshape([n, *self.shape[1:]])


def find_weights(source, hparams, tied):  # -> {name of weight_shapes: Stored}
    """Where each weight is. Raises InputError unless all are there, in the right shapes, and nothing that is unknown.

    tied: whether config.json says that the output layer is the token embedding.
    """
    stored = {each.name: each for path in weight_files(source) for each in read_header(path)}
    require(hparams.n_layer <= len(stored), f'{source}: config.json says n_layer is {hparams.n_layer}, but there are '
                                            f'only {len(stored)} tensors')
    roots = [name.removesuffix('wte.weight') for name in stored if re.search(r'(^|\.)wte\.weight$', name)]
    require(len(roots) == 1, f'{source} has {len(roots)} tensors named wte.weight; a GPT-2 has one')
    names = {name: roots[0] + their_name(name) for name in model.weight_shapes(hparams)}
    head = roots[0].removesuffix(ROOT) + 'lm_head.weight'
    missing = [name for name in [*names.values(), *([] if tied else [head])] if name not in stored]
    require(not missing, f'{source} lacks {len(missing)} tensors that config.json asks for, such as '
                         f'{"".join(missing[:1])}')
    unknown = sorted(name for name in stored.keys() - {*names.values(), head}
                     if not BUFFERS.fullmatch(name.removeprefix(roots[0])))
    require(not unknown, f'{source} has {len(unknown)} tensors that a GPT-2 of the sizes in config.json has not, such '
                         f'as {"".join(unknown[:1])[:80]!r}')
    found = in_shape({name: stored[theirs] for name, theirs in names.items()}, hparams)
    if head in stored:
        check_head(stored[head], found['wte'])
    return found


def in_shape(found, hparams):  # {name of weight_shapes: Stored} -> the same, transposed where they are to be
    """Raises InputError for a wrong shape, and a type that float32 does not hold."""
    # A matrix of torch's own linear layers is [n_out, n_in]. c_attn, which is never square, tells it of all.
    transposed = found['h0/attn/c_attn/w'].shape == [3 * hparams.n_embd, hparams.n_embd]
    for name, shape in model.weight_shapes(hparams).items():
        each = found[name] = dataclasses.replace(found[name], transposed=transposed and name.endswith('/w'))
        expected = shape[-2:][::-1] if each.transposed else shape[-2:]
        require(each.shape == expected, f'{each.path}: {each.name} has shape {str(each.shape)[:80]}, but '
                                        f'config.json makes it {expected}')
        require(each.dtype in DTYPES, f'{each.path}: {each.name} is {each.dtype}; have the model saved in one of '
                                      f'{", ".join(DTYPES)}')
    return found


def check_head(head, wte):
    """InputError unless the output layer is the token embedding, as it is in GPT-2."""
    same = (head.shape, head.dtype) == (wte.shape, wte.dtype) and all(
        np.array_equal(ours, theirs) for (_, ours), (_, theirs) in zip(wte.parts(), head.parts(), strict=True))
    require(same,
            f'{head.path}: {head.name} is not the same as {wte.name}; the model of this code has no output layer apart '
            'from its token embedding (it is tied)')


def weight_files(source):  # -> paths
    """Raises InputError where the weights are not in safetensors."""
    if os.path.exists(os.path.join(source, SAFETENSORS)):
        return [os.path.join(source, SAFETENSORS)]
    index = os.path.join(source, INDEX)
    if os.path.exists(index):
        names = read_object(index).get('weight_map')
        names = names.values() if isinstance(names, dict) else ()
        require(names and all(isinstance(name, str) and name.endswith('.safetensors') for name in names),
                f'{index} has no weight_map of tensors to files *.safetensors')
        return [os.path.join(source, paths.child('', name, f'{index}: the file')) for name in sorted(set(names))]
    pickled = [name for name in sorted(os.listdir(source)) if name.endswith(('.bin', '.pt', '.pth', '.ckpt', '.pkl'))]
    require(not pickled, f'{source} has its weights in {"".join(pickled[:1])}, a pickle: reading one runs whatever '
                         'program it holds, so none is read; have them saved as safetensors, as save_pretrained of '
                         'transformers does')
    raise InputError(f'{source} has neither {SAFETENSORS} nor {INDEX}; give the folder of a model in that format')


def read_header(path):  # -> list of Stored
    require(os.path.isfile(path), f'no {path}; copy it from where the model came from')
    with open(path, 'rb') as file:
        try:
            with safetensors.safe_open(path, 'np'):
                pass  # the header is whole, and agrees with the size of the file
            length = int.from_bytes(file.read(8), 'little')
            header = json.loads(file.read(length))
        except (safetensors.SafetensorError, ValueError) as error:  # Python refuses numbers that the library skips
            raise InputError(f'{path} is damaged, or not whole; copy it again from where the model came from '
                             f'({" ".join(str(error).split())[:200]})') from None
    return [Stored(path, name, each['dtype'], each['shape'], 8 + length + each['data_offsets'][0])
            for name, each in header.items() if name != '__metadata__']
