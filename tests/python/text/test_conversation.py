"""MLC's conversation templates, by the rules of its protocol."""

import pytest

from kvctl.text import ChatTemplate

ROLES = {"user": "<user>", "assistant": "<bot>", "tool": "<tool>"}
USER = {"role": "user", "content": "Hi"}
TURNS = [USER, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Why?"}]
# Short ones in the styles of MLC's own, and what its rules make of them: for one user message,
# for three turns, for a system message "S", for an empty one.
STYLES = {
    "chatml": (
        {
            "system_template": "<|im_start|>system\n{system_message}<|im_end|>\n",
            "system_message": "Help.",
            "roles": {"user": "<|im_start|>user", "assistant": "<|im_start|>assistant"},
            "seps": ["<|im_end|>\n"],
            "role_content_sep": "\n",
            "role_empty_sep": "\n",
        },
        "<|im_start|>system\nHelp.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\nHelp.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nYes.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    ),
    "llama-2": (
        {
            "system_template": "[INST] <<SYS>>\n{system_message}\n<</SYS>>\n\n",
            "system_message": "Help.",
            "roles": {"user": "<s>[INST]", "assistant": "[/INST]"},
            "seps": [" ", " </s>"],
            "role_content_sep": " ",
            "role_empty_sep": " ",
            "add_role_after_system_message": False,
        },
        "[INST] <<SYS>>\nHelp.\n<</SYS>>\n\nHi [/INST] ",
        "[INST] <<SYS>>\nHelp.\n<</SYS>>\n\nHi [/INST] Yes. </s><s>[INST] Why? [/INST] ",
        "[INST] <<SYS>>\nS\n<</SYS>>\n\nHi [/INST] ",
        "[INST] <<SYS>>\n\n<</SYS>>\n\nHi [/INST] ",
    ),
    "mistral": (
        {
            "system_template": "[INST] {system_message}",
            "system_message": "Help.",
            "roles": {"user": "[INST]", "assistant": "[/INST]"},
            "seps": [" "],
            "role_content_sep": " ",
            "role_empty_sep": "",
            "add_role_after_system_message": False,
        },
        "[INST] Help.Hi [/INST]",
        "[INST] Help.Hi [/INST] Yes. [INST] Why? [/INST]",
        "[INST] SHi [/INST]",
        "[INST] Hi [/INST]",
    ),
    "llava": (
        {
            "system_message": "\n",
            "roles": {"user": "USER", "assistant": "ASSISTANT"},
            "seps": [" "],
            "role_content_sep": ": ",
            "role_empty_sep": ":",
            "add_role_after_system_message": False,
        },
        "\nHi ASSISTANT:",
        "\nHi ASSISTANT: Yes. USER: Why? ASSISTANT:",
        "SHi ASSISTANT:",
        "USER: Hi ASSISTANT:",
    ),
    "nemotron": (
        {
            "system_template": "<x>System\n{system_message}\n\n",
            "roles": {"user": "<y>User", "assistant": "<y>Assistant"},
            "seps": ["\n"],
            "role_content_sep": "\n",
            "role_empty_sep": "\n",
        },
        "<x>System\n\n\n<y>User\nHi\n<y>Assistant\n",
        "<x>System\n\n\n<y>User\nHi\n<y>Assistant\nYes.\n<y>User\nWhy?\n<y>Assistant\n",
        "<x>System\nS\n\n<y>User\nHi\n<y>Assistant\n",
        "<x>System\n\n\n<y>User\nHi\n<y>Assistant\n",
    ),
    "gorilla": (
        {
            "system_message": "Help.",
            "role_templates": {"user": "<<q>> {user_message} <<f>> {function_string}"},
            "roles": {"user": "USER", "assistant": "ASSISTANT"},
            "seps": ["\n", "</s>"],
            "role_content_sep": ": ",
            "role_empty_sep": ":",
            "function_string": "F",
        },
        "Help.USER: <<q>> Hi <<f>> F\nASSISTANT:",
        "Help.USER: <<q>> Hi <<f>> \nASSISTANT: Yes.</s>USER: <<q>> Why? <<f>> F\nASSISTANT:",
        "SUSER: <<q>> Hi <<f>> F\nASSISTANT:",
        "USER: <<q>> Hi <<f>> F\nASSISTANT:",
    ),
    "ministral": (
        {
            "system_template": "[SYS]{system_message}[/SYS]{function_string}",
            "system_message": "Help.",
            "role_templates": {
                "user": "[I]{user_message}[/I]",
                "assistant": "{assistant_message}</s>",
            },
            "roles": {"user": "", "assistant": ""},
            "seps": [""],
        },
        "[SYS]Help.[/SYS][I]Hi[/I]",
        "[SYS]Help.[/SYS][I]Hi[/I]Yes.</s>[I]Why?[/I]",
        "[SYS]S[/SYS][I]Hi[/I]",
        "[SYS][/SYS][I]Hi[/I]",
    ),
    "no_system": (
        {
            "system_template": "",
            "roles": {"user": "<h>user", "assistant": "<h>assistant"},
            "seps": ["<eot>"],
            "role_content_sep": "</h>\n\n",
            "role_empty_sep": "</h>\n\n",
            "add_role_after_system_message": False,
        },
        "<h>user</h>\n\nHi<eot><h>assistant</h>\n\n",
        "<h>user</h>\n\nHi<eot><h>assistant</h>\n\nYes.<eot><h>user</h>\n\nWhy?<eot><h>assistant</h>\n\n",
        "<h>user</h>\n\nHi<eot><h>assistant</h>\n\n",
        "<h>user</h>\n\nHi<eot><h>assistant</h>\n\n",
    ),
}


@pytest.mark.parametrize("name", STYLES)
def test_m2_style(name):
    fields, one, three, system, empty = STYLES[name]
    template = ChatTemplate.from_mlc(fields)
    assert template.render([USER]) == one
    assert template.render(TURNS) == three
    assert template.render([{"role": "system", "content": "S"}, USER]) == system
    assert template.render([{"role": "system", "content": ""}, USER]) == empty


def make(**fields):
    fields = {"roles": ROLES, "seps": ["\n"], "role_content_sep": ":", **fields}
    return ChatTemplate.from_mlc(fields)


def test_messages_of_the_template_come_first():
    template = make(messages=[["user", "a"], ["assistant", "b"], ["assistant", None]])
    assert template.render([USER]) == "<user>:a\n<bot>:b\n<bot><user>:Hi\n<bot>"


def test_without_the_beginning_of_a_turn():
    assert make().render([USER], add_generation_prompt=False) == "<user>:Hi\n"


def test_parts_of_a_message():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    template = make(role_templates={"user": "({user_message})"})
    assert template.render([{"role": "user", "content": parts}]) == "<user>:(a)(b)\n<bot>"


def test_thoughts_of_earlier_turns_go_where_the_template_says_so():
    turns = [
        {"role": "assistant", "content": "<think>x</think>\n\na"},
        USER,
        {"role": "assistant", "content": "<think>y</think>b"},
    ]
    kept = "<bot>:<think>x</think>\n\na\n<user>:Hi\n<bot>:<think>y</think>b\n<bot>"
    assert make().render(turns) == kept
    stripped = "<bot>:a\n<user>:Hi\n<bot>:<think>y</think>b\n<bot>"
    assert make(strip_reasoning_in_history=True).render(turns) == stripped


def test_placeholders_in_what_people_say_stay():
    said = "{user_message} {function_string} {system_message}"
    rendered = make(function_string="F").render([{"role": "user", "content": said}])
    assert rendered == f"<user>:{said}\n<bot>"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"roles": None}, "'roles' must be dict, it is missing"),
        ({"roles": {"user": 3}}, "'roles' must hold strings"),
        ({"seps": []}, "'seps' are 1 or 2, not 0"),
        ({"seps": "\n"}, "'seps' must be list, it is of type str"),
        ({"system_prefix_token_ids": ["1"]}, "'system_prefix_token_ids' must hold int"),
        ({"stop_str": [3]}, "'stop_str' must hold str"),
        ({"messages": [["user"]]}, "a pair of role and content"),
        ({"role_templates": []}, "'role_templates' must be dict"),
    ],
)
def test_damaged_templates_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        make(**fields)


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"role": "robot", "content": "x"}, "no role 'robot'; it has: assistant, tool, user"),
        ({"role": "user", "content": 3}, "must be text, not int"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "must be a text"),
    ],
)
def test_what_the_template_cannot_say_is_refused(turn, message):
    with pytest.raises(ValueError, match=message):
        make().render([turn])


def test_what_the_template_does_not_read_is_refused():
    with pytest.raises(ValueError, match="read no tools"):
        make().render([USER], tools=[{}])
