"""The script: what it writes, prints and refuses."""
import json

from command_line import cli

import pytest
import toy
from tiny_vocab import ENGLISH

import inspect_model


@pytest.fixture
def run(models, tmp_path, capsys):
    """A function that runs the script on the toy; returns status, stdout, stderr."""
    def run(*words):
        status = 0
        folders = '--models_dir', str(models[0]), '--checkpoint_dir', str(tmp_path)
        try:
            cli.run(inspect_model.inspect_model, ['--model_name', 'toy', *folders, *map(str, words)])
        except SystemExit as error:
            status = error.code
        return status, *capsys.readouterr()
    return run


def data_of(path):
    text = path.read_text()
    return json.loads(text[text.index('id="data">') + 10:].partition('</script>')[0])


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_a_page_of_a_prompt(run, tmp_path, precision):
    path = tmp_path / 'page.html'
    status, out, _ = run('--prompt', 'the keeper </script>', '--output', path, '--precision', precision)
    assert (status, out) == (0, f'Made {path}\n')
    data = data_of(path)
    assert data['title'] == 'toy, model.ckpt' and data['notes'] == []
    assert ''.join(data['vocabulary'][str(id)] for id in data['texts'][0]['tokens']) == 'the keeper </script>'


def test_a_page_of_a_file_of_prompts_beside_another_model(run, tmp_path):
    (tmp_path / 'prompts.jsonl').write_text('{"prompt": "the keeper"}\n{"prompt": "a\\nb"}\n')
    path = tmp_path / 'page.html'
    status, _, _ = run('--prompts_file', tmp_path / 'prompts.jsonl', '--output', path, '--compare', 'toy')
    data = data_of(path)
    assert (status, len(data['texts']), data['compared']) == (0, 2, 'toy, model.ckpt')
    assert data['texts'][0]['compared']['logprobs'] == data['texts'][0]['logprobs']


def test_a_long_prompt_is_shown_to_n_ctx_and_this_is_told(run, tmp_path, models):
    path = tmp_path / 'page.html'
    status, _, err = run('--prompt', ENGLISH, '--output', path)
    told = data_of(path)['notes'][0]
    assert status == 0 and told in err
    assert told.startswith(f'Text 1: the first {models[1].n_ctx} of its ')


def test_text_prints_and_writes_nothing(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = run('--prompt', 'the keeper', '--text')
    assert status == 0 and 'toy, model.ckpt: ' in out and '\x1b[30;48;5;' in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(('words', 'line'), [
    (['--prompt', ''], '--prompt is empty; give a text'),
    ([], 'give --prompt or --prompts_file'),
    (['--prompt', 'a', '--prompts_file', 'b'], 'give --prompt or --prompts_file'),
    (['--prompt', 'a', '--compare', 'nothing'], 'nothing'),
    (['--prompt', 'a', '--output', 'missing/page.html'], 'must name a file in a folder that exists'),
    (['--prompt', 'a', '--output', ''], 'must name a file in a folder that exists'),
    (['--prompt', 'a', '--checkpoint', 'model-7'], 'model-7'),
    (['--prompt', 'a', '--precision', 'int8'], '--precision must be one of float32, tf32, bfloat16')])
def test_bad_input_is_told_in_one_line(run, tmp_path, monkeypatch, words, line):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*words)
    assert (status, out) == (2, '') and line in err and err.count('\n') == 1
    assert list(tmp_path.iterdir()) == []


def test_another_vocabulary_cannot_be_compared(run, tmp_path):
    toy.write_padded_model(tmp_path / 'padded')
    path = tmp_path / 'page.html'
    status, _, err = run('--prompt', 'a', '--compare', tmp_path / 'padded', '--output', path)
    assert status == 2 and 'has another vocabulary than toy' in err and not path.exists()


def test_a_file_that_exists_is_kept(run, tmp_path):
    path = tmp_path / 'page.html'
    path.write_text('mine')
    status, _, err = run('--prompt', 'a', '--output', path)
    assert (status, path.read_text()) == (2, 'mine') and 'exists; name another, or remove it' in err
