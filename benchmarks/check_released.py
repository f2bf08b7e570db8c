#!/usr/bin/env python3
"""Compares a released model with what is published of it: `make check-released MODEL=124M`.

Prints a Markdown table to paste into an issue; with status 1 if a row is WRONG, 2 if there is no such model.
Written where there were no released weights: tests compare what it computes of random weights with torch.
"""
import functools
import glob
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from unittest import mock

import measure  # before the project's own: it makes their import possible

from command_line import cli
from command_line.flags import ModelFlags, TrainFlags, flag

import download_model
import encoder
import evaluate
from errors import require
from evaluation import test_sets
from storage import paths
from version import VERSION

# Of 124M, the 18 likeliest tokens: transformers, tests/models/gpt2/test_modeling_gpt2.py
PROMPT, TEXT = 'The dog', ' was found in a field near the intersection of West and West Streets.\n\nThe dog'
GREEDY = {'length': 18, 'temperature': 0}
# Of 124M: llm.c, test_gpt2.c, on the first tokens of "tiny Shakespeare", each paragraph after <|endoftext|>
LOSSES = 5.270007, 4.059707, 3.375123, 2.800783, 2.315382, 1.849029, 1.394656, 0.999147, 0.624080, 0.376511
TOLERANCE = 1e-2  # of a loss, in nats; llm.c's own
B, T, RATE, BETA2, EPSILON, DECAY = 4, 64, 1e-4, 0.999, 1e-8, 0.01
CORIOLANUS = (
    'First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n\nFirst Citizen:\n'
    'You are all resolved rather to die than to famish?\n\nAll:\nResolved. resolved.\n\nFirst Citizen:\n'
    "First, you know Caius Marcius is chief enemy to the people.\n\nAll:\nWe know't, we know't.\n\n"
    "First Citizen:\nLet us kill him, and we'll have corn at our own price.\nIs't a verdict?\n\nAll:\n"
    "No more talking on't; let it be done: away, away!\n\nSecond Citizen:\nOne word, good citizens.\n\n"
    'First Citizen:\nWe are accounted poor citizens, the patricians good.\nWhat authority surfeits on would '
    'relieve us: if they\nwould yield us but the superfluity, while it were\nwholesome, we might guess they '
    'relieved us humanely;\nbut they think we are too dear: the leanness that\nafflicts us, the object of '
    'our misery, is as an\ninventory to particularise their abundance; our\nsufferance is a gain to them Let '
    'us revenge this with\nour pikes')

TESTS = [*evaluate.TABLE_3, ('hellaswag', 'accuracy, %', 'HellaSwag'),
         ('hellaswag', 'accuracy by length, %', 'HellaSwag')]
FILES = {'lambada': 'lambada_test.jsonl', 'hellaswag': 'hellaswag_val.jsonl',
         '_CN_': 'cbtest_CN_valid_2500ex.txt', '_NE_': 'cbtest_NE_valid_2500ex.txt',
         **{name: file for name, (_, file, _) in test_sets.TEXTS.items()}}
COMMANDS = {'_CN_': 'cbt', '_NE_': 'cbt', 'wikitext103': 'wikitext2'}  # the same text in both WikiTexts
STRIDE = '32'  # the paper's


@dataclass(frozen=True)
class Flags(ModelFlags):
    """Compares a released model with what is published of it; prints a table to paste into an issue."""
    data: str | None = flag(None, 'a folder that has published test sets at any depth')


@cli.takes(Flags)
def check_released(flags):
    folder = flags.find_model(flags.model_name)
    require(flags.data is None or os.path.isdir(flags.data), f'--data: no folder {flags.data}; give another')
    cli.load_tensorflow()
    import tensorflow as tf

    from fast import session
    print(f'{folder}; {session.device()}; version {VERSION}, TensorFlow {tf.__version__}, '
          f'Python {platform.python_version()}, {platform.platform()}\n')
    print('| check | expected | here | difference | |\n|---|---|---|---|---|')
    right = [show(*row) for row in rows(folder, flags.data)]
    sys.exit(0 if all(right) else 1)


def show(check, expected, here, right=None, difference=''):  # right: None where nothing is judged
    cells = check, expected, here, difference, {None: '-', True: 'ok', False: 'WRONG'}[right]
    print(f'| {" | ".join(str(cell).replace("|", "/") for cell in cells)} |', flush=True)
    return right is not False


def rows(folder, data):  # -> arguments of show
    import tensorflow.compat.v1 as tf

    import model
    from fast import session
    from storage import checkpoint
    name = os.path.basename(folder)
    name = paths.ALIASES.get(name, name)
    yield from sums(folder, name)  # first: others may refuse damaged files
    _, hparams, enc, prefix = checkpoint.find(folder)
    session.set_precision('float32')
    with tf.Graph().as_default(), tf.Session(config=session.session_config()) as s:
        model.weights(hparams)
        checkpoint.restore(s, prefix, checkpoint.model_variables())
        yield from continuations(s, hparams, enc, name == '124M')
        if name == '124M':
            yield from losses(s, hparams, batch(enc))
        else:
            yield 'ten losses', 'known of 124M alone', 'skipped'
    yield from metrics(folder, name, data)


