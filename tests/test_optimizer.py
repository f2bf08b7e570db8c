import numpy as np
import pytest
import tensorflow.compat.v1 as tf
import toy

import model
import optimizer

# torch 2.13 and transformers 5.23: GPT2LMHeadModel with toy.weights(toy.hparams()), torch.optim.Adam(lr=1e-3) and
# torch.optim.SGD(lr=0.1), ten updates by the batches of np.random.RandomState(1).randint(0, 557, [10, 2, 32]).
LOSSES = {'adam': [6.46302, 6.50385, 6.42572, 6.46457, 6.56591, 6.33828, 6.49241, 6.47511, 6.4508, 6.44818],
          'sgd': [6.46302, 6.49194, 6.42243, 6.45931, 6.56576, 6.35609, 6.4765, 6.45796, 6.41743, 6.41112]}
RATES = {'adam': 1e-3, 'sgd': 0.1}


@pytest.mark.parametrize('batches, memory_saving', [(1, False), (1, True), (2, True)])
@pytest.mark.parametrize('name', ['adam', 'sgd'])
def test_ten_losses_are_those_of_torch(name, batches, memory_saving):
    hp = toy.hparams()
    data = np.random.RandomState(1).randint(0, 557, [10, 2, 32])
    with toy.session() as s:
        X = tf.placeholder(tf.int32, [None, 32])
        total, count = model.loss(model.model(hp, X)['logits'], X)
        update = optimizer.Update(total / count, tf.trainable_variables(), optimizer=name, learning_rate=RATES[name],
                                  batches=batches, memory_saving=memory_saving)
        toy.assign(s, toy.weights(hp))
        losses = []
        for rows in data:
            s.run(update.before)
            parts = [s.run([total / count, update.batch], {X: part})[0] for part in np.split(rows, batches)]
            s.run(update.after)
            losses.append(np.mean(parts))
    np.testing.assert_allclose(losses, LOSSES[name], atol=1e-4)
