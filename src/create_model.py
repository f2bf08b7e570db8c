#!/usr/bin/env python3
"""Makes a model with random weights: ./src/create_model.py NAME [flags]"""
import json
import sys

from command_line import cli

import encoder
import load_dataset
from errors import require, require_package
from storage import paths, vocabulary_files
from storage.template import Template


def create_model(name: str, n_layer: int = 12, n_head: int = 12, n_embd: int = 768, n_ctx: int = 1024,
                 models_dir: str = 'models', vocab_from: str | None = None, train_vocab: int | None = None,
                 corpus: str | None = None, encoding: str = 'utf-8', text_field: str = 'text',
                 seed: int | None = None, checkpoint_dir: str = 'checkpoint'):
    """Makes a model of these sizes, initialized as the paper's.

    Its vocabulary is the 256 bytes and <|endoftext|>, unless a flag says otherwise.

    Args:
        name: the new folder in models_dir
        n_layer: layers
        n_head: attention heads
        n_embd: width, a multiple of n_head
        n_ctx: the longest sequence
        models_dir: where models are
        vocab_from: copy the vocabulary of a model or run
        train_vocab: learn so many tokens, 257 to about 50,000
        corpus: its text, a file, folder or quoted glob
        encoding: of the corpus
        text_field: of its rows in .jsonl, .csv, .tsv and .parquet
        seed: of the weights; None for new ones
        checkpoint_dir: where runs are
    """
    require((train_vocab is None) == (corpus is None) and None in (train_vocab, vocab_from),
            '--train_vocab and --corpus belong together, and not to --vocab_from')
    target = paths.for_tensorflow(paths.child(models_dir, name, 'NAME'))
    with cli.load_tensorflow(computes=False):
        import model
        from storage import new_model
    sizes = {'n_ctx': n_ctx, 'n_embd': n_embd, 'n_head': n_head, 'n_layer': n_layer}
    hparams, special = model.default_hparams().override_from_dict(sizes), None
    with paths.making(target) as folder:
        if vocab_from is not None:
            source = paths.find_model(vocab_from, models_dir, checkpoint_dir)
            encoder.get_encoder(source)  # refuses an unusable vocabulary
            vocab, merges, special = vocabulary_files.load_vocabulary(source)
        elif corpus is not None:
            vocab, merges = learn_vocabulary(train_vocab, corpus, encoding, text_field)
        else:
            symbols = [*encoder.bytes_to_unicode().values(), encoder.EOT]
            vocab, merges = {symbol: id for id, symbol in enumerate(symbols)}, []
        vocabulary_files.write_vocabulary(folder, vocab, merges, special)
        hparams.override_from_dict({'n_vocab': max(vocab.values()) + 1})
        new_model.create(folder, hparams, seed)
    print(f'Made {target}: {hparams.n_parameters():,} parameters')


def learn_vocabulary(size, corpus, encoding='utf-8', text_field='text'):  # -> {symbol: id}, list of pairs
    """Bytes, merges of pairs that the corpus has twice, <|endoftext|>: `size` tokens."""
    # The library takes memory for `size` tokens before it reads text.
    require(257 <= size <= 1 << 24, f'--train_vocab must be 257 to 16,777,216, not {size}')
    require_package('tokenizers', '--train_vocab')
    from tokenizers import ByteLevelBPETokenizer
    template = Template('{prompt}\n{completion}\n')
    texts = (piece for path in load_dataset.find_files(corpus)
             for document in load_dataset.iter_documents(path, encoding, text_field, template)
             for text in document for piece in load_dataset.split_text(text, [encoder.EOT], f'{path}: ')
             if piece != encoder.EOT)
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, size - 1, min_frequency=2, show_progress=sys.stderr.isatty())
    learned = json.loads(tokenizer.to_str())['model']
    vocab = {**learned['vocab'], encoder.EOT: len(learned['vocab'])}
    require(len(vocab) == size, f'{corpus} has pairs for --train_vocab {len(vocab)} and no more')
    return vocab, learned['merges']


if __name__ == '__main__':
    cli.run(create_model)
