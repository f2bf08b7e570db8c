"""benchmarks/check_released.py on random weights, beside torch, transformers and NumPy."""
import hashlib
import json
import os
import re
import shutil

from command_line import cli

import numpy as np
import numpy_gpt2
import pytest
import tensorflow.compat.v1 as tf
import toy
from test_model import transformers_model
from test_test_sets import OF_WIKIHOW
from tiny_vocab import real_merges, shared, tiktoken_encoding

import download_model
import encoder
import evaluate
import model
import sample
from create_model import create_model
from storage import paths

BENCHMARKS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'benchmarks')
THE_DOG = [464, 3290, 373, 1043, 287, 257, 2214, 1474, 262, 16246, 286, 2688, 290, 2688, 27262, 13, 198, 198,
           464, 3290]


@pytest.fixture
def check(monkeypatch):
    """The module."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import check_released
    return check_released


@pytest.fixture
def table(check, capsys):
    """A function that runs the script and returns its status and {check: the other cells of its row}."""
    def run(*argv):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.run(check.check_released, list(map(str, argv)))
        cells = re.findall(r'^\| (.*?) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$', capsys.readouterr().out,
                           re.MULTILINE)
        return stopped.value.code, {name: row for name, *row in cells}
    return run


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """A folder with a toy model under the names 124M and toy; its sizes and weights."""
    folder = tmp_path_factory.mktemp('models')
    hp = toy.hparams(n_ctx=96)
    values = toy.weights(hp, scale=0.4)
    for name in ('124M', 'toy'):
        toy.write_model(folder / name, hp, values)
    return folder, hp, values


@pytest.fixture
def train(check, models):
    """A function that gives the losses of the model 124M, and how they are judged."""
    def run(batch):
        with toy.session() as s:
            model.weights(models[1])
            toy.assign(s, models[2])
            rows = list(check.losses(s, models[1], batch))
        return [float(row[2]) for row in rows], [row[3] for row in rows]
    return run


@pytest.fixture
def batch(check, models):
    return check.batch(encoder.get_encoder('124M', str(models[0])))


def torch_losses(peer, batch, rate, decay, n):
    """Of AdamW with decay of all parameters, before each update; the tied one is there once."""
    torch = pytest.importorskip('torch', reason='make test-all compares with torch')
    tokens, losses = torch.tensor(batch), []
    adamw = torch.optim.AdamW(peer.parameters(), lr=rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=decay)
    for _ in range(n):
        logits = peer(tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        adamw.zero_grad()
        loss.backward()
        adamw.step()
        losses.append(loss.item())
    return losses


# What is published

def test_the_tokens_are_the_published_ones(check):
    enc = encoder.get_encoder(os.path.dirname(shared('vocab', 'encoder.json')))
    assert enc.encode(check.PROMPT) + enc.encode(check.TEXT) == THE_DOG and check.GREEDY['length'] == 18
    peer = tiktoken_encoding(shared('vocab', 'encoder.json'), real_merges())
    parts = check.CORIOLANUS.split('\n\n')
    ids = [id for part in parts for id in [50256, *peer.encode(f'{part}\n\n')]][:257]
    rows = np.array(check.batch(enc))
    assert rows[:, :-1].ravel().tolist() == ids[:-1] and rows[:, 1:].ravel().tolist() == ids[1:]
    assert rows.shape == (4, 65) and len(check.LOSSES) == 10


# What is computed of it

def test_the_first_loss_is_that_of_numpy_and_a_token_more_or_less_is_seen(check, models, batch, train,
                                                                          monkeypatch):
    loss = numpy_gpt2.mean_loss(models[2], batch, models[1].n_head)
    monkeypatch.setattr(check, 'LOSSES', [loss])
    (value,), right = train(batch)
    assert value == pytest.approx(loss, abs=1e-5) and right == [True]
    ids = [*np.array(batch)[:, :-1].ravel(), batch[-1][-1]]
    for wrong in (ids[1:] + ids[:1], [ids[-1], *ids[:-1]]):
        assert train([wrong[first:first + 65] for first in range(0, 256, 64)])[1] == [False]


def test_the_losses_are_those_of_torch_with_decay_of_all_weights(check, models, batch, train, monkeypatch):
    """A decay that vectors show, too."""
    for name, value in {'RATE': 1e-3, 'DECAY': 100.0}.items():
        monkeypatch.setattr(check, name, value)
    losses = torch_losses(transformers_model(models[1], models[2]), batch, 1e-3, 100.0, 10)
    np.testing.assert_allclose(train(batch)[0], losses, atol=1e-4)


@pytest.mark.slow
def test_a_random_model_of_124m_has_the_losses_and_tokens_of_torch_and_transformers(check, table, tmp_path):
    torch = pytest.importorskip('torch', reason='make test-all compares with torch')
    create_model('124M', models_dir=str(tmp_path), seed=1,
                 vocab_from=os.path.dirname(shared('vocab', 'encoder.json')))
    reader = tf.train.load_checkpoint(str(tmp_path / '124M' / 'model.ckpt'))
    values = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    peer = transformers_model(model.default_hparams(), values)
    enc = encoder.get_encoder('124M', str(tmp_path))
    drawn = peer.generate(torch.tensor([THE_DOG[:2]]), do_sample=False, max_length=20, pad_token_id=50256)
    status, rows = table('--models_dir', tmp_path)
    assert status == 1 and len(set(drawn[0].tolist())) > 4
    for driver in ('Generator', 'sample_sequence'):
        assert rows[f'"The dog", {driver}'][1] == json.dumps(enc.decode(drawn[0, 2:].tolist()))
    losses = torch_losses(peer, check.batch(enc), 1e-4, 0.01, 10)
    ours = [float(rows[f'loss after {i} updates'][1]) for i in range(10)]
    np.testing.assert_allclose(ours, losses, atol=1e-4)


# How it is judged

@pytest.fixture
def known(monkeypatch, models):
    """Sums and lengths of the model's files are known."""
    facts = {}
    for file in paths.MODEL_FILES:
        data = (models[0] / '124M' / file).read_bytes()
        facts[f'124M/{file}'] = len(data), hashlib.sha256(data).hexdigest()
    monkeypatch.setattr(download_model, 'KNOWN', facts)
    return facts


