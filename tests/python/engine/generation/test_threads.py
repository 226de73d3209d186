"""Two threads that generate on one runner: refused in a sentence, and nothing stays behind."""

from __future__ import annotations

import threading

import kvctl


def test_what_threads_do_to_each_other_leaves_no_sequence(tiny_model):
    runner = kvctl.ModelRunner.load(tiny_model, max_sequences=8)
    prompts = [list(range(1 + i, 60 + i)) for i in range(2)]
    expected = [kvctl.generate(runner, p, max_new_tokens=30).tokens for p in prompts]
    free = runner.cache.num_available_tokens
    refusals: list[BaseException] = []
    for _ in range(10):
        start = threading.Barrier(2)

        def generate(i, start=start):
            start.wait()
            try:
                text = kvctl.generate(runner, prompts[i], max_new_tokens=30, seq_id=i)
                assert text.tokens == expected[i]
            except BaseException as error:
                refusals.append(error)

        threads = [threading.Thread(target=generate, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert runner.cache.num_available_tokens == free
        assert not any(i in runner.cache for i in range(2))
    for refusal in refusals:  # none, where the threads never met
        assert isinstance(refusal, RuntimeError), refusal
