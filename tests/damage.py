"""Damaged files: what the project reads, changed in every way that disks, networks and people change files.

A small file of each kind is damaged again and again. Each time it must be refused in one line, or load as it
was;
without a traceback, a wait, or memory out of proportion. Files that have no checksum may also load with
other content:
those are counted.
"""
import collections
import contextlib
import dataclasses
import functools
import gzip
import itertools
import json
import lzma
import math
import os
import random
import signal
import tempfile
import typing

from command_line import cli

import numpy as np
import tiny_vocab
from tqdm import tqdm

import encoder
from errors import InputError
from evaluation import test_sets
from storage import metrics_file, vocabulary_files

SECONDS = 60  # that the loading of a small file may take
ALLOWANCE = 64 << 20  # bytes that loading it may add to the process
SPECIAL: dict[str, typing.Callable[[str], None]] = {
    'pipe': os.mkfifo, 'device': functools.partial(os.symlink, '/dev/zero'), 'folder': os.mkdir,
    'link to nothing': functools.partial(os.symlink, 'nowhere')}
NOT_REPLACED = ('answers.jsonl', 'saving', 'counter')  # which are written; nothing depends on the last two
ODD = (1.5, 'x', None, math.nan, math.inf, 2**63, 10**30, 10**400, -1, True, [], [1.0], {}, '../../thesis',
       'model-best')


@dataclasses.dataclass
class Target:
    """Files, and the function that loads what is in them: content that == compares. `sealed`: they have
    checksums."""

    name: str
    files: list[str]
    load: typing.Callable
    sealed: bool


def mutations(count: int = 1000, seed: int = 0):
    """Loads files with bits flipped, cut short, grown, or swapped: each is refused in one line, or nothing
    is changed.

    What has no checksum (sizes, vocabularies, all of Hugging Face's format, text) may also give other
    content: a letter
    changed in a symbol is another vocabulary, and a whole one.
    """
    rng = random.Random(seed)
    counts = collections.Counter(dict.fromkeys(('refused', 'equal', 'other content'), 0))
    with tempfile.TemporaryDirectory() as folder, make_targets(folder) as targets:
        whole = [target.load() for target in targets]
        for number in tqdm(range(count), desc='mutations', disable=None):
            index = rng.randrange(len(targets))
            target, path = targets[index], rng.choice(targets[index].files)
            with mutated(rng, path, [each for other in targets for each in other.files]) as what:
                fault = f'mutation {number} of seed {seed} ({os.path.relpath(path, folder)}: {what})'
                content = attempt(target.load, fault)
            if content is None:
                counts['refused'] += 1
            elif content == whole[index]:
                counts['equal'] += 1
            else:
                assert not target.sealed, f'{fault} was not noticed'
                counts['other content'] += 1
                counts[f'other content of {target.name}, which has no checksum'] += 1
        assert [target.load() for target in targets] == whole, 'the files were changed by what read them'
    return dict(counts)


def special_files(seed: int = 0):
    """Puts what is no regular file in the place of each file: all are refused. Nothing is drawn from the
    seed."""
    refused = 0
    with tempfile.TemporaryDirectory() as folder, make_targets(folder) as targets:
        files = [(target, path) for target in targets for path in target.files]
        for (target, path), (kind, make) in itertools.product(files, SPECIAL.items()):
            if (kind == 'pipe' and target.name == 'texts') or os.path.basename(path) in NOT_REPLACED:
                continue  # texts may come from a pipe
            fault = f'a {kind} in the place of {os.path.relpath(path, folder)}'
            os.rename(path, f'{path}.away')
            make(path)
            assert attempt(target.load, fault) is None, f'{fault} was not noticed'
            (os.rmdir if kind == 'folder' else os.unlink)(path)
            os.rename(f'{path}.away', path)
            refused += 1
        for target in targets:
            target.load()
    return {'refused': refused}


