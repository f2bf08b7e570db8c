"""Batches of training windows, read ahead, and the fixed ones of validation."""
import concurrent.futures

import numpy as np

from errors import require
from load_dataset import encode_to_npz, find_parts, fingerprint, load_dataset
from storage import npz, paths, template
from training.windows import PADDING, Mixture, hold_out, pack


def count(parts):  # -> tokens
    return sum(len(chunk) for _, chunks in parts for chunk in chunks)


class Data:
    def __init__(self, flags, enc, hparams, worker, *folders):  # of templates, without the flag
        self.flags, self.enc, self.hparams, self.worker = flags, enc, hparams, worker
        folder = paths.run_dir(flags.run_name, flags.checkpoint_dir)
        val_paths = [flags.val_dataset] if flags.val_every and flags.val_dataset is not None else []
        sources = worker.run_on_all(lambda: [find_parts(path) for path in (flags.dataset, *val_paths)])
        self.template = flags.template or worker.run_on_rank0(lambda: template.find(*folders))
        *options, default = flags.text_options()
        self.options = flags.combine, *options, self.template or default
        if worker.size > 1:  # text is encoded once
            sources = worker.run_on_rank0(lambda: self.encode(sources, folder))
        worker.check_same({'the dataset': worker.run_on_all(lambda: self.load(*sources))})

    def encode(self, sources, folder):  # -> the same of .npz
        targets = iter(encode_to_npz(self.enc, [path for parts in sources for path, _ in parts], folder,
                                     *self.options))
        return [[(next(targets), weight) for _, weight in parts] for parts in sources]

    def load(self, parts, val_parts=()):  # -> its fingerprint
        self.training, self.validation = ([(weight, self.chunks(path)) for path, weight in source]
                                          for source in (parts, val_parts))
        self.whole_size = count(self.training)
        if self.flags.val_every and not val_parts:
            held = [(weight, *hold_out(chunks, 0.05, self.enc.eot)) for weight, chunks in self.training]
            self.training = [(weight, chunks) for weight, chunks, _ in held]
            self.validation = [(weight, chunks) for weight, _, chunks in held]
        self.size = count(self.training)
        self.training, self.validation = ([(weight, [*self.packed(chunks)]) for weight, chunks in parts]
                                          for parts in (self.training, self.validation))
        return fingerprint(self.enc, *self.training, *self.validation)

    def chunks(self, path):
        chunks = load_dataset(self.enc, path, *self.options, progress=self.worker.rank == 0)
        n_tokens = sum(map(len, chunks))
        require(n_tokens >= 16, f'{path} has {n_tokens} tokens, but at least 16 are needed')
        return chunks

    def packed(self, chunks):  # yields them, with windows of whole examples for those with prompts
        for chunk in chunks:
            if npz.has_prompts(chunk):
                self.template = self.options[-1]
                yield from pack(chunk, self.hparams.n_ctx, self.enc.eot)
            else:
                yield chunk

    def start(self, seed, position):  # to read ahead; checks that tokens are the model's
        self.sampler = Mixture(self.training, seed, self.worker.rank, self.worker.size)
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
            npz.release([chunk for _, chunks in self.training for chunk in chunks])
        return (inputs, tokens), sampler.position

    def batch(self, sampler, size):
        tokens = np.stack([sampler.sample(self.hparams.n_ctx) for _ in range(size)])
        ids, n_vocab = npz.ids_of(np.maximum(tokens, 0)), self.hparams.n_vocab
        require(ids.max() < n_vocab,
                f'the dataset holds token {ids.max()}, but n_vocab is {n_vocab}; encode it for this model')
        return ids, np.where(tokens < npz.PROMPT, tokens, PADDING)

    def val_batches(self):  # this rank's share; None if it has one batch fewer than others
        count, size = self.flags.val_batch_count, self.flags.val_batch_size
        sampler = Mixture(self.validation, seed=1)
        for number in range(self.worker.rank, count + self.worker.rank, self.worker.size):
            sampler.position = number * size
            yield self.batch(sampler, size) if number < count else None
