"""Chat templates as transformers renders them; scripts/make_chat_fixtures.py wrote its texts."""

import json
from pathlib import Path

import pytest

from kvctl.text import ChatTemplate

FIXTURES = Path(__file__).parent / "fixtures"
CHAT = json.loads((FIXTURES / "chat.json").read_text(encoding="utf-8"))
STYLES = {path.stem: path.read_text(encoding="utf-8") for path in FIXTURES.glob("templates/*")}
USER = {"role": "user", "content": "Hi"}


def fixtures_of(kind):
    return [t for t in CHAT["templates"] if (t["template"] is None) == (kind == "style")]


def check(fixture):
    source = fixture["template"] if fixture["template"] is not None else STYLES[fixture["name"]]

    def render(conversation):
        return ChatTemplate(source, special_tokens=CHAT["special_tokens"]).render(**conversation)

    for rendering in fixture["renderings"]:
        conversation = CHAT["conversations"][rendering["conversation"]]
        if rendering["text"] is None:
            with pytest.raises(ValueError, match="chat template"):
                render(conversation)
        else:
            assert render(conversation) == rendering["text"], conversation


@pytest.mark.parametrize("fixture", fixtures_of("style"), ids=lambda fixture: fixture["name"])
def test_style(fixture):
    check(fixture)


def test_random_templates():
    fixtures = fixtures_of("random")
    assert len(fixtures) >= 250
    for fixture in fixtures:
        check(fixture)


def test_every_style_has_its_renderings():
    assert {fixture["name"] for fixture in fixtures_of("style")} == set(STYLES)


def test_several_templates_by_name():
    template = ChatTemplate({"default": "plain", "tool_use": "tools", "rag": "documents"})
    assert template.render([USER]) == "plain"
    assert template.render([USER], tools=[{"name": "f"}]) == "tools"
    assert template.render([USER], name="rag") == "documents"
    with pytest.raises(ValueError, match="no chat template named 'x'; there are: default, rag"):
        template.render([USER], name="x")


def test_variables_of_a_template():
    template = ChatTemplate("{{ 'off' if thinking is false else 'on' }}")
    assert template.render([USER]) == "on"
    assert template.render([USER], thinking=False) == "off"


def test_the_date_of_today():
    assert ChatTemplate("{{ strftime_now('%Y') }}").render([USER]).startswith("20")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% if %}", "the chat template is no Jinja"),
        ("{{ x | no_such_filter }}", "the chat template is no Jinja: No filter named"),
        ("{{ raise_exception('no system role') }}", "refuses the conversation: no system role"),
        ("{{ messages[9].content }}", "the chat template refuses the conversation"),
        ("{{ 1 / 0 }}", "the chat template fails: ZeroDivisionError"),
        ("{{ messages + 1 }}", "the chat template fails: TypeError"),
        ("{% include 'x' %}", "the chat template fails"),
        ("(" * 5 + "{{" + "(" * 3000 + ")" * 3000 + "}}", "chat template"),
    ],
)
def test_a_template_that_cannot_be_rendered_is_an_error(source, message):
    with pytest.raises(ValueError, match=message):
        ChatTemplate(source).render([USER])


@pytest.mark.parametrize(
    ("messages", "error", "message"),
    [
        ([], ValueError, "at least one message"),
        ([{"content": "Hi"}], ValueError, "needs a role"),
        (["Hi"], TypeError, "must be a dict, not str"),
        ([{"role": "user", "content": object()}], TypeError, "made of strings, .* not object"),
    ],
)
def test_what_is_no_conversation_is_refused(messages, error, message):
    with pytest.raises(error, match=message):
        ChatTemplate("x").render(messages)


@pytest.mark.parametrize("source", [None, {}, {"default": 3}, 7])
def test_what_is_no_template_is_refused(source):
    with pytest.raises(TypeError, match="chat template"):
        ChatTemplate(source)
