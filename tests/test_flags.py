import dataclasses
import re

from command_line.flags import ExportFlags, HorovodFlags, SamplingFlags, TrainFlags

import pytest

from errors import InputError

FORK = {  # the fine-tuning fork's train.py
    'model_name': '124M', 'models_dir': 'models', 'combine': 50000, 'encoding': 'utf-8', 'batch_size': 1,
    'learning_rate': 0.00002, 'accumulate_gradients': 1, 'memory_saving_gradients': False,
    'only_train_transformer_layers': False, 'optimizer': 'adam', 'noise': 0.0, 'top_k': 40, 'top_p': 0.0,
    'restore_from': 'latest', 'run_name': 'run1', 'sample_every': 100, 'sample_num': 1, 'save_every': 1000,
    'val_dataset': None, 'val_batch_size': 2, 'val_batch_count': 40, 'val_every': 0}
OWN = {'checkpoint_dir': 'checkpoint', 'samples_dir': 'samples', 'sample_length': None, 'steps': None,
       'seed': None,
       'precision': 'float32', 'xla': False, 'warmup_steps': 0, 'schedule': 'constant', 'weight_decay': None,
       'clip_norm': 0.0, 'patience': 0, 'log_to': None, 'special_tokens': True,
       'text_field': 'text', 'template': None, 'isolate_documents': False,
       'lora_rank': 0, 'lora_alpha': 16.0, 'lora_targets': 'attn'}
COUNTS = ('sample_every', 'sample_num', 'save_every', 'val_every', 'top_k', 'steps', 'seed', 'warmup_steps',
          'patience', 'lora_rank')


def test_defaults_are_those_of_the_fine_tuning_fork():
    assert dataclasses.asdict(TrainFlags(dataset='x')) == {'dataset': 'x', **FORK, **OWN}


def test_defaults_have_the_types_of_their_flags():
    for field in dataclasses.fields(TrainFlags):
        if field.default not in (dataclasses.MISSING, None):
            assert type(field.default) is field.type, field.name


def test_only_the_dataset_must_be_given():
    with pytest.raises(TypeError, match='dataset'):
        TrainFlags()


def test_flags_cannot_be_changed_afterwards():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainFlags(dataset='x').batch_size = 2


@pytest.mark.parametrize('name, value', [
    *((name, value) for name in ('batch_size', 'accumulate_gradients', 'val_batch_size', 'val_batch_count',
                                 'combine',
                                 'sample_length') for value in (0, -1)),
    *((name, -1) for name in COUNTS),
    ('learning_rate', 0.0), ('learning_rate', -1e-5), ('learning_rate', float('nan')),
    ('noise', -0.1), ('noise', 1.0), ('noise', float('nan')),
    ('top_p', -0.1), ('top_p', 1.1), ('top_p', float('nan')),
    ('lora_alpha', 0.0), ('lora_alpha', float('nan')), ('lora_targets', 'wte'),
    ('optimizer', 'lion'), ('optimizer', ''), ('optimizer', 'Adam'), ('precision', 'float16'),
    ('schedule', 'cos'),
    ('weight_decay', -0.1), ('weight_decay', float('nan')), ('clip_norm', -1.0), ('clip_norm', float('nan')),
])
def test_a_value_out_of_range_is_refused_by_the_name_of_its_flag(name, value):
    with pytest.raises(InputError) as raised:
        TrainFlags(dataset='x', **{name: value})
    assert re.fullmatch(rf'--{name} must be .+, not {re.escape(repr(value))}', str(raised.value))


@pytest.mark.parametrize('name, value', [
    *((name, 1) for name in ('batch_size', 'accumulate_gradients', 'val_batch_size', 'val_batch_count',
                             'combine',
                             'sample_length')),
    *((name, 0) for name in COUNTS),
    *((name, None) for name in ('sample_length', 'steps', 'seed', 'val_dataset')),
    ('learning_rate', 1e-12), ('noise', 0.0), ('noise', 0.999), ('top_p', 0.0), ('top_p', 1.0),
    ('optimizer', 'sgd'),
])
def test_the_ends_of_each_range_are_accepted(name, value):
    assert getattr(TrainFlags(dataset='x', **{name: value}), name) == value


