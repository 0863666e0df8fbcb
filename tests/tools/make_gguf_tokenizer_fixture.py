#!/usr/bin/env python3
"""Writes tests/fixtures/tokenizer-smollm2.tar.xz: the metadata of a GGUF file, its vocabulary among it, without the
tensors, beside what llama.cpp's tokenizer makes of many texts with the same vocabulary.

    make_gguf_tokenizer_fixture.py SmolLM2-135M-Instruct.Q4_1.gguf tests/fixtures

Needs `pip install llama-cpp-python gguf`; made with llama-cpp-python 0.3.36 (built from its source package) and
gguf 0.19.0.
"""
import io
import json
import random
import struct
import sys
import tarfile
from pathlib import Path

import gguf
import llama_cpp

TEXTS = """
Hello world
 Hello  world
The capital of France is Paris.
I've he's we'll THEY'RE it'd can't I'M
don’t “quoted” — dashes – and … dots
1 12 123 1234 12345 3.14159 1,000,000 0x1F 1e-9 ½ ² ٣٤ Ⅷ 一二三
a1b2c3 v1.2.3 x86_64 utf-8 C++20 #include
!!! ??? ... --- *** ((())) [[{}]] <<>> // /* */ && || ==> := ~= ^^ `` $$ @@
def f(x):\n    return x**2  # square\n\n\nclass A:\n\tpass\n
if (a<b && c>=d) { *p++ = &q[i]; }\r\n\treturn "x\\n";
SELECT * FROM t WHERE a='b' AND c IS NOT NULL;
https://example.org/a/b?c=d&e=%20f#g mail@example.org
Schöne Grüße aus Köln, naïve café, ÀÉÎÕÜ ß ẞ
Привет, как дела? Ёлка и съезд
Γειά σου Κόσμε
こんにちは世界。カタカナ、ひらがな、漢字
你好，世界！今天天气怎么样？
안녕하세요 세계
مرحبا بالعالم ١٢٣
שלום עולם
नमस्ते दुनिया १२३
สวัสดีชาวโลก
😀 😃😄 👍🏽 👩‍👩‍👧‍👦 🇫🇷🇩🇪 ❤️ ☃
e\u0301 \u00e9 n\u0303 \u200b zero\u200dwidth \ufeffbom \u00a0nbsp \u3000wide \u2028line \u2029para
\u0000 \u0001 \u001b[0m \u007f \u0085 \u00ad
\t\ttabs\t and  two   three    four     spaces
     leading and trailing     
\n \n\n \n\n\n \r\n\r\n \r \t \v \f
𝒜𝓁𝑔𝑒𝒷𝓇𝒶 𝟙𝟚𝟛 ∑∫√∞≠≈ ←→⇒ αβγ
<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n
<|endoftext|><|endoftext|>a<|im_start|> <|im_end|>b
<|im_start <|im_start| im_start|> <|im_start|>|> <|<|im_end|>
<repo_name>x<file_sep>y<jupyter_code>z<empty_output><issue_comment>
tokenization untokenizable antidisestablishmentarianism supercalifragilisticexpialidocious
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA bbbbbbbbbbbbbbbb 0000000000000000 ................ ________
camelCaseAndPascalCase snake_case_name SCREAMING_SNAKE kebab-case-name
ΑΒΓ'ς it's'll 's 't 're 've 'm 'll 'd 'S 'LL
""".strip("\n").split("\n")
UNESCAPE = {"\\n": "\n", "\\t": "\t", "\\r": "\r", "\\v": "\v", "\\f": "\f"}
# Not UTF-8: a lone continuation, a cut sequence, a surrogate, an overlong form, a byte that never occurs.
INVALID = [b"\x80", b"a\xc3", b"\xc3(", b"caf\xe9 au lait", b"\xff\xfe", b"\xf0\x9f\x98", b"x\xf0\x9f\x98y",
           b"\xed\xa0\x80", b"\xc0\xaf", b"ok \xe2\x82 no"]


def texts():
    yield ""
    for text in TEXTS:
        for escape, character in UNESCAPE.items():
            text = text.replace(escape, character)
        yield text
    rng = random.Random(3)
    ranges = [(0x20, 0x7e), (0x20, 0x7e), (0xa0, 0x24f), (0x370, 0x52f), (0x590, 0x6ff), (0x900, 0xe7f),
              (0x2000, 0x2bff), (0x3000, 0x30ff), (0x4e00, 0x9fff), (0xac00, 0xd7a3), (0x1f300, 0x1faff),
              (0x1d400, 0x1d7ff), (0, 0x20)]
    for _ in range(150):  # one script each
        low, high = rng.choice(ranges)
        yield "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 40)))
    pieces = [" ", "  ", "\n", "\t", "'", "'s", "the", "Hello", "123", "é", "漢", "😀", ".", "<|im_start|>",
              "<|im_end|>", "_", "(", ")", "=", "\u00a0", "a", "B", "7", "-", "/", "\r\n", "\u0301", "ß", "Ж"]
    for _ in range(150):  # seams between kinds
        yield "".join(rng.choice(pieces) for _ in range(rng.randint(1, 25)))


def pack_metadata(path):
    """The file's header and metadata as they are, with a count of no tensors."""
    reader = gguf.GGUFReader(path)
    last = max((field for field in reader.fields.values() if field.offset > 0), key=lambda field: field.offset)
    end = last.offset + sum(int(part.nbytes) for part in last.parts)
    raw = Path(path).read_bytes()[:end]
    values = struct.unpack_from("<Q", raw, 16)[0]
    return raw[:8] + struct.pack("<QQ", 0, values) + raw[24:]


def main():
    model, folder = sys.argv[1:]
    llama = llama_cpp.Llama(model, vocab_only=True, verbose=False)

    def ids(data, special):
        return llama.tokenize(data, add_bos=False, special=special)

    cases = []
    for text in texts():
        data = text.encode()
        case = {"text": text, "ids": ids(data, True)}
        if (plain := ids(data, False)) != case["ids"]:
            case["ids_as_plain_text"] = plain
        case["decoded"] = llama.detokenize(case["ids"], special=True).decode()
        cases.append(case)
    # Ours reads such bytes as Python does, and llama.cpp in a way of its own: it gets what Python makes of them.
    invalid = [{"hex": data.hex(), "ids": ids(data.decode(errors="replace").encode(), True)} for data in INVALID]
    reference = json.dumps({"cases": cases, "invalid": invalid}, ensure_ascii=False).encode()
    with tarfile.open(Path(folder) / "tokenizer-smollm2.tar.xz", "w:xz", preset=9) as archive:
        for name, data in [("vocabulary.gguf", pack_metadata(model)), ("reference.json", reference)]:
            info = tarfile.TarInfo("tokenizer-smollm2/" + name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


main()
