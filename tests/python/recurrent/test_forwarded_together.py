"""A KV cache and a recurrent state that a program changes by itself, each through vm.builtin."""

from __future__ import annotations

import numpy as np
import pytest
import tvm_ffi

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

import kvctl

PROMPT = np.random.default_rng(4).integers(0, 64, 13).tolist()
DRAFTS = [5, 6, 7, 8]


def vm(name, *arguments):
    return tvm_ffi.get_global_func(f"vm.builtin.{name}")(*arguments)


class Program:
    """A hybrid library in the hands of an engine as MLC-LLM's: two states, changed one by one."""

    def __init__(self, directory):
        import tvm

        from vm_model import load_library

        with kvctl.installed():
            self.vm, _, _, self.params = load_library(directory)
            sizes = (4, 256, 64, 4, 0)
            self.cache = self.vm["create_tir_paged_kv_cache"](
                *[tvm.runtime.ShapeTuple([size]) for size in sizes]
            )
            self.state = self.vm["create_rnn_state"](
                tvm.runtime.ShapeTuple([4]), tvm.runtime.ShapeTuple([9])
            )
        self.both = (self.cache, self.state)

    def add(self, seq_id):
        for one in self.both:
            vm("kv_state_add_sequence", one, seq_id)

    def begin(self, seq_id, length, parents=None):
        ids, lengths = tvm_ffi.Shape((seq_id,)), tvm_ffi.Shape((length,))
        tree = () if parents is None else (tvm_ffi.Shape(tuple(parents)),)
        for one in self.both:
            vm("kv_state_begin_forward", one, ids, lengths, *tree)

    def forward(self, seq_id, tokens, parents=None, function="batch_verify"):
        import tvm

        self.begin(seq_id, len(tokens), parents)
        embeds = self.vm["embed"](tvm.runtime.tensor(np.asarray(tokens, np.int32)), self.params)
        embeds = tvm.runtime.tensor(embeds.numpy().reshape(1, len(tokens), -1))
        logits = self.vm[function](embeds, *self.both, self.params)[0].numpy()
        for one in self.both:
            vm("kv_state_end_forward", one)
        return logits[0]

    def abort(self):
        tvm_ffi.get_global_func("kvctl.cache.abort_forward")(self.cache)

    def verify_as_mlc(self, seq_id, leaf):
        """Both are forwarded; the commit is of the KV cache alone."""
        self.forward(seq_id, DRAFTS, [-1, 0, 1, 2])
        vm(
            "attention_kv_cache_commit_accepted_token_tree_nodes",
            self.cache,
            tvm_ffi.Shape((seq_id,)),
            tvm_ffi.Shape((leaf,)),
        )


@pytest.fixture
def program(mlc_recurrent):
    made = Program(mlc_recurrent("hybrid"))
    made.add(0)
    made.forward(0, PROMPT)
    return made


def test_a_commit_of_the_cache_alone_is_noticed(program):
    program.add(1)
    truth = program.forward(1, [*PROMPT, 5, 6, 9])[-1]
    program.verify_as_mlc(0, 1)
    with pytest.raises(RuntimeError, match=r"sequence 0 has 15 .* and 17 .*popn\(state, 0, 2\)"):
        program.forward(0, [9])
    # What the message says: back to a kept state, and the kept tokens once more.
    program.abort()
    again = tvm_ffi.get_global_func("kvctl.recurrent.popn")(program.state, 0, 2)
    assert again == 2
    vm("kv_state_popn", program.cache, 0, again)
    program.forward(0, [5, 6])
    np.testing.assert_allclose(program.forward(0, [9])[-1], truth, atol=1e-5)


def test_a_popn_of_the_state_alone_is_noticed(program):
    truth = program.forward(0, DRAFTS)[-1]
    vm("kv_state_popn", program.state, 0, len(DRAFTS))
    with pytest.raises(RuntimeError, match=r"sequence 0 has 17 .* and 13 .*Take 4 tokens"):
        program.forward(0, [9])
    program.abort()
    vm("kv_state_popn", program.cache, 0, len(DRAFTS))
    np.testing.assert_allclose(program.forward(0, DRAFTS)[-1], truth, atol=1e-5)


def test_what_was_accepted_whole_goes_on(program):
    program.add(1)
    truth = program.forward(1, [*PROMPT, *DRAFTS, 9])[-1]
    program.verify_as_mlc(0, 3)
    np.testing.assert_allclose(program.forward(0, [9])[-1], truth, atol=1e-5)


def test_a_tree_is_refused_before_the_model_runs(program):
    program.abort()
    with pytest.raises(ValueError, match=r"begin_forward: .*form a tree"):
        program.begin(0, 3, [-1, 0, 0])
    program.abort()
    program.forward(0, [9])


def test_states_of_two_programs_do_not_mix(mlc_recurrent, program):
    """What was never forwarded together at one length may differ."""
    other = Program(mlc_recurrent("hybrid"))
    other.add(0)
    other.forward(0, PROMPT[:5])
    mixed = Program.__new__(Program)
    mixed.__dict__.update(program.__dict__)
    mixed.both = (program.cache, other.state)
    mixed.begin(0, 1)
    for abort, one in (("cache", program.cache), ("recurrent", other.state)):
        tvm_ffi.get_global_func(f"kvctl.{abort}.abort_forward")(one)
    program.forward(0, [1])
    other.forward(0, [1])
