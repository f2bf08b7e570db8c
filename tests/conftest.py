"""Fixtures of several test files."""
import functools
import signal

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


@pytest.fixture(scope='module')
def toy_model(tmp_path_factory):
    """A model directory, its sizes and its weights."""
    import toy
    directory = tmp_path_factory.mktemp('models') / 'toy'
    return str(directory), *toy.write_model(directory)


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """A folder with the model `toy`, and its weights: such that greedy text is not one token repeated."""
    import toy
    models = tmp_path_factory.mktemp('models')
    hp = toy.hparams()
    _, values = toy.write_model(str(models / 'toy'), hp, toy.weights(hp, scale=0.4))
    return models, hp, values


@pytest.fixture
def graph(toy_model):
    """A session with a model and an optimizer that has slots; all variables hold zeros."""
    import tensorflow.compat.v1 as tf
    import toy

    import model
    _, hp, _ = toy_model
    with toy.session() as s:
        loss = tf.add_n([tf.reduce_sum(w) for w in model.weights(hp).values()])
        s.update = tf.train.AdamOptimizer(0.1).minimize(loss)
        s.run([v.assign(tf.zeros_like(v)) for v in tf.global_variables()])
        yield s


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """A folder with models/toy and text/*.txt: some documents longer than a window, and one shorter."""
    import toy
    from tiny_vocab import ENGLISH
    folder = tmp_path_factory.mktemp('world')
    toy.write_model(folder / 'models' / 'toy')
    (folder / 'text').mkdir()
    (folder / 'text' / 'a.txt').write_text(ENGLISH)
    (folder / 'text' / 'b.txt').write_text(ENGLISH.upper() * 2)
    return folder


@pytest.fixture
def flags(world, tmp_path):
    """A function that makes TrainFlags, with short runs and folders of this test's own."""
    from command_line.flags import TrainFlags

    import toy

    def make(**changes):
        return TrainFlags(**toy.short_run(world, tmp_path, **changes))
    return make


@pytest.fixture
def usual_signals():
    """The handlers of a program started at a terminal, also where the tests run under nohup or in the
    background."""
    usual = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
