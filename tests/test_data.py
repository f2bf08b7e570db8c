import dataclasses
import os

import numpy as np
import pytest
import runs
import toy
from tiny_vocab import ENGLISH

from encoder import get_encoder
from errors import InputError
from storage import checkpoint, npz
from training import trainer
from training.windows import Sampler

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('usual_signals')]


def test_files_whose_names_are_not_utf_8_are_trained_on(flags, tmp_path):
    name = os.path.join(tmp_path, '\udcff')
    for part in ('.txt', '.val'):
        with open(name + part, 'w') as file:
            file.write(ENGLISH)
    made = flags(dataset=f'{name}.txt', val_dataset=f'{name}.val', val_every=1, steps=1, sample_every=1,
                 sample_length=2, samples_dir=f'{name}.samples')
    trainer.train(made)
    assert sorted(runs.events(made, 'flags')) == [0] and os.listdir(f'{name}.samples/run1') == ['samples-1']
    trainer.train(dataclasses.replace(made, steps=2))


def test_batches_read_ahead_are_those_of_the_stream(flags):
    made = flags(batch_size=3, noise=0.3)
    enc = checkpoint.load_sizes_and_vocabulary('toy', made.models_dir)[2]
    data = trainer.Data(made, enc, toy.hparams(), trainer.Worker())
    data.start(seed=1, position=6)
    sampler = Sampler(data.training, seed=1)
    sampler.position = 6
    for i in range(4):
        assert data.position == 6 + 3 * i
        inputs, tokens = data.next_batch()
        assert tokens.tolist() == [sampler.sample(toy.hparams().n_ctx).tolist() for _ in range(3)]
        assert 0 < (inputs != np.maximum(tokens, 0)).mean() < 0.5


def test_text_that_was_trained_on_before_it_is_held_out_is_told(flags, capsys):
    told = []
    for steps, val_every in ((1, 0), (2, 1), (3, 1), (4, 0), (5, 0), (6, 1)):
        trainer.train(flags(steps=steps, val_every=val_every, val_batch_count=1))
        out = capsys.readouterr().out
        told.append(('--val_every now holds out was' in out, 'order of the data starts anew' in out))
    assert told == [(False, False), (True, True), (False, False), (False, True), (False, False), (True, True)]
    trainer.train(flags(steps=7, seed=4))
    assert '--val_every' not in capsys.readouterr().out


def test_held_out_tokens_are_not_trained_on(flags, world):
    made = flags(val_every=1)
    data = trainer.Data(
        made, checkpoint.load_sizes_and_vocabulary('toy', made.models_dir)[2], toy.hparams(), trainer.Worker()
    )
    whole = trainer.Data(
        flags(),
        checkpoint.load_sizes_and_vocabulary('toy', made.models_dir)[2],
        toy.hparams(),
        trainer.Worker(),
    )
    join = [np.concatenate(each).tolist() for each in (data.training, data.validation, whole.training)]
    assert join[0] + join[1] == join[2] and len(join[1]) == round(0.05 * len(join[2]))


def test_another_vocabularys_tokens_are_refused_before_anything_is_written(flags, tmp_path):
    np.savez(tmp_path / 'other.npz', np.array([5, 50256] * 100, np.uint16))
    with pytest.raises(InputError, match='the dataset holds token 50256, but n_vocab is 557'):
        trainer.train(flags(dataset=str(tmp_path / 'other.npz')))
    assert not os.path.exists(flags().checkpoint_dir)


def test_a_npz_encoded_with_another_vocabulary_is_refused_before_anything_is_written(flags, tmp_path):
    for name in ('dataset', 'val_dataset'):
        path = str(tmp_path / f'{name}.npz')
        npz.write_npz(path, [np.arange(200)], 557, vocabulary='0123456789abcdef')
        with pytest.raises(InputError, match=rf'{name}\.npz is of the vocabulary 0123456789'):
            trainer.train(flags(**{name: path}, val_every=1))
    assert not os.path.exists(flags().checkpoint_dir)


def test_special_tokens_in_texts_are_a_flag_for_training_and_validation_alike(flags, world, tmp_path, capsys):
    (tmp_path / 'a.txt').write_text(f'{ENGLISH}<|endoftext|>' * 2)
    enc = get_encoder('toy', str(world / 'models'))
    hp = checkpoint.load_sizes_and_vocabulary('toy', str(world / 'models'))[1]
    for special, expected in ((True, [*enc.encode(ENGLISH), enc.eot] * 2),
                              (False, [*enc.encode(f'{ENGLISH}<|endoftext|>' * 2), enc.eot])):
        path = str(tmp_path / 'a.txt')
        made = flags(dataset=path, val_dataset=path, val_every=1, special_tokens=special)
        data = trainer.Data(made, enc, hp, trainer.Worker())
        assert [each.tolist() for each in (*data.training, *data.validation)] == [expected, expected]
        said = capsys.readouterr()
        assert said.err.count('the text has 2 special tokens;') == 2 * special
        assert said.out == ''
        trainer.Data(flags(dataset=path, special_tokens=special), enc, hp, runs.OneRank(rank=1))
        assert capsys.readouterr().err == ''  # rank 0 tells


def test_two_workers_share_the_windows_of_an_epoch(flags, tmp_path):
    np.savez(tmp_path / 'data.npz', np.arange(500, dtype=np.uint16))  # 469 windows, no two alike
    made = flags(batch_size=2, dataset=str(tmp_path / 'data.npz'))
    enc = checkpoint.load_sizes_and_vocabulary('toy', made.models_dir)[2]
    seen = []
    for rank in range(2):
        data = trainer.Data(made, enc, toy.hparams(), runs.OneRank(rank, 2))
        data.start(seed=1, position=0)
        seen += [window[0] for _ in range(117) for window in data.next_batch()[1]]
    assert len(set(seen)) == len(seen) == 468
