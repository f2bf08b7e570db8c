"""The text of a sample while its tokens come: whole characters, up to the text that ends it."""
import codecs
from collections.abc import Sequence

from errors import require


class Continuation:
    """One sample: text, tokens, logprobs, and finished, whether a stop string ended it.

    enc: an Encoder. stop: a string or several; the first to be complete ends the text, which is cut where it
    begins (of two complete at once, where the earlier begins), however the text falls into tokens.
    """

    def __init__(self, enc, stop: str | Sequence[str] = ()):
        self.enc, self.stop = enc, (stop,) if isinstance(stop, str) else tuple(stop)
        require('' not in self.stop, 'a text that is to stop a sample is empty; leave it out')
        self.text, self.finished = '', False
        self.tokens: list[int] = []
        self.logprobs: list[float | None] = []
        self.decoder = codecs.getincrementaldecoder('utf-8')(enc.errors)
        self.n_read = 0  # characters

    def add(self, token: int, logprob: float | None = None):
        """Adds a token, unless the text is finished."""
        if not self.finished:
            self.tokens.append(int(token))
            self.logprobs.append(logprob)
            self.append(self.decoder.decode(self.enc.decode_bytes(self.tokens[-1:])))

    def close(self):
        """Ends the tokens: an incomplete character becomes U+FFFD."""
        if not self.finished:
            self.append(self.decoder.decode(b'', final=True))

    def append(self, characters: str):
        n_old = len(self.text)
        self.text += characters
        ends = []
        for stop in self.stop:
            start = self.text.find(stop, max(0, n_old - len(stop) + 1))
            if start >= 0:
                ends.append((start + len(stop), start))
        if ends:
            self.text, self.finished = self.text[:min(ends)[1]], True

    def read_new(self, whole: bool = False) -> str:
        """The text since the last call; unless whole, without an end that a stop string may begin with."""
        end = len(self.text)
        if not (whole or self.finished):
            begun = (n for stop in self.stop for n in range(1, len(stop)) if self.text.endswith(stop[:n]))
            end -= max(begun, default=0)
        start, self.n_read = self.n_read, max(self.n_read, end)
        return self.text[start:end]
