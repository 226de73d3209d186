"""Tokenizers without files, for tests of what a model says: characters are tokens."""

from fake_runner import VOCABULARY, FakeRunner

_LETTERS = "abcdefghijklmnopqrstuvwxyz .?!<>&\n$'\"0"


class FakeStream:
    def __init__(self, text):
        self._text = text
        self.stopped_by = None

    def push(self, token):
        if token in self._text.stop_tokens:
            self.stopped_by = token
            return ""
        return self._text.decode([token])

    def finish(self):
        return ""


class FakeText:
    """Speaks as ModelText does, of a vocabulary of 40; token 39 ends a turn if `stops`."""

    has_template = True

    def __init__(self, stops=True):
        self.stop_tokens = frozenset([VOCABULARY - 1] if stops else [])

    def encode(self, text, special="parse"):
        return [max(_LETTERS.find(c), 0) for c in text.lower()]

    def encode_chat(self, messages, special="parse"):
        return self.encode("\n".join(one["content"] for one in messages) + "\n")

    def decode(self, tokens):
        return "".join(_LETTERS[t] if t < len(_LETTERS) else "#" for t in tokens)

    def stream(self):
        return FakeStream(self)

    def stop_check(self):
        stream = self.stream()

        def ends(token):
            stream.push(token)
            return stream.stopped_by is not None

        return ends


def talking_runner(**options):
    """A runner with a tokenizer, whose next token follows from the last one alone."""
    runner = FakeRunner(order=1, **options)
    runner.text = FakeText()
    return runner