def odd_states(count: int = 500, seed: int = 0):
    """Values of other types and sizes, under a right checksum, in what a run keeps as JSON: refused, or of
    use."""
    rng, counts = random.Random(seed), collections.Counter(refused=0, taken=0)
    with tempfile.TemporaryDirectory() as folder, make_targets(folder) as targets:
        from storage import run_state
        some = [target for target in targets if target.name in ('a training run', 'an adapter')]
        whole = [target.load() for target in some]
        for number in tqdm(range(count), desc='odd states', disable=None):
            target, path = rng.choice([(target, path) for target in some for path in target.files
                                       if path.endswith('.json')])
            with open(path, encoding='utf-8') as file:
                before = file.read()
            state = run_state.check_crc(json.loads(before))
            name, value = rng.choice(sorted(state)), rng.choice(ODD)
            fault = f'odd state {number} of seed {seed} ({os.path.basename(path)}: {name} is {value!r:.40})'
            with open(path, 'w', encoding='utf-8') as file:
                json.dump(run_state.with_crc({**state, name: value}), file)
            counts['refused' if attempt(target.load, fault) is None else 'taken'] += 1
            with open(path, 'w', encoding='utf-8') as file:
                file.write(before)
        assert [target.load() for target in some] == whole
    return dict(counts)


@contextlib.contextmanager
def mutated(rng, path, others):
    """Damages the file for the length of the block; gives a description."""
    with open(path, 'rb') as file:
        before = file.read()
    kind = rng.choice(
        (
            'bit',
            'bits',
            'cut',
            'cut',
            'empty',
            'zeros',
            'twice',
            'grown',
            'swapped',
            'number',
            'gone',
            'nested',
            'word',
        )
    )
    data, at = bytearray(before), rng.randrange(len(before))
    if kind == 'bit':
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 'bits':
        for _ in range(rng.randrange(2, 50)):
            data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
    elif kind in ('cut', 'empty'):
        del data[at if kind == 'cut' else 0:]
    elif kind == 'zeros':
        data[at:at + 512] = bytes(len(data[at:at + 512]))
    elif kind == 'twice':
        data[at:at] = data[at:at + rng.randrange(1, 512)]
    elif kind == 'grown':
        data += rng.randbytes(rng.randrange(1, 512))
    elif kind == 'swapped':
        with open(rng.choice(others), 'rb') as file:
            data = file.read()
    elif kind == 'number':  # lengths and sizes, absurdly large
        absurd = rng.choice((b'\xff' * 8, b'\xff' * 7 + b'\x7f', b'99999999', b'-1      '))
        data[at:at + 8] = absurd[:len(data) - at]
    elif kind == 'nested':
        data[at:at] = rng.choice((b'[', b'{"":', b'(')) * rng.choice((500, 950, 990, 100_000))
    elif kind == 'word':  # what a reader may take for something else
        data[at : at + rng.randrange(8)] = rng.choice(
            (
                b'null',
                b'NaN',
                b'1e999',
                b'"\\ud800"',
                b'\r\n',
                b'\xef\xbb\xbf',
                b'../',
                b'9' * 5000,
                '²'.encode(),
                b'true',
                b'[]',
                b'{}',
                b'',
            )
        )
    try:
        if kind == 'gone':
            os.unlink(path)
        else:
            with open(path, 'wb') as file:
                file.write(data)
        yield f'{kind} at {at}'
    finally:
        with open(path, 'wb') as file:
            file.write(before)


def attempt(load, fault):
    """What load returns, or None where it refused. AssertionError for any other end, or for more time or
    memory."""

    def late(*_):
        raise AssertionError(f'{fault}: still at it after {SECONDS} seconds')
    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    before = reset_peak()
    try:
        return load()
    except InputError as error:
        assert 0 < len(str(error)) < 1000 and '\n' not in str(error), f'{fault}: not a line: {error}'
    except OSError as error:  # cli.run tells it in one line, where it names a file
        assert error.filename, f'{fault}: {error}'
    except Exception as error:
        raise AssertionError(f'{fault}: {type(error).__name__}: {error}') from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
        grown = status('VmHWM') - before
        assert grown < ALLOWANCE, f'{fault}: took {grown >> 20} MB'


