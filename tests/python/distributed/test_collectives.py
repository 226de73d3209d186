"""Disco's collectives over Gloo, between threads: the same functions as between processes."""

from __future__ import annotations

import pytest

from collectives_conformance import CollectivesConformance, Workers


@pytest.fixture(scope="module")
def four(gloo):
    return Workers("gloo", 4, groups=2)


class TestGloo(CollectivesConformance):
    pass
