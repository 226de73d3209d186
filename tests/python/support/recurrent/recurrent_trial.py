"""A recurrent model that is easy to reckon by hand, on a kvctl.RecurrentState."""

from __future__ import annotations

import numpy as np

from kvctl.recurrent.state import RecurrentState

INIT = (np.full((2, 3), 0.5, np.float32), np.array([3, 1, 4, 1], np.int64))
LAYERS = 2


def recur(states: list[np.ndarray], token: int) -> list[np.ndarray]:
    """The state after a token, one array per layer and state, in the arrays' own arithmetic."""
    after = []
    for index, state in enumerate(states):
        if state.dtype == np.float32:
            after.append(state * np.float32(0.9) + np.sin(np.float32(token + index)) + state[::-1])
        else:
            after.append(state * 31 + np.roll(state, 1) + token + index)
    return after


def initial() -> list[np.ndarray]:
    return [value for _ in range(LAYERS) for value in INIT]


def create(**options) -> RecurrentState:
    options = {"max_sequences": 4, "max_history": 5, **options}
    return RecurrentState.create(num_layers=LAYERS, init_values=INIT, **options)


def forward(state: RecurrentState, tokens: list[list[int]], *, steps: bool) -> None:
    """What a model does between begin_forward and end_forward, by the interface for models."""
    flat = [token for one in tokens for token in one]
    rows = state.get_rows(np.empty((2, len(flat)), np.int32), steps=steps)
    entries = len(flat) if steps else state.num_roots
    for layer in range(LAYERS):
        for index, init in enumerate(INIT):
            roots = state.get_roots(
                layer, index, np.empty((state.num_roots, *init.shape), init.dtype)
            )
            out = np.empty((entries, *init.shape), init.dtype)
            for token, source, target in zip(flat, *rows, strict=True):
                before = out[source] if source >= 0 else roots[-1 - source]
                padded = [before] * (layer * len(INIT) + index + 1)
                out[target] = recur(padded, token)[-1]
            (state.set_steps if steps else state.set)(layer, index, out)


def run(state: RecurrentState, seq_id: int, tokens: list[int], *, steps: bool = True, **options):
    state.begin_forward([seq_id], [len(tokens)], **options)
    forward(state, [tokens], steps=steps)
    state.end_forward()


def after(tokens: list[int]) -> list[np.ndarray]:
    states = initial()
    for token in tokens:
        states = recur(states, token)
    return states


def states_of(state: RecurrentState, seq_id: int, position: int = -1) -> list[np.ndarray]:
    return [
        np.from_dlpack(state.get_state(seq_id, layer, index, position=position))
        for layer in range(LAYERS)
        for index in range(len(INIT))
    ]


def assert_state(state: RecurrentState, seq_id: int, tokens: list[int], position: int = -1) -> None:
    for got, expected in zip(states_of(state, seq_id, position), after(tokens), strict=True):
        assert got.tobytes() == expected.tobytes()
