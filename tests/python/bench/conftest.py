"""A measurement that the tests of figures and reports share."""

import pytest

from bench_questions import CONFIGURATIONS, QUESTIONS
from fake_text import talking_runner
from kvctl.bench.settings import Settings
from kvctl.bench.spec import bench_spec


@pytest.fixture(scope="session")
def result():
    return bench_spec(
        talking_runner(),
        QUESTIONS,
        CONFIGURATIONS,
        Settings(max_new_tokens=40),
        model="models/fake",
        name="mine",
    )
