#!/usr/bin/env python3
"""Prints the rows of src/tokenizer/newer_characters.cc: characters by category that Unicode has assigned after version 14, which the
regular expressions of Debian 12 know, and that those of the `tokenizers` package know (version 16).

Needs `pip install tokenizers unicodedata2` and a Python of Unicode 14 (3.11); made with tokenizers 0.23.3 and unicodedata2 18.0.
"""
import re
import unicodedata

import unicodedata2
from tokenizers import Regex, pre_tokenizers

assert unicodedata.unidata_version == "14.0.0"
GROUPS = {"L": "Lu Ll Lt Lm Lo", "Lu": "Lu", "Ll": "Ll", "Lm": "Lm", "Lo": "Lo", "M": "Mn Mc Me", "N": "Nd Nl No",
          "Nd": "Nd", "P": "Po Pd Ps Pe Pi Pf Pc", "S": "So Sm Sc Sk"}
UNASSIGNED = pre_tokenizers.Split(Regex(r"\p{Cn}"), "isolated")


def known(character):
    return len(UNASSIGNED.pre_tokenize_str(f"a{character}a")) == 1


def rows(text, width=108):
    line = ""
    for item in re.findall(r"\\x\{[0-9A-F]+\}(?:-\\x\{[0-9A-F]+\})?", text):
        if len(line) + len(item) > width:
            yield line
            line = ""
        line += item
    yield line


newer = [c for c in range(0x110000) if not 0xd800 <= c < 0xe000 and unicodedata.category(chr(c)) == "Cn"
         and unicodedata2.category(chr(c)) != "Cn" and known(chr(c))]
for name, categories in GROUPS.items():
    ranges = []
    for c in newer:
        if unicodedata2.category(chr(c)) not in categories.split():
            continue
        if ranges and ranges[-1][1] == c - 1:
            ranges[-1][1] = c
        else:
            ranges.append([c, c])
    text = "".join(f"\\x{{{a:X}}}" if a == b else f"\\x{{{a:X}}}-\\x{{{b:X}}}" for a, b in ranges)
    print(f'    {{"{name}",\n' + "\n".join(f'     R"({row})"' for row in rows(text)) + "},")
