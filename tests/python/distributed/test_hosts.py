"""One worker on each of two hosts, which are network namespaces here."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

import kvctl

PROMPT = [1, 2, 3, 4, 2, 3]
CONTROLLER = """
import json, os, signal, sys, time
import kvctl
from kvctl.distributed import ModelRunner, WorkerError
directory, when, *hosts = sys.argv[1:]
held = []


def hold(*_):
    # Worker 0 stays within its step until the other host has ended, and longer.
    if when == "within a step" and not held:
        held.append(print("holding", flush=True))
        sys.stdin.readline()
        time.sleep(0.5)


with ModelRunner.load(directory, hosts=hosts, port=9190, patience=2) as runner:
    tokens = kvctl.generate(runner, [1, 2, 3, 4, 2, 3], max_new_tokens=20).tokens
    print(json.dumps(tokens), flush=True)
    if when != "within a step":
        print("holding", flush=True)
        sys.stdin.readline()
    begun = time.monotonic()
    try:
        with runner.functions.instrumented(hold):
            kvctl.generate(runner, [1, 2, 3, 4, 2, 3], max_new_tokens=20)
    except WorkerError as error:
        said = [str(error), time.monotonic() - begun]
    print(json.dumps([*said, runner.cache.sequence_ids]), flush=True)
"""


def _ip(*arguments):
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def namespaces():
    """Two network namespaces joined by a cable, and the address of each."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs root and ip, for network namespaces")
    names = [f"kvctl{os.getpid()}{side}" for side in "ab"]
    cables = [f"kv{os.getpid()}{side}" for side in "ab"]
    made = _ip("netns", "add", names[0])
    if made.returncode:
        pytest.skip(f"network namespaces are not permitted here: {made.stderr.strip()}")
    try:
        _ip("netns", "add", names[1])
        cable = _ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1])
        if cable.returncode:
            pytest.skip(f"veth devices are not permitted here: {cable.stderr.strip()}")
        for number, (name, end) in enumerate(zip(names, cables, strict=True), 1):
            _ip("link", "set", end, "netns", name)
            _ip("-n", name, "addr", "add", f"10.93.7.{number}/24", "dev", end)
            _ip("-n", name, "link", "set", end, "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield [(name, f"10.93.7.{number}") for number, name in enumerate(names, 1)]
    finally:
        for name in names:
            _ip("netns", "del", name)


def _run(inside, *arguments):
    command = ["ip", "netns", "exec", inside, sys.executable, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.parametrize("when", ["between steps", "within a step", "stopped"])
def test_the_same_text_and_the_death_of_a_host(gloo, namespaces, sharded_model, tiny_model, when):
    (first, address), (second, other) = namespaces
    controller = _run(first, "-c", CONTROLLER, str(sharded_model), when, address, other)
    host = _run(second, "-m", "kvctl.distributed.host", address, "9190")
    try:
        tokens = json.loads(controller.stdout.readline() or controller.stderr.read())
        alone = kvctl.ModelRunner.load(tiny_model)
        assert tokens == kvctl.generate(alone, PROMPT, max_new_tokens=20).tokens
        assert controller.stdout.readline() == "holding\n"
        if when == "stopped":
            host.send_signal(signal.SIGSTOP)
        else:
            host.kill()
            host.wait()
        print(file=controller.stdin, flush=True)
        said, seconds, left = json.loads(controller.stdout.readline() or controller.stderr.read())
        what = "has not answered for 2 s" if when == "stopped" else "has ended"
        assert f"worker 1 (on {other}) {what}" in said and seconds < 10
        assert left == []  # worker 0 has left its step, and generate has removed its sequences
        assert controller.wait(timeout=30) == 0, controller.stderr.read()
    finally:
        for process in (controller, host):
            process.kill()
            process.communicate()
