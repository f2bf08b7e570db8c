"""Guesses of a row's next tokens from its own text: docs/decisions/prompt-lookup.md."""
import numpy as np

MAX_GUESSES = 15  # in one pass
WORTHWHILE = 4  # guesses that must be right, or a pass takes longer than steps
FIRST, LEAST, MOST = 4, 2, 8  # last tokens that must have stood before: at first, after right guesses, in all


class PromptLookup:
    """Guesses that a text goes on as it did where its last tokens stood before (Saxena 2023)."""

    def __init__(self):
        self.text = ''  # a character for each token: strings are searched faster than arrays
        self.n_equal = FIRST
        self.source = None  # a position in the text: what followed there comes next

    def guess(self, tokens, limit):  # int32 [T], longer each time -> int32 [limit or MAX_GUESSES]; [0]: none
        self.text += ''.join(map(chr, tokens[len(self.text):]))
        if self.source is None:
            place = self.text.rfind(self.text[-self.n_equal:], 0, -1)
            self.source = None if place < 0 else place + self.n_equal
        if self.source is None or limit < WORTHWHILE:
            return tokens[:0]
        return np.resize(tokens[self.source:], min(limit, MAX_GUESSES))  # again and again, if it is short

    def learn(self, n_right):
        """Of the last guesses; another token followed them."""
        if n_right >= WORTHWHILE:  # a list's items differ in single tokens
            self.source, self.n_equal = self.source + n_right + 1, LEAST
        else:
            self.source, self.n_equal = None, min(self.n_equal + 1, MOST)
