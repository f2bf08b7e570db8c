#!/usr/bin/env python3
"""Evaluates a model: perplexity of any text, published test sets, log-probabilities."""
import json
import math
import os
from dataclasses import dataclass

from command_line import cli
from command_line.flags import CHECKPOINT, PRECISIONS, REQUIRED, TF32, ModelFlags, TextFlags, flag

import load_dataset
from evaluation import metrics, test_sets
from storage import paths

PARAMETERS = {'124M': 124_439_808, '355M': 354_823_168, '774M': 774_030_080, '1558M': 1_557_611_200}
PER_WORD = 'perplexity per word and line end'
TABLE_3 = [  # of the paper: command or part of CBT's file, nearest metric; its name, values
    ('lambada', 'last token: perplexity', 'LAMBADA (PPL)', 35.13, 15.60, 10.87, 8.63),
    ('lambada', 'last token: accuracy, %', 'LAMBADA (ACC)', 45.99, 55.48, 60.12, 63.24),
    ('_CN_', 'accuracy, %', 'CBT-CN (ACC)', 87.65, 92.35, 93.45, 93.30),
    ('_NE_', 'accuracy, %', 'CBT-NE (ACC)', 83.4, 87.1, 88.0, 89.05),
    ('wikitext2', PER_WORD, 'WikiText2 (PPL)', 29.41, 22.76, 19.93, 18.34),
    ('ptb', PER_WORD, 'PTB (PPL)', 65.85, 47.33, 40.31, 35.76),
    ('enwik8', 'bits per byte', 'enwik8 (BPB)', 1.16, 1.01, 0.97, 0.93),
    ('text8', 'bits per byte', 'text8 (BPC)', 1.17, 1.06, 1.02, 0.98),
    ('wikitext103', PER_WORD, 'WikiText103 (PPL)', 37.50, 26.37, 22.05, 17.48),
    ('1bw', PER_WORD, '1BW (PPL)', 75.20, 55.72, 44.575, 42.16)]
ALONE = ('endoftext', 'none')
ALONE_HELP = 'endoftext: each text by itself, after an <|endoftext|>; none: without one'


@dataclass(frozen=True)
class Flags(ModelFlags):
    data: str = flag(REQUIRED, 'a file, folder, quoted glob, or several with commas between')
    run_name: str | None = flag(None, 'a run, in place of model_name')
    checkpoint: str | None = flag(None, CHECKPOINT)
    precision: str = flag('float32', f'of matrix products; {TF32}', choices=PRECISIONS)
    batch_size: int | None = flag(None, 'spans of --context tokens at a time; None for 2,048 tokens', 1)
    context: int | None = flag(None, 'tokens that the model sees at most; None for n_ctx')
    json: bool = flag(False, 'print JSON instead of a table')
    boundary: str = flag('none', ALONE_HELP, choices=ALONE)


@dataclass(frozen=True)
class SpanFlags(Flags):
    stride: int | None = flag(None, 'tokens that a span scores; None: half of the context; the paper has 32')
    boundary: str = flag('endoftext', f'{ALONE_HELP}; joined: all as one text, with such ends scored',
                         choices=(*ALONE, 'joined'))


@dataclass(frozen=True)
class FileFlags(SpanFlags, TextFlags):
    pass


@dataclass(frozen=True)
class LineFlags(SpanFlags):
    boundary: str = flag('endoftext', ALONE_HELP, choices=ALONE)
    prompt: str = flag('', 'before each line, unless it is JSON with a "prompt"; not scored')


@dataclass(frozen=True)
class LambadaFlags(Flags):
    detokenize: bool = flag(False, 'make the text of lambada_test_plain_text.txt natural')


@cli.takes(FileFlags)
def perplexity(flags):
    """Perplexity of any text, or of a .npz of encode.py, and bits per byte."""
    files, model = load_dataset.find_files(flags.data), load(flags)
    texts = test_sets.text_documents(model.enc, files, *flags.text_options(os.path.dirname(model.prefix)))
    report('perplexity', flags, model, metrics.perplexity(model, texts, flags.stride, flags.boundary))


