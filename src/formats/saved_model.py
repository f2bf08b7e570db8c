"""A model as a SavedModel: a folder that TensorFlow and TensorFlow Serving load and run without this code.

Signature `logits`: of the token that comes next, also those of ids without a text.
    tokens int32 [B, T] -> logits float32 [B, V]
Signature `generate`: the samples of sample.sample_sequence.
    tokens int32 [B, T], scalars length int32, temperature float32, top_k int32, top_p float32, seed int64
    -> tokens int32 [B, T + length], the context included
In both, shorter rows have -1 at their left. Values that cannot be used end a run with a message.
"""
import os
import shutil

import tensorflow.compat.v1 as tf

import model
import sample
from fast.cache import row_starts
from fast.kernels import disable_xla
from generation.checks import assert_or_raise, check_tokens
from storage import checkpoint, new_model, paths


def write(folder: str, directory: str, checkpoint_name: str | None = None) -> str:
    """Writes the SavedModel of a model or run into an empty folder; returns the path of its checkpoint.

    Its variables are the checkpoint's, in float32. Sizes and vocabulary are in assets.extra, for clients.
    checkpoint_name: see checkpoint.resolve_checkpoint. Raises InputError for a model that cannot be loaded.
    """
    _, hparams, enc = checkpoint.load_sizes_and_vocabulary(directory)
    prefix = checkpoint.resolve_checkpoint(directory, hparams, checkpoint_name)
    with tf.Graph().as_default(), tf.Session(config=new_model.without_gpu()) as session:
        disable_xla()  # TensorFlow Serving's XLA is off unless it is asked for
        signatures = {'logits': logits_signature(hparams), 'generate': generate_signature(hparams, enc)}
        checkpoint.restore(session, prefix, checkpoint.model_variables())
        builder = tf.saved_model.Builder(folder)
        with checkpoint.writing(folder):
            builder.add_meta_graph_and_variables(  # without attributes that older versions do not know
                session, [tf.saved_model.tag_constants.SERVING], signatures, strip_default_attrs=True)
            builder.save()
    extra = os.path.join(folder, 'assets.extra')
    os.mkdir(extra)
    for path in paths.descriptions(directory):
        shutil.copyfile(path, os.path.join(extra, os.path.basename(path)))
    return prefix


def logits_signature(hparams):
    tokens = tf.placeholder(tf.int32, [None, None], 'tokens')
    T = tf.shape(tokens)[1]
    too_long = assert_or_raise(T <= hparams.n_ctx, T, f'tokens are more than n_ctx, {hparams.n_ctx}')
    with tf.control_dependencies([*too_long, *check_tokens(tokens, hparams.n_vocab, padded=True)]):
        logits, _ = sample.prefill(hparams, model.weights(hparams), tokens, row_starts(tokens))
    return tf.saved_model.predict_signature_def({'tokens': tokens}, {'logits': logits})


def generate_signature(hparams, enc):
    types = {'length': tf.int32, 'temperature': tf.float32, 'top_k': tf.int32, 'top_p': tf.float32,
             'seed': tf.int64}
    with tf.name_scope('generate'):
        tokens = tf.placeholder(tf.int32, [None, None], 'tokens')
        inputs = {name: tf.placeholder(types[name], [], name) for name in types}
    drawn = sample.sample_sequence(hparams=hparams, context=tokens, padded=True, vocabulary=enc.decoder,
                                   **inputs)
    return tf.saved_model.predict_signature_def({'tokens': tokens, **inputs}, {'tokens': drawn})
