"""Guesses of a row's next tokens from its own text: docs/decisions/prompt-lookup.md."""
import numpy as np

MAX_GUESSES = 15  # in one pass
WORTHWHILE = 4  # right guesses; with fewer a pass takes about as long as steps
FIRST, LEAST, MOST = 4, 2, 8  # last tokens that must have stood before: at first, after right guesses, in all


class PromptLookup:
    """Guesses that a text goes on as it did where its last tokens stood before (Saxena 2023)."""

    def __init__(self):
        self.text = ''  # a character for each token: strings are searched faster than arrays
        self.n_equal = FIRST
        self.distance = None  # back to where the text is taken to repeat itself

    def guess(self, tokens, limit):  # int32 [T], longer each time -> int32 [0], or up to MAX_GUESSES
        self.text += ''.join(chr(token % 0x110000) for token in tokens[len(self.text):])
        if self.distance is None:
            place = self.text.rfind(self.text[-self.n_equal:], 0, -1)
            self.distance = None if place < 0 else len(self.text) - self.n_equal - place
        if self.distance is None or limit < WORTHWHILE:
            return tokens[:0]
        return np.resize(tokens[-self.distance:], min(limit, MAX_GUESSES))  # again and again, if it is short

    def learn(self, n_right):
        """Of the last guesses; another token followed them."""
        if n_right >= WORTHWHILE:  # go on at this distance: a list's items differ in single tokens
            self.n_equal = LEAST
        else:
            self.distance, self.n_equal = None, min(self.n_equal + 1, MOST)