def reset_peak():  # -> bytes of memory now, from which VmHWM counts
    with open('/proc/self/clear_refs', 'w') as file:
        file.write('5')
    return status('VmRSS')


def status(name):
    with open('/proc/self/status') as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(name))


@contextlib.contextmanager
def make_targets(folder):
    """A small file of each kind that the project reads, and how it does."""
    cli.load_tensorflow()
    import toy
    models = os.path.join(folder, 'models')
    toy.write_model(os.path.join(models, 'toy'))
    with open(os.path.join(models, 'toy', 'special_tokens.json'), 'w') as file:
        json.dump({'tokens': [encoder.EOT, '!'], 'end': encoder.EOT}, file)
    with training_run(folder, models) as run:
        yield [*of_a_model(models), *of_datasets(folder, models), run, *of_adapters(folder, models),
               of_hugging_face(folder, models), of_texts(folder), of_rows(folder, models)]


def of_a_model(models):
    import tensorflow.compat.v1 as tf

    import model
    from storage import checkpoint

    def vocabulary():
        loaded = encoder.get_encoder('toy', models)
        return loaded.encoder, loaded.encode(tiny_vocab.ENGLISH), loaded.special, loaded.eot

    def weights():
        _, hparams, _, prefix = checkpoint.find('toy', models)
        with tf.Graph().as_default(), tf.Session() as session:
            values = model.weights(hparams)
            checkpoint.restore(session, prefix, checkpoint.model_variables())
            return {name: array.tobytes() for name, array in session.run(values).items()}

    def sizes():
        """All but one are those of the weights: nothing else tells how many heads share n_embd."""
        assert weights() == whole
        return checkpoint.load_sizes_and_vocabulary('toy', models)[1].n_head

    whole = weights()
    at = functools.partial(os.path.join, models, 'toy')
    return [
        Target(
            'a checkpoint',
            [at('model.ckpt.data-00000-of-00001'), at('model.ckpt.index'), at('checkpoint')],
            weights,
            sealed=True,
        ),
        Target('hparams.json (n_head)', [at('hparams.json')], sizes, sealed=False),
        Target(
            'the vocabulary',
            [*map(at, vocabulary_files.VOCABULARY_FILES), at('special_tokens.json')],
            vocabulary,
            sealed=False,
        ),
    ]


def of_datasets(folder, models):
    from storage import npz
    os.makedirs(os.path.join(folder, 'data'))
    enc = encoder.get_encoder('toy', models)
    rng = np.random.default_rng(0)
    chunks = [rng.integers(enc.n_vocab, size=size).astype(np.uint16) for size in (3000, 1, 500)]
    for name in ('stored.npz', 'deflated.npz'):
        path = os.path.join(folder, 'data', name)
        npz.write_npz(path, [[chunk] for chunk in chunks], enc.n_vocab, 'deflated' in path, enc.fingerprint)
        yield Target(name, [path], functools.partial(arrays, enc, path), sealed=True)


def arrays(enc, path):
    import load_dataset
    return [chunk.tolist() for chunk in load_dataset.load_dataset(enc, path)]


