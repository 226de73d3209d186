"""Heads on disk and their targets."""

from __future__ import annotations

import pytest

pytest.importorskip("kvctl.models", reason="needs TVM's compiler")

from head_checkpoint import Target, write_head


@pytest.fixture(scope="session")
def target():
    return Target()


@pytest.fixture(scope="session")
def compiled(tmp_path_factory, target):
    """Return a function that compiles a case once."""
    from kvctl.heads import load
    from kvctl.heads.compile import compile_head

    made = {}

    def make(case):
        if case not in made:
            folder = tmp_path_factory.mktemp(case)
            head = write_head(folder / "head", case)
            made[case] = compile_head(head, folder / "compiled", target_model=target)
        return load(made[case])

    return make
