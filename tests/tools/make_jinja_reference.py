#!/usr/bin/env python3
"""Writes reference.json: templates, contexts and what Jinja2 makes of them with the settings of Hugging Face transformers.

usage: make_jinja_reference.py <folder>      (needs the package jinja2, 3.1)
Packed as tests/fixtures/jinja.tar.xz: tar -C <parent> -cJf jinja.tar.xz jinja"""
import json
import sys
from pathlib import Path

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

CONTEXT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Grüße, <b>\"you\"</b> & 'me'\n  second line  "},
        {"role": "assistant", "content": None, "tool_calls": [
            {"type": "function", "function": {"name": "f", "arguments": {"z": 1, "a": [1.5, True, None, "é"]}}}]},
        {"role": "user", "content": [{"type": "text", "text": "part"}, {"type": "text", "text": "two"}]},
    ],
    "numbers": [3, 1, 2, 10, -5], "words": ["banana", "Apple", "cherry", "apple"], "empty": [], "text": "Hello, World",
    "people": [{"name": "Bo", "age": 3, "sex": "m"}, {"name": "al", "age": 7, "sex": "f"}, {"name": "Cy", "age": 3, "sex": "m"}],
    "d": {"b": 2, "a": 1, "C": 3}, "nested": {"x": {"y": [10, 20, {"z": "deep"}]}}, "n": 7, "f": 2.5, "t": True, "no": None,
    "html": "<a href='x'>&</a>", "lines": "one\ntwo\n\nthree", "unicode": "naïve café 日本語 😀", "add_generation_prompt": True,
}

