import json

import pytest
from tiny_vocab import (
    BYTES,
    EOT,
    tiny_bpe,
    write_vocab,
)

from encoder import get_encoder
from errors import InputError
from storage.vocabulary_files import SpecialTokens, load_vocabulary, write_vocabulary


@pytest.mark.parametrize(
    'change',
    [
        lambda text: text.rstrip('\n'),
        lambda text: text.replace('\n', '\r\n'),
        lambda text: text.split('\n', 1)[1],
    ],
    ids=['no newline at the end', 'crlf', 'no version line'],
)
def test_harmless_differences_of_vocab_bpe(tmp_path, change):
    write_vocab(tmp_path / 'tiny')
    path = tmp_path / 'tiny' / 'vocab.bpe'
    expected = get_encoder('tiny', str(tmp_path)).bpe_ranks
    path.write_bytes(change(path.read_bytes().decode()).encode())
    assert get_encoder('tiny', str(tmp_path)).bpe_ranks == expected


def test_a_byte_order_mark_is_no_part_of_a_vocabulary(tmp_path):
    vocabulary, _ = write_vocab(tmp_path / 'tiny')
    expected = get_encoder('tiny', str(tmp_path)).bpe_ranks
    for name in ('encoder.json', 'vocab.bpe'):
        path = tmp_path / 'tiny' / name
        path.write_bytes('\ufeff'.encode() + path.read_bytes())
    enc = get_encoder('tiny', str(tmp_path))
    assert (enc.encoder, enc.bpe_ranks) == (vocabulary, expected)


def test_special_tokens_come_from_their_file(tmp_path):
    vocabulary, merges = tiny_bpe()
    vocabulary = {**vocabulary, '<a b>': 557, '</s>': 558}
    (tmp_path / 'tiny').mkdir()
    write_vocabulary(str(tmp_path / 'tiny'), vocabulary, merges)
    assert get_encoder('tiny', str(tmp_path)).special == {EOT: 556}  # an id of this kind is as it always was
    listed = SpecialTokens(['<a b>', '</s>'], '</s>')
    write_vocabulary(str(tmp_path / 'tiny'), vocabulary, merges, listed)
    content = json.loads((tmp_path / 'tiny' / 'special_tokens.json').read_text())
    assert content == {'tokens': ['<a b>', '</s>'], 'end': '</s>'}
    enc = get_encoder('tiny', str(tmp_path))
    assert (enc.special, enc.eot) == ({'<a b>': 557, '</s>': 558}, 558)
    assert load_vocabulary(str(tmp_path / 'tiny')) == (vocabulary, merges, listed)




@pytest.mark.parametrize('name, content, expected', [
    ('encoder.json', None, 'no '),
    ('encoder.json', b'{"a\xff": 1}', 'in position 3'),
    ('encoder.json', b'', 'not JSON'),
    ('encoder.json', b'<html>Not found</html>', 'not JSON'),
    ('encoder.json', b'[' * 100000, 'not JSON'),
    ('encoder.json', b'["a"]', 'must hold an object'),
    ('encoder.json', json.dumps({**BYTES, 'x y': '7'}).encode(), "gives 'x y' the id '7'"),
    ('encoder.json', json.dumps({**BYTES, 'x y': 1.5}).encode(), "the id '1.5'"),
    ('encoder.json', json.dumps({**BYTES, 'x y': True}).encode(), "the id 'True'"),
    ('encoder.json', json.dumps({**BYTES, 'x y': -1}).encode(), "the id '-1'"),
    ('encoder.json', json.dumps({**BYTES, 'x y': 2**31}).encode(), "the id '2147483648'"),
    ('encoder.json', json.dumps({**BYTES, 'x y': 33}).encode(), "gives 'x y' the id '33'"),
    ('encoder.json', json.dumps(dict(list(BYTES.items())[:250])).encode(), "lacks 'ľ'"),
    ('encoder.json', b'{}', "lacks '!'"),
    ('vocab.bpe', None, 'no '),
    ('vocab.bpe', b'#version: 0.2\n\xc3\x28 a\n', 'not UTF-8 at byte 14'),
    ('vocab.bpe', b'#version: 0.2\ne r\nabc\n', "line 3 is not two symbols with a space between"),
    ('vocab.bpe', b'#version: 0.2\na b c\n', 'line 2 is not two symbols'),
    ('vocab.bpe', b'#version: 0.2\n\na b\n', 'line 2 is not two symbols'),
    ('vocab.bpe', b'#version: 0.2\na \n', 'line 2 is not two symbols'),
    ('vocab.bpe', b'#version: 0.2\nqqq z\n', "lacks 'qqq'"),
    ('vocab.bpe', b'#version: 0.2\nQ Z\n', "lacks 'QZ'"),
    ('special_tokens.json', b'{', 'not JSON'),
    ('special_tokens.json', b'[' * 100000, 'not JSON'),
    *(('special_tokens.json', content, 'must hold ')
      for content in (b'[]', b'{}', b'{"tokens": {}, "end": null}', b'{"tokens": [""], "end": null}',
                      b'{"tokens": [1], "end": 1}', b'{"tokens": ["a"], "end": "b"}',
                      b'{"tokens": ["a"], "end": ["a"]}', b'{"tokens": [], "end": null, "x": 1}')),
])
def test_damaged_files_are_told_in_one_line(tmp_path, name, content, expected):
    write_vocab(tmp_path / 'tiny')
    path = tmp_path / 'tiny' / name
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        get_encoder('tiny', str(tmp_path))
    message = str(caught.value)
    assert expected in message and str(path) in message and '\n' not in message and len(message) < 400
    assert ';' in message  # what to do about it
