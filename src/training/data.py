"""Batches of training windows, read ahead, and the fixed windows of validation."""
import concurrent.futures

import numpy as np

from errors import require
from load_dataset import encode_to_npz, fingerprint, load_dataset
from storage import npz, paths
from training.windows import Sampler, hold_out

MIN_TOKENS = 16  # of a dataset: fewer are a mistake, such as an empty file or a wrong path
DROP_EVERY = 256  # batches between giving back the memory of mapped data
HELD_OUT = 0.05  # the share of the dataset that validates without --val_dataset


class Data:
    def __init__(self, flags, enc, hparams, worker):
        self.flags, self.enc, self.hparams, self.worker = flags, enc, hparams, worker
        sources = [flags.dataset]
        if flags.val_every and flags.val_dataset:
            sources.append(flags.val_dataset)
        if worker.size > 1:  # text is encoded once, and mapped by all ranks of a machine
            directory = paths.run_dir(flags.run_name, flags.checkpoint_dir)
            sources = worker.run_on_rank0(lambda: encode_to_npz(enc, sources, directory, flags.combine,
                                                                flags.encoding, flags.special_tokens))
        worker.run_everywhere(lambda: self.load(*sources))
        worker.check_same(lambda: {'the dataset (its fingerprint)': fingerprint(
            enc, *filter(None, (self.training, self.validation)), length=hparams.n_ctx)})

    def load(self, path, val_path=None):
        self.training, self.size_with_held_out = self.chunks('dataset', path)
        self.validation = self.chunks('val_dataset', val_path)[0] if val_path else []
        if self.flags.val_every and not val_path:
            self.training, self.validation = hold_out(self.training, HELD_OUT)
        self.size = sum(map(len, self.training))

    def chunks(self, flag, path):  # -> list of arrays, the number of their tokens
        chunks = load_dataset(self.enc, paths.expand(path), self.flags.combine, self.flags.encoding,
                              self.flags.special_tokens, progress=self.worker.rank == 0)
        size = sum(map(len, chunks))
        require(size >= MIN_TOKENS, f'--{flag} {getattr(self.flags, flag)} has {size} tokens, but at least '
                f'{MIN_TOKENS} are needed ({self.hparams.n_ctx} for a full window); give more text')
        return chunks, size

    def start(self, seed, position):
        """Has next_batch follow the stream of a seed. Raises InputError for tokens of another vocabulary."""
        self.seed, self.position = seed, position
        self.sampler = Sampler(self.training, seed, rank=self.worker.rank, size=self.worker.size)
        self.reader = concurrent.futures.ThreadPoolExecutor(1)
        self.upcoming = self.reader.submit(self.read_batch, position)
        self.upcoming.result()
        if self.validation:
            next(self.validation_batches())

    def next_batch(self):  # -> int32 [batch_size, n_ctx], twice
        """The input with noise, and the tokens to predict (PADDING where none). A thread reads the next
        batch, whose place in the stream is then `position`."""
        inputs, tokens, self.position = self.upcoming.result()
        self.upcoming = self.reader.submit(self.read_batch, self.position)
        return inputs, tokens

    def read_batch(self, position):
        self.sampler.position = position
        inputs, tokens = self.batch(self.sampler, self.flags.batch_size)
        if self.flags.noise:
            noise = np.random.default_rng([self.seed, position, self.worker.rank])
            is_noisy = noise.random(tokens.shape) < self.flags.noise
            others = noise.integers(self.hparams.n_vocab, size=tokens.shape, dtype=np.int32)
            inputs = np.where(is_noisy, others, inputs)
        if position // self.flags.batch_size % DROP_EVERY == 0:
            npz.release(self.training)
        return inputs, tokens, self.sampler.position

    def batch(self, sampler, size):  # -> int32 [size, n_ctx], twice: input, tokens to predict
        tokens = np.stack([sampler.sample(self.hparams.n_ctx) for _ in range(size)])
        require(tokens.max() < self.hparams.n_vocab,
                f"the dataset holds token {tokens.max()}, but the model's n_vocab is {self.hparams.n_vocab}: "
                "encode the dataset with the model's own vocabulary")
        return np.maximum(tokens, 0), tokens

    def validation_batches(self):
        """Yields this rank's share of the same batches at every call, or None where others have one more."""
        sampler = Sampler(self.validation, seed=1)
        n_batches, size = self.flags.val_batch_count, self.worker.size
        for number in range(self.worker.rank, -(-n_batches // size) * size, size):
            sampler.position = number * self.flags.val_batch_size
            yield self.batch(sampler, self.flags.val_batch_size) if number < n_batches else None
