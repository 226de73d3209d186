"""What every runner does, whatever model it runs: a class that tests of a runner derive from.

A derived class has a fixture ``runner`` (an empty cache for at least five sequences of 100 tokens)
and may set ``tolerance``. The model itself is the reference: each way of forwarding a text gives
the logits of prefilling it at once.
"""

from __future__ import annotations

import numpy as np
import pytest

import kvctl
from kvctl.engine import Runner
from kvctl.engine.protocol import ABILITIES

#   0 ─┬─ 1 ── 3
#      └─ 2 ─┬─ 4
#            └─ 5
PARENTS = [-1, 0, 0, 1, 2, 2]
PATHS = [[0], [0, 1], [0, 2], [0, 1, 3], [0, 2, 4], [0, 2, 5]]


class RunnerConformance:
    tolerance = 3e-5

    @pytest.fixture
    def tokens(self, runner):
        return np.random.default_rng(3).integers(0, runner.vocab_size, 60).tolist()

    def close(self, got, expected):
        got, expected = np.from_dlpack(got), np.from_dlpack(expected)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=0, atol=self.tolerance)

    def alone(self, runner, text):
        """Logits behind a text, prefilled at once into a sequence of its own."""
        runner.cache.add_sequence(99)
        try:
            logits = np.from_dlpack(runner.prefill([99], [text])).copy()
        finally:
            runner.cache.remove_sequence(99)
        return logits

    def test_what_it_says_of_itself(self, runner):
        members = {name for name in vars(Runner) if not name.startswith("_")}
        assert len(members) == 12 and members <= set(dir(runner))
        assert runner.vocab_size > 1 and runner.prefill_chunk_size >= 1
        for size in (runner.context_window_size, runner.sliding_window_size):
            assert size is None or size >= 1
        assert isinstance(runner.abilities, frozenset) and runner.abilities <= set(ABILITIES)
        assert all(isinstance(token, int) for token in runner.stop_tokens)
        try:
            assert runner.stop_tokens >= runner.text.stop_tokens
        except FileNotFoundError:
            pass

    def test_a_text_token_by_token_and_in_pieces(self, runner, tokens):
        runner.cache.add_sequence(0)
        self.close(runner.prefill([0], [tokens[:7]]), self.alone(runner, tokens[:7]))
        self.close(runner.prefill([0], [tokens[7:20]]), self.alone(runner, tokens[:20]))
        for end in range(21, 24):
            self.close(runner.decode([0], [tokens[end - 1]]), self.alone(runner, tokens[:end]))
        rows = runner.forward([0], [tokens[23:26]])
        for i, row in enumerate(np.from_dlpack(rows)):
            self.close(row[None], self.alone(runner, tokens[: 24 + i]))
        assert runner.cache.sequence_length(0) == 26 and runner.cache.pending_length(0) == 0

    def test_prompts_of_different_lengths(self, runner, tokens):
        prompts = {5: tokens[:17], 2: tokens[20:21], 8: tokens[30:52]}
        for seq_id in prompts:
            runner.cache.add_sequence(seq_id)
        rows = np.from_dlpack(runner.prefill(list(prompts), list(prompts.values()))).copy()
        next_tokens = [tokens[1], tokens[2], tokens[3]]
        decoded = np.from_dlpack(runner.decode(list(prompts)[::-1], next_tokens[::-1])).copy()
        for i, prompt in enumerate(prompts.values()):
            self.close(rows[[i]], self.alone(runner, prompt))
            self.close(decoded[[2 - i]], self.alone(runner, [*prompt, next_tokens[i]]))

    def test_trees_of_a_batch(self, runner, tokens):
        prompts = {4: tokens[:6], 1: tokens[6:26], 7: tokens[26:27]}
        for seq_id in prompts:
            runner.cache.add_sequence(seq_id)
        runner.prefill(list(prompts), list(prompts.values()))
        trees = {
            7: kvctl.TokenTree(tokens[40:46], PARENTS),
            4: kvctl.TokenTree.chain(tokens[46:49]),
            1: kvctl.TokenTree(tokens[50:56], PARENTS),
        }
        logits = np.from_dlpack(runner.verify(list(trees), list(trees.values()))).copy()
        row = 0
        for seq_id, tree in trees.items():
            assert runner.cache.pending_length(seq_id) == len(tree)
            paths = PATHS if len(tree) == 6 else [[0], [0, 1], [0, 1, 2]]
            for path in paths:
                text = prompts[seq_id] + [int(tree.tokens[node]) for node in path]
                self.close(logits[[row]], self.alone(runner, text))
                row += 1
        assert row == len(logits)
        runner.cache.commit([1, 7, 4], [[0, 2, 5], [], [0, 1]])
        kept = {
            4: prompts[4] + tokens[46:48],
            1: prompts[1] + [tokens[50], tokens[52], tokens[55]],
            7: prompts[7],
        }
        after = np.from_dlpack(runner.decode(list(kept), [tokens[9]] * 3)).copy()
        for i, text in enumerate(kept.values()):
            self.close(after[[i]], self.alone(runner, [*text, tokens[9]]))

    def test_what_was_taken_back_leaves_no_trace(self, runner, tokens):
        cache = runner.cache
        cache.add_sequence(0)
        runner.prefill([0], [tokens[:12]])
        cache.fork_sequence(0, 1)
        point = cache.checkpoint(0)
        runner.verify([0], [kvctl.TokenTree(tokens[40:46], PARENTS)])
        cache.abort([0])
        runner.prefill([0], [tokens[20:30]])
        cache.popn(0, 3)
        self.close(
            runner.decode([0], [tokens[5]]),
            self.alone(runner, [*tokens[:12], *tokens[20:27], tokens[5]]),
        )
        cache.rollback(0, point)
        self.close(
            runner.decode([1, 0], [tokens[7], tokens[8]]),
            np.concatenate([self.alone(runner, [*tokens[:12], tokens[i]]) for i in (7, 8)]),
        )

    def test_a_mask_of_ones_own(self, runner, tokens):
        """Two documents packed into one sequence: neither sees the other."""
        runner.cache.add_sequence(0)
        seen = np.tril(np.ones((9, 9), bool))
        seen[4:, :4] = False
        logits = runner.forward(
            [0],
            [tokens[:9]],
            mask=kvctl.Mask.dense(seen),
            positions=[[0, 1, 2, 3, 0, 1, 2, 3, 4]],
            pending=True,
        )
        rows = np.from_dlpack(logits).copy()
        runner.cache.abort([0])
        for end in range(1, 5):
            self.close(rows[[end - 1]], self.alone(runner, tokens[:end]))
        for end in range(5, 10):
            self.close(rows[[end - 1]], self.alone(runner, tokens[4:end]))

    def test_hidden_states_beside_the_logits(self, runner, tokens):
        if "hidden" not in runner.abilities:
            pytest.skip("gives no hidden states")
        runner.cache.add_sequence(0)
        runner.prefill([0], [tokens[:12]])
        tree = kvctl.TokenTree(tokens[40:46], PARENTS)
        plain = np.from_dlpack(runner.verify([0], [tree])).copy()
        runner.cache.abort([0])
        logits, hidden = runner.verify([0], [tree], hidden=True)
        self.close(logits, plain)
        assert tuple(hidden.shape[:2]) == (6, 1)
        states = np.from_dlpack(hidden).copy()
        runner.cache.abort([0])
        path = [tokens[40 + node] for node in PATHS[5]]
        _, hidden = runner.forward([0], [path], hidden=True)
        np.testing.assert_allclose(
            np.from_dlpack(hidden)[:, 0], states[PATHS[5], 0], rtol=0, atol=100 * self.tolerance
        )

    def test_hidden_states_of_prompts(self, runner, tokens):
        if "hidden" not in runner.abilities:
            pytest.skip("gives no hidden states")
        prompts = {3: tokens[:23], 0: tokens[23:24], 2: tokens[24:60]}
        expected = []
        for prompt in prompts.values():
            runner.cache.add_sequence(9)
            rows, states = runner.forward([9], [prompt], hidden=True)
            expected.append((np.from_dlpack(rows)[-1].copy(), np.from_dlpack(states).copy()))
            runner.cache.remove_sequence(9)
        for seq_id in prompts:
            runner.cache.add_sequence(seq_id)
        logits, hidden = runner.prefill(list(prompts), list(prompts.values()), hidden=True)
        self.close(logits, np.stack([row for row, _ in expected]))
        np.testing.assert_allclose(
            np.from_dlpack(hidden),
            np.concatenate([states for _, states in expected]),
            rtol=0,
            atol=100 * self.tolerance,
        )
        self.close(runner.decode([0], [tokens[9]]), self.alone(runner, [tokens[23], tokens[9]]))

    def test_refused_calls_change_nothing(self, runner, tokens):
        cache = runner.cache
        cache.add_sequence(0)
        cache.add_sequence(1)
        runner.prefill([0], [tokens[:10]])
        lengths = cache.sequence_length(0), cache.sequence_length(1), cache.num_available_tokens
        many = kvctl.TokenTree.chain([1] * (runner.prefill_chunk_size + 1))
        rowless = kvctl.TokenTree([1, 2], [-1, 0], rows=[0, 2])
        for error, call in [
            (KeyError, lambda: runner.decode([55], [1])),
            (KeyError, lambda: runner.prefill([1, 55], [[1], [2]])),
            (ValueError, lambda: runner.prefill([0], [[]])),
            (ValueError, lambda: runner.decode([0], [runner.vocab_size])),
            (ValueError, lambda: runner.decode([0], [-1])),
            (ValueError, lambda: runner.decode([0, 1], [1])),
            (ValueError, lambda: runner.decode([0, 0], [1, 1])),
            (ValueError, lambda: runner.prefill([0], [[1, runner.vocab_size]])),
            (ValueError, lambda: runner.verify([0], [many])),
            (ValueError, lambda: runner.verify([0, 1], [kvctl.TokenTree.chain([1])])),
            (ValueError, lambda: runner.verify([0], [rowless])),
        ]:
            with pytest.raises(error):
                call()
            now = cache.sequence_length(0), cache.sequence_length(1), cache.num_available_tokens
            assert now == lengths
        self.close(
            runner.decode([0], [tokens[10]]),
            self.alone(runner, tokens[:11]),
        )

    def test_pending_rows_are_settled_first(self, runner, tokens):
        runner.cache.add_sequence(0)
        tree = kvctl.TokenTree.chain(tokens[:3])
        runner.prefill([0], [tokens[:5]])
        runner.verify([0], [tree])
        with pytest.raises(ValueError, match="pending"):
            runner.verify([0], [tree])
        with pytest.raises(ValueError, match="pending"):
            runner.forward([0], [tokens[:3]], mask=tree)
        grown = np.from_dlpack(runner.forward([0], [tokens[9:10]], mask=kvctl.Mask.tree([1])))
        self.close(grown, self.alone(runner, [*tokens[:5], *tokens[:2], tokens[9]]))

    def test_a_prompt_that_does_not_fit_changes_nothing(self, runner, tokens):
        runner.cache.add_sequence(0)
        free = runner.cache.num_available_tokens
        with pytest.raises(ValueError, match=r"pages|room|context|tokens"):
            runner.prefill([0], [[1] * (free + 1)])
        assert runner.cache.sequence_length(0) == 0 and runner.cache.num_available_tokens == free

    @pytest.mark.parametrize("draft", [2, None])
    def test_generation_with_drafts_is_plain_generation(self, runner, tokens, draft):
        prompt = tokens[:6] * 3
        plain = kvctl.generate(runner, prompt, max_new_tokens=30)
        drafter = kvctl.draft.LookupDrafter(length=draft)
        fast = kvctl.generate(runner, prompt, max_new_tokens=30, drafter=drafter)
        assert fast.tokens == plain.tokens and len(plain.tokens) == 30
