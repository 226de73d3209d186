"""Stop strings in a text that comes in pieces."""

import random

import pytest

from kvctl.text import StopStrings


def passed_on(strings, text, rng):
    stop, out, begin = StopStrings(strings), [], 0
    while begin < len(text):
        end = begin + rng.randrange(1, 4)
        out.append(stop.push(text[begin:end]))
        begin = end
    return "".join(out) + stop.finish(), stop.found


def by_definition(strings, text):
    """The stop string that is complete first, the longest of several."""
    for end in range(len(text) + 1):
        done = [s for s in strings if text[:end].endswith(s)]
        if done:
            longest = max(done, key=len)
            return text[: end - len(longest)], longest
    return text, None


def test_random_texts_and_cuts():
    rng = random.Random(2)
    for _ in range(5000):
        sizes = [rng.randrange(1, 5) for _ in range(rng.randrange(4))]
        strings = ["".join(rng.choices("ab", k=size)) for size in sizes]
        text = "".join(rng.choices("abc", k=rng.randrange(20)))
        assert passed_on(strings, text, rng) == by_definition(strings, text), (strings, text)


def test_no_part_of_a_stop_string_is_passed_on():
    stop = StopStrings(["<|im_end|>"])
    assert stop.push("Hi <|im") == "Hi "
    assert stop.push("_start|> <") == "<|im_start|> "
    assert stop.push("|im_end|> and more") == ""
    assert stop.found == "<|im_end|>"
    assert stop.push("x") == stop.finish() == ""


@pytest.mark.parametrize(
    ("strings", "error", "message"),
    [
        ([""], ValueError, "must not be empty"),
        ("END", TypeError, "several"),
        ([3], TypeError, "must be a str, not int"),
    ],
)
def test_what_is_no_stop_string_is_refused(strings, error, message):
    with pytest.raises(error, match=message):
        StopStrings(strings)
