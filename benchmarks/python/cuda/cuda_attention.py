"""Masked paged attention at verify shapes on a CUDA device, beside torch and FlashInfer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

import kvctl
from cuda_timing import graph_of, timed

QO_HEADS, KV_HEADS, DIM = 32, 8, 128
LAYER_BYTES = 2 * KV_HEADS * DIM * 2  # of one token, float16
PAGE = 16


def random_tree(size: int) -> list[int]:
    """Parents of a tree like those that are drafted: a few branches at each of several depths."""
    return [-1] + [max(0, (node - 1) // 2) for node in range(1, size)]


def shapes(quick: bool) -> Iterator[tuple[int, int, int]]:
    """Batch, new tokens, tokens in the cache."""
    for kv in (8192, 131072) if quick else (1024, 8192, 32768, 131072):
        for batch in (1, 8) if quick else (1, 8, 32):
            for new in (1, 8, 16, 64):
                yield batch, new, kv


def visible_keys(parents: list[int], past: int) -> Any:
    """Return which keys the nodes of a tree see, (nodes, past + nodes)."""
    visible = torch.zeros(len(parents), past + len(parents), dtype=torch.bool, device="cuda")
    visible[:, :past] = True
    for node, parent in enumerate(parents):
        if parent >= 0:
            visible[node] = visible[parent]
        visible[node, past + node] = True
    return visible


class Case:
    """A cache whose layers together are larger than any cache of the chip."""

    def __init__(self, batch: int, new: int, kv: int) -> None:
        self.batch, self.new, self.kv = batch, new, kv
        bytes_per_layer = batch * kv * LAYER_BYTES
        self.layers = max(1, min(16, math.ceil((1 << 29) / bytes_per_layer)))
        self.bytes_read = bytes_per_layer + batch * new * LAYER_BYTES
        self.cache = kvctl.PagedKVCache.create(
            num_layers=self.layers,
            num_qo_heads=QO_HEADS,
            num_kv_heads=KV_HEADS,
            head_dim=DIM,
            max_total_tokens=batch * (kv + new + 2 * PAGE),
            page_size=PAGE,
            max_sequences=batch,
            prefill_chunk_size=max(batch * new, 8192),
            dtype="float16",
            device="cuda",
        )
        width = QO_HEADS + 2 * KV_HEADS
        self.qkv = torch.randn(batch * new, width, DIM, dtype=torch.float16, device="cuda")
        self.out = torch.empty(batch * new, QO_HEADS, DIM, dtype=torch.float16, device="cuda")
        self._fill()

    def _fill(self) -> None:
        chunk = 8192
        rows = torch.randn(chunk, QO_HEADS + 2 * KV_HEADS, DIM, dtype=torch.float16, device="cuda")
        out = torch.empty(chunk, QO_HEADS, DIM, dtype=torch.float16, device="cuda")
        nothing = kvctl.Mask.window(1)  # fills K and V; its attention is not used
        for seq_id in range(self.batch):
            self.cache.add_sequence(seq_id)
            for begin in range(0, self.kv, chunk):
                n = min(chunk, self.kv - begin)
                with self.cache.forward([seq_id], [n], mask=nothing):
                    for layer in range(self.layers):
                        self.cache.attention(layer, rows[:n], out[:n])

    def step(self, mask: Any) -> Callable[[], None]:
        """Begin a step; return what attends in all its layers."""
        pending = None if mask is None else True
        self.cache.begin_forward(
            list(range(self.batch)), [self.new] * self.batch, mask=mask, pending=pending
        )

        def run() -> None:
            for layer in range(self.layers):
                self.cache.attention(layer, self.qkv, self.out)

        return run

    def error(self, mask: Any, parents: list[int]) -> float:
        """Return the relative error of a step's last layer against torch in float32.

        K and V are read out of the cache's own pages, so that slots and page tables count too.
        """
        run = self.step(mask)
        try:
            self.out.fill_(float("nan"))
            run()
            tables = self.cache.page_table(range(self.batch))
            indptr, indices, _ = (torch.from_dlpack(part) for part in tables)
            pages = torch.from_dlpack(self.cache.layer_pages(self.layers - 1))
            worst = 0.0
            for seq in range(min(self.batch, 2)):
                kv = pages[indices[indptr[seq] : indptr[seq + 1]].long()].permute(1, 2, 0, 3, 4)
                kv = kv.reshape(2, KV_HEADS, -1, DIM)[:, :, : self.kv + self.new].float()
                rows = slice(seq * self.new, (seq + 1) * self.new)
                q = self.qkv[rows, :QO_HEADS].transpose(0, 1).float()
                want = torch.nn.functional.scaled_dot_product_attention(
                    q[None],
                    kv[:1],
                    kv[1:],
                    attn_mask=visible_keys(parents, self.kv),
                    enable_gqa=True,
                )[0].transpose(0, 1)
                difference = torch.linalg.vector_norm(self.out[rows].float() - want)
                worst = max(worst, float(difference / torch.linalg.vector_norm(want)))
            return worst if math.isfinite(float(self.out.float().sum())) else math.inf
        finally:
            self.cache.abort()

    def time(self, mask: Any, *, graph: bool) -> dict[str, float]:
        run = self.step(mask)
        try:
            return timed(graph_of(run) if graph else run, calls=self.layers)
        finally:
            self.cache.abort()


class Peers:
    """The same attention over dense K and V (torch) or pages (FlashInfer), where they exist."""

    def __init__(self, case: Case, parents: list[int]) -> None:
        self.case = case
        total = case.kv + case.new
        shape = (case.batch, KV_HEADS, total, DIM)
        self.k = torch.randn(shape, dtype=torch.float16, device="cuda")
        self.v = torch.randn(shape, dtype=torch.float16, device="cuda")
        self.q = torch.randn(
            case.batch, QO_HEADS, case.new, DIM, dtype=torch.float16, device="cuda"
        )
        self.visible = visible_keys(parents, case.kv)

    def sdpa(self) -> dict[str, float]:
        def run() -> None:
            torch.nn.functional.scaled_dot_product_attention(
                self.q, self.k, self.v, attn_mask=self.visible, enable_gqa=True
            )

        return timed(run, calls=1)

    def flex(self) -> dict[str, float]:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        visible = self.visible

        def mask_mod(_batch: Any, _head: Any, q: Any, kv: Any) -> Any:
            return visible[q, kv]

        total = self.case.kv + self.case.new
        blocks = create_block_mask(mask_mod, None, None, self.case.new, total, device="cuda")
        attend = torch.compile(flex_attention)
        return timed(
            lambda: attend(self.q, self.k, self.v, block_mask=blocks, enable_gqa=True), calls=1
        )

    def flashinfer(self) -> dict[str, float]:
        import flashinfer

        case = self.case
        pages = math.ceil((case.kv + case.new) / PAGE)
        kv = torch.randn(
            case.batch * pages, 2, PAGE, KV_HEADS, DIM, dtype=torch.float16, device="cuda"
        )
        space = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
        wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(space, "NHD")
        int32 = {"dtype": torch.int32, "device": "cuda"}
        last = (case.kv + case.new - 1) % PAGE + 1
        wrapper.plan(
            torch.arange(case.batch + 1, **int32) * case.new,
            torch.arange(case.batch + 1, **int32) * pages,
            torch.arange(case.batch * pages, **int32),
            torch.full((case.batch,), last, **int32),
            QO_HEADS,
            KV_HEADS,
            DIM,
            PAGE,
            custom_mask=self.visible.flatten().repeat(case.batch),
        )
        q = self.q.transpose(1, 2).reshape(case.batch * case.new, QO_HEADS, DIM).contiguous()
        return timed(lambda: wrapper.run(q, kv), calls=1)


def with_peers(batch: int, new: int, kv: int) -> bool:
    """Return whether the peers run at a shape: they compile for each, which takes long."""
    return kv in (8192, 32768) and batch in (1, 8) and new in (8, 16)


def measure(batch: int, new: int, kv: int, bandwidth: float, peers: bool) -> dict[str, Any]:
    """Return one row of the table."""
    case = Case(batch, new, kv)
    parents = random_tree(new)
    tree = [kvctl.Mask.tree(parents)] * batch
    row: dict[str, Any] = {"batch": batch, "new": new, "kv": kv, "layers": case.layers}
    row["error"] = case.error(tree, parents)
    if not row["error"] < 2e-3:
        raise RuntimeError(f"wrong results at {batch} x {new} over {kv}: error {row['error']}")
    row["eager"] = case.time(tree, graph=False)
    try:
        row["tree"] = case.time(tree, graph=True)
        row["causal"] = case.time(None, graph=True)
        row["graph"] = True
    except RuntimeError as error:  # report it, and measure without a graph
        row["tree"], row["causal"] = row["eager"], case.time(None, graph=False)
        row["graph"] = str(error).splitlines()[0]
    row["of_bandwidth"] = case.bytes_read / row["tree"]["median"] / bandwidth
    row["tree_over_causal"] = row["tree"]["median"] / row["causal"]["median"]
    case.cache = None  # frees memory for the peers
    if peers and with_peers(batch, new, kv):
        others = Peers(case, parents)
        for name in ("sdpa", "flex", "flashinfer"):
            try:
                row[name] = getattr(others, name)()
            except Exception as error:
                row[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
    torch.cuda.empty_cache()
    return row
