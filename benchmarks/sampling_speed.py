#!/usr/bin/env python3
"""Speed of sampling with random weights, top-k 40, beside other programs: sampling_peers.py.

    ./benchmarks/sampling_speed.py
    ./benchmarks/sampling_speed.py --repeats 1
"""
import itertools
import statistics
import sys
import tempfile
import time

import measure  # before the project's own: it makes their import possible

from command_line import cli

import random_model
import sampling_peers
import table
from sampling_peers import ctranslate2, llama_cpp, openvino, transformers

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
        names = [name for name, packages in sampling_peers.PEERS.items() if table.installed(*packages)]
        if names:
            arguments = {'directory': directory, 'names': names}
            with measure.children((sampling_peers.make, arguments)) as (child,):
                child.step()
        speeds = Speeds(directory, names, repeats)
        for precision in ('float32', 'int8'):
            peers = [(peer, precision) for peer in (ctranslate2, llama_cpp, openvino)]
            yield from speeds.rows('1 × 200 tokens', [precision], peers, rows=1, tokens=200)
        yield from speeds.rows('1 × 200 tokens', ['bfloat16'], [], rows=1, tokens=200)
        fastest_peers = [(ctranslate2, 'int8'), (openvino, 'int8'), (transformers, 'bfloat16')]
        for n in (8, 64):
            yield from speeds.rows(f'{n} × 100 tokens', PRECISIONS, fastest_peers, rows=n, tokens=100)
        for precision, peers in (('float32', (ctranslate2, transformers)), ('int8', (ctranslate2,)),
                                 ('bfloat16', (transformers,))):
            calls = [(peer, precision) for peer in peers]
            yield from speeds.rows('a prompt of 900 tokens', [precision], calls, rows=1, tokens=1, prompt=900)
        yield from late_token_rows(directory)
        yield from prompt_lookup_rows(directory, repeats)


class Speeds:
    """Tokens a second of `ours` and of peers, all in memory together and measured in turn."""

    def __init__(self, directory, names, repeats):
        self.directory, self.names, self.repeats = directory, names, repeats

    def rows(self, work, precisions, peers, **sizes):
        """The table's rows for ours in the fastest of the precisions, beside each of the peers: (function,
        precision). A prompt's tokens count where there is one."""
        calls = [*((ours, precision) for precision in precisions),
                 *(peer for peer in peers if peer[0].__name__ in self.names)]
        with measure.children(*((function, {'directory': self.directory, 'precision': precision, **sizes})
                                for function, precision in calls)) as children:
            seconds = zip(*measure.in_turn(children, self.repeats), strict=True)
        tokens = sizes['rows'] * sizes.get('prompt', sizes['tokens'])
        speeds = {call: tokens / statistics.median(times) for call, times in zip(calls, seconds, strict=True)}
        for (function, precision), speed in speeds.items():
            print(f'{work}, {function.__name__} {precision}: {speed:.1f} tokens/s', file=sys.stderr)
        speed, precision = max((speeds[ours, precision], precision) for precision in precisions)
        work = f'sampling {SIZE}, {work}, {precision}'
        for function, other in peers or [(None, None)]:
            against = f': against {function.__name__} {other}' if function else ''
            yield table.Row(work + against, speed, speeds.get((function, other)), 'tokens/s',
                            least=1 if function else None)


def late_token_rows(directory):
    for precision in ('float32', 'int8'):
        arguments = {'directory': directory, 'precision': precision, 'tokens': 1010}
        with measure.children((steps, arguments)) as (child,):
            seconds = child.step()
        early, late = (1 / statistics.median(seconds[n - 10:n + 10]) for n in (100, 1000))
        yield table.Row(f'token 1,000 (peer: token 100), {precision}', late, early, 'tokens/s', least=0.85)


def prompt_lookup_rows(directory, repeats):
    # These weights' likeliest token is soon the same again and again.
    for text, temperature, least in (('that repeats itself', 0, 1.8), ('that does not', 1, 0.97)):
        arguments = {'directory': directory, 'precision': 'float32', 'rows': 1, 'tokens': 200}
        with measure.children(*((ours, {**arguments, 'temperature': temperature, 'prompt_lookup': lookup})
                                for lookup in (True, False))) as children:
            seconds = zip(*measure.in_turn(children, repeats), strict=True)
        speed, plain = (200 / statistics.median(times) for times in seconds)
        yield table.Row(f'1 × 200 tokens of text {text}, float32 (peer: without prompt lookup)', speed, plain,
                        'tokens/s', least=least)


def start_up_rows(directory, repeats):
    imports = [measure.run_script('-c', 'import tensorflow')[0] for _ in range(repeats)]
    for precision in PRECISIONS:
        seconds = [measure.run_script(
            'src/interactive_conditional_samples.py', '--models_dir', directory, '--model_name', SIZE,
            '--precision', precision, '--prompt', 'The lighthouse', '--length', '1')[0]
            for _ in range(repeats)]
        yield table.Row(f'{SIZE}: from the shell to the first token, {precision} (peer: import tensorflow)',
                        statistics.median(seconds), statistics.median(imports), 's')


# What is measured, each in a process of its own: a step is a run, and gives its seconds


def make_generator(directory, precision):
    cli.load_tensorflow()
    from generation import generator
    return generator.load(SIZE, directory, precision=precision)


def ours(directory, precision, rows, tokens, prompt=1, **options):
    model = make_generator(directory, precision)
    numbers = iter(range(10 ** 9))

    def sample():
        for _ in model.stream([[64] * prompt] * rows, [[next(numbers)] for _ in range(rows)], length=tokens,
                              top_k=40, **options):
            pass
    yield from measure.seconds(sample, warm_up=1)


def steps(directory, precision, tokens):
    """The seconds of each token."""
    model = make_generator(directory, precision)
    stamps = [time.perf_counter() for _ in model.stream([[64]], [[1]], length=tokens, top_k=40)]
    yield [later - earlier for earlier, later in itertools.pairwise(stamps)]


if __name__ == '__main__':
    cli.run(sampling)
