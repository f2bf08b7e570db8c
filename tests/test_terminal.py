"""Texts with colours in a terminal."""
import numpy as np
import numpy_gpt2

from inspection import terminal
from inspection.inspector import Inspector


def test_a_token_has_the_colour_of_its_rank(toy_model, capsys):
    inspected = Inspector(toy_model[0])
    text = 'the keeper\nof the light'
    tokens = inspected.enc.encode(text)
    terminal.print_text([('toy', inspected)], tokens)
    coloured, figures = capsys.readouterr().out.rsplit('\ntoy: ', 1)
    logits = numpy_gpt2.logits(toy_model[2], tokens, toy_model[1].n_head)
    ranks = [1 + (row > row[token]).sum() for row, token in zip(logits, tokens[1:], strict=False)]
    classes = [0 if rank <= 10 else 1 if rank <= 100 else 2 if rank <= 1000 else 3 for rank in ranks]
    colours = [f'\x1b[30;48;5;{terminal.COLOURS[n]}m' for n in classes]
    plain = coloured
    for colour in colours:
        assert colour in plain
        plain = plain.replace(colour, '', 1)
    for colour in {*colours}:
        plain = plain.replace(colour, '')
    assert plain.replace('\x1b[0m', '').replace('⏎', '') == text
    logprobs = np.log(numpy_gpt2.softmax(logits))[range(len(tokens) - 1), tokens[1:]]
    names = 'rank to 10', 'rank to 100', 'rank to 1000', 'beyond 1000'
    shares = [f'\x1b[30;48;5;{colour}m{name}\x1b[0m {classes.count(n) / len(classes):.1%}'
              for n, (colour, name) in enumerate(zip(terminal.COLOURS, names, strict=True))]
    assert figures == (f'{len(tokens) - 1} tokens, mean log-probability {logprobs.mean():.3f}; '
                       f'{", ".join(shares)}\n')


def test_characters_that_command_a_terminal_are_not_sent():
    assert terminal.visible('a\x1b[2Jb\r\x9bc\u202e') == 'a\ufffd[2Jb\ufffd\ufffdc\ufffd'
    assert terminal.visible('\n\t\xa0\u3000é') == '\n\t\xa0\u3000é'


def test_one_token_has_no_figures():
    assert terminal.summary(np.zeros([0]), np.zeros([0], int)) == 'one token, which has no probability'
