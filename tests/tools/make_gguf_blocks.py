#!/usr/bin/env python3
"""Writes tests/fixtures/gguf-blocks.tar.xz: random blocks of each GGUF type that the engine reads, beside their float32
values by the `gguf` package (pip install gguf; made with 0.19.0).

    make_gguf_blocks.py tests/fixtures
"""
import io
import json
import sys
import tarfile
from pathlib import Path

import gguf
import numpy as np

TYPES = ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K"]
BLOCKS = 12
# Where the half-precision scales of a block lie: random bits there would often be huge, infinite or NaN.
SCALES = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q4_K": [0, 2], "Q6_K": [208]}


def main():
    rng = np.random.default_rng(11)
    out = {}
    for name in TYPES:
        kind = gguf.GGMLQuantizationType[name]
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        if name in SCALES:
            blocks = rng.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
            for at in SCALES[name]:
                scales = rng.normal(0, 0.1, (BLOCKS, 1)).astype(np.float16)
                blocks[:, at:at + 2] = scales.view(np.uint8)
        else:
            # Whole rows of finite values.
            values = rng.normal(0, 1, (BLOCKS, 32)).astype(np.float32)
            blocks = gguf.quants.quantize(values, kind).view(np.uint8)
        floats = gguf.quants.dequantize(blocks, kind).astype(np.float32)
        out[name] = {"bytes": blocks.tobytes().hex(), "floats": floats.view(np.uint32).flatten().tolist()}
    text = json.dumps(out).encode()
    with tarfile.open(Path(sys.argv[1]) / "gguf-blocks.tar.xz", "w:xz") as archive:
        info = tarfile.TarInfo("gguf-blocks/blocks.json")
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text))


main()
