"""The text of a sample while its tokens come: whole characters, up to the text that ends it."""
import codecs
import copy


class Continuation:
    """A sample: tokens, logprobs, text, and finished: whether a stop string ended it.

    stop: one string or several. The first to be complete ends the text before it; of two, the earlier.
    """

    def __init__(self, enc, stop=()):
        self.enc, self.stop = enc, (stop,) if isinstance(stop, str) else stop
        self.tokens, self.logprobs, self.text = [], [], ''
        self.n_read, self.finished = 0, False
        self.decoder = codecs.getincrementaldecoder('utf-8')(enc.errors)

    def copy(self):
        other = copy.copy(self)
        other.tokens, other.logprobs = [*self.tokens], [*self.logprobs]
        other.decoder = copy.copy(self.decoder)
        return other

    def add(self, token, logprob):
        if not self.finished:
            self.tokens.append(int(token))
            self.logprobs.append(float(logprob))
            self.append(self.enc.decode_bytes(self.tokens[-1:]))

    def close(self):  # an incomplete character at the end becomes U+FFFD
        if not self.finished:
            self.append(b'', final=True)
        self.stop = ()

    def append(self, data, final=False):
        self.text += self.decoder.decode(data, final)
        ends = [(self.text.index(stop) + len(stop), -len(stop)) for stop in self.stop if stop in self.text]
        if ends:
            self.text, self.finished, self.stop = self.text[:sum(min(ends))], True, ()

    def read_new(self):  # -> text since the last call, without what may begin a stop string
        begun = (n for stop in self.stop for n in range(1, len(stop)) if self.text.endswith(stop[:n]))
        end = len(self.text) - max(begun, default=0)
        start, self.n_read = self.n_read, max(self.n_read, end)
        return self.text[start:end]
