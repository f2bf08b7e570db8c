#!/usr/bin/env python3
"""Evaluates a model: perplexity of any text, published test sets, log-probabilities. ./src/evaluate.py --help

    ./src/evaluate.py wikitext2 --data wikitext-2/ --stride 32
    ./src/evaluate.py perplexity --data novels/ --run_name novels
    ./src/evaluate.py logprobs --data sentences.txt

Figures go to stdout as a table, or as one object with --json; log-probabilities as JSON lines.
"""
import contextlib
import dataclasses
import json
import math
import os
import sys

from command_line import cli  # before what may not be installed

# isort: split
from tqdm import tqdm

import load_dataset
from errors import require
from evaluation import metrics, test_sets
from storage import paths

# Layers, heads and width of the released models, and Table 3 of the paper, under the names that it uses.
RELEASED_SIZES = {'124M': (12, 12, 768), '355M': (24, 16, 1024), '774M': (36, 20, 1280), '1558M': (48, 25, 1600)}
TABLE_3 = {
    'LAMBADA (PPL)': (35.13, 15.60, 10.87, 8.63), 'LAMBADA (ACC)': (45.99, 55.48, 60.12, 63.24),
    'CBT-CN (ACC)': (87.65, 92.35, 93.45, 93.30), 'CBT-NE (ACC)': (83.4, 87.1, 88.0, 89.05),
    'WikiText2 (PPL)': (29.41, 22.76, 19.93, 18.34), 'PTB (PPL)': (65.85, 47.33, 40.31, 35.76),
    'enwik8 (BPB)': (1.16, 1.01, 0.97, 0.93), 'text8 (BPC)': (1.17, 1.06, 1.02, 0.98),
    'WikiText103 (PPL)': (37.50, 26.37, 22.05, 17.48), '1BW (PPL)': (75.20, 55.72, 44.575, 42.16),
}
NEAREST = {  # command: {figure: the one of Table 3 that it comes nearest to}
    'wikitext2': {'perplexity per word and line end': 'WikiText2 (PPL)'},
    'wikitext103': {'perplexity per word and line end': 'WikiText103 (PPL)'},
    'ptb': {'perplexity per word and line end': 'PTB (PPL)'},
    '1bw': {'perplexity per word and line end': '1BW (PPL)'},
    'enwik8': {'bits per byte': 'enwik8 (BPB)'},
    'text8': {'bits per byte': 'text8 (BPC)'},
    'lambada': {'last token: accuracy, %': 'LAMBADA (ACC)', 'last token: perplexity': 'LAMBADA (PPL)'},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Which model evaluates which data.

    Args:
        data: a file, a directory, a quoted glob, or several of these with commas between.
        model_name: the name of a model or run, or its path, with a / in it.
        models_dir: where models are.
        run_name: the name of a training run instead.
        checkpoint_dir: where runs are.
        checkpoint: one of the model's or run's checkpoints, such as model-best or model-1000, or the path of any;
            without it the newest.
        precision: of matrix products, float32, bfloat16, or tf32 (of NVIDIA's GPUs from Ampere on; else float32).
        batch_size: windows of --context tokens side by side, and as many more as they are shorter; None for as many as
            make 2,048 tokens. It does not change the figures.
        context: the most tokens that the model sees at once; None for n_ctx.
        json: print one JSON object instead of a table.
    """
    data: str
    model_name: str = '124M'
    models_dir: str = 'models'
    run_name: str | None = None
    checkpoint_dir: str = 'checkpoint'
    checkpoint: str | None = None
    precision: str = 'float32'
    batch_size: int | None = None
    context: int | None = None
    json: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFlags(Flags):
    """Of a text that is longer than the model sees at once.

    Args:
        stride: tokens that each window scores after the first; None for half of the context. The paper's is 32: lower
            figures, as each token has more before it, and as much slower as it is smaller.
        boundary: endoftext (each document by itself, after an <|endoftext|>), none (each by itself, its first token not
            scored), or joined (all as one text, each followed by an <|endoftext|>, which is scored).
    """
    stride: int | None = None
    boundary: str = 'endoftext'


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileFlags(TextFlags):
    """Of files of any text.

    Args:
        encoding: of the text files.
        special_tokens: in text files, <|endoftext|> separates documents, and other special tokens of the
            model are themselves; false: they are text like any other.
    """
    encoding: str = 'utf-8'
    special_tokens: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class PassageFlags(Flags):
    """Of passages.

    Args:
        boundary: none (a passage is all that the model sees), or endoftext (an <|endoftext|> is before it).
    """
    boundary: str = 'none'


@dataclasses.dataclass(frozen=True, kw_only=True)
class LambadaFlags(PassageFlags):
    """Of LAMBADA.

    Args:
        detokenize: make tokenised text, that of lambada_test_plain_text.txt, natural first.
    """
    detokenize: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class LineFlags(TextFlags):
    """Of lines.

    Args:
        prompt: is before each line, and not scored; in JSON lines, their own "prompt" is instead of it.
    """
    prompt: str = ''


# Commands

@cli.flags_from(FileFlags)
def perplexity(**given):
    """Perplexity of any text, or of a .npz of encode.py: per token and word, and bits per byte."""
    flags = FileFlags(**given)
    files = load_dataset.find_files(flags.data)
    text_figures('perplexity', flags, lambda enc: test_sets.text_documents(
        enc, files, flags.encoding, flags.special_tokens))


def corpus(name, given):
    flags = TextFlags(**given)
    # Whether the file is there is told before TensorFlow is loaded.
    documents = list(test_sets.corpus_documents(name, flags.data))
    text_figures(name, flags, lambda enc: documents, lines=name in ('wikitext2', 'wikitext103', 'ptb', '1bw'))


@cli.flags_from(TextFlags)
def wikitext2(**given):
    """WikiText-2: perplexity of wiki.test.tokens (or .raw), detokenised."""
    corpus('wikitext2', given)


@cli.flags_from(TextFlags)
def wikitext103(**given):
    """WikiText-103: the same test set as WikiText-2's, under its own name."""
    corpus('wikitext103', given)


@cli.flags_from(TextFlags)
def ptb(**given):
    """Penn Treebank: perplexity of ptb.test.txt, detokenised."""
    corpus('ptb', given)


@cli.flags_from(TextFlags)
def one_billion_words(**given):
    """One Billion Word: perplexity of news.en.heldout-00000-of-00050, detokenised, each sentence a document."""
    corpus('1bw', given)


@cli.flags_from(TextFlags)
def enwik8(**given):
    """enwik8: bits per byte of its last 5 million bytes, or of all of another file."""
    corpus('enwik8', given)


@cli.flags_from(TextFlags)
def text8(**given):
    """text8: bits per character (bytes) of its last 5 million, or of all of another file."""
    corpus('text8', given)


@cli.flags_from(LambadaFlags)
def lambada(**given):
    """LAMBADA: accuracy and perplexity of the last word, and of the last token, of passages (.jsonl or text)."""
    flags = LambadaFlags(**given)
    check_passages(flags)
    passages = list(test_sets.lambada_passages(flags.data, flags.detokenize))
    with evaluation(flags, 'passages') as (model, progress):
        found = metrics.lambada(model, passages, flags.boundary, progress)
    report('lambada', flags, model, found)


@cli.flags_from(PassageFlags)
def cbt(**given):
    """The Children's Book Test (a file of cbtest_CN or cbtest_NE): accuracy among ten choices."""
    flags = PassageFlags(**given)
    check_passages(flags)
    questions = list(test_sets.cbt_questions(flags.data))
    with evaluation(flags, 'questions') as (model, progress):
        found = metrics.cbt(model, questions, flags.boundary, progress)
    report('cbt', flags, model, found)


@cli.flags_from(LineFlags)
def logprobs(**given):
    """The tokens of each line (or JSON "text") and their log-probabilities, as JSON lines."""
    flags = LineFlags(**given)
    require(flags.boundary != 'joined', '--boundary must be endoftext or none here, not joined')
    texts = [(prompt_of(record, place, flags.prompt), record['text'])
             for place, record in test_sets.records(flags.data)]
    with evaluation(flags, 'lines') as (model, progress):
        for line in metrics.logprobs(model, texts, flags.stride, flags.boundary, progress):
            print(json.dumps(line, ensure_ascii=False), flush=True)


COMMANDS = {'perplexity': perplexity, 'wikitext2': wikitext2, 'wikitext103': wikitext103, 'ptb': ptb,
            '1bw': one_billion_words, 'enwik8': enwik8, 'text8': text8, 'lambada': lambada, 'cbt': cbt,
            'logprobs': logprobs}


def check_passages(flags):
    require(flags.boundary in ('none', 'endoftext'), f'--boundary must be none or endoftext, not {flags.boundary!r}')


def prompt_of(record, place, default):
    prompt = record.get('prompt', default)
    require(isinstance(prompt, str), f'{place}: its "prompt" is not a string')
    return prompt


# What they share

def text_figures(name, flags, documents_of, lines=False):
    """Evaluates documents_of(encoder), and prints the figures."""
    with evaluation(flags, 'tokens') as (model, progress):
        found = metrics.perplexity(model, documents_of(model.enc), flags.stride, flags.boundary, progress, lines)
    report(name, flags, model, found)


@contextlib.contextmanager
def evaluation(flags, unit):
    """The model of the flags, loaded, and a function that shows progress on stderr."""
    cli.load_tensorflow()
    models_dir = flags.models_dir if flags.run_name is None else flags.checkpoint_dir
    directory = paths.find_model(flags.run_name or flags.model_name, models_dir, flags.checkpoint_dir)
    with cli.default_signal_handlers():
        from evaluation import likelihood
        model = likelihood.Likelihood(directory, flags.models_dir, flags.checkpoint, precision=flags.precision,
                                      batch_size=flags.batch_size, context=flags.context)
    with tqdm(unit=f' {unit}', desc='evaluating', dynamic_ncols=True, disable=None) as bar:
        def progress(done, total):
            if bar.total is None:  # the first: nothing is refused any more
                tqdm.write(f'Device: {model.device}', file=sys.stderr)
            bar.total = total
            bar.update(done)
        yield model, progress


def paper_column(flags, model):  # -> number of a column of TABLE_3, or None
    """Where the model is a released one: by its name and its sizes, and not a run or a checkpoint of one's own."""
    name = os.path.basename(os.path.normpath(flags.model_name))
    name = paths.ALIASES.get(name, name)
    h = model.hparams
    released = (os.path.basename(model.prefix) == 'model.ckpt' and flags.checkpoint is None  # no run
                and (h.n_vocab, h.n_ctx) == (50257, 1024)
                and RELEASED_SIZES.get(name) == (h.n_layer, h.n_head, h.n_embd))
    return list(RELEASED_SIZES).index(name) if released else None


def nearest(command, data):  # -> {figure: name in TABLE_3}
    if command == 'cbt':
        kinds = [kind for kind in ('CN', 'NE') if f'_{kind}_' in os.path.basename(data)]
        return {'accuracy, %': f'CBT-{kinds[0]} (ACC)'} if kinds else {}
    return NEAREST.get(command, {})


def report(command, flags, model, found):
    """Prints figures, with the paper's beside them where the model is a released one."""
    column, names = paper_column(flags, model), nearest(command, flags.data)
    rows = [{**dataclasses.asdict(each), **({'paper': TABLE_3[names[each.name]][column], 'paper_name': names[each.name]}
                                            if column is not None and each.name in names else {})} for each in found]
    settings = {'command': command, 'data': flags.data, 'checkpoint': model.prefix, 'precision': flags.precision,
                'context': model.context, 'boundary': flags.boundary}
    if hasattr(flags, 'stride'):
        settings['stride'] = metrics.check_windows(model.context, flags.stride)
    if flags.json:
        finite = [{**row, 'value': row['value'] if math.isfinite(row['value']) else None} for row in rows]
        print(json.dumps({**settings, 'figures': finite}, ensure_ascii=False))
        return
    print(', '.join(f'{name} {value}' for name, value in settings.items()))
    width = max(len(row['name']) for row in rows)
    for row in rows:
        paper = f'   paper, {row["paper_name"]}: {row["paper"]}' if 'paper' in row else ''
        print(f'{row["name"]:{width}}  {row["value"]:12.4f}   {row["count"]:,} {row["unit"]}{paper}')


if __name__ == '__main__':
    cli.run(COMMANDS)
