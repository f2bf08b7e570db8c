"""A model as a SavedModel, which TensorFlow runs without this code."""
import os

import tensorflow.compat.v1 as tf

import model
import sample
from fast.kernels import disable_xla
from storage import checkpoint, new_model, paths


def write(folder, source, hp, enc, prefix, models_dir='models'):
    """Writes a model or run, as checkpoint.find gives it, into an empty folder."""
    with tf.Graph().as_default(), tf.Session(config=new_model.NO_GPU) as session:
        disable_xla()  # off in TensorFlow Serving unless asked for
        both = signatures(hp, enc)
        checkpoint.restore(session, prefix, checkpoint.model_variables(), models_dir)
        builder = tf.saved_model.Builder(folder)
        with checkpoint.writing(folder):
            builder.add_meta_graph_and_variables(  # without attributes unknown to older versions
                session, [tf.saved_model.tag_constants.SERVING], both, strip_default_attrs=True)
            builder.save()
    extra = f'{folder}/assets.extra'  # for clients
    os.mkdir(extra)
    paths.copy_descriptions(source, extra)


def signatures(hp, enc):
    """docs/formats.md tells what they take and give."""
    tokens = tf.placeholder(tf.int32, [None, None], 'tokens')
    with tf.control_dependencies(sample.check_context(tokens, 0, hp)):
        w, cache = model.weights(hp), sample.empty_cache(hp, tf.shape(tokens)[0], 0)
        logits, _ = sample.prefill(hp, w, tokens, sample.row_starts(tokens), cache)
    types = {'length': tf.int32, 'temperature': tf.float32, 'top_k': tf.int32, 'top_p': tf.float32,
             'seed': tf.int64}
    numbers = {name: tf.placeholder(dtype, [], name) for name, dtype in types.items()}
    drawn = sample.sample_sequence(hparams=hp, context=tokens, vocabulary=enc.decoder, **numbers)
    signature = tf.saved_model.predict_signature_def
    return {'logits': signature({'tokens': tokens}, {'logits': logits}),
            'generate': signature({'tokens': tokens, **numbers}, {'tokens': drawn})}
