"""Toy models with weights that NumPy's own generator fixes, so that other programs can make the same ones."""
import contextlib
import json
import os

import numpy as np
import tensorflow.compat.v1 as tf
from tiny_vocab import write_vocab

import model
from storage import checkpoint, new_model, paths, run_state, vocabulary_files

TOY = {'n_vocab': 557, 'n_ctx': 32, 'n_embd': 32, 'n_head': 4, 'n_layer': 2}


def hparams(**sizes):
    return model.default_hparams().override_from_dict({**TOY, **sizes})


def weights(hp, seed=0, scale=0.1):
    """{'model/wpe': array, ...} with every entry drawn, gains around 1, so that no term of the formula can
    hide."""
    rng = np.random.RandomState(seed)
    return {f'model/{name}': (rng.standard_normal(shape) * scale + name.endswith('/g')).astype(np.float32)
            for name, shape in sorted(model.weight_shapes(hp).items())}


@contextlib.contextmanager
def session():
    with tf.Graph().as_default(), tf.Session() as session:
        yield session


def assign(session, values):
    """Initializes all variables, those of the model with these values."""
    session.run([tf.global_variables_initializer(), tf.local_variables_initializer()])
    for v in checkpoint.model_variables():
        v.load(values[v.op.name], session)


def write_model(directory, hp=None, values=None):
    """A model directory with these weights and the small vocabulary; returns its sizes and its weights."""
    symbols, _ = write_vocab(directory)
    hp = hp or hparams(n_vocab=len(symbols))
    values = values or weights(hp)
    with session() as s:
        model.weights(hp)
        assign(s, values)
        tf.train.Saver(save_relative_paths=True).save(s, os.path.join(directory, 'model.ckpt'))
    with open(os.path.join(directory, 'hparams.json'), 'w') as file:
        json.dump(hp.values(), file)
    return hp, values


def write_padded_model(directory, **sizes):
    """As write_model, but 8 ids have no text, the last 7 and one between others; and they are often the
    likeliest."""
    symbols, merges = write_vocab(directory)
    hp = hparams(**sizes, n_vocab=len(symbols) + 7)
    values = weights(hp, scale=0.2)
    values['model/wte'][[symbols['Ġand'], *range(len(symbols), hp.n_vocab)]] *= 4
    write_model(directory, hp, values)
    vocabulary_files.write_vocabulary(
        directory,
        {symbol: id for symbol, id in symbols.items() if symbol != 'Ġand'},
        [pair for pair in merges if ''.join(pair) != 'Ġand'],
    )
    return hp, values


def write_adapter(run, base, hp, targets='all', rank=4, alpha=12.0, seed=0):
    """A run with an adapter of a model's folder, of random numbers; returns these."""
    base, rng = str(base), np.random.RandomState(seed)
    own = checkpoint.new_adapter(base, hp, rank, alpha, targets, str(run), os.path.dirname(base))
    arrays = {name: (rng.standard_normal(shape) * 0.1).astype(np.float32)
              for name, shape in own.shapes(model.weight_shapes(hp)).items()}
    os.makedirs(run)
    new_model.write(str(run), hp, arrays.items())
    paths.copy_descriptions(base, str(run))
    run_state.write(f'{run}/adapter.json', own)
    return arrays


def short_run(folder, tmp_path, **changes):  # -> dict of TrainFlags
    """A run of the model and the text in `folder`, with folders of a test's own."""
    return {'dataset': str(folder / 'text'), 'model_name': 'toy', 'models_dir': str(folder / 'models'),
            'combine': 1, 'checkpoint_dir': str(tmp_path / 'checkpoint'),
            'samples_dir': str(tmp_path / 'samples'), 'batch_size': 2, 'learning_rate': 1e-3,
            'sample_every': 0, 'save_every': 0, 'steps': 8, 'seed': 3, **changes}
