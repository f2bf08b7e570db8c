import dataclasses
import json
import os

import numpy as np
import pytest
import runs
import toy
from tiny_vocab import ENGLISH

from encoder import get_encoder
from errors import InputError
from storage import checkpoint, npz, template
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
    ((_, chunks),) = data.training
    sampler = Sampler(chunks, seed=1)
    sampler.position = 6
    for i in range(4):
        assert data.position == 6 + 3 * i
        inputs, tokens = data.next_batch()
        assert tokens.tolist() == [sampler.sample(toy.hparams().n_ctx).tolist() for _ in range(3)]
        assert 0 < (inputs != np.maximum(tokens, 0)).mean() < 0.5


@pytest.mark.parametrize('empty', [{'dataset': ''}, {'val_dataset': '', 'val_every': 1}])
def test_an_empty_name_is_refused(flags, empty):  # of a shell's variable that is not set
    with pytest.raises(InputError, match='nothing matches the path ;'):
        trainer.train(flags(**empty))


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
    join = [np.concatenate(chunks).tolist()
            for ((_, chunks),) in (data.training, data.validation, whole.training)]
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
        assert [chunk.tolist() for _, chunks in (*data.training, *data.validation) for chunk in chunks] == [
            expected, expected]
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


# Prompts and answers, mixtures

def write_rows(path, rows):
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return str(path)


def test_prompts_are_seen_and_not_learned_and_no_example_is_cut(flags, tmp_path):
    rows = [{'prompt': f'{i} ' * (i % 5 + 1), 'completion': f'is {i}.'} for i in range(40)]
    made = flags(dataset=write_rows(tmp_path / 'a.jsonl', rows), template='Q{prompt}A{completion}',
                 val_every=1, val_batch_count=9)
    enc = checkpoint.load_sizes_and_vocabulary('toy', made.models_dir)[2]
    data, seen = trainer.Data(made, enc, toy.hparams(), trainer.Worker()), set()
    data.start(seed=1, position=0)
    for batch in [*(data.next_batch() for _ in range(30)), *data.val_batches()]:
        for inputs, labels in zip(*batch, strict=True):
            n = np.flatnonzero(labels >= 0)[-1] + 1
            texts = enc.decode(inputs[:n]).split('<|endoftext|>')
            assert texts.pop() == ''
            expected = []
            for text in texts:
                prompt, mark, answer = text.partition('A')
                ids = enc.encode(prompt + mark)
                assert inputs[len(expected):len(expected) + len(ids)].tolist() == ids
                expected += [-1] * len(ids) + enc.encode(answer) + [enc.eot]
            assert labels.tolist() == expected + [-1] * (len(labels) - n)
            seen |= {*texts}
    assert seen == {f'Q{row["prompt"]}A{row["completion"]}' for row in rows}


def test_a_template_goes_into_the_run_and_is_kept(flags, tmp_path):
    rows = [{'prompt': f'{i}', 'completion': f'{i + 1}'} for i in range(20)]
    dataset = write_rows(tmp_path / 'a.jsonl', rows)
    made = flags(dataset=dataset, template='{prompt}={completion}', steps=1, val_every=1)
    folder = os.path.join(made.checkpoint_dir, made.run_name)
    trainer.train(made)
    assert template.find(folder) == '{prompt}={completion}'
    trainer.train(dataclasses.replace(made, steps=2, template=None))  # the run's
    assert template.find(folder) == '{prompt}={completion}'
    trainer.train(dataclasses.replace(made, steps=3, restore_from=f'{folder}/model-1'))
    assert template.find(f'{folder}/left-2') == '{prompt}={completion}'
    trainer.train(dataclasses.replace(made, steps=4, template='{prompt}>{completion}'))
    for options, expected in [
            ({'model_name': folder, 'isolate_documents': True}, '{prompt}>{completion}'),  # the model's
            ({'restore_from': f'{folder}/left-2/model-2'}, '{prompt}={completion}'),  # that of the checkpoint
            ({'dataset': flags().dataset, 'restore_from': f'{folder}/model-best'}, '{prompt}>{completion}'),
            ({'restore_from': 'fresh'}, '{prompt}{completion}'),
            ({'dataset': flags().dataset, 'restore_from': 'fresh'}, None)]:
        trainer.train(flags(**{'dataset': dataset, 'run_name': 'other', 'steps': 5, **options}))
        assert template.find(os.path.join(made.checkpoint_dir, 'other')) == expected, options


def test_a_damaged_template_ends_a_run_at_its_start_or_is_replaced(flags, tmp_path):
    dataset = write_rows(tmp_path / 'a.jsonl', [{'prompt': f'{i}', 'completion': f'{i}'} for i in range(20)])
    made = flags(dataset=dataset, steps=1)
    trainer.train(made)
    path = os.path.join(made.checkpoint_dir, made.run_name, 'template.json')
    with open(path, 'w') as file:
        file.write('{')
    with pytest.raises(InputError, match=r'template\.json is not JSON'):
        trainer.train(dataclasses.replace(made, steps=2))
    trainer.train(dataclasses.replace(made, steps=2, template='{prompt}:{completion}'))
    assert template.find(os.path.dirname(path)) == '{prompt}:{completion}'


def test_a_mixture_resumes_exactly_and_keeps_its_weights(flags, tmp_path):
    np.savez(tmp_path / 'a.npz', np.arange(200, dtype=np.uint16))
    rows = [{'text': ENGLISH[i:i + 90]} for i in range(0, len(ENGLISH) - 90, 90)]
    write_rows(tmp_path / 'b.jsonl', rows)
    options = {'dataset': f'{tmp_path}/a.npz:0.75,{tmp_path}/b.jsonl:0.25', 'val_every': 2, 'save_every': 1}
    trainer.train(flags(run_name='whole', steps=6, **options))
    for steps in (1, 3, 6):
        trainer.train(flags(run_name='parts', steps=steps, **options))
    assert runs.final(flags(run_name='parts')) == runs.final(flags(run_name='whole'))
    made = flags(**{**options, 'val_every': 0})
    enc = checkpoint.load_sizes_and_vocabulary('toy', made.models_dir)[2]
    data = trainer.Data(made, enc, toy.hparams(), trainer.Worker())
    data.start(seed=1, position=0)
    counting = [(np.diff(window) == 1).all() for _ in range(40) for window in data.next_batch()[1]]
    assert sum(counting) == 0.75 * len(counting)
    with pytest.raises(InputError, match=r'each part of a mixture needs a decimal'):
        trainer.train(flags(dataset=f'{tmp_path}/a.npz:0.75,{tmp_path}/b.jsonl'))


def test_ranks_read_a_mixture_that_was_encoded_once(flags, tmp_path):
    dataset = write_rows(tmp_path / 'a.jsonl', [{'prompt': f'{i}', 'completion': ENGLISH} for i in range(9)])
    made = flags(dataset=f'{dataset}:2,{tmp_path}/b.txt:1', checkpoint_dir=str(tmp_path))
    (tmp_path / 'b.txt').write_text(ENGLISH)
    os.mkdir(tmp_path / 'run1')
    enc = checkpoint.load_sizes_and_vocabulary('toy', made.models_dir)[2]
    one, two = (trainer.Data(made, enc, toy.hparams(), worker)
                for worker in (trainer.Worker(), runs.OneRank(1, 2)))
    assert len(list((tmp_path / 'run1').glob('dataset-*.npz'))) == 2
    for (weight, chunks), (other_weight, others) in zip(one.training, two.training, strict=True):
        assert weight == other_weight and list(map(list, chunks)) == list(map(list, others))
    assert two.template == one.template == '{prompt}{completion}'
