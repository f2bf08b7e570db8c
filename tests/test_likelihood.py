"""Log-probabilities of spans: order, batches, kernels, precisions."""
import numpy as np
import numpy_gpt2
import pytest
import reference
import tensorflow.compat.v1 as tf
import toy
from tiny_vocab import ENGLISH

from evaluation import likelihood, metrics
from fast import kernels


def test_scores_come_in_order_from_a_bounded_number_of_spans(scored, monkeypatch):
    monkeypatch.setattr(likelihood, 'BATCHES_AHEAD', 2)
    read = []

    def spans():
        for number in range(60):
            read.append(number)
            length = 10 if number % 7 == 0 else 31  # the first of the rare shape would wait long for its like
            yield np.full(length, number), 5
    order = []
    for tokens, values in scored.likelihood('random', batch_size=4).score(spans()):
        order.append(tokens[0])
        assert values.shape == (5,)
        assert len(read) - order[-1] <= 2 * 2 * 4 + 8
    assert order == list(range(60))


def test_as_kernels_and_by_blocks_of_attention(scored, monkeypatch):
    """As large models are computed."""
    monkeypatch.setattr(kernels, 'MIN_FUSED_ELEMENTS', 0)
    monkeypatch.setattr(kernels, 'ATTENTION_BLOCK', 8)
    scorer = likelihood.Likelihood('random', scored.folder)
    tokens = scorer.enc.encode(ENGLISH)[:65]  # of which two spans have the same shape

    def losses(tokens):
        return -np.concatenate([values for _, values in scorer.score(metrics.spans(tokens, 32, 32))])
    losses(tokens[:33])
    operations = scorer.session.graph.get_operations()
    assert len([op for op in operations if 'PartitionedCall' in op.type]) > 10
    np.testing.assert_allclose(losses(tokens), reference.nats(scored.numpy['random'], tokens, 32, 32),
                               rtol=1e-4)
    assert len(scorer.session.graph.get_operations()) == len(operations)  # nothing is traced anew


def test_ids_without_a_text_keep_their_share_of_probability(tmp_path):
    hp, weights = toy.write_padded_model(tmp_path / 'padded')
    scorer = likelihood.Likelihood('padded', str(tmp_path))
    tokens = scorer.enc.encode(ENGLISH)[:20]
    ((_, values, best, logits),) = scorer.score([(tokens, 19)], predictions=True)
    p = numpy_gpt2.softmax(numpy_gpt2.logits(weights, tokens[:-1], hp.n_head))
    np.testing.assert_allclose(values, np.log(p[range(19), tokens[1:]]), atol=1e-4)
    assert best.tolist() == p.argmax(axis=1).tolist() and logits.argmax() == best[0]
    assert not scorer.enc.decoder.keys() >= set(best.tolist())


@pytest.mark.parametrize('precision', ['float32', 'tf32'])
def test_products_are_rounded_to_tf32_only_where_flags_ask_for_it(scored, precision):
    tf.config.experimental.enable_tensor_float_32_execution(precision != 'tf32')
    likelihood.Likelihood('random', scored.folder, precision=precision)
    assert tf.config.experimental.tensor_float_32_execution_enabled() == (precision == 'tf32')
