"""Rounded K and V: nothing changes where nothing is rounded, and coarser types change more."""

import numpy as np
import pytest

from command_line import run
from kvctl import ModelRunner
from kvctl.checks import kv_precision
from kvctl.checks.kv_precision import CACHE_DTYPES, KV_DTYPES, check_kv


@pytest.fixture(scope="module")
def runner(tiny_model):
    return ModelRunner.load(tiny_model)


PROMPTS = [[3, 14, 15, 92, 65], [35, 89, 79]]


def test_without_rounding_all_bits_are_the_same(runner, monkeypatch):
    monkeypatch.setitem(KV_DTYPES, "own", lambda values: values)
    found = check_kv(runner, PROMPTS, "own", new_tokens=12)
    assert found.tokens == 24 and found.max_error == 0
    assert found.same_choice == 1 and found.acceptance == pytest.approx(1)
    assert 0 not in runner.cache


def test_coarser_types_change_more(runner):
    errors = [
        check_kv(runner, PROMPTS, name, new_tokens=12).mean_error
        for name in ("float16", "bfloat16", "float8_e4m3")
    ]
    assert 0 < errors[0] < errors[1] < errors[2]


def test_masked_tokens_have_no_error(runner, monkeypatch):
    class Masked:
        cache = runner.cache

        def prefill(self, ids, prompts):
            return self.masked(runner.prefill(ids, prompts))

        def decode(self, ids, tokens):
            return self.masked(runner.decode(ids, tokens))

        def masked(self, logits):
            rows = np.array(np.from_dlpack(logits))
            rows[:, 9] = -np.inf
            return rows

    found = check_kv(Masked(), PROMPTS, "bfloat16", new_tokens=6)
    assert 0 < found.mean_error < found.max_error < 1
    assert 0.9 < found.acceptance < 1
    for options in ({"temperature": 0.0}, {"temperature": float("nan")}, {"new_tokens": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}"):
            check_kv(runner, PROMPTS, "bfloat16", **options)


@pytest.mark.parametrize("name", CACHE_DTYPES)
def test_a_cache_of_the_type_is_as_good_as_rounding(runner, tiny_model, name):
    coarser = ModelRunner.load(tiny_model, kv_dtype=name)
    assert coarser.cache.dtype == name
    found = check_kv(runner, PROMPTS, name, coarser=coarser, new_tokens=12)
    rounded = check_kv(runner, PROMPTS, name, new_tokens=12)
    assert found.in_cache and not rounded.in_cache
    assert 0 < found.mean_error < 3 * rounded.mean_error
    assert rounded.mean_error < 3 * found.mean_error
    assert found.acceptance == pytest.approx(rounded.acceptance, abs=1e-3)
    same = ModelRunner.load(tiny_model, kv_dtype="float32")
    with pytest.raises(ValueError, match=f"must hold {name}, it holds float32"):
        check_kv(runner, PROMPTS, name, coarser=same)
    for other in ("int4", "Float16", "", b"float16", 3):
        message = f"must be float32, float16, bfloat16, int8 or float8_e4m3fn, got {other}"
        with pytest.raises(TypeError, match=message):
            ModelRunner.load(tiny_model, kv_dtype=other)


def test_rounding():
    values = np.random.default_rng(0).standard_normal((2, 3, 4, 64)).astype(np.float32)
    for name, bits in (("float16", 11), ("bfloat16", 8), ("float8_e4m3", 4), ("float8_e5m2", 3)):
        rounded = KV_DTYPES[name](values)
        big = np.abs(values) > 0.1
        assert (np.abs(rounded - values) / np.abs(values))[big].max() <= 2.0**-bits
        assert (KV_DTYPES[name](rounded) == rounded).all()
    found = KV_DTYPES["int8"](values)
    largest = np.abs(values).max(axis=-1, keepdims=True)
    assert (np.abs(found - values) <= largest / 254 * 1.001).all()
    assert (KV_DTYPES["int8"](np.zeros((1, 4), np.float32)) == 0).all()
    assert np.isfinite(KV_DTYPES["float8_e4m3"](np.array([1e9], np.float32))).all()


def test_what_is_wrong_is_refused(runner, monkeypatch):
    with pytest.raises(ValueError, match=r"is one of .*; got 'int3'"):
        check_kv(runner, PROMPTS, "int3")
    with pytest.raises(ValueError, match="there is no prompt"):
        check_kv(runner, [], "int8")
    monkeypatch.setattr(runner.cache, "dtype", "float16")
    with pytest.raises(ValueError, match="must hold float32, to round from; it holds float16"):
        check_kv(runner, PROMPTS, "int8")


def test_the_command(smollm2):
    dtypes = ("float16", "int8", "float8_e4m3")
    done = run(
        "check", "kv", smollm2, *(x for name in dtypes for x in ("--kv-dtype", name)), "-n", 4
    )
    assert done.returncode == 0 and "float16" in done.stdout, done.stderr
    how = {line.split()[1]: line for line in done.stdout.splitlines() if "%" in line}
    assert "in cache" in how["float16"] and "in cache" in how["int8"]
    assert "rounded" in how["float8_e4m3"]
    done = run("check", "kv", smollm2, "--kv-dtype", "int3", "-n", 2)
    assert done.returncode == 1 and "got 'int3'" in done.stderr


def test_only_new_tokens_are_rounded_again(runner, monkeypatch):
    begins = []
    real = kv_precision._round
    monkeypatch.setattr(
        kv_precision,
        "_round",
        lambda cache, rounded, b: (begins.append(b), real(cache, rounded, b)),
    )
    check_kv(runner, PROMPTS[:1], "float16", new_tokens=4)
    assert begins == [0, 5, 6]
