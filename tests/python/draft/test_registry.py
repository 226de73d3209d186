"""Drafters by name and options."""

import inspect

import pytest

from kvctl.draft import (
    DRAFTERS,
    Drafter,
    LookupDrafter,
    SuffixDrafter,
    make_drafter,
    register_drafter,
)


class Mine(Drafter):
    def __init__(
        self,
        runner,
        *,
        length: int = 2,
        rate: float = 0.5,
        path: "str | None" = None,
        on: bool = True,
    ):
        self.found = (runner, length, rate, path, on)


def test_names_and_options():
    assert isinstance(make_drafter("lookup"), LookupDrafter)
    one = make_drafter("lookup:length=8,branches=false")
    assert one.length == 8 and make_drafter("lookup:length=none").length is None


def test_several_draft_together():
    one = make_drafter("lookup:length=2+suffix")
    assert [type(part) for part in one.drafters] == [LookupDrafter, SuffixDrafter]
    with pytest.raises(ValueError, match="there is no drafter ''"):
        make_drafter("lookup+")


def test_every_shipped_drafter_that_needs_nothing_has_a_name():
    import kvctl.draft

    for name in kvctl.draft.__all__:
        found = getattr(kvctl.draft, name)
        if not (isinstance(found, type) and name.endswith("Drafter") and name != "Drafter"):
            continue
        required = [
            p
            for p in inspect.signature(found).parameters.values()
            if p.default is p.empty and p.kind is not p.VAR_POSITIONAL
        ]
        if not required and name != "MixedDrafter":
            assert found in DRAFTERS.values(), name


def test_one_of_ones_own(monkeypatch):
    monkeypatch.setitem(DRAFTERS, "mine", Mine)
    assert make_drafter("mine", "runner").found == ("runner", 2, 0.5, None, True)
    one = make_drafter("mine:length=3,rate=1,path=a:b/c,on=False", None)
    assert one.found == (None, 3, 1.0, "a:b/c", False)
    assert isinstance(make_drafter("kvctl.draft.LookupDrafter:length=1"), LookupDrafter)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nobody", "there is no drafter 'nobody'; known are .*lookup"),
        ("kvctl.draft.Nobody", "cannot be imported"),
        ("no_such_module.X", "cannot be imported"),
        ("kvctl.draft.registry", "neither a class nor a function"),
        ("lookup:width=3", "no option 'width=3'; its options are .*length"),
        ("lookup:length", "no option 'length'"),
        ("lookup:length=1,length=2", "given twice"),
        ("lookup:length=x", "lookup:length takes int or NoneType, not 'x'"),
        ("lookup:branches=3", "lookup:branches takes bool, not '3'"),
        ("lookup:length=-1", "length must not be negative, got -1"),
        ("mine:runner=1", "no option 'runner=1'; its options are length, rate, path, on"),
    ],
)
def test_what_is_wrong_is_refused(monkeypatch, spec, message):
    monkeypatch.setitem(DRAFTERS, "mine", Mine)
    with pytest.raises(ValueError, match=message):
        make_drafter(spec)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no/such+part", r"there is no drafter 'part'.*a \+ stands between drafters"),
        ("no/such,head", r"no option 'head'.*a comma stands between options"),
    ],
)
def test_what_stands_between_parts_is_no_part_of_a_path(monkeypatch, path, message):
    def reads(*, path: str) -> Drafter:
        raise FileNotFoundError(path)

    monkeypatch.setitem(DRAFTERS, "reads", reads)
    with pytest.raises(ValueError, match=message):
        make_drafter(f"reads:path={path}")


def test_registering(monkeypatch):
    monkeypatch.delitem(DRAFTERS, "other", raising=False)
    register_drafter("other", Mine)
    assert DRAFTERS.pop("other") is Mine
    with pytest.raises(ValueError, match="a drafter lookup already"):
        register_drafter("lookup", Mine)
    with pytest.raises(ValueError, match="letters, digits"):
        register_drafter("a:b", Mine)
