"""Samples of a model in training, which go to samples_dir/<run_name>/samples-<step>."""
import glob
import os

from errors import require
from generation import generator
from storage import paths


class SampleFiles:
    def __init__(self, flags, directory, session, hparams, enc, weights):
        require(enc.eot is not None, 'samples start with the token that ends a text, such as <|endoftext|>, '
                                     'which the vocabulary has not: add it, or use --sample_every 0')
        self.flags, self.directory, self.eot = flags, directory, enc.eot
        self.length = flags.sample_length or hparams.n_ctx - 1
        self.generator = generator.Generator(session, hparams, enc, weights)

    def draw(self, seed, signals):  # -> texts, or None where a signal has come
        flags, texts = self.flags, []
        for first in range(0, flags.sample_num, flags.batch_size):
            if signals.received:
                return None
            numbers = range(first, min(first + flags.batch_size, flags.sample_num))
            rows = self.generator.complete(
                [[self.eot]] * len(numbers), [[seed, number] for number in numbers], length=self.length,
                top_k=flags.top_k, top_p=flags.top_p)
            for number, row in zip(numbers, rows, strict=True):
                texts.append(f'======== SAMPLE {number + 1} ========\n{row.text}\n')
        self.generator.free_cache()
        return texts

    def write(self, step, texts):
        os.makedirs(self.directory, exist_ok=True)
        path = os.path.join(self.directory, f'samples-{step}')
        with paths.replacing(path) as file:
            file.write('\n'.join(texts))
        for remains in glob.glob(f'{glob.escape(path)}.*.tmp'):  # of a kill
            os.unlink(remains)
