"""Batches of training windows, read ahead, and the fixed ones of validation."""
import concurrent.futures

import numpy as np

from errors import require
from load_dataset import encode_to_npz, fingerprint, load_dataset
from storage import npz, paths
from training.windows import Sampler, hold_out


class Data:
    def __init__(self, flags, enc, hparams, worker):
        self.flags, self.enc, self.hparams, self.worker = flags, enc, hparams, worker
        self.options = flags.combine, flags.encoding, flags.special_tokens
        sources = [flags.dataset]
        if flags.val_every and flags.val_dataset:
            sources.append(flags.val_dataset)
        if worker.size > 1:  # text is encoded once
            folder = paths.run_dir(flags.run_name, flags.checkpoint_dir)
            sources = worker.run_on_rank0(lambda: encode_to_npz(enc, sources, folder, *self.options))
        worker.check_same({'the dataset': worker.run_on_all(lambda: self.load(*sources))})

    def load(self, path, val_path=None):  # -> its fingerprint
        self.training = self.chunks(path)
        self.validation = self.chunks(val_path) if val_path else []
        self.whole_size = sum(map(len, self.training))
        if self.flags.val_every and not val_path:
            self.training, self.validation = hold_out(self.training, 0.05)
        self.size = sum(map(len, self.training))
        return fingerprint(self.enc, self.training + self.validation)

    def chunks(self, path):
        chunks = load_dataset(self.enc, path, *self.options, progress=self.worker.rank == 0)
        size = sum(map(len, chunks))
        require(size >= 16, f'{path} has {size} tokens, but at least 16 are needed')
        return chunks

    def start(self, seed, position):  # to read ahead; checks that tokens are the model's
        self.sampler = Sampler(self.training, seed, self.worker.rank, self.worker.size)
        self.sampler.position = self.position = position
        self.reader = concurrent.futures.ThreadPoolExecutor(1)
        self.ahead = self.reader.submit(self.read_batch)
        self.ahead.result()
        if self.flags.val_every:
            next(self.val_batches())

    def next_batch(self):  # -> int32 [batch_size, n_ctx] x 2: input, tokens or PADDING
        batch, self.position = self.ahead.result()
        self.ahead = self.reader.submit(self.read_batch)
        return batch

    def read_batch(self):
        flags, sampler, position = self.flags, self.sampler, self.sampler.position
        inputs, tokens = self.batch(sampler, flags.batch_size)
        if flags.noise:
            rng = np.random.default_rng([sampler.seed, position, sampler.rank])
            noisy = rng.random(tokens.shape) < flags.noise
            others = rng.integers(self.hparams.n_vocab, size=tokens.shape, dtype=np.int32)
            inputs = np.where(noisy, others, inputs)
        if position // flags.batch_size % 256 == 0:
            npz.release(self.training)
        return (inputs, tokens), sampler.position

    def batch(self, sampler, size):
        tokens = np.stack([sampler.sample(self.hparams.n_ctx) for _ in range(size)])
        n_vocab = self.hparams.n_vocab
        require(tokens.max() < n_vocab,
                f'the dataset holds token {tokens.max()}, but n_vocab is {n_vocab}; encode it for this model')
        return np.maximum(tokens, 0), tokens

    def val_batches(self):  # this rank's share; None if it has one batch fewer than others
        count, size = self.flags.val_batch_count, self.flags.val_batch_size
        sampler = Sampler(self.validation, seed=1)
        for number in range(self.worker.rank, count + self.worker.rank, self.worker.size):
            sampler.position = number * size
            yield self.batch(sampler, size) if number < count else None
