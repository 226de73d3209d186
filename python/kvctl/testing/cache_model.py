"""A simple model of the KV cache, in which every sequence is a plain list of tokens.

It has no pages, no sharing and no kernels: a fork copies a list, a commit appends to it, and
attention is a softmax in float64. Tests compare a cache with it: results and errors. The file is
long because the oracle is to be read in one piece, every operation beside the others.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .cache_tokens import Tokens as Tokens
from .cache_tokens import Window as Window
from .cache_tokens import descends
from .kv_table import KVTable

Array = npt.NDArray[np.floating]


@dataclass
class _Step:
    seq_ids: list[int]
    lengths: list[int]
    before: dict[int, Tokens]
    commits: list[bool]  # whether the new tokens of a sequence are committed at end_forward
    visible: list[npt.NDArray[np.bool_] | None]  # the columns of each query; None is causal
    positions: npt.NDArray[np.int64]


class CacheModel:
    """A cache of many sequences that is simple instead of fast.

    Parameters
    ----------
    num_layers, num_qo_heads, num_kv_heads, head_dim : int
        Shapes; several query heads share a key/value head.
    prefill_chunk_size : int
        The most tokens that one step may append over all sequences.
    rope_theta : float or None
        The base of rotary embeddings, None for none.
    rope_inline : bool
        Rotate keys when they are read, at their logical position, not when they are appended.
    layer_windows : sequence of int
        The size of each layer's own sliding window, 0 for none.

    Notes
    -----
    A mask is ``None`` (causal) or, per sequence, ``None``, the parents of the new tokens as indices
    into the pending region (-1: the committed context), or a boolean array ``(new, columns)`` over
    past and new tokens.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        prefill_chunk_size: int = 1 << 30,
        max_sequences: int = 1 << 30,
        rope_theta: float | None = None,
        rope_inline: bool = False,
        layer_windows: Seq[int] = (),
    ) -> None:
        self.num_layers = num_layers
        self.num_qo_heads = num_qo_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.prefill_chunk_size = prefill_chunk_size
        self.max_sequences = max_sequences
        self.rope_theta = rope_theta
        self.rope_inline = rope_inline
        self.layer_windows = layer_windows
        self.sequences: dict[int, Tokens] = {}
        self._step: _Step | None = None
        self._births = 0
        self._table = KVTable(
            num_layers, num_qo_heads, num_kv_heads, head_dim, rope_theta, rope_inline
        )

    # Sequences

    def add_sequence(self, seq_id: int) -> None:
        """Add an empty sequence."""
        self._require_no_step("add_sequence")
        self._require_new(seq_id)
        self.sequences[seq_id] = Tokens(birth=self._next_birth())

    def remove_sequence(self, seq_id: int) -> None:
        """Remove a sequence with everything in it."""
        self._require_no_step("remove_sequence")
        self._find(seq_id)
        del self.sequences[seq_id]

    def fork_sequence(self, parent: int, child: int, position: int = -1) -> None:
        """Add a sequence made of the first ``position`` tokens of another (-1: all of it)."""
        self._require_no_step("fork_sequence")
        source = self._find(parent)
        self._require_new(child)
        if position < -1 or position > len(source):
            raise ValueError(f"position {position} of a sequence of {len(source)} tokens")
        copy = source.copy()
        if position >= 0:
            copy.truncate(position)
        copy.birth = self._next_birth()
        self.sequences[child] = copy

    def popn(self, seq_id: int, n: int) -> None:
        """Drop the last ``n`` tokens: first pending ones, then committed ones."""
        self._require_no_step("popn")
        tokens = self._find(seq_id)
        if n < 0 or n > len(tokens):
            raise ValueError(f"cannot pop {n} of {len(tokens)} tokens")
        tokens.truncate(len(tokens) - n)

    def enable_sliding_window(
        self,
        seq_id: int,
        size: int,
        *,
        sinks: int = 0,
        horizon: int = 64,
        renumber_sinks: bool = False,
    ) -> None:
        """From now on tokens see the ``size`` latest positions, and the first ``sinks``."""
        self._require_no_step("enable_sliding_window")
        if renumber_sinks and self.rope_theta is None:
            raise ValueError("only rotated sinks can be renumbered")
        tokens = self._find(seq_id)
        if size < 1 or sinks < 0 or horizon < 0:
            raise ValueError(f"no window has size {size}, sinks {sinks} and horizon {horizon}")
        if tokens.descends:
            raise ValueError("a window measures positions, and these go back")
        tokens.window = Window(size, sinks, horizon, renumber_sinks)
        tokens.slide()

    def evict(self, seq_id: int, keep: Seq[int], *, rerotate: bool = False) -> None:
        """Keep some committed tokens; `rerotate` numbers them anew and rotates their keys."""
        self._require_no_step("evict")
        tokens = self._find(seq_id)
        if rerotate and self.rope_theta is None:
            raise NotImplementedError("keys without RoPE cannot be rotated")
        if tokens.pending:
            raise ValueError("tokens are pending: commit or abort them first")
        for index, column in enumerate(keep):
            if not 0 <= column < len(tokens.committed):
                raise IndexError(f"token {column} of {len(tokens.committed)}")
            if index and column <= keep[index - 1]:
                raise ValueError("kept tokens are given in order")
        tokens.committed = [tokens.committed[column] for column in keep]
        tokens.evicted -= set(tokens.committed)  # a cache that keeps them has not evicted them
        tokens.positions = [tokens.positions[column] for column in keep]
        if rerotate:
            for index, (token, position) in enumerate(
                zip(tokens.committed, tokens.positions, strict=True)
            ):
                if index != position:
                    tokens.committed[index] = self._table.rotated_copy(token, index - position)
            tokens.positions = list(range(len(keep)))
            tokens.next_position = len(keep)
        tokens.slide()

    def save_sequence(self, seq_id: int) -> Tokens:
        """Return what ``load_sequence`` needs to make the same sequence again."""
        self._require_no_step("save_sequence")
        tokens = self._find(seq_id)
        if tokens.pending:
            raise ValueError("tokens are pending: commit or abort them first")
        return tokens.copy()

    def load_sequence(self, seq_id: int, saved: Tokens) -> None:
        """Add a sequence that was saved."""
        self._require_no_step("load_sequence")
        self._require_new(seq_id)
        self.sequences[seq_id] = saved.copy()
        self.sequences[seq_id].birth = self._next_birth()

    # A step

    def begin_forward(
        self,
        seq_ids: Seq[int],
        append_lengths: Seq[int],
        *,
        mask: Seq[Seq[int] | npt.NDArray[np.bool_] | None] | None = None,
        positions: Seq[int] | None = None,
        pending: bool | None = None,
    ) -> None:
        """Append room for new tokens; ``attention`` fills it."""
        self._require_no_step("begin_forward")
        if len(seq_ids) != len(append_lengths):
            raise ValueError("as many lengths as sequences")
        if mask is not None and len(mask) != len(seq_ids):
            raise ValueError("as many masks as sequences")
        if len(set(seq_ids)) != len(seq_ids):
            raise ValueError("a sequence is named twice")
        if not seq_ids or min(append_lengths) < 1:
            raise ValueError("nothing to append")
        for seq_id in seq_ids:
            self._find(seq_id)
        total = sum(append_lengths)
        if total > self.prefill_chunk_size:
            raise ValueError(f"{total} tokens are more than a chunk of {self.prefill_chunk_size}")
        if positions is not None and (len(positions) != total or min(positions) < 0):
            raise ValueError("as many positions as new tokens, none negative")
        given = None if positions is None else list(positions)
        plans = []
        for i, (seq_id, length) in enumerate(zip(seq_ids, append_lengths, strict=True)):
            after, visible, stays = self.sequences[seq_id].extended(
                length, None if mask is None else mask[i], pending, self._table.new_token
            )
            if given is not None:
                after.positions[-length:], given = given[:length], given[length:]
            # Windows measure positions; pending tokens are committed at positions that ascend.
            back = after.descends and (after.window is not None or any(self.layer_windows))
            if back or (after.window and not stays and descends(after.positions)):
                raise ValueError("under a window positions must not descend")
            plans.append((seq_id, after, visible, stays))
        before = {seq_id: self.sequences[seq_id] for seq_id in seq_ids}
        rows: list[int] = []
        for (seq_id, after, _, _), length in zip(plans, append_lengths, strict=True):
            self.sequences[seq_id] = after
            rows += after.positions[-length:]
        self._step = _Step(
            list(seq_ids),
            list(append_lengths),
            before,
            [not stays for *_, stays in plans],
            [visible for _, _, visible, _ in plans],
            np.asarray(rows),
        )

    def attention(self, layer: int, qkv: Array, *, sm_scale: float | None = None) -> Array:
        """Store the new K and V of a layer and return its attention output, in float64.

        Parameters
        ----------
        layer : int
            Which layer.
        qkv : array
            ``(total new tokens, num_qo_heads + 2 * num_kv_heads, head_dim)``.
        sm_scale : float or None
            The softmax scale, by default ``head_dim ** -0.5``.
        """
        step = self._require_step("attention")
        if not 0 <= layer < self.num_layers:
            raise IndexError(f"layer {layer} of {self.num_layers}")
        scale = self.head_dim**-0.5 if sm_scale is None else sm_scale
        q, k, v = np.split(
            np.asarray(qkv, np.float64),
            [self.num_qo_heads, self.num_qo_heads + self.num_kv_heads],
            axis=1,
        )
        plain_q, q = q, self._table.rotate(q, step.positions)
        if not self.rope_inline:
            k = self._table.rotate(k, step.positions)
        out = np.zeros_like(q)
        row = 0
        for seq_id, length, visible in zip(step.seq_ids, step.lengths, step.visible, strict=True):
            tokens = self.sequences[seq_id]
            new = slice(row, row + length)
            numbers = tokens.pending[-length:]
            self._table.write(layer, numbers, k[new], v[new])
            window = self.layer_windows[layer] if self.layer_windows else 0
            see = self.visible(seq_id, length, window)
            if visible is not None:
                see = visible & tokens.in_windows(length, window)
            seen = q[new]
            if tokens.window is not None and tokens.window.renumber_sinks:
                last = tokens.window.size + tokens.window.sinks - 1
                q_at_sinks = self._table.rotate(plain_q[new], np.minimum(step.positions[new], last))
                seen = np.stack([seen, q_at_sinks])
            out[new] = self._attend(seen, layer, tokens, see, scale)
            row += length
        return out

    def end_forward(self) -> None:
        """Commit what is not to stay pending."""
        step = self._require_step("end_forward")
        for seq_id, commits in zip(step.seq_ids, step.commits, strict=True):
            if commits:
                tokens = self.sequences[seq_id]
                tokens.commit(range(len(tokens.pending)))
            self.sequences[seq_id].slide()
        self._step = None

    def commit(self, seq_ids: Seq[int], kept: Seq[Seq[int]], *, any_nodes: bool = False) -> None:
        """Append the kept pending tokens to the committed ones, and drop the others."""
        self._require_no_step("commit")
        if len(seq_ids) != len(kept):
            raise ValueError("as many lists of kept nodes as sequences")
        if len(set(seq_ids)) != len(seq_ids):
            raise ValueError("a sequence is named twice")
        for seq_id, nodes in zip(seq_ids, kept, strict=True):
            tokens = self._find(seq_id)
            for index, node in enumerate(nodes):
                if not 0 <= node < len(tokens.pending):
                    raise IndexError(f"node {node} of {len(tokens.pending)} pending ones")
                if index and node <= nodes[index - 1]:
                    raise ValueError("kept nodes are given in order")
                position = tokens.positions[len(tokens.committed) + node]
                if position != tokens.next_position + index:
                    raise ValueError(f"node {node} has position {position}: no continuation")
            if not any_nodes and not tokens.follow_their_paths(nodes):
                raise ValueError(f"nodes {list(nodes)} are no path")
        for seq_id, nodes in zip(seq_ids, kept, strict=True):
            self.sequences[seq_id].commit(nodes)
            self.sequences[seq_id].slide()

    def abort(self, seq_ids: Seq[int] | None = None) -> None:
        """Undo a step that has begun; otherwise drop pending tokens, of all by default."""
        if self._step is not None:
            self.sequences.update(self._step.before)
            self._step = None
            return
        named = self.sequences if seq_ids is None else seq_ids
        for tokens in [self._find(seq_id) for seq_id in named]:
            tokens.truncate(len(tokens.committed))

    # Reading and rolling back

    def checkpoint(self, seq_id: int) -> Tokens:
        """Return what ``rollback`` needs to come back here."""
        self._require_no_step("checkpoint")
        return self._find(seq_id).copy()

    def rollback(self, seq_id: int, checkpoint: Tokens) -> None:
        """Make the sequence what it was at the checkpoint, which must be one of its own."""
        self._require_no_step("rollback")
        now = self._find(seq_id)
        if now.birth != checkpoint.birth:
            raise ValueError(f"the checkpoint is not one of this sequence {seq_id}")
        before = checkpoint.copy()
        before.window, before.evicted = now.window, now.evicted | before.evicted
        self.sequences[seq_id] = before

    def sequence_length(self, seq_id: int) -> int:
        """Return the number of tokens, pending ones included."""
        return len(self._find(seq_id))

    def get_kv(self, seq_id: int, begin: int = 0, end: int | None = None) -> tuple[Array, Array]:
        """Return K and V, each ``(num_layers, length, num_kv_heads, head_dim)``."""
        tokens = self._find(seq_id)
        numbers = (tokens.committed + tokens.pending)[begin:end]
        return self._table.read(numbers)

    def visible(self, seq_id: int, length: int, layer_window: int = 0) -> npt.NDArray[np.bool_]:
        """Return which columns, committed then pending, each of the last ``length`` tokens sees."""
        tokens = self._find(seq_id)
        past, columns = len(tokens.committed), len(tokens.committed) + len(tokens.pending)
        see = np.zeros((length, columns), bool)
        for row, node in enumerate(range(len(tokens.pending) - length, len(tokens.pending))):
            see[row, past:][tokens.ancestors(node)] = True
        see[:, :past] = True
        return see & tokens.in_windows(length, layer_window)

    # Internals

    def _attend(
        self,
        q: npt.NDArray[np.float64],
        layer: int,
        tokens: Tokens,
        see: npt.NDArray[np.bool_],
        scale: float,
    ) -> npt.NDArray[np.float64]:
        return self._table.attend(q, layer, tokens, see, scale)

    def _next_birth(self) -> int:
        self._births += 1
        return self._births

    def _find(self, seq_id: int) -> Tokens:
        if seq_id not in self.sequences:
            raise KeyError(f"no sequence {seq_id}")
        return self.sequences[seq_id]

    def _require_new(self, seq_id: int) -> None:
        if seq_id < 0:
            raise ValueError(f"a sequence id must not be negative, got {seq_id}")
        if seq_id in self.sequences:
            raise ValueError(f"sequence {seq_id} exists")
        if len(self.sequences) >= self.max_sequences:
            raise ValueError(f"no more than {self.max_sequences} sequences")

    def _require_no_step(self, what: str) -> None:
        if self._step is not None:
            raise RuntimeError(f"{what} between begin_forward and end_forward")

    def _require_step(self, what: str) -> _Step:
        if self._step is None:
            raise RuntimeError(f"{what} outside a step")
        return self._step
