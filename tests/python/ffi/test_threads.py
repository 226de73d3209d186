"""OpenMP's threads: how they wait, and what happens after a fork."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import kvctl
from kvctl._ffi import libraries

SEVERAL = pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="needs two CPUs")
LATE = """
import ctypes, sys
threads = ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL).omp_get_max_threads()
for path in sys.argv[1:]:
    library = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
init = getattr(library, "_ZN5kvctl4InitEPKc")
init(b"cpu")
init(b"cpu")
"""


def in_child(call):
    """What a forked child raises, as text; "" if nothing; "hangs" after 20 seconds."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        message = ""
        try:
            call()
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
        os.write(write, message.encode())
        os._exit(0)
    os.close(write)
    until = time.monotonic() + 20
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "hangs"
        time.sleep(0.01)
    with os.fdopen(read) as file:
        return file.read()


@SEVERAL
@pytest.mark.parametrize("name", ["idle_process_computes", "generate_then_fork"])
def test_a_child_that_would_wait_forever_is_refused(tiny_model, name):
    """Each in a process of its own: what was computed before decides."""
    alone = f"_alone and {name}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", alone],
        env={**os.environ, "KVCTL_TINY_MODEL": str(tiny_model)},
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.skipif("KVCTL_TINY_MODEL" not in os.environ, reason="run by the test above")
class TestAlone:
    def test_alone_a_child_of_an_idle_process_computes(self):
        cache = big_cache()
        assert in_child(lambda: attend(cache)) == ""

    def test_alone_generate_then_fork(self):
        runner = kvctl.ModelRunner.load(os.environ["KVCTL_TINY_MODEL"])
        kvctl.generate(runner, [1, 2, 3], max_new_tokens=4)
        text = in_child(lambda: kvctl.generate(runner, [1, 2, 3], max_new_tokens=4))
        assert text.startswith("RuntimeError: this process was forked after kvctl had computed")
        cache = big_cache()
        text = in_child(lambda: attend(cache))
        assert text.startswith("RuntimeError: this process was forked after kvctl had computed")
        assert len(kvctl.generate(runner, [1, 2, 3], max_new_tokens=4).tokens) == 4


def big_cache():
    cache = kvctl.PagedKVCache.create(
        num_layers=1,
        num_qo_heads=8,
        num_kv_heads=8,
        head_dim=64,
        max_total_tokens=1024,
        prefill_chunk_size=512,
    )
    cache.add_sequence(0)
    return cache


def attend(cache):
    """Enough attention for several threads."""
    with cache.forward([0], [512]):
        cache.attention(0, np.ones((512, 24, 64), "float32"))


@SEVERAL
@pytest.mark.parametrize("chosen", [{}, {"OMP_WAIT_POLICY": "passive"}])
def test_openmp_that_was_loaded_earlier_is_told_of_once(chosen):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {k: v for k, v in os.environ.items() if k not in names}
    paths = (
        libraries.package_dir("tvm_ffi") / "lib" / "libtvm_ffi.so",
        libraries.package_dir("tvm") / "lib" / "libtvm_runtime.so",
        libraries.library_dir() / "libkvctl.so",
    )
    done = subprocess.run(
        [sys.executable, "-c", LATE, *map(str, paths)],
        env=environment | chosen,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("OpenMP was loaded before kvctl") == (0 if chosen else 1)
