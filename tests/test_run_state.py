import json
import os

import pytest

from errors import InputError
from storage import run_state
from storage.run_state import TrainState

pytestmark = pytest.mark.slow


ODD = {
    **dict.fromkeys(
        ('step', 'position', 'validations_since_best', 'actions_done'),
        (1.5, 'x', None, float('nan'), 2**63, 10**30, -1, True, [], {}, '7'),
    ),
    'tokens': (1.5, 'x', 2**63, -1),
    'flags': ([], None, 'x'),
    'seed': (1.5, 'x', -1, True, [1]),
    'loss': ('x', float('nan'), float('inf'), True, [1.0], 10**400),
    'average': (
        None,
        1.0,
        [],
        [1.0],
        [1.0, 2.0, 3.0],
        [1.0, None],
        ['a', 'b'],
        [1.0, float('nan')],
        {'a': 1, 'b': 2},
    ),
    'best': (
        1.0,
        [],
        [1.0],
        [1.0, 1, 1],
        [None, 1],
        [1.0, 1.5],
        [float('inf'), 1],
        [1.0, -1],
        'ab',
        [True, 1],
    ),
}


WHOLE = {
    'step': 7,
    'position': 52,
    'seed': 2**64,
    'tokens': 3,
    'loss': 6.5,
    'average': [0.1, 1],
    'best': [6.0, 5],
    'validations_since_best': 2,
    'actions_done': 1,
    'flags': {'dataset': 'x'},
}


@pytest.mark.parametrize('name', ODD)
def test_a_state_of_other_types_and_ranges_is_refused_whatever_its_checksum(tmp_path, name):
    path = tmp_path / 'training-7.json'
    for value in ODD[name]:
        path.write_text(json.dumps(run_state.with_crc({**WHOLE, name: value})))
        with pytest.raises(
            InputError, match=rf'training-7\.json is damaged \("{name}" cannot be .*remove it'
        ):
            run_state.read(str(path), TrainState)
    path.write_text(json.dumps(run_state.with_crc({**WHOLE, 'of a later version': None})))
    assert run_state.read(str(path), TrainState) == TrainState(**WHOLE)


@pytest.mark.parametrize('name', sorted(ODD.keys() - {'step'}))
def test_a_state_may_lack_what_an_earlier_version_did_not_keep(tmp_path, name):
    older = {key: value for key, value in WHOLE.items() if key != name}
    (tmp_path / 'training-7.json').write_text(json.dumps(run_state.with_crc(older)))
    assert run_state.read(str(tmp_path / 'training-7.json'), TrainState) == TrainState(**older)


def test_a_state_with_the_names_of_an_earlier_version_is_read(tmp_path):
    older = dict(WHOLE)
    older['worse'], older['acted'] = older.pop('validations_since_best'), older.pop('actions_done')
    (tmp_path / 'training-7.json').write_text(json.dumps(run_state.with_crc(older)))
    assert run_state.read(str(tmp_path / 'training-7.json'), TrainState) == TrainState(**WHOLE)


def test_a_training_state_that_is_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / 'training-7.json')
    with pytest.raises(InputError, match='is a pipe'):
        run_state.read(str(tmp_path / 'training-7.json'), TrainState)
