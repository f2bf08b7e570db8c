"""Writes the checkpoint of a new model or given weights."""
import tensorflow.compat.v1 as tf

import model
from storage import checkpoint, paths

SHARD_BYTES = 1 << 26  # of small weights written together
NO_GPU = tf.ConfigProto(device_count={'GPU': 0})  # for sessions that read and write files


def create(folder, hparams, seed=None):  # hparams.json and a checkpoint of random weights
    with tf.Graph().as_default(), tf.Session(config=NO_GPU) as session:
        tf.set_random_seed(seed)
        weights = model.weights(hparams)
        session.run(tf.global_variables_initializer())
        write(folder, hparams, ((name, session.run(value)) for name, value in weights.items()))


def write(folder, hparams, weights):
    """The same of weights (name of weight_shapes, float32 array). Memory has the largest or SHARD_BYTES."""
    prefix, prefixes = f'{folder}/model.ckpt', []  # as released
    with tf.Graph().as_default(), tf.Session(config=NO_GPU) as session, checkpoint.writing(prefix):
        model.weights(hparams)
        tf.train.Saver(checkpoint.model_variables()).export_meta_graph(f'{prefix}.meta')
        for shard in shards(weights):
            prefixes.append(f'{prefix}-{len(prefixes)}')
            inputs = [tf.placeholder(tf.float32, value.shape) for value in shard.values()]
            names, slices = [f'model/{name}' for name in shard], [''] * len(shard)
            saved = tf.raw_ops.SaveV2(
                prefix=prefixes[-1], tensor_names=names, shape_and_slices=slices, tensors=inputs)
            session.run(saved, dict(zip(inputs, shard.values(), strict=True)))
            del shard  # while the next is read
        session.run(tf.raw_ops.MergeV2Checkpoints(
            checkpoint_prefixes=prefixes, destination_prefix=prefix, delete_old_dirs=False))
    paths.write_json(f'{folder}/hparams.json', hparams.values())
    checkpoint.commit(folder, ['model.ckpt'])


def merge(folder, source, hp, enc, prefix, models_dir='models'):
    """Writes a model or run, as checkpoint.find gives it, as a model into an empty folder."""
    with checkpoint.readable(prefix, models_dir) as reader:
        write(folder, hp, ((name, reader.get_tensor(f'model/{name}')) for name in model.weight_shapes(hp)))
    paths.copy_descriptions(source, folder)


def shards(weights):  # -> dicts of {name: array}, of SHARD_BYTES or a single array
    shard, size = {}, 0
    for name, value in weights:
        if shard and size + value.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name], size = value, size + value.nbytes
    yield shard
