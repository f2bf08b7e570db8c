"""Writing the checkpoint of a new model, or of given weights, into a model directory."""
import contextlib
import json
import math
import os
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow.compat.v1 as tf

import model
from hparams import HParams
from storage import checkpoint, paths

NEW_CHECKPOINT = 'model.ckpt'  # as in the released models
SHARD_BYTES = 1 << 26  # of small weights that are written together


def without_gpu():
    """For a session that only reads and writes files: a GPU's memory may be another process's."""
    return tf.ConfigProto(device_count={'GPU': 0})


@contextlib.contextmanager
def new_checkpoint(directory, hparams, seed=None):
    """Gives a session with a model's variables, a Saver of them, and the prefix to write to; in the end, writes
    hparams.json and the file `checkpoint`."""
    prefix = os.path.join(directory, NEW_CHECKPOINT)
    with tf.Graph().as_default(), tf.Session(config=without_gpu()) as session, checkpoint.writing(prefix):
        tf.set_random_seed(seed)
        model.weights(hparams)
        yield session, tf.train.Saver(checkpoint.model_variables()), prefix
    with paths.replacing(os.path.join(directory, 'hparams.json')) as file:
        json.dump(hparams.values(), file)
    checkpoint.commit(directory, [NEW_CHECKPOINT])


def create(directory: str, hparams: HParams, seed: int | None = None):
    """Writes hparams.json and a checkpoint of a randomly initialized model."""
    with new_checkpoint(directory, hparams, seed) as (session, saver, prefix):
        session.run(tf.global_variables_initializer())
        saver.save(session, prefix, write_state=False)


def write(directory: str, hparams: HParams, weights: Iterable[tuple[str, np.ndarray]]):
    """Writes hparams.json and a checkpoint of given weights.

    weights: (name of weight_shapes, float32 array, best of `aligned`). They are written as they come, so that
    memory holds the largest weight, or SHARD_BYTES of smaller ones.
    """
    prefixes = []
    with new_checkpoint(directory, hparams) as (session, saver, prefix):
        saver.export_meta_graph(f'{prefix}.meta')
        for shard in shards(weights):
            prefixes.append(write_shard(session, f'{prefix}-{len(prefixes)}', shard))
            del shard  # while the next is read
        session.run(tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=prefixes, destination_prefix=prefix,
                                                  delete_old_dirs=False))


def shards(weights):  # -> dicts of {name: array}, of SHARD_BYTES or a single array
    shard, size = {}, 0
    for name, value in weights:
        if shard and size + value.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name], size = value, size + value.nbytes
    yield shard


def aligned(shape: Sequence[int]) -> np.ndarray:  # float32, uninitialized
    """An array at an address where TensorFlow makes no copy of it."""
    count = math.prod(shape)
    memory = np.empty(count + 16, np.float32)
    first = -memory.ctypes.data % 64 // 4
    return memory[first:first + count].reshape(shape)


def write_shard(session, prefix, values):  # {name: float32 array} -> prefix
    inputs = [tf.placeholder(tf.float32, value.shape) for value in values.values()]
    saved = tf.raw_ops.SaveV2(prefix=prefix, tensor_names=[f'model/{name}' for name in values],
                              shape_and_slices=[''] * len(values), tensors=inputs)
    session.run(saved, dict(zip(inputs, values.values(), strict=True)))
    return prefix