def perplexity_of(name):  # -> the command of a published test set
    source, file, steps = test_sets.TEXTS[name]

    def command(flags):
        texts = test_sets.documents(name, flags.data)
        evaluate(name, flags, texts, metrics.perplexity, stride=flags.stride, lines=bool(steps))
    command.__doc__ = f'{"Perplexity" if steps else "Bits per byte"} of the test text {file} of {source}.'
    return cli.takes(SpanFlags)(command)


@cli.takes(LambadaFlags)
def lambada(flags):
    """LAMBADA (.jsonl or text): accuracy and perplexity of the last words and tokens."""
    evaluate('lambada', flags, test_sets.lambada_passages(flags.data, flags.detokenize), metrics.lambada)


@cli.takes(Flags)
def cbt(flags):
    """The Children's Book Test (a file of cbtest_CN or cbtest_NE): accuracy among ten choices."""
    evaluate('cbt', flags, test_sets.cbt_questions(flags.data), metrics.multiple_choice)


@cli.takes(Flags)
def hellaswag(flags):
    """HellaSwag (hellaswag_val.jsonl): accuracy among four endings, also by log-probability a character."""
    questions = test_sets.hellaswag_questions(flags.data)
    evaluate('hellaswag', flags, questions, metrics.multiple_choice, by_length=True)


@cli.takes(LineFlags)
def logprobs(flags):
    """The tokens of each line (or JSON "text"), and their log-probabilities, as JSON lines."""
    records = test_sets.records(load_dataset.find_files(flags.data))
    texts = [(record.get('prompt', flags.prompt), record['text']) for _, record in records]
    for line in metrics.logprobs(load(flags), texts, flags.stride, flags.boundary):
        print(json.dumps(line, ensure_ascii=False), flush=True)


COMMANDS = {
    'perplexity': perplexity, **{name: perplexity_of(name) for name in test_sets.TEXTS},
    'lambada': lambada, 'cbt': cbt, 'hellaswag': hellaswag, 'logprobs': logprobs}


def evaluate(command, flags, data, measure, **options):  # measure: a function of metrics
    data, model = list(data), load(flags)  # data first: TensorFlow takes seconds to load
    report(command, flags, model, measure(model, data, boundary=flags.boundary, **options))


def load(flags):  # -> Likelihood
    with cli.load_tensorflow():
        from evaluation.likelihood import Likelihood
        folder = (flags.find_model(flags.model_name) if flags.run_name is None
                  else paths.run_dir(flags.run_name, flags.checkpoint_dir))
        return Likelihood(folder, flags.models_dir, flags.checkpoint, precision=flags.precision,
                          batch_size=flags.batch_size, context=flags.context)


def paper_values(command, data, model):  # -> {metric: its name and value in Table 3} of a released model
    folder, checkpoint = os.path.split(model.prefix)
    name = os.path.basename(folder)
    name = paths.ALIASES.get(name, name)
    if checkpoint != 'model.ckpt' or PARAMETERS.get(name) != model.hparams.n_parameters():
        return {}
    column = list(PARAMETERS).index(name)
    return {metric: {'paper_name': paper_name, 'paper': values[column]}
            for test, metric, paper_name, *values in TABLE_3
            if test == command or (command == 'cbt' and test in os.path.basename(data))}


def report(command, flags, model, results):  # prints Metrics, and the paper's values beside them
    settings = {'command': command, 'data': flags.data, 'checkpoint': model.prefix,
                'precision': flags.precision, 'context': model.context, 'boundary': flags.boundary}
    if hasattr(flags, 'stride'):
        settings['stride'] = metrics.check_stride(model.context, flags.stride)
    paper = paper_values(command, flags.data, model)
    if flags.json:
        rows = [{**vars(row), **paper.get(row.name, {}),  # JSON has no infinity
                 'value': row.value if math.isfinite(row.value) else None} for row in results]
        print(json.dumps({**settings, 'figures': rows}, ensure_ascii=False))
        return
    print(', '.join(f'{name} {value}' for name, value in settings.items()))
    width = max(len(row.name) for row in results)
    for row in results:
        beside = '   paper, {paper_name}: {paper}'.format(**paper[row.name]) if row.name in paper else ''
        print(f'{row.name:{width}}  {row.value:12.4f}   {row.count:,} {row.unit}{beside}')


if __name__ == '__main__':
    cli.run(COMMANDS)
