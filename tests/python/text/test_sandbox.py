"""A chat template is a stranger's program: what it may not do."""

import pytest

from kvctl.text import ChatTemplate, limits

USER = {"role": "user", "content": "Hi"}
ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.append.__self__.__class__.__base__ }}",
    "{{ ().__class__.__bases__[0].__subclasses__() }}",
    "{{ raise_exception.__globals__['os'] }}",
    "{{ strftime_now.__globals__.json }}",
    "{{ self._TemplateReference__context.environment.begin() }}",
    "{{ (''|attr('format')).__globals__.x }}",
    "{{ '{0.__class__.__mro__}'.format(1).x() }}",
    "{{ namespace(__class__=1) }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{{ dict.__subclasses__() }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(role='system') }}",
    "{{ messages[0].__class__.__init__.__globals__.x }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ range.__self__.open('/etc/passwd') }}",
    "{% for x in (1).__class__.__subclasses__() %}{{ x }}{% endfor %}",
    "{{ ''.join.__func__.x }}",
    "{{ ['x']|map('attr', '__class__')|first|attr('y')() }}",
    "{{ ''.translate({}) }}",
    "{% import 'os' as os %}",
    "{% extends 'base' %}",
]
BOMBS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(10 ** 9) %}{% endfor %}",
    "{% for a in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ 'a' * 10 ** 10 }}",
    "{{ [1] * 10 ** 9 }}",
    "{{ 10 ** 9 * 'a' }}",
    "{{ 2 ** 10 ** 9 }}",
    "{% set ns = namespace(x=9) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "{% for i in range(99999) %}{{ 'abcdefghij' * 100 }}{% endfor %}",
    "{{ 'a'.ljust(10 ** 9) }}",
    "{{ 'a'|center(10 ** 9) }}",
    "{{ 'a\\nb'|indent(10 ** 9) }}",
    "{{ messages|tojson(indent=10 ** 9) }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '%*d' % (999999999, 1) }}",
    "{{ '%999999999d'|format(1) }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{{ ('{0}' * 9999).format('a' * 9999) }}",
    "{{ ('abc' * 99999).replace('', 'x' * 99999) }}",
    "{{ ('abc' * 99999)|replace('', 'x' * 99999) }}",
    "{{ range(99999)|join('x' * 999999) }}",
    "{{ ('x' * 999999).join(range(99999)|map('string')|list) }}",
    "{{ range(99999)|map('replace', '', 'x' * 10000)|join }}",
    "{{ ('\t' * 99999).expandtabs(9999) }}",
    "{{ strftime_now('%Y' * 10 ** 7) }}",
    "{{ lipsum(n=10 ** 9) }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_attribute_escapes_are_refused(source):
    with pytest.raises(ValueError, match="chat template"):
        ChatTemplate(source).render([USER])


@pytest.mark.parametrize("name", ["__class__", "__globals__", "__init__", "_x"])
def test_underscored_attributes_are_nothing(name):
    for value in ("messages", "''", "''.format", "dict", "namespace", "raise_exception", "self"):
        assert ChatTemplate(f"{{{{ {value}.{name} }}}}").render([USER]) == ""


@pytest.mark.parametrize("source", BOMBS)
def test_endless_and_huge_templates_are_refused(source):
    with pytest.raises(ValueError, match="chat template"):
        ChatTemplate(source).render([USER])


def test_a_long_conversation_is_within_the_limits():
    turns = [{"role": "user", "content": "word " * 200}] * 3000
    source = (
        "{% for m in messages %}{% for c in 'abc' %}{% endfor %}{{ m.content ~ 1 }}{% endfor %}"
    )
    assert len(ChatTemplate(source).render(turns)) == 3000 * 1001 < limits.MOST_CHARACTERS


def test_steps_are_counted_for_each_rendering():
    template = ChatTemplate("{% for i in range(90000) %}{% endfor %}done")
    for _ in range(20):
        assert template.render([USER]) == "done"


def test_constants_are_not_computed_while_compiling():
    ChatTemplate("{{ 'a' * 10 ** 10 }}")


def test_the_callers_messages_stay_as_they_are():
    message = {"role": "user", "content": ["a"]}
    with pytest.raises(ValueError, match="append"):
        ChatTemplate("{{ messages[0].content.append('b') }}").render([message])
    assert message == {"role": "user", "content": ["a"]}
