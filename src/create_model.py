#!/usr/bin/env python3
"""Makes a new model directory with random weights: ./src/create_model.py NAME [flags], see --help."""
import json
import math
import os
import shutil
import tempfile

import cli
import encoder
import paths
from errors import require


def create_model(name: str, n_layer: int = 12, n_head: int = 12, n_embd: int = 768, n_ctx: int = 1024,
                 models_dir: str = 'models', vocab_from: str | None = None, seed: int | None = None):
    """Makes models_dir/name, a model of these sizes initialized as the paper's, to be trained with train.py.

    Args:
        name: the new directory below models_dir, which must not exist yet.
        n_layer: layers.
        n_head: attention heads; they divide n_embd.
        n_embd: width of the hidden state.
        n_ctx: the longest sequence, in tokens.
        models_dir: where models are.
        vocab_from: a model of models_dir whose vocabulary is copied; None for the 256 bytes and <|endoftext|>.
        seed: of the random weights; None for new ones.
    """
    directory = paths.child(models_dir, name, 'NAME')
    require(not os.path.exists(directory), f'{directory} exists already; choose another name, or remove it')
    source = vocab_from is not None and paths.model_dir(vocab_from, models_dir)
    n_vocab = encoder.get_encoder(vocab_from, models_dir).n_vocab if source else 257  # the bytes and <|endoftext|>
    cli.load_tensorflow()
    import checkpoint
    import model
    hparams = model.default_hparams().override_from_dict({
        'n_vocab': n_vocab, 'n_ctx': n_ctx, 'n_embd': n_embd, 'n_head': n_head, 'n_layer': n_layer})
    os.makedirs(os.path.dirname(directory) or '.', exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(directory) or '.', prefix=f'.{name}.') as temporary:
        # A folder of its own to the end: a model that is not whole never has a name.
        whole = os.path.join(temporary, name)
        os.mkdir(whole)
        if source:
            for file in ('encoder.json', 'vocab.bpe'):
                shutil.copyfile(os.path.join(source, file), os.path.join(whole, file))
        else:
            write_byte_vocabulary(whole)
        checkpoint.create(whole, hparams, seed)
        os.rename(whole, directory)
    print(f'Made {directory}: {sum(map(math.prod, model.weight_shapes(hparams).values())):,} parameters')


def write_byte_vocabulary(directory):
    """encoder.json and vocab.bpe with a token for each byte, in the order of GPT-2's own, and <|endoftext|>."""
    symbols = [*encoder.bytes_to_unicode().values(), encoder.EOT]
    with open(os.path.join(directory, 'encoder.json'), 'w', encoding='utf-8') as file:
        json.dump({symbol: number for number, symbol in enumerate(symbols)}, file)
    with open(os.path.join(directory, 'vocab.bpe'), 'w', encoding='utf-8') as file:
        file.write('#version: 0.2\n')


if __name__ == '__main__':
    cli.run(create_model)