def test_a_model_is_right_if_all_of_it_is(check, table, models, known, batch, train, monkeypatch):
    losses, _ = train(batch)
    status, rows = table('--models_dir', models[0])
    assert status == 1 and [row[-1] for row in rows.values()] == ['ok'] * 7 + ['WRONG'] * 12 + ['-']
    (text,) = {json.loads(rows[f'"The dog", {driver}'][1]) for driver in ('Generator', 'sample_sequence')}
    monkeypatch.setattr(check, 'TEXT', text)
    monkeypatch.setattr(check, 'LOSSES', [*losses[:3], losses[3] + 0.011, losses[4] - 0.009, *losses[5:]])
    status, rows = table('--models_dir', models[0])
    assert (status, wrong(rows)) == (1, ['loss after 3 updates'])
    differences = [float(rows[f'loss after {i} updates'][2]) for i in (3, 4)]
    assert differences == pytest.approx([-0.011, 0.009], abs=1e-5)
    monkeypatch.setattr(check, 'LOSSES', losses)
    assert table('--models_dir', models[0])[0] == 0


def wrong(rows):
    return [name for name, row in rows.items() if row[-1] == 'WRONG']


def test_a_wrong_sum_or_length_and_a_missing_file_are_told(check, models, known, tmp_path, capsys):
    folder = tmp_path / '124M'
    shutil.copytree(models[0] / '124M', folder)
    (folder / 'model.ckpt.meta').unlink()
    data = (folder / 'vocab.bpe').read_bytes()
    (folder / 'vocab.bpe').write_bytes(data[::-1])
    known['124M/model.ckpt.index'] = 3, ''
    known['124M/encoder.json'] = known['124M/encoder.json'][0], ''
    del known['124M/hparams.json']
    rows = {row[0]: row[1:] for row in check.sums(str(folder), '124M')}
    assert {file: right for file, (_, _, right) in rows.items()} == {
        'checkpoint': True, 'hparams.json': None, 'encoder.json': True, 'vocab.bpe': False,
        'model.ckpt.data-00000-of-00001': True, 'model.ckpt.index': False, 'model.ckpt.meta': False}
    assert rows['model.ckpt.meta'][1] == 'missing' and rows['hparams.json'][0] == 'unknown'
    assert rows['vocab.bpe'][:2] == tuple(
        f'{len(data):,} bytes, SHA-256 {hashlib.sha256(x).hexdigest()[:16]}' for x in (data, data[::-1]))
    whole = hashlib.sha256((folder / 'hparams.json').read_bytes()).hexdigest()  # to be reported
    assert rows['hparams.json'][1].endswith(whole)
    assert [check.show(file, *rows[file]) for file in ('vocab.bpe', 'hparams.json')] == [False, True]
    assert re.findall(r'\| (\S+) \|$', capsys.readouterr().out, re.MULTILINE) == ['WRONG', '-']