@pytest.mark.parametrize('listed', [TrainFlags, SamplingFlags, ExportFlags])
def test_every_flag_is_explained(listed):
    assert all(field.metadata['help'] for field in dataclasses.fields(listed))


@pytest.mark.parametrize('changes, message', [
    ({'schedule': 'cosine'}, '--schedule cosine needs --steps'),
    ({'patience': 3}, '--patience needs --val_every'),
])
def test_flags_that_need_another_name_it(changes, message):
    with pytest.raises(InputError, match=message):
        TrainFlags(dataset='x', **changes)
    TrainFlags(dataset='x', steps=10, val_every=5, **changes)


def test_those_of_several_processes_are_the_same_and_two():
    several, alone = (dataclasses.asdict(made(dataset='x')) for made in (HorovodFlags, TrainFlags))
    assert several == {**alone, 'compression': 'none', 'timeout': 120}
    with pytest.raises(InputError, match=r"--compression must be one of none, float16, bfloat16, not 'zip'"):
        HorovodFlags(dataset='x', compression='zip')
    with pytest.raises(InputError, match='--timeout must be 0 or more, not -1'):
        HorovodFlags(dataset='x', timeout=-1)
    with pytest.raises(InputError, match='--batch_size must be 1 or more'):
        HorovodFlags(dataset='x', batch_size=0)


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'batch_size': 0}, '--batch_size must be 1 or more, not 0'),
        ({'nsamples': -1}, '--nsamples must be 0 or more, not -1'),
        ({'seed': -1}, '--seed must be 0 or more, not -1'),
        ({'truncate': ''}, '--stop and --truncate need a text'),
        ({'stop': ('a', '')}, '--stop and --truncate need'),
        ({'no_repeat_ngram': -1}, '--no_repeat_ngram must be 0 or more, not -1'),
        *(({'logit_bias': ('1:2', text)}, f'--logit_bias must be ID:BIAS, such as 50256:-100, not {text!r}')
          for text in ('', '5', ':3', '5:', '-5:3', '5:3:4', '5:nan', '5:-inf', '5:x', ' 5:3', '5.5:1')),
        ({'beams': 1}, re.escape('--beams must be 2 or more (for 1, give --temperature 0), not 1')),
        ({'beams': 3, 'nsamples': 4}, '--nsamples must be at most --beams, 3, not 4'),
        *(({'beams': 3, name: value}, f'--beams draws nothing at random; leave out --{name}$')
          for name, value in (('seed', 0), ('batch_size', 2), ('temperature', 0), ('top_k', 1),
                              ('top_p', 0.5), ('min_p', 0.1), ('typical_p', 0.5))),
    ],
)
def test_those_of_sampling_are_refused_before_a_model_is_looked_for(changes, message):
    with pytest.raises(InputError, match=message):
        SamplingFlags(**changes)
    SamplingFlags(batch_size=1, nsamples=0, seed=0)


def test_beams_take_what_they_can_use():
    flags = SamplingFlags(beams=3, nsamples=3, repetition_penalty=1.2, no_repeat_ngram=2, stop=('a',),
                          logit_bias=('1:-2.5', '50256:1', '7:+.5'))
    assert flags.biases == {1: -2.5, 50256: 1, 7: 0.5}


@pytest.mark.parametrize('changes, ends', [
    ({}, ()), ({'stop': ['a', 'b']}, ('a', 'b')), ({'truncate': 'c'}, ('c',)),
    ({'stop': ('a',), 'truncate': 'c'}, ('a', 'c'))])
def test_a_sample_ends_at_every_stop_and_at_truncate(changes, ends):
    assert SamplingFlags(**changes).ends == ends
