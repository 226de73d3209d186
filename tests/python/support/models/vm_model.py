"""A compiled model on TVM's own virtual machine, without kvctl's runner."""

from __future__ import annotations

import json

import numpy as np
import tvm
import tvm_ffi


def load_library(directory):
    """Return a model's virtual machine, its metadata, and its weights plain and packed."""
    executable = tvm.runtime.load_module(str(directory / "lib.so"))
    vm = tvm.relax.VirtualMachine(executable, tvm.cpu())
    metadata = json.loads(str(vm["_metadata"]()))
    cache = {f: tvm.get_global_func(f"vm.builtin.tensor_cache.{f}") for f in ("load", "clear")}
    cache["clear"]()
    cache["load"](str(directory), tvm.cpu().dlpack_device_type(), 0)
    names = [param["name"] for param in metadata["params"]]
    plain = list(tvm.get_global_func("vm.builtin.param_array_from_cache_by_name")(names))
    cache["clear"]()
    pack = metadata["kvctl"]["packed"]
    packed = [
        tvm.get_global_func(pack[name])(tensor) if name in pack else tensor
        for name, tensor in zip(names, plain, strict=True)
    ]
    return vm, metadata, plain, tvm.runtime.convert(packed)


class VMModel:
    """Loads a model directory, packs its weights, and runs it on the cache of its library."""

    def __init__(self, directory, *, max_total=512, max_batch=4, chunk=64, page_size=16):
        self.vm, self.metadata, self.plain, self.params = load_library(directory)
        sizes = (max_batch, max_total, chunk, page_size, 0)
        shapes = [tvm.runtime.ShapeTuple([size]) for size in sizes]
        self.cache = self.vm["create_tir_paged_kv_cache"](*shapes)
        self._call = {
            f: tvm.get_global_func(f"vm.builtin.kv_state_{f}")
            for f in ("add_sequence", "begin_forward", "end_forward", "popn")
        }

    def add_sequence(self, seq_id):
        self._call["add_sequence"](self.cache, seq_id)

    def popn(self, seq_id, n):
        self._call["popn"](self.cache, seq_id, n)

    def _forward(self, seq_ids, lengths, function, tokens, shape, *extra):
        embeds = self.vm["embed"](tvm.runtime.tensor(np.asarray(tokens, np.int32)), self.params)
        embeds = tvm.runtime.tensor(embeds.numpy().reshape(*shape, -1))
        begin = self._call["begin_forward"]
        begin(self.cache, tvm_ffi.Shape(seq_ids), tvm_ffi.Shape(lengths))
        logits, _ = self.vm[function](embeds, *extra, self.cache, self.params)
        self._call["end_forward"](self.cache)
        return logits.numpy()

    def prefill(self, seq_id, tokens):
        """Logits (vocab,) of the last token."""
        last = tvm.runtime.tensor(np.array([len(tokens) - 1], np.int32))
        shape = (1, len(tokens))
        return self._forward([seq_id], [len(tokens)], "batch_prefill", tokens, shape, last)[0, 0]

    def decode(self, seq_ids, tokens):
        """One token per sequence -> logits (b, vocab)."""
        ones = [1] * len(tokens)
        return self._forward(seq_ids, ones, "batch_decode", tokens, (len(tokens), 1))[:, 0]

    def verify(self, seq_ids, lengths, tokens):
        """A chain per sequence, one after another in tokens -> logits (total, vocab)."""
        return self._forward(seq_ids, lengths, "batch_verify", tokens, (1, len(tokens)))[0]
