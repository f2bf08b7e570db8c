"""A model loaded once and sampled many times."""
import contextlib
import os
import sys

import tensorflow.compat.v1 as tf

import checkpoint
import encoder
import paths
import sample
from errors import require


class Generator:
    """Draws samples in a session whose graph has, or will have, the model's variables.

    All operations are added when it is made; calls only feed them. length, temperature, top_k, top_p, start_token and
    stop_token are those of sample.sample_sequence; with a start_token, calls take no context.
    """

    def __init__(self, session, hparams, *, length, start_token=None, **controls):
        self.session, self.hparams, self.length = session, hparams, length
        self.keys = tf.placeholder(tf.int64, [None, 2], 'keys')
        self.context = tf.placeholder(tf.int32, [None, None], 'context') if start_token is None else None
        self.tokens = sample.sample_sequence(
            hparams=hparams, length=length, start_token=start_token, batch_size=tf.shape(self.keys)[0],
            context=self.context, seed=self.keys, **controls)

    def check(self, context):
        """Raises InputError unless a context (a list of tokens) and the sample fit into n_ctx."""
        require(context, 'the prompt is empty; give at least one character')
        require(len(context) + self.length <= self.hparams.n_ctx,
                f'the prompt has {len(context)} tokens, which with --length {self.length} exceed n_ctx, '
                f'{self.hparams.n_ctx}; shorten the prompt or the length')

    def __call__(self, numbers, seed, context=None):  # -> int32 [len(numbers), length]
        """One continuation for each of `numbers`: the n-th sample of a seed and context is always the same one,
        whatever is drawn beside or before it. Raises InputError as check does."""
        feed = {self.keys: [[seed % 2**63, number] for number in numbers]}  # what an int64 holds
        if self.context is not None:
            self.check(context)
            feed[self.context] = [context] * len(numbers)
        return self.session.run(self.tokens, feed)[:, -self.length:]


def new_seed():
    return int.from_bytes(os.urandom(4), 'little')


class Samples:
    """What the sampling scripts share: a model by name, its samples as text, printed as the original prints them."""

    def __init__(self, model_name, models_dir, checkpoint_name=None, *, seed, nsamples, batch_size, length, temperature,
                 top_k, top_p, truncate, unconditional):
        require(batch_size >= 1, f'--batch_size must be 1 or more, not {batch_size}')
        require(nsamples >= 0, f'--nsamples must be 0 or more, not {nsamples}')
        require(seed is None or seed >= 0, f'--seed must be 0 or more, not {seed}')
        require(truncate != '', '--truncate needs a text')
        directory, hparams, self.enc = checkpoint.describe(model_name, models_dir)
        require(self.enc.eot is not None or not unconditional, f'{directory}/encoder.json lacks {encoder.EOT}, with '
                                                               'which unconditional samples begin')
        self.seed, self.nsamples, self.batch_size, self.truncate = seed, nsamples, batch_size, truncate
        if length is None:
            length = hparams.n_ctx if unconditional else hparams.n_ctx // 2
        self.session = tf.Session(graph=tf.Graph(), config=session_config())
        with self.session.graph.as_default():
            self.generate = Generator(
                self.session, hparams, length=length, start_token=self.enc.eot if unconditional else None,
                temperature=temperature, top_k=top_k, top_p=top_p,
                stop_token=self.enc.eot if truncate == encoder.EOT else None)
            path = paths.child(directory, checkpoint_name, '--checkpoint') if checkpoint_name else directory
            checkpoint.restore(self.session, checkpoint.find(path), checkpoint.model_variables())
            self.session.graph.finalize()

    def write(self, file, prompt=None, prefix=''):
        """nsamples samples (0: without end) of a prompt, each after a line of its number; prefix: put before each."""
        context = None if prompt is None else self.enc.encode(prompt)
        seed = new_seed() if self.seed is None else self.seed
        first = 0
        while first < self.nsamples or not self.nsamples:
            last = first + self.batch_size
            numbers = range(first, min(last, self.nsamples) if self.nsamples else last)
            for number, tokens in zip(numbers, self.generate(numbers, seed, context), strict=True):
                print(f'{"=" * 40} SAMPLE {number + 1} {"=" * 40}', file=file)
                print(prefix + self.text(tokens), file=file, flush=True)
            first = last

    def text(self, tokens):
        text = self.enc.decode(tokens)
        return text.partition(self.truncate)[0] if self.truncate else text


def session_config():
    """TensorFlow takes the memory of a GPU as it is needed, not all of it at once."""
    config = tf.ConfigProto()
    config.gpu_options.allow_growth = True
    return config


@contextlib.contextmanager
def opened(output):
    """The file `output` for text, or stdout for None. The file comes into being at the end; on Ctrl-C with the samples
    drawn so far."""
    if output is None:
        yield sys.stdout
        return
    path = paths.expand(output)
    require(os.path.basename(path) and not os.path.isdir(path), f'--output {output!r} does not name a file')
    with paths.replacing(path, encoding='utf-8') as file, contextlib.suppress(KeyboardInterrupt):
        yield file
