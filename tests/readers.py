"""Readers of untrusted files under atheris, which looks for what makes one of them fail: see fuzz.coverage.

    tests/readers.py npz corpus/ -runs=100000    flags are libFuzzer's
"""
import contextlib
import functools
import json
import os
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'src'))

if __name__ == '__main__':  # what is imported here tells which of its lines are reached
    import atheris

    watched = atheris.instrument_imports(
        include=['encoder', 'vocabulary_files', 'hugging_face', 'peft', 'model', 'npz', 'rows', 'samples',
                 'template', 'text_files', 'json', 'zipfile']
    )
else:
    watched = contextlib.nullcontext()
with watched:
    import encoder
    from errors import InputError
    from formats import hugging_face, peft
    from generation import samples
    from hparams import load_hparams
    from storage import npz, rows, template

import numpy as np
import pyarrow
import tiny_vocab
from pyarrow import parquet


def read_encoder(folder, data, name):
    tiny_vocab.write_vocab(os.path.join(folder, 'tiny'), 20)
    with open(os.path.join(folder, 'tiny', name), 'wb') as file:
        file.write(data)
    enc = encoder.get_encoder('tiny', folder)
    assert enc.decode(enc.encode(tiny_vocab.ENGLISH)) == tiny_vocab.ENGLISH


def written(folder, data, name):  # -> path
    path = os.path.join(folder, name)
    with open(path, 'wb') as file:
        file.write(data)
    return path


def read_npz(folder, data):
    for array in npz.npz_arrays(written(folder, data, 'a.npz')):
        assert array.ndim == 1 and array.dtype.kind in 'iu' and (not len(array) or array.min() >= 0)


def read_hparams(folder, data):
    hparams = load_hparams(written(folder, data, 'hparams.json'))
    assert hparams.n_layer <= 1000 and hparams.n_parameters() <= 10 ** 12


def read_safetensors(folder, data):
    written(folder, data, 'model.safetensors')
    for name, tensor in hugging_face.open_tensors(folder).items():
        assert isinstance(name, str) and tensor[:].nbytes <= 8 * len(data)


def read_adapter_config(folder, data):
    rank, alpha = peft.read_config(written(folder, data, 'adapter_config.json'))
    assert type(rank) is int and rank > 0 and abs(alpha) < float('inf')


def read_prompts(folder, data):
    for line, prompt in samples.read_prompts(written(folder, data, 'prompts')):
        assert line >= 1 and prompt.encode()


def read_rows(folder, data, name):
    fields = ('text', 'prompt', 'completion', 'messages')
    for place, row in rows.read_rows(written(folder, data, name), 'utf-8', fields):
        for text in template.Template().texts(row, place, 'text'):
            text.encode()


READERS = {
    **{name: functools.partial(read_rows, name=name) for name in ('a.jsonl', 'a.csv', 'a.parquet')},
    'encoder.json': functools.partial(read_encoder, name='encoder.json'),
    'vocab.bpe': functools.partial(read_encoder, name='vocab.bpe'),
    'npz': read_npz, 'hparams.json': read_hparams, 'safetensors': read_safetensors, 'prompts': read_prompts,
    'adapter_config.json': read_adapter_config}


def write_corpus(name, folder):
    """Whole files, for the search to begin with."""
    os.makedirs(folder)
    tiny_vocab.write_vocab(folder, 20)
    with open(os.path.join(folder, 'hparams.json'), 'w') as file:
        file.write('{"n_vocab": 277, "n_ctx": 32, "n_embd": 32, "n_head": 4, "n_layer": 2}')
    np.savez(os.path.join(folder, 'npz'), np.arange(9), np.arange(3, dtype=np.uint16))
    np.savez_compressed(os.path.join(folder, 'npz.deflated'), np.arange(9), np.arange(3, dtype=np.uint16))
    hugging_face.write_safetensors(os.path.join(folder, 'safetensors'), {'a': [2, 3], 'b': [1]},
                                   [np.zeros([2, 3]), np.ones([1])])
    with open(os.path.join(folder, 'adapter_config.json'), 'w') as file:
        file.write('{"peft_type": "LORA", "r": 8, "lora_alpha": 16, "bias": "none", "use_dora": false}')
    with open(os.path.join(folder, 'prompts'), 'w') as file:
        file.write('{"prompt": "Once"}\n{"prompt": "upon \\u00e9"}\n')
    contents = [{'prompt': 'a', 'completion': 'b\n'}, {'text': 'c'},
                {'messages': [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]}]
    with open(os.path.join(folder, 'a.jsonl'), 'w') as file:
        file.writelines(json.dumps(row) + '\n' for row in contents)
    with open(os.path.join(folder, 'a.csv'), 'w') as file:
        file.write('text,n\n"a ""b""\n",1\n')
    parquet.write_table(pyarrow.Table.from_pylist(contents[2:]), os.path.join(folder, 'a.parquet'))
    for each in os.listdir(folder):
        if not each.startswith(name):
            os.unlink(os.path.join(folder, each))


def main(name, *arguments):
    with tempfile.TemporaryDirectory() as folder:
        def one(data):
            try:
                READERS[name](folder, data)
            except InputError as error:
                assert 0 < len(str(error)) < 1000 and '\n' not in str(error)
        atheris.Setup([sys.argv[0], *arguments], one)
        atheris.Fuzz()  # does not return


if __name__ == '__main__':
    main(*sys.argv[1:])
