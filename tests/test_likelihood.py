"""Log-probabilities of spans: order, batches, kernels, precisions."""
import numpy as np
import numpy_gpt2
import pytest
import reference
import tensorflow.compat.v1 as tf
import toy
from tiny_vocab import ENGLISH

from errors import InputError
from evaluation import likelihood, metrics
from fast import blocks, kernels


def test_scores_come_in_order_from_a_bounded_number_of_spans(scored, monkeypatch):
    monkeypatch.setattr(likelihood, 'BATCHES_AHEAD', 2)
    read = []

    def spans():
        for number in range(60):
            read.append(number)
            length = 20 if number % 7 == 0 else 31  # the first of the rare shape would wait long for its like
            yield metrics.ScoredSpan(np.full(length, number), 5)
    order = []
    for span, scores in scored.likelihood('random', batch_size=4).score(spans()):
        order.append(span.tokens[0])
        assert scores.log_probabilities.shape == (5,)
        assert len(read) - order[-1] <= 2 * 2 * 4 + 8
    assert order == list(range(60))


def test_as_kernels_and_by_blocks_of_attention(scored, monkeypatch):
    """As large models are computed."""
    monkeypatch.setattr(kernels, 'MIN_FUSED_ELEMENTS', 0)
    monkeypatch.setattr(blocks, 'ATTENTION_BLOCK', 8)
    scorer = likelihood.Likelihood('random', scored.folder)
    tokens = scorer.enc.encode(ENGLISH)[:65]  # of which two spans have the same shape

    def losses(tokens):
        results = list(scorer.score(metrics.spans(tokens, 32, 32)))
        return -np.concatenate([scores.log_probabilities for _, scores in results])
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
    ((_, scores),) = scorer.score([metrics.ScoredSpan(tokens, 19)], best=True)
    p = numpy_gpt2.softmax(numpy_gpt2.logits(weights, tokens[:-1], hp.n_head))
    np.testing.assert_allclose(scores.log_probabilities, np.log(p[range(19), tokens[1:]]), atol=1e-4)
    assert scores.best.tolist() == p.argmax(axis=1).tolist()
    assert not scorer.enc.decoder.keys() >= set(scores.best.tolist())


def test_a_token_that_the_model_lacks_is_refused(scored):
    for tokens, wrong in (([5, 557], 557), ([-1, 5], -1)):
        with pytest.raises(InputError, match=rf'token {wrong}, but the model\'s n_vocab is 557'):
            next(scored.likelihood('random').score([metrics.ScoredSpan(tokens, 1)]))


@pytest.mark.parametrize('precision', ['float32', 'tf32'])
def test_products_are_rounded_to_tf32_only_where_flags_ask_for_it(scored, precision):
    tf.config.experimental.enable_tensor_float_32_execution(precision != 'tf32')
    likelihood.Likelihood('random', scored.folder, precision=precision)
    assert tf.config.experimental.tensor_float_32_execution_enabled() == (precision == 'tf32')
