"""Log-probabilities and losses computed token by token, independently of likelihood.py and metrics.py."""
import numpy as np
import numpy_gpt2
import pytest
import toy


def numpy_model(hp, values):
    """A function of n tokens -> float64 [n, n_vocab], the log-probabilities of the next token."""
    def log_probabilities(tokens):
        return np.log(numpy_gpt2.softmax(numpy_gpt2.logits(values, list(tokens), hp.n_head)))
    return log_probabilities


def transformers_model(hp, values):
    """The same by transformers' GPT2LMHeadModel, in double precision."""
    torch = pytest.importorskip('torch', reason='make test-all compares with transformers')
    from test_model import transformers_model
    torch.set_num_threads(1)  # of models this small, threads only wait for each other
    peer = transformers_model(hp, values).double().eval()

    def log_probabilities(tokens):
        with torch.no_grad():
            return torch.log_softmax(peer(torch.tensor([list(map(int, tokens))])).logits[0], -1).numpy()
    return log_probabilities


def first_seen(i, n, context, stride, first):
    """The index of the first token that the model sees before token i of n.

    The first span ends after `context` predictions, or at `first`; each further span ends `stride` later,
    or with the text."""
    end = context if first <= context else first - 1 + stride
    while end < i:
        end += stride
    return max(0, min(end, n - 1) - context)


def nats(log_probabilities, tokens, context, stride, first=1):  # -> list of the losses of tokens[first:]
    """The loss of each token, given the tokens that its span has before it."""
    predicted = {}
    for i in range(first, len(tokens)):
        predicted.setdefault(first_seen(i, len(tokens), context, stride, first), []).append(i)
    losses = []
    for start, indices in sorted(predicted.items()):
        rows = log_probabilities(tokens[start:indices[-1]])
        losses += [-rows[i - 1 - start, tokens[i]] for i in indices]
    return losses


def trained_weights(hp, tokens, updates=150):
    """Weights after some steps of gradient descent on a text: no longer random, and far from trained."""
    import tensorflow.compat.v1 as tf

    import model
    with toy.session() as s:
        X = tf.placeholder(tf.int32, [None, hp.n_ctx])
        total, count = model.loss(model.model(hp, X)['logits'], X)
        step = tf.train.GradientDescentOptimizer(0.5).minimize(total / count)
        toy.assign(s, toy.weights(hp, scale=0.05))
        rng = np.random.RandomState(0)
        for _ in range(updates):
            starts = rng.randint(0, len(tokens) - hp.n_ctx, 4)
            s.run(step, {X: [tokens[start:start + hp.n_ctx] for start in starts]})
        return {v.op.name: s.run(v) for v in tf.trainable_variables()}