def sums(folder, name):
    if name not in paths.RELEASED_MODELS:
        yield 'files', 'unknown', f'skipped: {name} is no released model'
        return
    for file in paths.MODEL_FILES:
        length, known = download_model.KNOWN.get(f'{name}/{file}', download_model.KNOWN.get(file, (0, '')))
        expected = f'{length:,} bytes{", SHA-256 " * bool(known)}{known[:16]}' if length else 'unknown'
        path = os.path.join(folder, file)
        if not os.path.exists(path):
            yield file, expected, 'missing', False
            continue
        n_bytes, sha256 = os.path.getsize(path), download_model.digest(path, 'sha256').hex()
        right = n_bytes == length and known in ('', sha256) if length else None
        yield file, expected, f'{n_bytes:,} bytes, SHA-256 {sha256[:16] if known else sha256}', right


def continuations(session, hparams, enc, is_known):
    import model
    import sample
    from generation.generator import Generator
    prompt = enc.encode(PROMPT)
    (row,) = Generator(session, hparams, enc, model.weights(hparams)).complete([prompt], [[0]], **GREEDY)
    samples = session.run(sample.sample_sequence(
        hparams=hparams, context=[prompt], vocabulary=enc.decoder, **GREEDY))
    texts = {'Generator': row.text, 'sample_sequence': enc.decode(samples[0, len(prompt):])}
    expected = json.dumps(TEXT) if is_known else 'the same text by both'
    for driver, text in texts.items():
        right = text == (TEXT if is_known else row.text)
        yield f'"{PROMPT}", {driver}', expected, json.dumps(text), right


def batch(enc):  # -> B rows of T + 1 ids: a row's last is predicted alone
    text = (encoder.EOT + CORIOLANUS).replace('\n\n', f'\n\n{encoder.EOT}')
    ids = enc.encode(text, allowed_special=True)
    return [ids[first:first + T + 1] for first in range(0, B * T, T)]


def losses(session, hparams, tokens):  # [B, T + 1] -> a row a loss, before each update by AdamW
    import tensorflow.compat.v1 as tf

    import model
    from training import optimizer
    X, w, variables = tf.constant(tokens), model.weights(hparams), tf.trainable_variables('model/')
    h, _ = model.transformer(hparams, w, X)
    total, count = model.loss(model.output(w, h), X)
    loss = total / count
    grads = map(tf.convert_to_tensor, tf.gradients(loss, [*w.values()]))
    flags = TrainFlags(dataset='none', optimizer='adamw', weight_decay=DECAY)
    # TensorFlow adds epsilon before the mean square's bias is corrected (Kingma & Ba 2015, end of section 2),
    # llm.c and torch after that. It makes 0.014 in the tenth loss of a random model.
    epsilon = tf.placeholder(tf.float32, [])
    adam = functools.partial(tf.train.AdamOptimizer, epsilon=epsilon)
    with mock.patch.dict(optimizer.OPTIMIZERS, adamw=adam):
        _, update, _ = optimizer.update_operations(grads, variables, flags, tf.constant(RATE))
    with tf.control_dependencies([update]):  # which decays matrices alone; llm.c decays all weights
        decays = [v.assign_sub(RATE * DECAY * before, read_value=False)
                  for v, before in zip(variables, w.values(), strict=True) if v.shape.rank < 2]
    session.run(tf.variables_initializer([v for v in tf.global_variables() if not v.trainable]))
    for i, expected in enumerate(LOSSES):
        value, _ = session.run([loss, decays], {epsilon: EPSILON * (1 - BETA2 ** (i + 1)) ** 0.5})
        yield (f'loss after {i} updates', f'{expected:.6f} ± {TOLERANCE}', f'{value:.6f}',
               bool(abs(value - expected) < TOLERANCE), f'{value - expected:+.6f}')


def metrics(folder, name, data):  # none is judged: Table 3 says too little to be repeated
    if data is None:
        yield 'Table 3 of the paper', '', 'skipped: no --data (of make: DATA=folder)'
        return
    run = functools.cache(evaluated)
    for test, metric, paper_name, *values in TESTS:
        expected = dict(zip(evaluate.PARAMETERS, values, strict=bool(values))).get(name, '')
        files = sorted(glob.glob(f'{glob.escape(data)}/**/{FILES[test]}', recursive=True))
        here, right, difference = f'skipped: no {FILES[test]} in {data}', None, ''
        if files and (value := run(folder, COMMANDS.get(test, test), files[0]).get(metric)) is None:
            here, right = 'evaluate.py failed: see above', False
        elif files:
            here, difference = f'{value:.4f}', expected and f'{value - expected:+.4f}'
        yield f'{paper_name}: {metric}', expected, here, right, difference


def evaluated(folder, command, file):  # -> {metric: value} of evaluate.py; {} if it fails
    words = [os.path.join(measure.ROOT, 'src/evaluate.py'), command, '--json', '--data', file,
             '--model_name', folder, *(['--stride', STRIDE] if command in test_sets.TEXTS else [])]
    done = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, text=True, check=False)
    figures = [] if done.returncode else json.loads(done.stdout)['figures']
    return {row['name']: row['value'] for row in figures}


if __name__ == '__main__':
    cli.run(check_released)
