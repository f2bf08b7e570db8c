#!/usr/bin/env python3
"""Makes a new model directory with random weights: ./src/create_model.py NAME [flags], see --help."""
import itertools
import math
import sys
import tempfile

from command_line import cli  # before what may not be installed

# isort: split
import encoder
import load_dataset
from errors import InputError, require
from storage import paths, vocabulary_files

MIN_VOCABULARY = 257  # the bytes and <|endoftext|>
MAX_VOCABULARY = 1 << 24  # tokenizers takes memory for so many tokens, whatever the corpus has


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
        vocab_from: copy the vocabulary of this model or run (its name, or its path, with a / in it), not the
            256 bytes and <|endoftext|>.
        train_vocab: learn a vocabulary of so many tokens from the corpus instead; 257 to about 50,000.
        corpus: the text for train_vocab: a file, a directory, a quoted glob, or several of these with commas
            between. From <|endoftext|> in it nothing is learned.
        encoding: of the corpus.
        seed: of the random weights; None for new ones.
        checkpoint_dir: where runs are.
    """
    require(train_vocab is None or vocab_from is None,
            '--train_vocab and --vocab_from both say what the vocabulary is; give one of them')
    require((train_vocab is None) == (corpus is None),
            '--train_vocab and --corpus belong together: the number of tokens, and the text to learn from')
    directory = paths.for_tensorflow(paths.child(models_dir, name, 'NAME'))
    paths.check_new(directory)
    cli.load_tensorflow(computes=False)
    import model
    from storage import new_model
    with paths.making(directory) as folder:
        sizes = {'n_ctx': n_ctx, 'n_embd': n_embd, 'n_head': n_head, 'n_layer': n_layer}
        hparams = model.default_hparams().override_from_dict(sizes)
        special = None
        if vocab_from is not None:
            source = paths.find_model(vocab_from, models_dir, checkpoint_dir)
            encoder.get_encoder(source)  # refuses a vocabulary that cannot be used
            vocabulary, merges, special = vocabulary_files.load_vocabulary(source)
        elif train_vocab is not None and corpus is not None:
            vocabulary, merges = learn_vocabulary(train_vocab, corpus, encoding)
        else:
            symbols = [*encoder.bytes_to_unicode().values(), encoder.EOT]
            vocabulary, merges = dict(zip(symbols, range(len(symbols)), strict=True)), []
        vocabulary_files.write_vocabulary(folder, vocabulary, merges, special)
        hparams = hparams.override_from_dict({'n_vocab': max(vocabulary.values()) + 1})
        new_model.create(folder, hparams, seed)
    print(f'Made {directory}: {sum(map(math.prod, model.weight_shapes(hparams).values())):,} parameters')


def learn_vocabulary(size: int, corpus: str, encoding: str = 'utf-8'):  # -> {symbol: id}, list of pairs
    """The bytes, the merges of byte-pair encoding in a corpus (of pairs that occur twice or more), and
    <|endoftext|> as the last of `size` tokens.

    Raises InputError without the package tokenizers, without text, or if the corpus has fewer such pairs.
    """
    require(MIN_VOCABULARY <= size <= MAX_VOCABULARY,
            f'--train_vocab must be {MIN_VOCABULARY} (the bytes and {encoder.EOT}) to {MAX_VOCABULARY:,}, '
            f'not {size}')
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    except ImportError:
        raise InputError('--train_vocab needs the package tokenizers: pip install tokenizers') from None
    files = load_dataset.find_files(corpus)
    load_dataset.text_decoder(encoding)  # an unknown encoding is refused before any work
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = corpus_texts(files, encoding)
    first = next(texts, None)
    require(first is not None, f'{corpus} holds no text')
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size - 1, min_frequency=2, initial_alphabet=alphabet,
                                  show_progress=sys.stderr.isatty())
    tokenizer.train_from_iterator(itertools.chain([first], texts), trainer)
    with tempfile.TemporaryDirectory() as folder:
        vocabulary_path, merges_path = tokenizer.model.save(folder)
        vocabulary = vocabulary_files.read_vocabulary(vocabulary_path)
        merges = vocabulary_files.read_merges(merges_path)
    learned = len(vocabulary) + 1
    require(learned == size, f'{corpus} has pairs for --train_vocab {learned} and no more, not {size}; '
                             'give more text, or that number')
    return {**vocabulary, encoder.EOT: size - 1}, merges


def corpus_texts(files, encoding):
    """Yields the text of files in parts that can be encoded one by one; InputError for a .npz."""
    for path in files:
        require(not path.lower().endswith('.npz'),
                f'{path} holds tokens of another vocabulary; --corpus must be text')
        parts = load_dataset.split_at(load_dataset.read_text(path, encoding), [encoder.EOT])
        parts = (None if part == encoder.EOT else part for part in parts)
        yield from filter(None, load_dataset.separate_document(path, parts))


if __name__ == '__main__':
    cli.run(create_model)
