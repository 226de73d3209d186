"""A grammar that is a function of the tokens so far, for tests of the loop."""

from __future__ import annotations

import hashlib
import random

import numpy as np

from fake_runner import VOCABULARY


class RuleGrammar:
    """A matcher that refuses what the protocol does not allow its caller.

    Parameters
    ----------
    allowed
        Returns the tokens that may follow a list of tokens; None where the grammar has ended.
    breaks_at
        Raise when a mask is asked for behind so many tokens.
    """

    def __init__(self, allowed, breaks_at=None):
        self.allowed = allowed
        self.tokens = []
        self.masks = 0
        self._breaks_at = breaks_at

    def accept_token(self, token_id):
        allowed = self.allowed(self.tokens)
        if allowed is None or token_id not in allowed:
            return False
        self.tokens.append(token_id)
        return True

    def fill_next_token_bitmask(self, bitmask, index=0):
        allowed = self.allowed(self.tokens)
        assert allowed is not None, "the grammar has ended"
        assert bitmask.dtype == np.int32 and bitmask.flags.c_contiguous
        if self._breaks_at is not None and len(self.tokens) >= self._breaks_at:
            raise RuntimeError("the matcher broke")
        self.masks += 1
        words = bitmask.view(np.uint32)[index]
        words[:] = 0
        for token in allowed:
            words[token // 32] |= np.uint32(1 << token % 32)

    def rollback(self, num_tokens):
        assert 0 < num_tokens <= len(self.tokens)
        del self.tokens[len(self.tokens) - num_tokens :]

    def is_terminated(self):
        return self.allowed(self.tokens) is None


def random_rule(seed, *, ends=0.02, vocabulary=VOCABULARY):
    """Return what may follow, by the last two tokens and the length: a few tokens, often one."""

    def allowed(tokens):
        key = f"{seed},{len(tokens) % 7},{tokens[-2:]}".encode()
        rng = random.Random(hashlib.sha256(key).digest())
        if tokens and rng.random() < ends:
            return None
        return frozenset(rng.sample(range(vocabulary), rng.choice([1, 1, 2, 3, 12, vocabulary])))

    return allowed
