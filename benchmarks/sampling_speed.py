#!/usr/bin/env python3
"""Speed of sampling with random weights, top-k 40, beside transformers and CTranslate2.

    ./benchmarks/sampling_speed.py
    ./benchmarks/sampling_speed.py --repeats 1
"""
import itertools
import json
import os
import statistics
import sys
import tempfile
import time

from command_line import cli

import measure  # before the project's own: it makes their import possible
import random_model
import table

SIZE = '124M'
PRECISIONS = ('float32', 'bfloat16', 'int8')  # of the weights


def sampling(repeats: int = 3):
    """Prints a table of tokens a second, and of seconds to the first token.

    Args:
        repeats: how often each is measured, in turn with the others, after a run that does not count.
    """
    table.show(lambda: rows(repeats))


def rows(repeats=3):
    with tempfile.TemporaryDirectory(prefix='benchmark-') as directory:
        random_model.make(directory, SIZE)
        yield from start_up_rows(directory, repeats)
        names = [name for name in ('transformers', 'ctranslate2') if table.installed(name, 'torch')]
        if names:
            with measure.children((make_peers, {'directory': directory, 'names': names})) as (child,):
                child.step()
        for make_rows in (single_rows, batch_rows, large_batch_rows, prompt_rows):
            yield from make_rows(Speeds(directory, names, repeats))
        yield from late_token_rows(directory)


class Speeds:
    """Tokens a second of `ours` and of peers, all in memory together and measured in turn."""

    def __init__(self, directory, names, repeats):
        self.directory, self.names, self.repeats = directory, names, repeats

    def of(self, *calls, **same):  # (function, precision), … -> {(name, precision): median or None}
        available = [(function, precision) for function, precision in calls
                if function is ours or function.__name__ in self.names]
        with measure.children(*((function, {'directory': self.directory, 'precision': precision, **same})
                                for function, precision in available)) as children:
            seconds = zip(*measure.in_turn(children, self.repeats), strict=True)
            speeds = {(function.__name__, precision): same['rows'] * same['tokens'] / statistics.median(times)
                      for (function, precision), times in zip(available, seconds, strict=True)}
        for (name, precision), speed in speeds.items():
            print(f'{same}, {name} {precision}: {speed:.1f} tokens/s', file=sys.stderr)
        return {(function.__name__, precision): speeds.get((function.__name__, precision))
                for function, precision in calls}


def fastest(speeds):
    return max((speed, precision) for (name, precision), speed in speeds.items() if name == 'ours')


def single_rows(speeds):
    measured = speeds.of(*((ours, precision) for precision in PRECISIONS), (transformers, 'float32'),
                      (ctranslate2, 'float32'), (ctranslate2, 'int8'), rows=1, tokens=200)
    work = f'sampling {SIZE}, 200 tokens, float32: against '
    for name, least in (('ctranslate2', 1), ('transformers', None)):
        yield table.Row(work + name, measured['ours', 'float32'], measured[name, 'float32'], 'tokens/s',
                        least=least)
    for precision in ('bfloat16', 'int8'):
        best = fastest(measured) == (measured['ours', precision], precision)
        yield table.Row(f'the same, {precision}: against ctranslate2 int8', measured['ours', precision],
                        measured['ctranslate2', 'int8'], 'tokens/s', least=1 if best else None)


def batch_rows(speeds):
    measured = speeds.of((ours, 'bfloat16'), (ours, 'int8'), (transformers, 'bfloat16'),
                      (ctranslate2, 'float32'), (ctranslate2, 'int8'), rows=8, tokens=100)
    speed, precision = fastest(measured)
    for (name, other), least in ((('transformers', 'bfloat16'), 2), (('ctranslate2', 'float32'), 2),
                                 (('ctranslate2', 'int8'), None)):
        yield table.Row(f'8 × 100 tokens, {precision}: against {name} {other}', speed, measured[name, other],
                        'tokens/s', least=least)


def large_batch_rows(speeds):
    measured = speeds.of((ours, 'bfloat16'), (transformers, 'bfloat16'), rows=64, tokens=100)
    yield table.Row('64 × 100 tokens, bfloat16: against transformers', measured['ours', 'bfloat16'],
                    measured['transformers', 'bfloat16'], 'tokens/s', least=1.5)


