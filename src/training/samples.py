"""Samples of a model in training."""
import glob
import os

from storage import paths
from training import log


def draw(generator, flags, seed, first):  # -> texts
    seeds = [[seed % 2**63, number] for number in range(flags.sample_num)[first:first + flags.batch_size]]
    rows = generator.complete(
        [[generator.enc.eot]] * len(seeds), seeds, top_k=flags.top_k, top_p=flags.top_p,
        length=flags.sample_length or generator.hparams.n_ctx - 1)
    return [f'======== SAMPLE {number} ========\n{row.text}\n' for number, row in enumerate(rows, first + 1)]


def write(folder, step, text):  # the file samples-<step>, or warns
    path = f'{folder}/samples-{step}'
    with log.warning_of(OSError, 'The samples could not be written'):
        os.makedirs(folder, exist_ok=True)
        with paths.replacing(path) as file:
            file.write(text)
        for temporary in glob.glob(f'{glob.escape(path)}.*.tmp'):  # of a kill
            os.unlink(temporary)
