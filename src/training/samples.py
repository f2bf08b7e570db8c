"""Samples of a model in training."""
import glob
import os

from storage import paths
from training import log


def draw(generator, flags, seed, first):  # -> texts
    seeds = [[seed, number] for number in range(first, min(first + flags.batch_size, flags.sample_num))]
    length = flags.sample_length or generator.hparams.n_ctx - 1
    rows = generator.complete([[generator.enc.eot]] * len(seeds), seeds, length=length, top_k=flags.top_k,
                              top_p=flags.top_p)
    return [f'======== SAMPLE {number} ========\n{row.text}\n' for number, row in enumerate(rows, first + 1)]


def write(folder, step, text):
    """Writes the file samples-<step>, or warns."""
    path = os.path.join(folder, f'samples-{step}')
    with log.warning_of(OSError, 'The samples could not be written'):
        os.makedirs(folder, exist_ok=True)
        with paths.replacing(path) as file:
            file.write(text)
        for temporary in glob.glob(f'{glob.escape(path)}.*.tmp'):  # of a kill
            os.unlink(temporary)
