#!/usr/bin/env python3
"""Speed and memory of training with random weights, beside torch.

Ours is the trainer's own update, as train.py makes it with its default flags. The peer's is transformers'
GPT2LMHeadModel compiled by torch.compile, with fused attention, fused AdamW and, as ours, no dropout. Both
train on random tokens.

    ./benchmarks/training_speed.py
    ./benchmarks/training_speed.py --sizes 124M,355M --batch_size 2
"""
import contextlib
import os
import statistics
import sys
import tempfile

import measure  # before the project's own: it makes their import possible

from command_line import cli

import random_model
import table

LEAST = 1.2  # times the peer's speed
MOST = {False: 1.0, True: 0.8}  # times its memory, without and with memory saving
MOST_OF_SAVE = 0.3  # seconds


def training(sizes: str = '124M', batch_size: int = 1, sequence: int = 1024, steps: int = 5,
             alternate: bool = True):
    """Prints a table of tokens a second and peak memory.

    Args:
        sizes: of 124M, 355M, 774M and 1558M, one or several with commas between.
        batch_size: sequences in a batch.
        sequence: tokens in a sequence.
        steps: updates that are timed, after 3 that are not.
        alternate: with 124M in batches of 1, the processes of a precision are in memory together (some 16 GB)
            and take a step in turn, so that noise hits all; else, and always with more, one is measured after
            the other.
    """
    table.show(lambda: rows(sizes, batch_size, sequence, steps, alternate))


def rows(sizes='124M', batch_size=1, sequence=1024, steps=5, alternate=True):
    for size in random_model.sizes_of(sizes):
        together = alternate and size == '124M' and batch_size * sequence <= 1024
        same = {'size': size, 'batch_size': batch_size, 'sequence': sequence}
        with tempfile.TemporaryDirectory(prefix='benchmark-') as directory:
            random_model.make(directory, size, sequence)
            for precision in ('float32', 'bfloat16'):
                calls = [(ours, {**same, 'directory': directory, 'precision': precision, 'saving': saving})
                         for saving in (False, True)]
                if table.installed('transformers', 'torch'):
                    calls.append((peer, {**same, 'precision': precision}))
                results = [result for group in ([calls] if together else [[call] for call in calls])
                           for result in measured(group, steps, batch_size * sequence)]
                work = f'training {size}, {batch_size} × {sequence} tokens, {precision}'
                yield from compared(results, work)
            if size == '124M':
                yield from save_rows(directory, size)


def measured(calls, steps, tokens):  # -> for each call its median of tokens/s, and its peak in GB
    with measure.children(*calls) as processes:
        times = list(zip(*measure.in_turn(processes, steps), strict=True))
    results = [(tokens / statistics.median(seconds), child.peak)
               for child, seconds in zip(processes, times, strict=True)]
    for (function, arguments), (speed, peak), seconds in zip(calls, results, times, strict=True):
        name = 'torch'
        if function is not peer:
            name = 'ours, saving memory' if arguments['saving'] else 'ours'
        print(f'{arguments["size"]} {arguments["precision"]} {name}: {speed:.0f} tokens/s, '
              f'best {tokens / min(seconds):.0f}, peak {peak:.2f} GB', file=sys.stderr)
    return results


def compared(results, work):
    """The table's rows for ours, ours with memory_saving_gradients, and the peer where it is installed."""
    peer_speed, peer_peak = results[2] if len(results) > 2 else (None, None)
    for saving, (speed, peak) in zip((False, True), results, strict=False):
        name = work + ', memory_saving_gradients' * saving
        yield table.Row(name, speed, peer_speed, 'tokens/s', least=None if saving else LEAST)
        yield table.Row(f'{name}: peak memory', peak, peer_peak, 'GB', most=MOST[saving])


def save_rows(directory, size):
    with measure.children((saves, {'directory': directory, 'size': size})) as (child,):
        update, save = map(statistics.median, zip(*(child.step() for _ in range(3)), strict=True))
    yield table.Row(f'training {size}, float32: a save and the next update (peer: an update)', save, update,
                    's', most=round(1 + MOST_OF_SAVE / update, 2))


# What is measured, each in a process of its own: steps give seconds


def ours(directory, size, batch_size, sequence, precision, saving, xla=False):
    with prepared(directory, size, batch_size=batch_size, precision=precision, xla=xla,
                  memory_saving_gradients=saving) as run:
        yield from measure.seconds(run.update)


def saves(directory, size):
    """The seconds of an update, and of a save with another."""
    with prepared(directory, size) as run:
        def save():
            run.save()
            run.update()
        yield from zip(measure.seconds(run.update), measure.seconds(save, warm_up=1), strict=True)


@contextlib.contextmanager
def prepared(directory, size, **flags):
    """A Trainer before its first update."""
    cli.load_tensorflow()
    from command_line.flags import TrainFlags

    import tensorflow.compat.v1 as tf

    from training import trainer
    # Each process locks a run of its own.
    flags = TrainFlags(dataset=os.path.join(directory, 'tokens.npz'), model_name=size, models_dir=directory,
                       checkpoint_dir=os.path.join(directory, 'runs'), run_name=str(os.getpid()),
                       sample_every=0, save_every=0, **flags)
    worker = trainer.Worker()
    with tf.Graph().as_default(), tf.Session(config=trainer.session_config()) as session:
        run = trainer.Trainer(flags, worker, session)
        run.prepare()
        yield run


def peer(size, batch_size, sequence, precision):
    import torch
    import transformers
    n_layer, n_head, n_embd = random_model.SIZES[size]
    without_dropout = dict.fromkeys(('resid_pdrop', 'embd_pdrop', 'attn_pdrop'), 0.0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        n_positions=sequence, n_layer=n_layer, n_head=n_head, n_embd=n_embd, use_cache=False,
        attn_implementation='sdpa', **without_dropout)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    compiled = torch.compile(model)

    def update():
        tokens = torch.randint(random_model.N_VOCAB, (batch_size, sequence))
        optimizer.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=precision == 'bfloat16'):
            loss = compiled(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        return loss.item()
    yield from measure.seconds(update)


if __name__ == '__main__':
    cli.run(training)
