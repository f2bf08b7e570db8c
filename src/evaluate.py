#!/usr/bin/env python3
"""Evaluates a model: perplexity of any text, published test sets, log-probabilities. ./src/evaluate.py --help

    ./src/evaluate.py wikitext2 --data wikitext-2/ --stride 32
    ./src/evaluate.py perplexity --data novels/ --run_name novels
    ./src/evaluate.py logprobs --data sentences.txt

Metrics go to stdout as a table, or as one object with --json; log-probabilities as JSON lines.
"""
import contextlib
import dataclasses
import json
import math
import os
import sys

from command_line import cli  # before packages that may not be installed

# isort: split
from tqdm import tqdm

import load_dataset
from errors import require
from evaluation import metrics, test_sets
from storage import paths

# Layers, heads and width of the released models
RELEASED_SIZES = {'124M': (12, 12, 768), '355M': (24, 16, 1024), '774M': (36, 20, 1280),
                  '1558M': (48, 25, 1600)}
PER_WORD = 'perplexity per word and line end'
TABLE_3 = [  # of the paper: command (or part of CBT's file name), nearest metric, name there, values
    ('lambada', 'last token: perplexity', 'LAMBADA (PPL)', (35.13, 15.60, 10.87, 8.63)),
    ('lambada', 'last token: accuracy, %', 'LAMBADA (ACC)', (45.99, 55.48, 60.12, 63.24)),
    ('_CN_', 'accuracy, %', 'CBT-CN (ACC)', (87.65, 92.35, 93.45, 93.30)),
    ('_NE_', 'accuracy, %', 'CBT-NE (ACC)', (83.4, 87.1, 88.0, 89.05)),
    ('wikitext2', PER_WORD, 'WikiText2 (PPL)', (29.41, 22.76, 19.93, 18.34)),
    ('ptb', PER_WORD, 'PTB (PPL)', (65.85, 47.33, 40.31, 35.76)),
    ('enwik8', 'bits per byte', 'enwik8 (BPB)', (1.16, 1.01, 0.97, 0.93)),
    ('text8', 'bits per byte', 'text8 (BPC)', (1.17, 1.06, 1.02, 0.98)),
    ('wikitext103', PER_WORD, 'WikiText103 (PPL)', (37.50, 26.37, 22.05, 17.48)),
    ('1bw', PER_WORD, '1BW (PPL)', (75.20, 55.72, 44.575, 42.16))]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """The flags of all commands; the classes below add those of some commands.

    Args:
        data: a file, a directory, a quoted glob, or several of these with commas between.
        model_name: the name of a model or run, or its path, with a / in it.
        models_dir: where models are.
        run_name: the name of a training run instead.
        checkpoint_dir: where runs are.
        checkpoint: one of the model's or run's checkpoints, such as model-best or model-1000, or the path of
            any; without it the newest.
        precision: of matrix products, float32, bfloat16, or tf32 (of NVIDIA's GPUs from Ampere on; else
            float32).
        batch_size: spans of --context tokens side by side, or more shorter ones; None for 2,048 tokens. It
            does not change the results.
        context: the most tokens that the model sees at once; None for n_ctx.
        json: print one JSON object instead of a table.
        stride: tokens that each span scores after the first; None for half of the context. The paper's is 32:
            lower perplexities, as each token has more before it, and as much slower as it is smaller.
        boundary: endoftext (each text by itself, after an <|endoftext|>), none (each by itself; without a
            prompt its first token is not scored), or, of documents, joined (all as one text, with an
            <|endoftext|> after each, which is scored).
        encoding: of the text files.
        special_tokens: in text files, <|endoftext|> separates documents, and other special tokens of the
            model are themselves; false: they are text like any other.
        prompt: stands before each line, and is not scored; a JSON line's own "prompt" takes its place.
        detokenize: make tokenised text, that of lambada_test_plain_text.txt, natural first.
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
    stride: int | None = None
    boundary: str = 'endoftext'


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileFlags(TextFlags):
    encoding: str = 'utf-8'
    special_tokens: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class LineFlags(TextFlags):
    prompt: str = ''


@dataclasses.dataclass(frozen=True, kw_only=True)
class PassageFlags(Flags):
    boundary: str = 'none'

    def __post_init__(self):
        require(self.boundary in ('none', 'endoftext'),
                f'--boundary must be none or endoftext, not {self.boundary!r}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class LambadaFlags(PassageFlags):
    detokenize: bool = False


# Commands. Each reads its data before TensorFlow is loaded, which takes seconds.

@cli.flags_from(FileFlags)
def perplexity(**values):
    """Perplexity of any text, or of a .npz of encode.py: per token and word, and bits per byte."""
    flags = FileFlags(**values)
    files = load_dataset.find_files(flags.data)
    with loaded(flags, 'tokens') as (model, progress):
        documents = test_sets.text_documents(model.enc, files, flags.encoding, flags.special_tokens)
        results = metrics.perplexity(model, documents, flags.stride, flags.boundary, progress)
    report('perplexity', flags, model, results)


def perplexity_of(name):
    """The command that measures the perplexity of a published test set."""
    test_set = test_sets.TEXTS[name]

    def command(**values):
        flags = TextFlags(**values)
        documents = list(test_sets.documents(name, flags.data))
        with loaded(flags, 'tokens') as (model, progress):
            options = (flags.stride, flags.boundary, progress)
            results = metrics.perplexity(model, documents, *options, lines=not test_set.bytewise)
        report(name, flags, model, results)
    files, unit = ' or '.join(test_set.files), 'perplexity, detokenised, of'
    if test_set.bytewise:
        files, unit = 'another file', f'bits per byte of the last 5 million bytes of {files}, or of all of'
    command.__doc__ = f'{test_set.title}: {unit} {files}.'
    return cli.flags_from(TextFlags)(command)


@cli.flags_from(LambadaFlags)
def lambada(**values):
    """LAMBADA: accuracy and perplexity of the last words, and tokens, of passages (.jsonl or text)."""
    flags = LambadaFlags(**values)
    passages = list(test_sets.lambada_passages(flags.data, tokenised=flags.detokenize))
    with loaded(flags, 'passages') as (model, progress):
        results = metrics.lambada(model, passages, flags.boundary, progress)
    report('lambada', flags, model, results)


@cli.flags_from(PassageFlags)
def cbt(**values):
    """The Children's Book Test (a file of cbtest_CN or cbtest_NE): accuracy among ten choices."""
    flags = PassageFlags(**values)
    questions = list(test_sets.cbt_questions(flags.data))
    with loaded(flags, 'questions') as (model, progress):
        results = metrics.cbt(model, questions, flags.boundary, progress)
    report('cbt', flags, model, results)