EXPRESSIONS = r"""
1 + 2 * 3 - 4
7 // 2, 7 / 2, 7 % 3, -7 // 2, -7 % 3, 2 ** 10, 2 ** -1
(1 + 2) * 3
"a" "b" 'c'
"a" ~ 1 ~ none ~ true ~ 2.0
"x" * 3, [1, 2] * 2, 3 * "y"
[1] + [2], (1,) + (2,)
1 if n > 3 else 2
1 if n > 30
not t, not no, not empty
n == 7 and f < 3 or no
no or "fallback"
text and n
1 < 2 < 3, 1 < 3 < 2, 3 > 2 >= 2
n in [1, 7], "ell" in text, "b" in d, 9 not in numbers
text[0], text[-1], text[1:4], text[::-1], text[:5], text[7:]
numbers[0], numbers[-1], numbers[1:3], numbers[::2], numbers[::-1], numbers[10:]
d["a"], d.b, d.get("zz"), d.get("zz", 5), d["missing"] is defined
nested.x.y[2].z, nested["x"]["y"][0]
messages[0].role, messages[0]["content"], messages | length
missing is defined, missing is undefined, n is defined
no is none, n is number, text is string, numbers is sequence, d is mapping, numbers is iterable, t is boolean, n is integer, f is float
n is odd, n is even, 9 is divisibleby 3, n is divisibleby(2)
n is eq 7, n is ne 7, n is gt 3, n is lt 3, n is ge 7, n is le 7, n is in [7]
"AB" is upper, "ab" is lower, t is true, t is false, no is sameas none
text is not string, n is not none
missing | default("dflt"), "" | default("x"), "" | default("x", true), no | d("q"), no | d("q", true)
text | upper, text | lower, text | title, text | capitalize, "hello world-foo bar" | title
text | length, numbers | count, d | length
words | join, words | join(", "), numbers | join("-"), people | join(", ", attribute="name")
numbers | first, numbers | last, words | first
numbers | sort, numbers | sort(reverse=true), words | sort, words | sort(case_sensitive=true), people | sort(attribute="age")
numbers | sum, people | sum(attribute="age"), numbers | sum(start=10)
numbers | min, numbers | max, words | max, people | max(attribute="age")
words | unique | list, numbers | reverse | list, text | reverse
people | map(attribute="name") | list, words | map("upper") | list, words | map("replace", "a", "X") | list
people | map(attribute="zip", default="-") | join(",")
numbers | select("odd") | list, numbers | reject("odd") | list, numbers | select(">", 2) | list, [0, 1, "", "a"] | select | list
people | selectattr("age", "equalto", 3) | map(attribute="name") | list, people | rejectattr("age", "gt", 5) | list | length
people | selectattr("name") | list | length
people | groupby("sex") | map("first") | list
d | dictsort, d | dictsort(case_sensitive=true), d | dictsort(by="value", reverse=true)
d | items | list, d.items() | list, d.keys() | list, d.values() | list
numbers | batch(2) | list, numbers | batch(2, 0) | list
numbers | list | string, text | list | length
3.14159 | round(2), 2.5 | round, 3.5 | round, 2.345 | round(1, "ceil"), 2.345 | round(1, "floor"), 7 | round
"42" | int, "x" | int, "x" | int(5), "0x1f" | int(0, 16), 3.9 | int, "3.7" | int, "3.5" | float, "x" | float, n | float
-5 | abs, f | abs, text | wordcount
"  pad  " | trim, "xxaxx" | trim("x"), text | replace("l", "L"), text | replace("l", "L", 1)
text | indent, lines | indent, lines | indent(2, true), lines | indent(2, first=true, blank=true), lines | indent("> ")
"a b&c/ü" | urlencode
"%s is %d" | format("x", 3), "%05.2f|%-5s|%5s|%x" | format(3.14159, "ab", "cd", 255)
n | string + "1", text | center(20), "abc" | center(8)
d | tojson, numbers | tojson, messages[2].tool_calls[0] | tojson, unicode | tojson, html | tojson
d | tojson(indent=2), messages[2].tool_calls[0] | tojson(indent=4), [] | tojson(indent=2), {} | tojson, [[], {}] | tojson(indent=1)
unicode | tojson(ensure_ascii=true), d | tojson(separators=(",", ":")), d | tojson(sort_keys=true), 1.0 | tojson, 1e20 | tojson, true | tojson, none | tojson
"q\"\\/\n\t\u00e9\x07" | tojson
text.upper(), text.lower(), text.title(), text.strip("Hd"), "  a ".lstrip(), "  a ".rstrip(), "mixED case".capitalize()
text.split(", "), "a b  c".split(), "a,b,c".split(",", 1), "a,b,c".rsplit(",", 1), "".split(), "".split(",")
text.startswith("He"), text.startswith(("x", "H")), text.endswith("ld"), text.find("o"), text.rfind("o"), text.find("zz"), text.index("o")
text.replace("o", "0"), text.replace("o", "0", 1), text.count("l"), ", ".join(words), "a-b-c".partition("-"), "a-b-c".rpartition("-")
lines.splitlines(), lines.splitlines(true), "x".zfill(4), "-7".zfill(4), "ab".ljust(5) ~ "|", "ab".rjust(5, ".")
"123".isdigit(), "12a".isdigit(), "abc".isalpha(), "ab1".isalnum(), "  ".isspace(), "AB".isupper(), "ab".islower(), "".isdigit()
"prefix-x".removeprefix("prefix-"), "x.txt".removesuffix(".txt")
"{} and {}".format(1, "b"), "{0}{1}{0}".format("a", "b"), "{name:>6}|{v:.2f}|{v:05.1f}".format(name="x", v=3.14159), "{{}}".format()
"%s-%s" % ("a", 1), "%d%%" % 5, "%r" % "x", "%.3s" % "abcdef"
unicode | length, unicode | upper, unicode[0:5], unicode | reverse, "ß".upper(), "İ" | lower | length
range(5) | list, range(2, 8, 3) | list, range(5, 0, -2) | list, range(0) | list
dict(a=1, b=2), dict({"x": 1}, y=2), {"a": 1, "b": [1, {"c": none}]}, {1: "x", true: "y"}, {}
[1, "two", 3.0, none, true, [], {}], (1,), (1, 2), ()
1e3, 1.0, 100000000000000000000.0, 0.1 + 0.2, 1e-7, 1e16, 123456789.123, -0.0, 5.0e-324
1_000, 0x1F, 0b101, 0o17
"esc\\n \n tab\t q\' \" \u00e9 \x41"
messages[3].content | map(attribute="text") | join(""), messages[3].content is string, messages[3].content is iterable
messages | selectattr("role", "eq", "user") | list | length, messages | map(attribute="role") | unique | join("/")
messages[-1].role == "user" and add_generation_prompt
(messages | last).role, (messages | first)["content"].strip()
messages[1:] | map(attribute="role") | list, messages[::-1] | map(attribute="role") | list
text ~ (" " if n > 5 else "") ~ ("!" * 3)
loop is defined, namespace is defined, range is defined
namespace(a=1).a, joiner("|") is callable
no | tojson, missing | tojson if missing is defined else "none"
1 == 1.0, true == 1, "1" == 1, [1, 2] == [1, 2], {"a": 1} == {"a": 1.0}, none == false, (1, 2) == [1, 2]
[1, 2] < [1, 3], "a" < "b", 1 < 1.5
n is string or n is number, (n is not string) and t
"a\nb" | length, "tab\there"
nested.x.y | tojson, nested["nope"] is undefined, nested.x.nope is undefined
people | map(attribute="name") | map("lower") | sort | join("<")
numbers | map("string") | join, numbers | map("abs") | sum
words | select("in", ["Apple", "cherry"]) | list, words | reject("equalto", "apple") | list
"abc" | attr("upper") is defined, d | attr("a") is defined
["b", "a"] | sort | first | upper ~ "!"
-n, +n, - -n, not not n, 2 ** 3 ** 2, -2 ** 2
[n, [f, [t]]] | string, "x" in ["x"], "x" not in "xyz"
text[20:] == "", text[100] is undefined, numbers[99] is undefined
"%s" | format(none), "%s" | format([1, "a"]), "%s" | format({"k": 1.5})
"a" if missing else "b", ("a" if missing) is undefined
"line1\nline2" | replace("\n", "\\n")
"ab" | batch(1) | list, d | list, d | first, "héllo" | list
d | map("upper") | list, [3, 1] | sort | tojson, {"é": "ü"} | tojson
""".strip().splitlines()

