"""Fixtures of several test files."""
import functools

import pytest


class Scored:
    """Two toy models that are evaluated: their folder, sizes and weights; each is loaded once for the same
    flags."""

    def __init__(self, folder):
        import reference
        import toy
        from tiny_vocab import ENGLISH

        import encoder
        from evaluation import likelihood
        self.folder, self.enc, self.weights = str(folder), {}, {}
        self.sizes = {'random': toy.hparams(n_ctx=32), 'trained': toy.hparams(n_ctx=24, n_head=2, n_layer=3)}
        for name in self.sizes:
            toy.write_vocab(folder / name)
            self.enc[name] = encoder.get_encoder(name, self.folder)
        self.weights['random'] = toy.weights(self.sizes['random'])
        self.weights['trained'] = reference.trained_weights(self.sizes['trained'],
                                                            self.enc['trained'].encode(ENGLISH * 3))
        for name, hp in self.sizes.items():
            toy.write_model(folder / name, hp, self.weights[name])
        self.load = functools.cache(likelihood.Likelihood)
        self.numpy = {name: reference.numpy_model(hp, self.weights[name]) for name, hp in self.sizes.items()}

    def likelihood(self, name, **flags):
        return self.load(name, self.folder, **flags)


@pytest.fixture(scope='session')
def scored(tmp_path_factory):
    return Scored(tmp_path_factory.mktemp('scored'))
