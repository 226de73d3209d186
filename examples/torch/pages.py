"""Another library's attention over kvctl's own pages: torch's, or FlashInfer's if installed.

``cache.layer_pages`` shares the memory of K and V, and ``cache.page_table`` says where each
sequence lies in it, so that a kernel of yours can be compared with kvctl's, or take its place.

``python examples/torch/pages.py``
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

import kvctl
import kvctl.torch

HEADS, KV_HEADS, DIM, PAGE = 4, 2, 64, 16


def make_cache(lengths: dict[int, int], device: str = "cpu") -> kvctl.PagedKVCache:
    """Return a cache of one layer with sequences of random K and V."""
    cache = kvctl.PagedKVCache.create(
        num_layers=1,
        num_qo_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=DIM,
        max_total_tokens=1024,
        page_size=PAGE,
        dtype="float32" if device == "cpu" else "float16",
        device=device,
    )
    dtype = torch.float32 if device == "cpu" else torch.float16
    for seq_id, length in lengths.items():
        cache.add_sequence(seq_id)
        qkv = torch.randn(length, HEADS + 2 * KV_HEADS, DIM, dtype=dtype, device=device)
        with cache.forward([seq_id], [length]):
            cache.attention(0, qkv)
    return cache


def attend_by_torch(cache: kvctl.PagedKVCache, seq_ids: list[int], q: torch.Tensor) -> torch.Tensor:
    """Attend with one query for each sequence, (sequences, HEADS, DIM), to all of its keys."""
    pages = kvctl.torch.from_cache(cache.layer_pages(0))
    indptr, indices, last = (kvctl.torch.from_cache(part) for part in cache.page_table(seq_ids))
    outs = []
    for i, one in enumerate(q):
        mine = pages[indices[indptr[i] : indptr[i + 1]].long()]  # (pages, 2, heads, PAGE, DIM)
        length = (len(mine) - 1) * PAGE + int(last[i])
        k, v = mine.permute(1, 2, 0, 3, 4).reshape(2, KV_HEADS, -1, DIM)[:, None, :, :length]
        outs.append(F.scaled_dot_product_attention(one[None, :, None], k, v, enable_gqa=True))
    return torch.cat(outs)[:, :, 0]


def attend_by_flashinfer(
    cache: kvctl.PagedKVCache, seq_ids: list[int], q: torch.Tensor
) -> torch.Tensor:
    """Do the same with FlashInfer, which takes pages and index arrays as they are (on a GPU)."""
    import flashinfer

    space = torch.empty(128 << 20, dtype=torch.uint8, device=q.device)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(space, "HND")
    tables = (kvctl.torch.from_cache(part) for part in cache.page_table(seq_ids))
    wrapper.plan(*tables, HEADS, KV_HEADS, DIM, PAGE, q_data_type=q.dtype, kv_data_type=q.dtype)
    result: torch.Tensor = wrapper.run(q, kvctl.torch.from_cache(cache.layer_pages(0)))
    return result


def compare(device: str = "cpu") -> dict[str, float]:
    """Decode one token of each sequence; return how far the others are from kvctl's attention."""
    seq_ids = [2, 0]
    cache = make_cache({0: 5, 1: 40, 2: 33}, device)
    dtype = torch.float32 if device == "cpu" else torch.float16
    qkv = torch.randn(2, HEADS + 2 * KV_HEADS, DIM, dtype=dtype, device=device)
    with cache.forward(seq_ids, [1, 1]):
        ours = kvctl.torch.from_cache(cache.attention(0, qkv))
    q = qkv[:, :HEADS]
    distances = {"torch": float((attend_by_torch(cache, seq_ids, q) - ours).abs().max())}
    if device == "cuda":
        try:
            theirs = attend_by_flashinfer(cache, seq_ids, q.contiguous())
            distances["flashinfer"] = float((theirs - ours).abs().max())
        except ImportError:
            pass
    return distances


if __name__ == "__main__":
    torch.manual_seed(0)
    for name, distance in compare("cuda" if torch.cuda.is_available() else "cpu").items():
        print(f"{name}: at most {distance:.1e} from kvctl's attention")