def test_of_other_models_what_is_unknown_is_skipped(table, models):
    status, rows = table('--model_name', models[0] / 'toy')
    assert status == 0 and [row[-1] for row in rows.values()] == ['-', 'ok', 'ok', '-', '-']
    assert rows['files'][1] == 'skipped: toy is no released model' and rows['ten losses'][1] == 'skipped'


def test_two_drivers_that_differ_are_told(table, models, monkeypatch):
    draw = sample.sample_sequence
    monkeypatch.setattr(sample, 'sample_sequence', lambda **options: draw(**options)[:, ::-1])
    status, rows = table('--model_name', models[0] / 'toy')
    assert (status, wrong(rows)) == (1, ['"The dog", sample_sequence'])


def test_a_model_or_folder_that_is_not_there_is_told(check, tmp_path, models, capsys):
    for argv, said in ((['--models_dir', tmp_path], 'download_model.py'),
                       (['--models_dir', models[0], '--data', tmp_path / 'none'], 'no folder')):
        with pytest.raises(SystemExit) as stopped:
            cli.run(check.check_released, list(map(str, argv)))
        out, err = capsys.readouterr()
        assert (stopped.value.code, out, err.count('\n')) == (2, '', 1) and said in err


# The paper's table

@pytest.mark.processes
def test_test_sets_are_found_and_stand_beside_the_paper(check, models, tmp_path, monkeypatch, capsys):
    texts = {'a/wiki.test.tokens': ' = The lighthouse = \n The keeper , he said , was right . \n',
             'lambada_test.jsonl': json.dumps({'text': 'The keeper of the lamp was right'}) + '\n',
             'b/c/hellaswag_val.jsonl': json.dumps(OF_WIKIHOW) + '\n', 'enwik8': ''}
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    folder, commands, run = str(models[0] / '124M'), [], check.evaluated
    monkeypatch.setattr(check, 'evaluated', lambda *args: commands.append(args[1]) or run(*args))
    rows = {row[0]: row[1:] for row in check.metrics(folder, '124M', str(tmp_path))}
    assert commands == ['lambada', 'wikitext2', 'enwik8', 'hellaswag'] and len(rows) == 12

    def value(metric, command, *argv):
        capsys.readouterr()
        cli.run(evaluate.COMMANDS, [command, '--model_name', folder, '--json', *argv])
        return {row['name']: row['value'] for row in json.loads(capsys.readouterr().out)['figures']}[metric]
    perplexity = value('perplexity per word and line end', 'wikitext2', '--data', str(tmp_path / 'a'),
                       '--stride', '32')
    for name, paper in (('WikiText2 (PPL)', 29.41), ('WikiText103 (PPL)', 37.5)):
        assert rows[f'{name}: perplexity per word and line end'] == (
            paper, f'{perplexity:.4f}', None, f'{perplexity - paper:+.4f}')
    accuracy = value('accuracy by length, %', 'hellaswag', '--data', f'{tmp_path}/b/c')
    assert rows['HellaSwag: accuracy by length, %'] == ('', f'{accuracy:.4f}', None, '')
    assert rows['enwik8 (BPB): bits per byte'][1:3] == ('evaluate.py failed: see above', False)
    assert rows['PTB (PPL): perplexity per word and line end'][:3] == (
        65.85, f'skipped: no ptb.test.txt in {tmp_path}', None)
    assert rows['LAMBADA (PPL): last token: perplexity'][0] == 35.13
