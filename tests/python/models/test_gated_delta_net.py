"""Models with recurrent layers: right, the same bits in any chunks, verified speculatively.

Both models, the gated delta net and the hybrid, go through every test.
"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

import kvctl
from recurrent_models import KINDS, config_of
from recurrent_reference import ReferenceRecurrent
from recurrent_vm import RecurrentVM

TOKENS = np.random.default_rng(11).integers(0, 64, 48).tolist()
PROMPT, CONTINUATION, DRAFTS = TOKENS[:13], 40, 4
both = pytest.mark.parametrize("kind", KINDS)
modes = pytest.mark.parametrize("emit_steps", [True, False], ids=["snapshot", "replay"])


@both
def test_logits_agree_with_the_reference(recurrent_models, kind):
    model = RecurrentVM(recurrent_models(kind, emit_steps=True))
    expected = ReferenceRecurrent(config_of(kind), model.metadata).logits(TOKENS)
    for seq_id in (0, 1):
        model.memory.add_sequence(seq_id)
    got = [*model.prefill([1, 0], [TOKENS[:20], TOKENS[:9]])]
    got += [*model.decode([0, 1], [TOKENS[9], TOKENS[20]])]
    got += [*model.verify([1, 0], [TOKENS[21:24], TOKENS[10:14]])]
    rows = [19, 8, 9, 20, 21, 22, 23, 10, 11, 12, 13]
    np.testing.assert_allclose(got, expected[rows], atol=1e-4)
    assert np.std(expected) > 0.3  # or anything would agree


@both
def test_states_are_the_same_bits_in_any_chunks(recurrent_models, kind):
    model = RecurrentVM(recurrent_models(kind, emit_steps=True))
    for seq_id in range(4):
        model.memory.add_sequence(seq_id)
    logits = [model.prefill([0], [TOKENS])[0], model.verify([1], [TOKENS])[-1]]
    for token in TOKENS:
        last = model.decode([2], [token])[0]
    for begin in (0, 5, 6, 33):
        end = {0: 5, 5: 6, 6: 33, 33: 48}[begin]
        other = model.verify([3], [TOKENS[begin:end]])[-1]
    assert len({one.tobytes() for one in (*logits, last, other)}) == 1
    assert len({model.states(seq_id) for seq_id in range(4)}) == 1
    for position in range(40, 48):
        assert model.states(1, position) == model.states(2, position)


def plain_greedy(model, seq_id, length):
    """Tokens of greedy decoding, and the states after each, by the per-token recurrence."""
    model.memory.add_sequence(seq_id)
    tokens, states = list(PROMPT), {}
    logits = model.prefill([seq_id], [PROMPT])[0]
    for _ in range(length):
        states[len(tokens)] = model.states(seq_id)
        tokens.append(int(logits.argmax()))
        logits = model.decode([seq_id], tokens[-1:])[0]
    return tokens, states


def drafts_for(rng, truth, position):
    """Tokens that a drafter might propose: the truth, wrong from a random place on."""
    draft = truth[position : position + DRAFTS]
    draft += rng.integers(0, 64, DRAFTS - len(draft)).tolist()
    right = rng.integers(0, DRAFTS + 1)
    return draft[:right] + [(token + 1) % 64 for token in draft[right:]]


def accepted(chain, choices):
    """How many tokens of a verified chain stay: its root, and drafts as long as they are right."""
    kept = 1
    while kept < len(chain) and chain[kept] == choices[kept - 1]:
        kept += 1
    return kept


@both
@modes
@pytest.mark.parametrize("way", ["commit", "popn", "rollback"])
def test_speculative_greedy_equals_plain_greedy(recurrent_models, kind, emit_steps, way):
    model = RecurrentVM(recurrent_models(kind, emit_steps=emit_steps), max_history=8)
    truth, states = plain_greedy(model, 9, CONTINUATION + DRAFTS + 1)
    memory, rng = model.memory, np.random.default_rng(5)
    tokens = {}
    for seq_id in (0, 1):
        memory.add_sequence(seq_id)
        tokens[seq_id] = [*PROMPT, int(model.prefill([seq_id], [PROMPT])[0].argmax())]
    rounds = replayed = partly = 0
    while min(map(len, tokens.values())) < len(PROMPT) + CONTINUATION:
        ids = [i for i in (1, 0) if len(tokens[i]) < len(PROMPT) + CONTINUATION]
        chains = [[tokens[i][-1], *drafts_for(rng, truth, len(tokens[i]))] for i in ids]
        points = [memory.checkpoint(i) for i in ids]
        logits = model.verify(ids, chains, pending=way == "commit")
        choices = np.split(logits.argmax(-1), len(ids))
        keep = [accepted(chain, list(c)) for chain, c in zip(chains, choices, strict=True)]
        if way == "commit":
            replay = memory.commit(ids, [range(n) for n in keep])
        elif way == "popn":
            replay = [memory.popn(i, DRAFTS + 1 - n) for i, n in zip(ids, keep, strict=True)]
        else:  # as if nothing could be rolled back but whole chunks
            for i, point in zip(ids, points, strict=True):
                memory.rollback(i, point)
            replay = keep
        for i, chain, choice, n, again in zip(ids, chains, choices, keep, replay, strict=True):
            tokens[i] += [*chain[1:n], int(choice[n - 1])]
            assert memory.sequence_length(i) == len(tokens[i]) - 1 - again
            if again:
                model.prefill([i], [tokens[i][-1 - again : -1]])
            assert model.states(i) == states[len(tokens[i]) - 1]
            partly += 1 < n <= DRAFTS
            replayed += again > 0
        rounds += 1
    for i in (0, 1):
        assert tokens[i][: len(PROMPT) + CONTINUATION] == truth[: len(PROMPT) + CONTINUATION]
    assert rounds < CONTINUATION and partly > 3
    assert (replayed > 0) == (not emit_steps or way == "rollback")


@both
def test_a_model_that_is_not_rolled_back_says_something_else(recurrent_models, kind):
    """The control of the test above: the rejected tokens do change what follows."""
    model = RecurrentVM(recurrent_models(kind, emit_steps=True), max_history=8)
    truth, _ = plain_greedy(model, 0, CONTINUATION)
    model.memory.add_sequence(1)
    tokens = [*PROMPT, int(model.prefill([1], [PROMPT])[0].argmax())]
    while len(tokens) < len(PROMPT) + CONTINUATION:
        chain = [tokens[-1], (truth[len(tokens)] + 1) % 64 if len(tokens) < len(truth) else 0]
        tokens.append(int(model.verify([1], [chain])[0].argmax()))
    assert tokens != truth[: len(tokens)]


@both
def test_speculative_trees_equal_plain_greedy(recurrent_models, kind):
    """Trees with the right token in any branch, grown in two rounds, on two sequences at once."""
    model = RecurrentVM(recurrent_models(kind, emit_steps=True), max_history=8)
    truth, states = plain_greedy(model, 9, CONTINUATION + 4)
    memory, rng = model.memory, np.random.default_rng(3)
    tokens = {}
    for seq_id in (0, 1):
        memory.add_sequence(seq_id)
        tokens[seq_id] = [*PROMPT, int(model.prefill([seq_id], [PROMPT])[0].argmax())]
    depths = set()
    while min(map(len, tokens.values())) < len(PROMPT) + CONTINUATION - 4:
        nodes, parents = {}, {}
        for i in (0, 1):
            at = len(tokens[i])
            # the root, three candidates for the next token, and then two below each of those
            first = rng.permutation([truth[at], *rng.integers(0, 64, 2)]).tolist()
            second = [t for _ in first for t in rng.permutation([truth[at + 1], 7]).tolist()]
            nodes[i] = [tokens[i][-1], *first, *second]
            parents[i] = [-1, 0, 0, 0, 1, 1, 2, 2, 3, 3]
        ids = [1, 0]
        early = [kvctl.TokenTree(nodes[i][:4], parents[i][:4]) for i in ids]
        logits = {i: [] for i in ids}
        for rows, mask in ((slice(0, 4), early), (slice(4, 10), [parents[i] for i in ids])):
            if kind == "hybrid" and rows.start:
                mask = [kvctl.Mask.tree(one) for one in mask]
            out = model.verify(ids, [nodes[i][rows] for i in ids], mask=mask)
            for i, part in zip(ids, np.split(out, 2), strict=True):
                logits[i] += [*part.argmax(-1)]
        paths = []
        for i in ids:
            path = [0]
            while True:
                choice = logits[i][path[-1]]
                tokens[i].append(int(choice))
                below = [n for n in range(10) if parents[i][n] == path[-1]]
                right = [n for n in below if nodes[i][n] == choice]
                if not right:
                    break
                path.append(right[0])
            paths.append(path)
            depths.add(len(path))
        assert memory.commit(ids, paths) == [0, 0]
        for i in ids:
            assert model.states(i) == states[len(tokens[i]) - 1]
    for i in (0, 1):
        assert tokens[i] == truth[: len(tokens[i])]
    assert depths == {2, 3} or depths == {3}


@both
def test_a_model_without_steps_refuses_trees_and_can_be_aborted(recurrent_models, kind):
    model = RecurrentVM(recurrent_models(kind, emit_steps=False))
    model.memory.add_sequence(0)
    model.prefill([0], [PROMPT])
    before = model.states(0)
    tree = kvctl.TokenTree([1, 2, 3], [-1, 0, 0])
    with pytest.raises(ValueError, match="must compute a state per token"):
        model.verify([0], [[1, 2, 3]], mask=[tree])
    assert model.memory.sequence_length(0) == len(PROMPT)
    assert model.states(0) == before


@pytest.mark.parametrize("field", ["num_heads", "conv_width", "vocab_size"])
def test_a_shape_that_makes_no_sense_is_refused(field):
    from dataclasses import replace

    with pytest.raises(ValueError, match=f"{field} must be an integer"):
        replace(config_of("delta"), **{field: 0})


def test_a_directory_with_something_in_it_is_left_alone(tmp_path):
    from kvctl.models.build.recurrent_library import compile_recurrent

    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="choose another"):
        compile_recurrent(config_of("delta"), tmp_path)