TEMPLATES = [
    "{% for m in messages %}[{{ m.role }}]{% endfor %}",
    "{% for m in messages %}{{ loop.index }}/{{ loop.length }}:{{ loop.index0 }}:{{ loop.revindex }}:{{ loop.first }}:{{ loop.last }} {% endfor %}",
    "{% for x in empty %}a{% else %}none{% endfor %}",
    "{% for x in numbers if x > 1 %}{{ loop.index }}={{ x }};{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }},{% endfor %}{{ k is defined }}",
    "{% for x in numbers %}{% if x == 2 %}{% break %}{% endif %}{{ x }} {% endfor %}",
    "{% for x in numbers %}{% if x == 1 %}{% continue %}{% endif %}{{ x }} {% endfor %}",
    "{% for x in numbers %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }} {{ loop.cycle('a', 'b') }} {{ loop.changed(x > 1) }};{% endfor %}",
    "{% for a in [1, 2] %}{% for b in [3, 4] %}{{ loop.index }}{{ a }}{{ b }} {% endfor %}{{ loop.index }}{% endfor %}",
    "{% set x = 1 %}{% for i in [1, 2] %}{% set x = x + i %}{{ x }}{% endfor %}{{ x }}",
    "{% set ns = namespace(x=1, found=false) %}{% for i in [1, 2] %}{% set ns.x = ns.x + i %}{% if i == 2 %}{% set ns.found = true %}{% endif %}{% endfor %}{{ ns.x }}{{ ns.found }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set (c, d2) = [3, 4] %}{{ c }}{{ d2 }}",
    "{% set block %}text {{ n }}{% endset %}[{{ block }}]",
    "{% set block | upper | trim %} text {{ n }} {% endset %}[{{ block }}]",
    "{% if n > 10 %}a{% elif n > 5 %}b{% else %}c{% endif %}",
    "{% if missing %}a{% else %}b{% endif %}{% if messages[0]['role'] == 'system' %}sys{% endif %}",
    "{% macro greet(name, greeting='Hi') %}{{ greeting }}, {{ name }}!{% endmacro %}{{ greet('Bo') }}{{ greet('Al', greeting='Yo') }}",
    "{% macro m(a, b=a) %}{{ a }}{{ b }}{{ varargs | length }}{{ kwargs | length }}{% endmacro %}{{ m(1) }}{{ m(1, 2, 3) }}{{ m(1, 2, z=3) }}",
    "{% macro outer() %}<{{ caller() }}>{% endmacro %}{% call outer() %}in{{ n }}{% endcall %}",
    "{% macro each(xs) %}{% for x in xs %}{{ caller(x) }}{% endfor %}{% endmacro %}{% call(v) each([1, 2]) %}({{ v }}){% endcall %}",
    "{% macro rec(x) %}{{ x }}{% if x > 0 %}{{ rec(x - 1) }}{% endif %}{% endmacro %}{{ rec(3) }}",
    "{% filter upper %}abc {{ text }}{% endfilter %}",
    "{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a is defined }}",
    "{# comment #}a{#- trimmed -#} b",
    "a\n{% if true %}\n  b\n{% endif %}\nc\n",
    "a\n   {% if true %}   \n  b\n   {%- endif %}\nc",
    "a  {%- if true -%}  b  {%- endif -%}  c",
    "  {{- n -}}  x  {{ n }}\n",
    "{%+ if true %} keep{% endif %}\n   {%+ if true %}lead{% endif %}",
    "x\n  {# c #}\ny\n",
    "{% raw %}{{ not }} {% evaluated %}{% endraw %}",
    "{{ '{{' }}{{ '%}' }}{{ \"it's\" }}",

    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + (m['content'] if m['content'] is string else '') + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "{%- set loop_messages = messages[1:] -%}{%- for message in loop_messages -%}{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}!{%- else -%}{{ message.role }}{%- endif -%}{%- endfor -%}",
    "{%- for tool in messages[2].tool_calls %}{{- '\\n' }}{{- tool | tojson(indent=4) }}{%- endfor %}",
    "{% for message in messages if message.role == 'user' %}{{ loop.index }}{{ loop.last }}{% endfor %}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}",
    "{% set j = joiner(', ') %}{% for x in [1, 2, 3] %}{{ j() }}{{ x }}{% endfor %}",
    "{{ html | escape }} {{ html | e }} {{ html | safe }}",
    "{% for c in 'añb' %}{{ c }}.{% endfor %}{% for k in d %}{{ k }}{% endfor %}",
    "{% set x = none %}{{ x }}{% if x is none %}N{% endif %}{{ [none, missing is defined] }}",
    "{{ messages[0].content }}{{ messages[0].missing }}|{{ no }}|{{ true }}|{{ 1.0 }}",
    "line {{ n }}\r\nnext\r\n{% if t %}\r\nyes\r\n{% endif %}\r\nend",
    "{% if n is defined and n is not none %}{{ n }}{% endif %}{%- if not (missing is defined) %} gone{% endif %}",
    "{% set parts = [] %}{% set parts = parts + ['a'] %}{% set parts = parts + ['b'] %}{{ parts | join(',') }}",
    "{% set m = dict(messages[0], role='x') %}{{ m.role }}{{ m.content }}",
    "{{ text.split(',')[-1].strip('d').lstrip() }}",
    "{%- macro render(items) -%}{%- for i in items -%}- {{ i }}\n{% endfor -%}{%- endmacro -%}{{ render(words) }}",
    "{% for m in messages %}{% if loop.first %}{% set first = m.role %}{% endif %}{% endfor %}{{ first is defined }}",
]