@contextlib.contextmanager
def training_run(folder, models):
    """A run as train.py saves and resumes it: weights, the optimizer's variables, the training state, and
    model-best.

    Files of a user's, in its folder and beside it, must never be touched.
    """
    import tensorflow.compat.v1 as tf

    import model
    from storage import checkpoint, run_folder, run_state
    directory, hparams, _ = checkpoint.load_sizes_and_vocabulary('toy', models)
    with tf.Graph().as_default(), tf.Session() as session:
        loss = tf.add_n([tf.reduce_sum(w) for w in model.weights(hparams).values()])
        update = tf.train.AdamOptimizer(0.1).minimize(loss)
        clear = [v.assign(tf.zeros_like(v)) for v in tf.global_variables()]
        session.run(tf.global_variables_initializer())
        session.run(update)
        os.mkdir(os.path.join(folder, 'run'))
        run = run_folder.Run(os.path.join(folder, 'run'), directory)
        run.save(session, run_state.TrainState(
            1, position=2, seed=123456789, tokens=3501, loss=6.5, average=[0.25, 1e-17], best=[6.5, 1],
            flags={'dataset': 'x', 'learning_rate': 2e-5}))

        run.save_best(session, 1, 6.5)
        mine = [
            os.path.join(folder, *name.split('/'))
            for name in (
                'thesis.index',
                'run/thesis.index',
                'run/model-1.txt',
                'run/notes_temp/chapter',
                'run/notes.1.tmp',
            )
        ]
        for path in mine:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, 'w') as file:
                file.write(path)

        def write_saving():
            with open(
                run.pending, 'w'
            ) as file:  # as a save leaves it that is killed; what resumes removes it
                file.write('model-2\nmodel-0\n')

        def resume():
            session.run(clear)
            said = []
            try:
                state = run.restore(session, 'latest', said.append)
            finally:
                write_saving()
                for path in mine:
                    with open(path) as file:
                        assert file.read() == path, f'{path} was changed'
            if len(said) > 1 or 'model-1' not in said[0]:  # it began anew, and told so
                raise InputError(said[-1])
            values = session.run({v.op.name: v for v in tf.global_variables()})
            *_, prefix = checkpoint.find('toy', models, f'{run.folder}/model-best')
            with checkpoint.readable(prefix) as reader:
                best = {
                    name: reader.get_tensor(name).tobytes() for name in reader.get_variable_to_shape_map()
                }
            return state, {name: array.tobytes() for name, array in values.items()}, best

        write_saving()

        names = ('checkpoint', 'model-1.index', 'model-1.data-00000-of-00001', 'training-1.index',
                 'training-1.data-00000-of-00001', 'training-1.json', 'saving', 'counter', 'model-best.json',
                 'model-best-1.index', 'model-best-1.data-00000-of-00001')
        yield Target(
            'a training run', [os.path.join(run.folder, name) for name in names], resume, sealed=True
        )


def of_adapters(folder, models):
    """A run with an adapter, read with its base, and the same in peft's format."""
    import toy

    import model
    from formats import peft
    from storage import checkpoint
    base, run, theirs = (os.path.join(folder, *path) for path in (('models', 'toy'), ('adapted',), ('peft',)))
    _, hparams, _ = checkpoint.load_sizes_and_vocabulary(base)
    toy.write_adapter(run, base, hparams, rank=2)
    os.mkdir(theirs)
    peft.write(theirs, *checkpoint.find(run, models), models)

    def tensors(folder):
        *_, prefix = checkpoint.find(base, models, folder)
        with checkpoint.readable(prefix, models) as reader:
            names = [f'model/{name}' for name in model.weight_shapes(hparams)]
            return {name: reader.get_tensor(name).tobytes() for name in names}

    def converted():
        with tempfile.TemporaryDirectory() as target:
            return peft.read(theirs, base, target, os.path.join(folder, 'x'), models), tensors(target)

    yield Target('an adapter', [os.path.join(run, name) for name in (
        'adapter.json', 'model.ckpt.index', 'model.ckpt.data-00000-of-00001', 'checkpoint')],
        functools.partial(tensors, run), sealed=True)
    yield Target("peft's format", [os.path.join(theirs, name) for name in (
        'adapter_config.json', 'adapter_model.safetensors')], converted, sealed=False)


def of_hugging_face(folder, models):
    import model
    from formats import hugging_face
    from storage import checkpoint
    source = os.path.join(folder, 'theirs')
    os.makedirs(source)
    hugging_face.write(source, *checkpoint.find('toy', models))

    def converted():
        with tempfile.TemporaryDirectory() as target:
            hparams = hugging_face.read(source, target)
            *_, prefix = checkpoint.find(target)  # all there, and in shape
            with checkpoint.readable(prefix) as reader:
                tensors = {
                    name: reader.get_tensor(f'model/{name}').tobytes()
                    for name in model.weight_shapes(hparams)
                }
            return hparams.values(), vocabulary_files.load_vocabulary(target), tensors

    names = ('model.safetensors', 'config.json', 'vocab.json', 'merges.txt')
    return Target(
        "Hugging Face's format", [os.path.join(source, name) for name in names], converted, sealed=False
    )


