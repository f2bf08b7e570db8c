"""A text in a terminal, coloured by the rank of each token among all that could stand there."""
import unicodedata

import numpy as np

from inspection.page import RANKS, piece, read_text

COLOURS = (117, 228, 214, 176)  # of a terminal's 256: blue, yellow, orange, purple, as in the page
END = '\x1b[0m'


def print_text(models, ids):
    """Prints a text and figures. models: pairs of name and Inspector; the first gives the colours."""
    readings = [(name, read_text(inspector, ids)) for name, inspector in models]
    classes = np.searchsorted(RANKS, readings[0][1]['ranks'])
    pieces = [piece(models[0][1].enc, id) for id in ids]
    print(visible(pieces[0]) + ''.join(map(coloured, pieces[1:], classes)))
    for name, reading in readings:
        print(f'{visible(name)}: {summary(reading["logprobs"], reading["ranks"])}')


def coloured(text, rank_class):
    colour = f'\x1b[30;48;5;{COLOURS[rank_class]}m'
    return colour + visible(text).replace('\n', f'⏎{END}\n{colour}') + END


def visible(text):  # without characters that command the terminal
    return ''.join('\N{REPLACEMENT CHARACTER}' if unicodedata.category(c) in ('Cc', 'Cf') and c not in '\n\t'
                   else c for c in text)


def summary(logprobs, ranks):  # float32, int [T - 1] -> str
    if not len(ranks):
        return 'one token, which has no probability'
    classes = np.searchsorted(RANKS, ranks)
    names = [*(f'rank to {last}' for last in RANKS), f'beyond {RANKS[-1]}']
    shares = [f'{coloured(name, i)} {(classes == i).mean():.1%}' for i, name in enumerate(names)]
    return f'{len(ranks)} tokens, mean log-probability {logprobs.mean():.3f}; {", ".join(shares)}'
