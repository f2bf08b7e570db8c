import json

import pytest
from test_load_dataset import enc  # noqa: F401

from errors import InputError
from storage import template
from storage.template import Prompt, Template


def test_a_rows_texts():
    plain, framed = Template(), Template('Q: {prompt}\nA: {completion}\n')
    row = {'prompt': 'one', 'completion': 'two', 'n': 3}
    assert plain.texts(row, 'a', 'text') == ['one', 'two']
    assert framed.texts(row, 'a', 'text') == ['Q: one\nA: ', 'two\n']
    assert framed.texts({**row, 'text': 'it'}, 'a', 'text') == ['it']
    for empty in ('', None):  # as in tables with a column for each kind
        assert plain.texts({**row, 'text': empty}, 'a', 'text') == ['one', 'two']
    assert plain.texts({'text': ''}, 'a', 'text') == ['']
    assert framed.texts(row, 'a', 'prompt') == ['one']
    messages = [{'role': 'user', 'content': 'u'}, {'role': 'assistant', 'content': 'a'}]
    for empty in ('', None):
        other = {'text': '', 'prompt': empty, 'completion': empty}
        assert plain.texts({**other, 'messages': messages}, 'a', 'text') == ['u', 'a']
        assert plain.texts({**other, 'messages': None}, 'a', 'text') == ['']
    several = [('system', 's'), ('user', 'u'), ('assistant', 'a'), ('user', 'v'), ('assistant', 'b')]
    messages = [{'role': role, 'content': content} for role, content in several]
    texts = framed.texts({'messages': messages}, 'a', 'text')
    assert texts == ['Q: s\n\nu\nA: ', 'a\n', 'Q: v\nA: ', 'b\n']
    assert [isinstance(text, Prompt) for text in texts] == [True, False] * 2
    assert plain.texts({'messages': messages[:3]}, 'a', 'text') == ['s\n\nu', 'a']
    with pytest.raises(InputError, match=r'b line 7 has several answers, and --template no text after'):
        plain.texts({'messages': messages}, 'b line 7', 'text')


@pytest.mark.parametrize('row, expected', [
    ({'body': 'x', 'n': 1}, r'c line 2 has no "text", no "prompt" .* but \'body\', \'n\'; give --text_field'),
    ({'prompt': 'x'}, r'c line 2 has no "text", no "prompt" and "completion"'),
    ({'text': None}, r'c line 2: "text" is None, not a text'),
    ({'text': ['x' * 99]}, r'c line 2: "text" is \[.{39}, not a text'),
    ({'text': 'a\ud800'}, r'c line 2: "text": .* at offset 1 is half a UTF-16 pair, or a byte'),
    ({'prompt': 'a', 'completion': 1}, r'c line 2: "completion" is 1, not a text'),
    ({'messages': 'a'}, r'c line 2: "messages" must be a list'),
    ({'messages': None}, r'c line 2: "messages" must be a list'),
    ({'messages': [{'role': 'user'}]}, r'c line 2: "messages" must be a list'),
    ({'messages': []}, r'c line 2: the roles in "messages" are \[\]'),
    ({'messages': [{'role': 'user', 'content': 'a'}]}, r"the roles .* are \['user'\], not those"),
    ({'messages': [{'role': 'tool', 'content': 'a'}] * 2}, r"the roles .* are \['tool', 'tool'\]")])
def test_rows_without_texts(row, expected):
    with pytest.raises(InputError, match=expected) as caught:
        Template().texts(row, 'c line 2', 'text')
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('text', ['', 'Q', '{prompt}', '{completion}{prompt}', '{prompt}{prompt}{completion}',
                                  '{prompt}{completion}{completion}', '{completion}' * 10**5])
def test_a_template_without_its_places(text, tmp_path):
    with pytest.raises(InputError, match=r'a template must have \{prompt\} and, after it, \{completion\}'):
        Template(text)


def test_texts_that_follow_an_answer(enc):  # noqa: F811
    assert Template().ends(enc) == ['<|endoftext|>']
    framed = Template('Q: {prompt}\nA: {completion}\n')
    assert framed.ends(enc) == ['\nQ: ', '\n<|endoftext|>', '<|endoftext|>']
    assert Template('"{prompt}" = {completion}').ends(enc) == ['<|endoftext|>']  # no question follows


def test_the_template_of_a_run(tmp_path):
    for name in ('run', 'model', 'plain'):
        (tmp_path / name).mkdir()
    run, model, plain = (str(tmp_path / name) for name in ('run', 'model', 'plain'))
    assert template.find(run, model) is None
    (tmp_path / 'model' / 'template.json').write_text(json.dumps({'template': '{prompt}={completion}'}))
    assert template.find(run, model) == '{prompt}={completion}' and template.find(run, plain) is None
    for damage in ('', '[]', '{}', '{"template": 3}', '{"template": "x"}', '[' * 10000):
        (tmp_path / 'run' / 'template.json').write_text(damage)
        with pytest.raises(InputError, match=f'{run}/template.json'):
            template.find(run, model)