@cli.flags_from(LineFlags)
def logprobs(**values):
    """The tokens of each line (or JSON "text") and their log-probabilities, as JSON lines."""
    flags = LineFlags(**values)
    require(flags.boundary != 'joined', '--boundary must be endoftext or none here, not joined')
    texts = []
    for place, record in test_sets.records(load_dataset.find_files(flags.data)):
        prompt = record.get('prompt', flags.prompt)
        require(isinstance(prompt, str), f'{place}: its "prompt" is not a string')
        texts.append((prompt, record['text']))
    with loaded(flags, 'lines') as (model, progress):
        for line in metrics.logprobs(model, texts, flags.stride, flags.boundary, progress):
            print(json.dumps(line, ensure_ascii=False), flush=True)


COMMANDS: dict[str, cli.Function] = {
    'perplexity': perplexity, **{name: perplexity_of(name) for name in test_sets.TEXTS},
    'lambada': lambada, 'cbt': cbt, 'logprobs': logprobs}


@contextlib.contextmanager
def loaded(flags, unit):
    """Gives the Likelihood that the flags name, and a function that shows progress on stderr."""
    cli.load_tensorflow()
    models_dir = flags.models_dir if flags.run_name is None else flags.checkpoint_dir
    directory = paths.find_model(flags.run_name or flags.model_name, models_dir, flags.checkpoint_dir)
    with cli.default_signal_handlers():
        from evaluation import likelihood
        model = likelihood.Likelihood(directory, flags.models_dir, flags.checkpoint, precision=flags.precision,
                                      batch_size=flags.batch_size, context=flags.context)
    with tqdm(unit=f' {unit}', desc='evaluating', dynamic_ncols=True, disable=None) as bar:
        def progress(done, total):
            if bar.total is None:  # the first call: the flags and the data are accepted
                tqdm.write(f'Device: {model.device}', file=sys.stderr)
            bar.total = total
            bar.update(done)
        yield model, progress


def paper_values(command, flags, model):  # -> {metric: (name in the paper, value)}
    """The nearest values of Table 3, for a released model that has its name and its sizes, and no run."""
    name, data = os.path.basename(os.path.normpath(flags.model_name)), os.path.basename(flags.data)
    h = model.hparams
    if (RELEASED_SIZES.get(paths.ALIASES.get(name, name)) != (h.n_layer, h.n_head, h.n_embd)
            or (h.n_vocab, h.n_ctx) != (50257, 1024)
            or os.path.basename(model.prefix) != 'model.ckpt' or flags.checkpoint is not None):
        return {}
    column = list(RELEASED_SIZES).index(paths.ALIASES.get(name, name))
    return {metric: (paper_name, values[column]) for row, metric, paper_name, values in TABLE_3
            if row == command or (command == 'cbt' and row in ('_CN_', '_NE_') and row in data)}


def report(command, flags, model, results):
    """Prints Metrics, with those of the paper beside them where the model is a released one."""
    paper = paper_values(command, flags, model)
    settings = {'command': command, 'data': flags.data, 'checkpoint': model.prefix,
                'precision': flags.precision, 'context': model.context, 'boundary': flags.boundary}
    if hasattr(flags, 'stride'):
        settings['stride'] = metrics.check_stride(model.context, flags.stride)
    rows = [dataclasses.asdict(metric) for metric in results]
    for row in rows:
        if row['name'] in paper:
            row['paper_name'], row['paper'] = paper[row['name']]
    if flags.json:
        for row in rows:
            row['value'] = row['value'] if math.isfinite(row['value']) else None  # JSON has no infinity
        print(json.dumps({**settings, 'figures': rows}, ensure_ascii=False))
        return
    print(', '.join(f'{name} {value}' for name, value in settings.items()))
    width = max(len(row['name']) for row in rows)
    for row in rows:
        paper = f'   paper, {row["paper_name"]}: {row["paper"]}' if 'paper' in row else ''
        print(f'{row["name"]:{width}}  {row["value"]:12.4f}   {row["count"]:,} {row["unit"]}{paper}')


if __name__ == '__main__':
    cli.run(COMMANDS)
