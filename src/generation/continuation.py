"""The text of a sample while its tokens come: whole characters, and nothing of what ends it."""
import codecs
from collections.abc import Sequence

from errors import require


class Continuation:
    """One sample. add() takes its tokens; text, tokens and logprobs are what it has, finished whether it ended itself.

    enc: an Encoder. stop: a string, or several; the first of them to be complete ends the text, which is cut where that
    begins (of two complete at once, where the earlier begins). This is the same however the text falls into tokens.
    """

    def __init__(self, enc, stop: str | Sequence[str] = ()):
        self.enc, self.stop = enc, (stop,) if isinstance(stop, str) else tuple(stop)
        require('' not in self.stop, 'a text that is to stop a sample is empty; leave it out')
        self.text, self.finished = '', False
        self.tokens: list[int] = []
        self.logprobs: list[float | None] = []
        self.decoder = codecs.getincrementaldecoder('utf-8')(enc.errors)
        self.read = 0  # characters that read_new has given out

    def add(self, token: int, logprob: float | None = None):
        """A token, unless the text is finished; the one that completes a stop string is the last."""
        if self.finished:
            return
        self.tokens.append(int(token))
        self.logprobs.append(logprob)
        self.append(self.decoder.decode(self.enc.decode_bytes(self.tokens[-1:])))

    def close(self):
        """There are no more tokens: what is left of a character becomes U+FFFD."""
        if not self.finished:
            self.append(self.decoder.decode(b'', final=True))

    def append(self, characters: str):
        before = len(self.text)
        self.text += characters
        ends = []
        for stop in self.stop:
            start = self.text.find(stop, max(0, before - len(stop) + 1))
            if start >= 0:
                ends.append((start + len(stop), start))
        if ends:
            self.text, self.finished = self.text[:min(ends)[1]], True

    def read_new(self, whole: bool = False) -> str:
        """The text since the last call; but, unless it is whole, not its end if that may be the beginning of a stop."""
        end = len(self.text)
        if not (whole or self.finished):
            end -= max((n for stop in self.stop for n in range(1, len(stop)) if self.text.endswith(stop[:n])),
                       default=0)
        start, self.read = self.read, max(self.read, end)
        return self.text[start:end]
