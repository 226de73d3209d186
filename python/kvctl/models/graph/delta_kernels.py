"""The loops of a gated delta net: token by token, always with the same order of operations.

Each kernel goes through the new tokens ("rows") of a batch in order. Row r reads the state entry
``rows[0, r]`` (or, where that is negative, the root ``-1 - rows[0, r]``) and writes entry
``rows[1, r]``, so that one kernel serves chains, trees and batches of both, whether a state per
token is wanted or only the last. A row depends on its own path alone, so the states are equal bit
for bit however the tokens are split into chunks.
"""

# The script language's names are its own:
# mypy: ignore-errors
# ruff: noqa: ANN202

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

_OPAQUE = 8  # the fuser leaves these alone


def short_conv(proj_width: int, channels: int, width: int) -> Any:
    """Return a causal depthwise convolution with SiLU over the last `width` inputs of each path.

    ``(proj (n, proj_width), roots (r, width - 1, channels), rows (2, n), weight (width,
    channels)) -> (y (n, channels), entries (m, width - 1, channels))``. It convolves the first
    `channels` columns; a state is the last ``width - 1`` inputs, oldest first.
    """
    kept = width - 1

    @T.prim_func(private=True, s_tir=True)
    def kernel(
        var_proj: T.handle,
        var_roots: T.handle,
        var_rows: T.handle,
        var_weight: T.handle,
        var_y: T.handle,
        var_entries: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": _OPAQUE})
        n = T.int64()
        r = T.int64()
        m = T.int64()
        proj = T.match_buffer(var_proj, (n, proj_width), "float32")
        roots = T.match_buffer(var_roots, (r, kept, channels), "float32")
        rows = T.match_buffer(var_rows, (2, n), "int32")
        weight = T.match_buffer(var_weight, (width, channels), "float32")
        y = T.match_buffer(var_y, (n, channels), "float32")
        entries = T.match_buffer(var_entries, (m, kept, channels), "float32")
        with T.sblock("short_conv"):
            T.reads(proj[0:n, 0:proj_width], roots[0:r, 0:kept, 0:channels], rows[0:2, 0:n])
            T.writes(y[0:n, 0:channels], entries[0:m, 0:kept, 0:channels])
            for row in T.serial(n):
                if rows[0, row] < 0:
                    for i, c in T.grid(kept, channels):
                        entries[rows[1, row], i, c] = roots[-1 - rows[0, row], i, c]
                else:
                    if rows[0, row] != rows[1, row]:
                        for i, c in T.grid(kept, channels):
                            entries[rows[1, row], i, c] = entries[rows[0, row], i, c]
                for c in T.serial(channels):
                    y[row, c] = proj[row, c] * weight[kept, c]
                for i, c in T.grid(kept, channels):
                    y[row, c] = y[row, c] + entries[rows[1, row], i, c] * weight[i, c]
                for i, c in T.grid(kept - 1, channels):
                    entries[rows[1, row], i, c] = entries[rows[1, row], i + 1, c]
                for c in T.serial(channels):
                    entries[rows[1, row], kept - 1, c] = proj[row, c]
                    y[row, c] = y[row, c] / (T.float32(1) + T.exp(-y[row, c]))

    return kernel


def gated_delta(proj_width: int, heads: int, key_dim: int, value_dim: int) -> Any:
    """Return the gated delta rule, per head ``S = a S + k (b (v - k^T a S))^T``, ``o = S^T q``.

    Gated Delta Networks (arXiv:2412.06464), equation 10, with S transposed. q and k are normalised
    to unit length and q scaled by ``key_dim ** -0.5``; with the columns ``b, a`` that end proj,
    ``b = sigmoid(b)`` and ``a = exp(-exp(a_log) softplus(a + dt_bias))``.

    ``(qkv (n, heads * (2 key_dim + value_dim)), proj (n, proj_width), roots (r, heads, key_dim,
    value_dim), rows (2, n), a_log (heads,), dt_bias (heads,)) -> (o (n, heads, value_dim),
    entries (m, heads, key_dim, value_dim))``.
    """
    channels = heads * (2 * key_dim + value_dim)
    k_begin = heads * key_dim
    v_begin = 2 * heads * key_dim
    b_begin = proj_width - 2 * heads
    a_begin = proj_width - heads
    q_scale = key_dim**-0.5

    @T.prim_func(private=True, s_tir=True)
    def kernel(
        var_qkv: T.handle,
        var_proj: T.handle,
        var_roots: T.handle,
        var_rows: T.handle,
        var_a_log: T.handle,
        var_dt_bias: T.handle,
        var_o: T.handle,
        var_entries: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": _OPAQUE})
        n = T.int64()
        r = T.int64()
        m = T.int64()
        qkv = T.match_buffer(var_qkv, (n, channels), "float32")
        proj = T.match_buffer(var_proj, (n, proj_width), "float32")
        roots = T.match_buffer(var_roots, (r, heads, key_dim, value_dim), "float32")
        rows = T.match_buffer(var_rows, (2, n), "int32")
        a_log = T.match_buffer(var_a_log, (heads,), "float32")
        dt_bias = T.match_buffer(var_dt_bias, (heads,), "float32")
        o = T.match_buffer(var_o, (n, heads, value_dim), "float32")
        entries = T.match_buffer(var_entries, (m, heads, key_dim, value_dim), "float32")
        with T.sblock("gated_delta"):
            T.reads(qkv[0:n, 0:channels], proj[0:n, 0:proj_width], rows[0:2, 0:n])
            T.writes(o[0:n, 0:heads, 0:value_dim], entries[0:m, 0:heads, 0:key_dim, 0:value_dim])
            q_norm = T.sblock_alloc_buffer((1,), "float32")
            k_norm = T.sblock_alloc_buffer((1,), "float32")
            decay = T.sblock_alloc_buffer((1,), "float32")
            gate = T.sblock_alloc_buffer((1,), "float32")
            key = T.sblock_alloc_buffer((key_dim,), "float32")
            query = T.sblock_alloc_buffer((key_dim,), "float32")
            delta = T.sblock_alloc_buffer((value_dim,), "float32")
            for row, h in T.grid(n, heads):
                q_norm[0] = T.float32(1e-6)
                k_norm[0] = T.float32(1e-6)
                for i in T.serial(key_dim):
                    q_norm[0] = q_norm[0] + qkv[row, h * key_dim + i] * qkv[row, h * key_dim + i]
                    k_norm[0] = k_norm[0] + (
                        qkv[row, k_begin + h * key_dim + i] * qkv[row, k_begin + h * key_dim + i]
                    )
                q_norm[0] = T.float32(q_scale) / T.sqrt(q_norm[0])
                k_norm[0] = T.float32(1) / T.sqrt(k_norm[0])
                for i in T.serial(key_dim):
                    query[i] = qkv[row, h * key_dim + i] * q_norm[0]
                    key[i] = qkv[row, k_begin + h * key_dim + i] * k_norm[0]
                gate[0] = T.float32(1) / (T.float32(1) + T.exp(-proj[row, b_begin + h]))
                decay[0] = proj[row, a_begin + h] + dt_bias[h]
                # softplus without overflow
                decay[0] = T.max(decay[0], T.float32(0)) + T.log(
                    T.float32(1) + T.exp(-T.fabs(decay[0]))
                )
                decay[0] = T.exp(-T.exp(a_log[h]) * decay[0])
                # The state before this token, decayed, goes where the state after it will be.
                if rows[0, row] < 0:
                    for i, j in T.grid(key_dim, value_dim):
                        entries[rows[1, row], h, i, j] = (
                            roots[-1 - rows[0, row], h, i, j] * decay[0]
                        )
                else:
                    for i, j in T.grid(key_dim, value_dim):
                        entries[rows[1, row], h, i, j] = entries[rows[0, row], h, i, j] * decay[0]
                for j in T.serial(value_dim):
                    delta[j] = T.float32(0)
                for i, j in T.grid(key_dim, value_dim):
                    delta[j] = delta[j] + entries[rows[1, row], h, i, j] * key[i]
                for j in T.serial(value_dim):
                    delta[j] = (qkv[row, v_begin + h * value_dim + j] - delta[j]) * gate[0]
                    o[row, h, j] = T.float32(0)
                for i, j in T.grid(key_dim, value_dim):
                    entries[rows[1, row], h, i, j] = (
                        entries[rows[1, row], h, i, j] + key[i] * delta[j]
                    )
                    o[row, h, j] = o[row, h, j] + entries[rows[1, row], h, i, j] * query[i]

    return kernel


def gated_norm(proj_width: int, z_begin: int, heads: int, value_dim: int, epsilon: float) -> Any:
    """Return RMSNorm of each head, times SiLU of the gate columns of proj from `z_begin` on.

    ``(o (n, heads, value_dim), proj (n, proj_width), weight (value_dim,)) -> (n, heads *
    value_dim)``.
    """

    @T.prim_func(private=True, s_tir=True)
    def kernel(var_o: T.handle, var_proj: T.handle, var_weight: T.handle, var_out: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": _OPAQUE})
        n = T.int64()
        o = T.match_buffer(var_o, (n, heads, value_dim), "float32")
        proj = T.match_buffer(var_proj, (n, proj_width), "float32")
        weight = T.match_buffer(var_weight, (value_dim,), "float32")
        out = T.match_buffer(var_out, (n, heads * value_dim), "float32")
        with T.sblock("gated_norm"):
            T.reads(o[0:n, 0:heads, 0:value_dim], proj[0:n, 0:proj_width], weight[0:value_dim])
            T.writes(out[0:n, 0 : heads * value_dim])
            norm = T.sblock_alloc_buffer((1,), "float32")
            for row, h in T.grid(n, heads):
                norm[0] = T.float32(0)
                for j in T.serial(value_dim):
                    norm[0] = norm[0] + o[row, h, j] * o[row, h, j]
                norm[0] = T.float32(1) / T.sqrt(norm[0] / T.float32(value_dim) + T.float32(epsilon))
                for j in T.serial(value_dim):
                    out[row, h * value_dim + j] = (
                        o[row, h, j]
                        * norm[0]
                        * weight[j]
                        * proj[row, z_begin + h * value_dim + j]
                        / (T.float32(1) + T.exp(-proj[row, z_begin + h * value_dim + j]))
                    )

    return kernel
