"""Real interrupts: SIGINT while a process generates a batch with a drafter."""

from __future__ import annotations

import subprocess
import sys

REPETITIONS = 36

# Interrupts come from a thread at random moments of a generation, first of its start, later of
# its end too; what they leave behind is looked at after each.
SCRIPT = """
import os, random, signal, sys, threading, time
import kvctl
from kvctl.draft import LookupDrafter, ModelDrafter

directory, repetitions = sys.argv[1], int(sys.argv[2])
signal.signal(signal.SIGINT, signal.default_int_handler)
runner = kvctl.ModelRunner.load(directory, max_sequences=4, max_total_tokens=512)
draft_model = kvctl.ModelRunner.load(directory, max_sequences=4, max_total_tokens=512)
prompts = [[(7 * i + k) % 50 for k in range(5 + 11 * i)] * 2 for i in range(5)]
expected = [kvctl.generate(runner, p, max_new_tokens=24).tokens for p in prompts]
runner.cache.add_sequence(99)
runner.prefill([99], [[1, 2, 3]])
free, draft_free = runner.cache.num_available_tokens, draft_model.cache.num_available_tokens
drafters = [LookupDrafter(), LookupDrafter(length=4), ModelDrafter(draft_model, length=3)]


def generate(drafter):
    texts = kvctl.generate(runner, prompts, max_new_tokens=24, drafter=drafter, max_batch=3)
    assert [one.tokens for one in texts] == expected


for drafter in drafters:
    generate(drafter)
begin = time.perf_counter()
for drafter in drafters:
    generate(drafter)
usual = (time.perf_counter() - begin) / len(drafters)

rng, interrupted = random.Random(int(sys.argv[3])), 0
for turn in range(repetitions):
    drafter = drafters[turn % len(drafters)]
    wait, sent = rng.uniform(0, 1.1 * usual), threading.Event()

    def interrupt():
        time.sleep(wait)
        os.kill(os.getpid(), signal.SIGINT)
        sent.set()

    thread = threading.Thread(target=interrupt)
    ended = False
    try:
        try:
            thread.start()
            generate(drafter)
            ended = True
            sent.wait()
            time.sleep(0.01)  # the interrupt came too late
        except KeyboardInterrupt:
            interrupted += not ended
    except KeyboardInterrupt:
        raise SystemExit("two interrupts of one signal")
    thread.join()
    cache = runner.cache
    assert not any(i in cache for i in range(5)), turn
    assert cache.sequence_length(99) == 3 and cache.pending_length(99) == 0, turn
    assert cache.num_available_tokens == free, turn
    assert draft_model.cache.num_available_tokens == draft_free, turn
    assert not any(i in draft_model.cache for i in range(5)), turn
    runner.decode([99], [4])  # no step is open
    cache.popn(99, 1)
    if turn % 6 == 0:
        generate(drafter)
for drafter in drafters:
    generate(drafter)
print("interrupted", interrupted)
"""


def test_an_interrupt_at_any_time_leaves_nothing_behind(tiny_model):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tiny_model), str(REPETITIONS), "1"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert int(done.stdout.split()[-1]) > REPETITIONS // 3