# What must fail, with the line on which it does.
ERRORS = [
    "{{ raise_exception('no system role') }}", "a\nb\n{{ raise_exception('line three') }}", "{{ missing.x }}", "\n{{ 1 + 'a' }}",
    "{{ no.x.y }}", "{{ 1 / 0 }}", "{{ 5 % 0 }}", "{% for x in 5 %}{% endfor %}", "{{ missing() }}", "{{ text.nope() }}",
    "{{ x | nofilter }}", "{{ x is notest }}", "{% if %}{% endif %}", "{% if true %}", "{% for x %}{% endfor %}", "{{ (1 }}",
    "{{ }}", "{% endif %}", "{% unknown %}", "{{ 'open }}", "{{ 1 + }}", "{% set %}", "{{ messages.append(1) }}", "{{ d.update({}) }}",
    "{{ range(1000000) }}", "{{ [1, 'a'] | sort }}", "{{ 'a' < 1 }}", "{% set d.x = 1 %}", "{{ namespace() | tojson }}",
]

def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    return env

def main():
    env = environment()
    context = json.loads(json.dumps(CONTEXT))
    cases, errors = [], []
    for template in [f"{{{{ [{e}] if false else ({e},) }}}}" for e in EXPRESSIONS] + TEMPLATES:
        cases.append({"template": template, "rendered": env.from_string(template).render(**context)})
    for template in ERRORS:
        try:
            env.from_string(template).render(**context)
        except Exception as error:  # whatever Python raises, a server answers 400
            errors.append({"template": template, "error": f"{type(error).__name__}: {error}"})
        else:
            raise SystemExit(f"renders, and should not: {template}")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    document = {"jinja2": jinja2.__version__, "context": context, "cases": cases, "errors": errors}
    (folder / "reference.json").write_text(json.dumps(document, ensure_ascii=False, indent=1))
    print(f"{len(cases)} cases, {len(errors)} errors")

if __name__ == "__main__":
    main()
