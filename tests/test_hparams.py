import json
import math

import pytest
import toy

import model
from errors import InputError
from hparams import load_hparams


@pytest.mark.parametrize('values, message', [
    ({'n_embed': 768}, "unknown hyperparameter 'n_embed'"),
    ({'n_embd': 100}, r'n_embd \(100\) must be divisible by n_head \(12\)'),
    ({'n_layer': 0}, 'n_layer must be a whole number from 1 to 1,000, not 0'),
    ({'n_layer': '12'}, "n_layer must be a whole number .*, not '12'"),
    ({'n_ctx': True}, 'n_ctx must be a whole number .*, not True'),
    ({'n_ctx': [[]] * 10**6}, r'n_ctx must be a whole number .*, not \[.{,40}\]$'),
    ({'n_ctx': 'x' * 10**6}, 'n_ctx must be a whole number .*, not .{30}$'),
    ({'x' * 10**6: 1}, 'unknown hyperparameter .{40,200}$'),
    ({'n_layer': 10**9}, 'from 1 to 1,000, not 1000000000'),
    ({'n_vocab': 10**15}, 'n_vocab must be a whole number from 1 to 2,147,483,647'),
    ({'n_vocab': 10**4000}, 'n_vocab must be a .* from 1 to 2,147,483,647'),
    ({'n_embd': 12 * 10**8}, r'HParams\(n_vocab=50257, .*more than 1,000,000,000,000$'),
    ({'n_embd': 12 * 10**3, 'n_layer': 600}, 'has 1,037,508,996,000 parameters'),
])
def test_sizes_that_make_no_model_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        model.default_hparams().override_from_dict(values)


@pytest.mark.parametrize('sizes', [{}, {'n_layer': 1}, {'n_embd': 64, 'n_vocab': 3, 'n_ctx': 7}])
def test_the_number_of_parameters_is_that_of_the_weights(sizes):
    hp = toy.hparams(**sizes)
    assert hp.n_parameters() == sum(map(math.prod, model.weight_shapes(hp).values()))


@pytest.mark.parametrize(
    'text, message',
    [
        ('{"n_vocab": 50257', 'is not JSON'),
        ('[1]', 'must hold an object'),
        ('{"n_vocab": 5}', 'lacks n_ctx, n_embd'),
        (json.dumps({**toy.TOY, 'n_head': 5}), 'hparams.json: n_embd'),
    ],
)
def test_bad_hparams_files_are_named(tmp_path, text, message):
    path = tmp_path / 'hparams.json'
    with pytest.raises(InputError, match=r'no .*hparams\.json'):
        load_hparams(path)
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_hparams(path)
    path.write_text(json.dumps(toy.TOY), encoding='utf-8-sig')  # as editors on Windows write it
    assert load_hparams(path).values() == toy.TOY
