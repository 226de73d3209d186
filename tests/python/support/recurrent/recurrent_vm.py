"""A compiled model with recurrent layers on TVM's own virtual machine, without kvctl's runner."""

from __future__ import annotations

import numpy as np
import tvm

from kvctl.cache.paged_kv_cache import PagedKVCache
from kvctl.recurrent.hybrid_cache import HybridCache
from kvctl.recurrent.state import RecurrentState
from vm_model import load_library


class RecurrentVM:
    """Loads a model directory; `memory` is what its sequences live in.

    `memory` is a RecurrentState, or a HybridCache where the model attends as well.
    """

    def __init__(self, directory, *, max_sequences=4, max_total=256, chunk=64, **options):
        self.vm, self.metadata, _, self.params = load_library(directory)
        facts = self.metadata["kvctl"]["recurrent"]
        self.state = RecurrentState.create(
            num_layers=facts["num_layers"],
            init_values=[np.zeros(spec["shape"], spec["dtype"]) for spec in facts["states"]],
            max_sequences=max_sequences,
            **options,
        )
        self.memory, self.caches = self.state, (self.state,)
        if self.metadata["kv_state_kind"] == "hybrid":
            sizes = (max_sequences, max_total, chunk, 4, 0)
            shapes = [tvm.runtime.ShapeTuple([size]) for size in sizes]
            paged = PagedKVCache.wrap(self.vm["create_tir_paged_kv_cache"](*shapes))
            self.memory = HybridCache(paged, self.state)
            self.caches = (paged, self.state)

    def run(self, function, tokens, *extra):
        """Call a function of the model between begin_forward and end_forward."""
        flat = np.asarray([token for one in tokens for token in one], np.int32)
        embeds = self.vm["embed"](tvm.runtime.tensor(flat), self.params).numpy()
        shape = (len(tokens), 1) if function == "batch_decode" else (1, len(flat))
        embeds = tvm.runtime.tensor(embeds.reshape(*shape, -1))
        handles = [cache.handle for cache in self.caches]
        return self.vm[function](embeds, *extra, *handles, self.params)[0].numpy()

    def prefill(self, seq_ids, tokens):
        """Logits (b, vocab) of the last token of each sequence."""
        last = np.cumsum([len(one) for one in tokens]).astype(np.int32) - 1
        with self.memory.forward(seq_ids, [len(one) for one in tokens]):
            return self.run("batch_prefill", tokens, tvm.runtime.tensor(last))[0]

    def decode(self, seq_ids, tokens):
        """One token per sequence -> logits (b, vocab)."""
        with self.memory.forward(seq_ids, [1] * len(tokens)):
            return self.run("batch_decode", [[token] for token in tokens])[:, 0]

    def verify(self, seq_ids, tokens, *, mask=None, pending=None):
        """Chains or trees -> logits (total, vocab) of every token."""
        lengths = [len(one) for one in tokens]
        with self.memory.forward(seq_ids, lengths, mask=mask, pending=pending):
            return self.run("batch_verify", tokens)[0]

    def states(self, seq_id, position=-1):
        """All recurrent states of a sequence, as bytes."""
        return b"".join(
            np.from_dlpack(self.state.get_state(seq_id, layer, index, position=position)).tobytes()
            for layer in range(self.state.num_layers)
            for index in range(self.state.num_states)
        )
