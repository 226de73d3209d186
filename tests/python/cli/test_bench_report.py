"""What `kvctl bench steps` prints and writes of texts that are too short to have a rate."""

import json

from fake_runner import FakeRunner
from kvctl import generate
from kvctl.cli.bench.measure import Steps, Timing, measure_speedup, to_json
from kvctl.cli.bench.steps import speedup_cells
from kvctl.draft import LookupDrafter

PROMPT = [5, 6, 7, 8, 9, 5, 6]


def measured(**options):
    return measure_speedup(FakeRunner(), "short", PROMPT, LookupDrafter(length=3), **options)


def test_a_text_that_ends_after_its_first_token_has_a_dash():
    first = generate(FakeRunner(), PROMPT, max_new_tokens=1).tokens[0]
    one = measured(new_tokens=20, stop_check=lambda: lambda token: token == first)
    assert speedup_cells(one) == ["short", "1", "-", "-", "-", "-", "yes"]
    timing = Timing(1.0, 1.0, 1.0)
    written = to_json(Steps(16, timing, timing, {2: timing}), [one])
    assert json.loads(json.dumps(written, allow_nan=False))["generation"][0]["ratio"] is None


def test_a_longer_text_has_figures():
    cells = speedup_cells(measured(new_tokens=20))
    assert cells[:2] == ["short", "20"] and cells[-1] == "yes"
    assert all(float(cell.rstrip("x")) > 0 for cell in cells[2:-2])