def of_texts(folder):
    """Prompts, answers of which some are written, and test sets. None has a checksum."""
    from generation import samples
    prompts = ['Once', 'upon a time', 'é 日', 'Once']
    question = (
        ''.join(f'{number} A sentence .\n' for number in range(1, 21))
        + '21 It is XXXXX .\tred\t\tred|blue\n\n'
    )
    contents = {
        'prompts.txt': ''.join(f'{prompt}\n' for prompt in prompts),
        'prompts.jsonl': ''.join(json.dumps({'prompt': prompt}) + '\n' for prompt in prompts),
        'answers.jsonl': ''.join(
            json.dumps({'prompt': prompt, 'text': ' x', 'tokens': [1], 'finished': True}) + '\n'
            for prompt in prompts[:3]
        )
        + '{"prompt": "On',
        'lambada.jsonl': ''.join(
            json.dumps({'text': f'It was the {word}'}) + '\n' for word in ('end', 'night.')
        ),
        'cbt.txt': question * 2,
        'hellaswag_val.jsonl': json.dumps({
            'activity_label': 'Home', 'ctx_a': 'Light [title] a', 'ctx_b': 'lamp', 'label': 1,
            'endings': ['It is dark.', '[step] It is bright.']}) + '\n',
        'metrics.jsonl': '{"step": 1, "loss": 6.5, "time": 1.5}\n{"step": 2, "loss": null}\n',
        'wiki.test.tokens': ' = Title = \n \n The @-@ word " quoted " , 1 @,@ 000 .\n',
    }
    at = functools.partial(os.path.join, folder)
    for name, content in contents.items():
        with open(at(name), 'w', encoding='utf-8') as file:
            file.write(content)

    def answered():
        with samples.resumed_output(at('answers.jsonl'), prompts) as (_, n_done):
            return n_done

    loads = {
        'prompts.txt': lambda: samples.read_prompts(at('prompts.txt')),
        'prompts.jsonl': lambda: samples.read_prompts(at('prompts.jsonl')), 'answers.jsonl': answered,
        'lambada.jsonl': lambda: list(test_sets.lambada_passages(at('lambada.jsonl'))),
        'cbt.txt': lambda: list(test_sets.cbt_questions(at('cbt.txt'))),
        'hellaswag_val.jsonl': lambda: list(test_sets.hellaswag_questions(at('hellaswag_val.jsonl'))),
        'metrics.jsonl': lambda: list(metrics_file.read(folder)),
        'wiki.test.tokens': lambda: list(test_sets.documents('wikitext2', at('wiki.test.tokens')))}
    return Target('texts', list(map(at, loads)), lambda: [load() for load in loads.values()], sealed=False)


def of_rows(folder, models):
    """Data sets of rows, as they are and packed, and a template. What packs them has checksums."""
    import pyarrow.parquet
    import zstandard

    from storage import template
    enc, folder = encoder.get_encoder('toy', models), os.path.join(folder, 'rows')
    os.makedirs(folder)
    rows = [{'prompt': f'é {i}', 'completion': f'"{i}"\n'} for i in range(30)]
    lines = ''.join(json.dumps(row) + '\n' for row in rows).encode()
    contents = {'a.jsonl': lines, 'a.jsonl.gz': gzip.compress(lines), 'a.jsonl.xz': lzma.compress(lines),
                'a.jsonl.zst': zstandard.compress(lines), 'a.csv': b'text,n\n"one, ""two""",1\nthree,2\n',
                'template.json': b'{"template": "Q{prompt}A{completion}"}'}
    at = functools.partial(os.path.join, folder)
    for name, content in contents.items():
        with open(at(name), 'wb') as file:
            file.write(content)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), at('a.parquet'))
    names = sorted(os.listdir(folder))

    def load():
        return template.find(folder), [arrays(enc, at(name)) for name in names if name != 'template.json']
    return Target('texts', list(map(at, names)), load, sealed=False)
