#!/usr/bin/env python3
"""SGLang's own load generator, unmodified, without torch: `sglang.bench_serving` of the PyPI package needs the whole runtime
only to be imported. What it imports of it (a constant and two functions on host names) is put in its place here.

usage: bench_serving.py <arguments of sglang.bench_serving>
packages: pip install --no-deps sglang==0.5.23
          pip install aiohttp msgspec numpy orjson requests tqdm transformers psutil pyzmq pybase64 pillow"""
import importlib.machinery
import importlib.util
import os
import runpy
import sys
import types


def module(name, **members):
    made = types.ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    made.__dict__.update(members)
    sys.modules[name] = made
    return made


def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)


root = next(os.path.join(p, "sglang") for p in sys.path if os.path.isdir(os.path.join(p, "sglang", "benchmark")))
for package, folder in (("sglang", ""), ("sglang.srt", "srt"), ("sglang.srt.utils", "srt/utils")):
    module(package).__path__ = [os.path.join(root, folder)]  # without their __init__, which imports everything
module("sglang.srt.disaggregation.utils", FAKE_BOOTSTRAP_HOST="2.2.2.2")
load("sglang.srt.utils.network", os.path.join(root, "srt/utils/network.py"))
if importlib.util.find_spec("datasets") is None:
    module("datasets", load_dataset=None)  # for image datasets only
sys.argv[0] = "bench_serving"
runpy.run_module("sglang.benchmark.serving", run_name="__main__")
