"""The suffix store against a scan of all texts, through random operations."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvctl.draft import SuffixStore
from suffix_oracle import OCCURRENCES, grow, matches

texts_of = st.lists(st.lists(st.integers(0, 3), max_size=40), max_size=30)


def check(store, texts, context, max_nodes, max_depth):
    length, following = matches(texts, context)
    assert store.longest(context) == length
    found = store.continuations(context, max_nodes=max_nodes, max_depth=max_depth)
    assert found.tokens[0] == context[-1]
    assert found.match_length == length
    if len(following) <= OCCURRENCES:
        tokens, parents, shares = grow(following, max_nodes, max_depth)
        assert found.tokens[1:].tolist() == tokens
        assert found.parents.tolist() == [-1, *parents]
        assert found.shares[1:] == pytest.approx(shares)
    else:  # some of them
        known = {tuple(text[: d + 1]) for _, text in following for d in range(len(text))}
        paths = [()]
        for node in range(1, len(found.tokens)):
            paths.append((*paths[found.parents[node]], int(found.tokens[node])))
            assert paths[node] in known


@settings(max_examples=150, deadline=None)
@given(data=st.data(), texts=texts_of)
def test_continuations_are_those_of_a_scan(data, texts):
    store = SuffixStore(100_000)
    for text in texts:
        store.add(text)
    texts = [text for text in texts if text]
    assert (store.num_texts, store.num_tokens) == (len(texts), sum(map(len, texts)))
    context = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=80))
    check(store, texts, context, data.draw(st.integers(0, 20)), data.draw(st.integers(0, 6)))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), capacity=st.integers(2, 400))
def test_random_operations(tmp_path_factory, data, capacity):
    """Texts come one by one and many at once, leave when they are old, and go through files."""
    store, texts = SuffixStore(capacity), []
    for operation in data.draw(st.lists(st.sampled_from(["add", "extend", "file"]), max_size=12)):
        if operation == "file":
            path = tmp_path_factory.mktemp("store") / "file"
            store.save(path)
            store = SuffixStore.load(path)
        else:
            new = data.draw(texts_of)
            if operation == "add":
                for text in new:
                    store.add(text)
            else:
                store.extend(new)
            texts += [text[-(capacity - 1) :] for text in new if text]
        before, texts = texts, texts[len(texts) - store.num_texts :]
        assert store.num_tokens == sum(map(len, texts))
        assert store.num_tokens + store.num_texts <= capacity
        if len(texts) < len(before) and operation != "file":
            # No text had to go while there was room, but for what is lost at the ring's end.
            longest = max(map(len, before)) + 1
            assert store.num_tokens + store.num_texts + 2 * longest >= capacity
        context = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=20))
        check(store, texts, context, 12, 5)


def test_a_large_store_of_few_tokens_is_bounded():
    rng = np.random.default_rng(0)
    store = SuffixStore(50_000)
    for _ in range(400):
        store.add(rng.integers(0, 100, int(rng.integers(1, 1000))))
    assert 45_000 < store.num_tokens <= 50_000
    assert store.nbytes / store.num_tokens < 20


def test_a_file_that_is_too_large_keeps_the_newest_texts(tmp_path):
    store = SuffixStore(1000)
    store.extend([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    store.save(tmp_path / "store")
    assert SuffixStore.load(tmp_path / "store", capacity=9).num_texts == 2
    assert repr(SuffixStore.load(tmp_path / "store")) == "SuffixStore(3 texts, 9 of 1000 tokens)"


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="between 2 and 2147483648 tokens, got 0"):
        SuffixStore(0)
    store = SuffixStore(10)
    with pytest.raises(ValueError, match="must not be negative, got -3 at 1"):
        store.add([1, -3])
    with pytest.raises(TypeError, match="tokens must be integers"):
        store.add([1.5])
    with pytest.raises(TypeError, match=r"texts\[1\] must be integers"):
        store.extend([[1], ["a"]])
    with pytest.raises(ValueError, match="an empty context"):
        store.continuations([], max_nodes=1, max_depth=1)
    with pytest.raises(ValueError, match="max_nodes must not be negative, got -1"):
        store.continuations([1], max_nodes=-1, max_depth=1)
    with pytest.raises(FileNotFoundError, match="cannot read"):
        SuffixStore.load(tmp_path / "none")
    (tmp_path / "other").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="no suffix store, or a damaged one: it begins otherwise"):
        SuffixStore.load(tmp_path / "other")
    store.save(tmp_path / "store")
    with pytest.raises(ValueError, match="between 2 and"):
        SuffixStore.load(tmp_path / "store", capacity=0)
    assert store.num_texts == 0


def test_threads():
    """Lookups beside additions, from Python."""
    store, problems = SuffixStore(2000), []
    done = threading.Event()

    def look():
        rng = np.random.default_rng()
        while not done.is_set():
            found = store.continuations(rng.integers(0, 3, 10), max_nodes=16, max_depth=8)
            if len(found.tokens) != len(found.parents):
                problems.append(found)

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    rng = np.random.default_rng(1)
    for _ in range(300):
        store.add(rng.integers(0, 3, 100))
    done.set()
    for reader in readers:
        reader.join()
    assert not problems