def prompt_rows(speeds):
    for precision in ('float32', 'bfloat16'):
        measured = speeds.of((ours, precision), (transformers, precision), rows=1, tokens=1, prompt=900)
        yield table.Row(f'900 tokens of a prompt to the first token, {precision}: against transformers',
                        *(speed and 900 * speed for speed in measured.values()), 'tokens/s', least=1)


def late_token_rows(directory):
    for precision in ('float32', 'int8'):
        arguments = {'directory': directory, 'precision': precision, 'tokens': 1010}
        with measure.children((steps, arguments)) as (child,):
            seconds = child.step()
        early, late = (1 / statistics.median(seconds[n - 10:n + 10]) for n in (100, 1000))
        yield table.Row(f'token 1,000 (peer: token 100), {precision}', late, early, 'tokens/s', least=0.85)


def start_up_rows(directory, repeats):
    for precision in PRECISIONS:
        seconds = [measure.run_script(
            'src/interactive_conditional_samples.py', '--models_dir', directory, '--model_name', SIZE,
            '--precision', precision, '--prompt', 'The lighthouse', '--length', '1')[0]
            for _ in range(repeats)]
        yield table.Row(f'{SIZE}: from the shell to the first token, {precision}', statistics.median(seconds),
                        None, 's')


# What is measured, each in a process of its own: a step is a run, and gives its seconds


def timed(sample):
    sample()  # compiles, fills caches
    while True:
        start = time.perf_counter()
        sample()
        yield time.perf_counter() - start


def make_generator(directory, precision):
    cli.load_tensorflow()
    from generation import generator
    return generator.load(SIZE, directory, precision=precision)


def ours(directory, precision, rows, tokens, prompt=1):
    model = make_generator(directory, precision)
    numbers = iter(range(10 ** 9))

    def sample():
        for _ in model.stream([[64] * prompt] * rows, [[next(numbers)] for _ in range(rows)], length=tokens,
                              top_k=40):
            pass
    yield from timed(sample)


def steps(directory, precision, tokens):
    """The seconds of each token."""
    model = make_generator(directory, precision)
    stamps = [time.perf_counter() for _ in model.stream([[64]], [[1]], length=tokens, top_k=40)]
    yield [later - earlier for earlier, later in itertools.pairwise(stamps)]


def transformers(directory, precision, rows, tokens, prompt=1):
    import torch
    from transformers import GPT2LMHeadModel
    model = GPT2LMHeadModel.from_pretrained(os.path.join(directory, 'peer'),
                                            dtype=getattr(torch, precision)).eval()
    context = torch.full([rows, prompt], 64)

    def sample():
        with torch.inference_mode():
            model.generate(context, attention_mask=torch.ones_like(context), do_sample=True, top_k=40,
                           min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=0)
    yield from timed(sample)


def ctranslate2(directory, precision, rows, tokens, prompt=1):
    import ctranslate2
    model = ctranslate2.Generator(os.path.join(directory, f'peer-{precision}'), compute_type=precision,
                                  intra_threads=os.cpu_count())

    def sample():
        model.generate_batch([['t64'] * prompt] * rows, min_length=tokens, max_length=tokens,
                             sampling_topk=40, include_prompt_in_result=False, max_batch_size=rows)
    yield from timed(sample)


def make_peers(directory, names):
    """A model of the same size for the peers: their speed does not depend on what the weights are."""
    from transformers import GPT2Config, GPT2LMHeadModel
    path = os.path.join(directory, 'peer')
    GPT2LMHeadModel(GPT2Config()).save_pretrained(path)
    with open(os.path.join(path, 'vocab.json'), 'w', encoding='utf-8') as file:
        json.dump({'<|endoftext|>' if i == 50256 else f't{i}': i for i in range(random_model.N_VOCAB)}, file)
    with open(os.path.join(path, 'merges.txt'), 'w', encoding='utf-8') as file:
        file.write('#version: 0.2\n')
    if 'ctranslate2' in names:
        import ctranslate2
        for precision in ('float32', 'int8'):
            ctranslate2.converters.TransformersConverter(path).convert(f'{path}-{precision}',
                                                                       quantization=precision)
    yield


if __name__ == '__main__':
    cli.run(sampling)
