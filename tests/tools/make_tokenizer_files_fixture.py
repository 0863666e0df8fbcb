#!/usr/bin/env python3
"""Writes tests/fixtures/tokenizer-tiktoken.tar.xz and tokenizer-sentencepiece.tar.xz: small tokenizers in the form of Kimi's
tiktoken.model and of Llama 2's tokenizer.model, trained here on the repository's own pages, beside what the libraries make of
many texts.

    make_tokenizer_files_fixture.py tests/fixtures

Needs `pip install tiktoken sentencepiece protobuf`; made with tiktoken 0.14.0 and sentencepiece 0.2.3.
"""
import base64
import io
import json
import random
import re
import sys
import tarfile
import tempfile
from pathlib import Path

import sentencepiece
import tiktoken
from sentencepiece import sentencepiece_model_pb2
from tiktoken._educational import bpe_train

ROOT = Path(__file__).resolve().parent.parent.parent
KIMI = "|".join([
    r"[\p{Han}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
WORLD = """Schöne Grüße aus Köln, naïve café. Привет, как дела? Γειά σου Κόσμε. こんにちは世界。カタカナ、ひらがな、漢字
你好，世界！今天天气怎么样？我们去公园。 안녕하세요 세계 مرحبا بالعالم שלום עולם नमस्ते दुनिया สวัสดีชาวโลก 😀 👍🏽 👩‍👩‍👧‍👦
don't I'VE he'll THEY'RE it'd camelCaseAndPascalCase snake_case x86_64 3.14159 1,000,000 #include <a> == != && || // \t\t"""
PIECES = [" ", "  ", "\n", "\t", "'", "'s", "'LL", "the", "Hello", "123", "45678", "é", "漢字", "가", "😀", ".", ",", "_", "(", ")", "=",
          "\u00a0", "a", "B", "7", "-", "/", "\r\n", "\u0301", "ß", "Ж", "▁", "\u3000", "ÀÉ", "tokenizer", "</s", "<s>", "</s>", "<unk>",
          "[BOS]", "<|im_end|>", "<|im_user|>", "<|reserved_token_700|>", "<|tool_call_begin|>", "\0"]


def texts(seed):
    yield ""
    for page in ("README.md", "docs/engine.md"):
        yield (ROOT / page).read_text()[:1500]
    yield from WORLD.split("\n")
    yield WORLD
    yield "a" * 200 + " " * 100 + "\n" * 30 + "!" * 70
    rng = random.Random(seed)
    for _ in range(250):
        yield "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 25)))
    for low, high in [(0x20, 0x7e), (0xa0, 0x24f), (0x370, 0x52f), (0x590, 0x6ff), (0x900, 0xe7f), (0x3000, 0x30ff), (0x4e00, 0x9fff),
                      (0xac00, 0xd7a3), (0x1f300, 0x1faff), (0, 0x20)]:
        for _ in range(5):
            yield "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 40)))


def pack(folder, name, files):
    with tarfile.open(Path(folder) / f"{name}.tar.xz", "w:xz", preset=9) as archive:
        for file, data in files.items():
            info = tarfile.TarInfo(f"{name}/{file}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def as_json(value):
    return json.dumps(value, ensure_ascii=False, indent=1).encode()


def corpus():
    return "\n".join((ROOT / page).read_text()[:20000] for page in ("README.md", "docs/gateway.md", "docs/engine-api.md")) + WORLD * 6


def make_tiktoken(folder):
    ranks = bpe_train(corpus(), 700, "(?V1)" + KIMI, visualise=None)
    first = len(ranks)
    names = {0: ("[BOS]", True), 1: ("[EOS]", True), 2: ("<|im_end|>", True), 3: ("<|im_user|>", True), 11: ("<|tool_call_begin|>", False)}
    special = {names.get(i, (f"<|reserved_token_{first + i}|>",))[0]: first + i for i in range(256)}
    library = tiktoken.Encoding("kimi", pat_str=KIMI, mergeable_ranks=ranks, special_tokens=special)
    config = {
        "tokenizer_class": "TikTokenTokenizer", "bos_token": "[BOS]", "eos_token": "[EOS]", "model_max_length": 10**30,
        "chat_template": "{{ messages[0].content }}",
        "added_tokens_decoder": {str(first + i): {"content": text, "special": flag, "lstrip": False, "rstrip": False,
                                                  "normalized": False, "single_word": False}
                                 for i, (text, flag) in names.items()}}
    cases = []
    for text in texts(1):
        ids = library.encode(text, allowed_special="all")
        cases.append({"text": text, "ids": ids, "decoded": library.decode(ids)})
    rows = "".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items())
    pack(folder, "tokenizer-tiktoken", {"tiktoken.model": rows.encode(), "tokenizer_config.json": as_json(config),
                                        "reference.json": as_json({"cases": cases})})


def make_sentencepiece(folder):
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "corpus.txt"
        source.write_text(corpus())
        # As Llama 2's is.
        sentencepiece.SentencePieceTrainer.train(
            input=str(source), model_prefix=f"{scratch}/m", model_type="bpe", vocab_size=1200, character_coverage=0.98,
            byte_fallback=True, split_digits=True, allow_whitespace_only_pieces=True, normalization_rule_name="identity",
            remove_extra_whitespaces=False, add_dummy_prefix=True, minloglevel=2)
        model = (Path(scratch) / "m.model").read_bytes()
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    proto.normalizer_spec.add_dummy_prefix = False
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    inner = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    special = {"<unk>": 0, "<s>": 1, "</s>": 2}

    def encode(text, always_prefix):
        ids = []
        at = 0
        for part in re.split("(" + "|".join(map(re.escape, special)) + ")", text):
            if part in special:
                ids.append(special[part])
            elif part:
                ids += (library if at == 0 or always_prefix else inner).encode(part)
            at += len(part)
        return ids

    cases = [{"text": text, "ids": encode(text, False), "ids_legacy": encode(text, True)} for text in texts(2)]
    # Without special tokens the library itself says what the text is.
    for case in cases:
        if not any(name in case["text"] for name in special):
            case["decoded"] = library.decode(case["ids"])
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": False,
              "add_bos_token": True, "add_eos_token": False}
    # As a GGUF file has it; the types have the same numbers.
    vocabulary = {"tokens": [p.piece for p in proto.pieces], "scores": [p.score for p in proto.pieces],
                  "types": [p.type for p in proto.pieces]}
    pack(folder, "tokenizer-sentencepiece", {"tokenizer.model": model, "vocabulary.json": as_json(vocabulary), "tokenizer_config.json": as_json(config),
                                             "reference.json": as_json({"cases": cases})})


make_tiktoken(sys.argv[1])
make_sentencepiece(sys.argv[1])
