#!/usr/bin/env python3
"""Makes a new model directory with random weights: ./src/create_model.py NAME [flags], see --help."""
import math
import sys
import tempfile

from command_line import cli  # before what may not be installed

# isort: split
import encoder
import load_dataset
from errors import InputError, require
from storage import paths

SMALLEST_VOCABULARY = 257  # the bytes and <|endoftext|>
LARGEST_VOCABULARY = 1 << 24  # for so many tokens memory is taken, whatever the corpus has


def create_model(name: str, n_layer: int = 12, n_head: int = 12, n_embd: int = 768, n_ctx: int = 1024,
                 models_dir: str = 'models', vocab_from: str | None = None, train_vocab: int | None = None,
                 corpus: str | None = None, encoding: str = 'utf-8', seed: int | None = None,
                 checkpoint_dir: str = 'checkpoint'):
    """Makes models_dir/name, a model of these sizes initialized as the paper's, to be trained with train.py.

    Args:
        name: the new directory below models_dir, which must not exist yet.
        n_layer: layers.
        n_head: attention heads; they divide n_embd.
        n_embd: width of the hidden state.
        n_ctx: the longest sequence, in tokens.
        models_dir: where models are.
        vocab_from: copy the vocabulary of this model or run (its name, or its path, with a / in it), instead of the
            256 bytes and <|endoftext|>.
        train_vocab: learn a vocabulary of so many tokens from the corpus instead; 257 to about 50,000.
        corpus: the text for train_vocab: a file, a directory, a quoted glob, or several of these with commas between.
            From <|endoftext|> in it nothing is learned.
        encoding: of the corpus.
        seed: of the random weights; None for new ones.
        checkpoint_dir: where runs are.
    """
    require(train_vocab is None or vocab_from is None, '--train_vocab and --vocab_from both say what the vocabulary '
                                                       'is; give one of them')
    require((train_vocab is None) == (corpus is None), '--train_vocab and --corpus belong together: the number of '
                                                       'tokens, and the text that they are learned from')
    directory = paths.for_tensorflow(paths.child(models_dir, name, 'NAME'))
    paths.check_new(directory)
    cli.load_tensorflow(computes=False)
    import model
    from storage import new_model
    with paths.making(directory) as folder:
        hparams = model.default_hparams().override_from_dict({'n_ctx': n_ctx, 'n_embd': n_embd, 'n_head': n_head,
                                                              'n_layer': n_layer})
        special = None
        if vocab_from is not None:
            source = paths.find_model(vocab_from, models_dir, checkpoint_dir)
            encoder.get_encoder(source)  # what cannot be used is refused
            vocabulary, merges, special = encoder.load_vocabulary(source)
        elif train_vocab is not None:
            vocabulary, merges = trained_vocabulary(train_vocab, corpus, encoding)
        else:
            symbols = [*encoder.bytes_to_unicode().values(), encoder.EOT]
            vocabulary, merges = dict(zip(symbols, range(len(symbols)), strict=True)), []
        encoder.write_vocabulary(folder, vocabulary, merges, special)
        new_model.create(folder, hparams.override_from_dict({'n_vocab': max(vocabulary.values()) + 1}), seed)
    print(f'Made {directory}: {sum(map(math.prod, model.weight_shapes(hparams).values())):,} parameters')


def trained_vocabulary(size, corpus, encoding='utf-8'):  # -> {symbol: id}, list of pairs of symbols
    """The bytes, what byte-pair encoding merges in a corpus (pairs that occur twice or more), and <|endoftext|>, which
    is the last of `size` tokens.

    Raises InputError without the package tokenizers, without text, and where the corpus has not so many pairs.
    """
    require(SMALLEST_VOCABULARY <= size <= LARGEST_VOCABULARY,
            f'--train_vocab must be {SMALLEST_VOCABULARY} (the bytes and {encoder.EOT}) to '
            f'{LARGEST_VOCABULARY:,}, not {size}')
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    except ImportError:
        raise InputError('--train_vocab needs the package tokenizers: pip install tokenizers') from None
    files = load_dataset.find_files(corpus)
    load_dataset.text_decoder(encoding)  # an unknown one is told before any work
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = load_dataset.Counted(corpus_texts(files, encoding))
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=size - 1, min_frequency=2, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty()))
    require(texts.count, f'{corpus} holds no text')
    with tempfile.TemporaryDirectory() as folder:
        names = tokenizer.model.save(folder)  # vocab.json, merges.txt
        vocabulary, merges = encoder.read_vocabulary(names[0]), encoder.read_merges(names[1])
    require(len(vocabulary) == size - 1, f'{corpus} has pairs for --train_vocab {len(vocabulary) + 1} and no more, not '
                                         f'{size}; give more text, or that number')
    return {**vocabulary, encoder.EOT: size - 1}, merges


def corpus_texts(files, encoding):
    """The text of files in parts that can be encoded apart; InputError for what is no text."""
    for path in files:
        require(not path.lower().endswith('.npz'), f'{path} holds tokens of another vocabulary; --corpus must be text')
        parts = encoder.split_at(load_dataset.read_text(path, encoding), [encoder.EOT])
        ended = (None if part == encoder.EOT else part for part in parts)
        yield from filter(None, load_dataset.separate_document(path, ended))


if __name__ == '__main__':
    cli.run(create_model)
