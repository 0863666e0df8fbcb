#!/usr/bin/env python3
"""The measurement of engine_bench.cc with llama.cpp: same prompts' length, batches, steps and figures.

    pip install llama-cpp-python
    llama_cpp_bench.py MODEL.gguf [--threads N] [--repeats N] [--prompt N] [--steps N] [--batches 1,4,16]
"""
import argparse
import ctypes
import random
import time

import llama_cpp as L
import numpy as np


class Sequences:
    """Sequences side by side through the low-level batch interface."""

    def __init__(self, context, count, vocab):
        self.context, self.count, self.vocab, self.length = context, count, vocab, 0
        L.llama_memory_clear(L.llama_get_memory(context), True)

    def step(self, tokens, per_sequence):
        batch = L.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = self.length + i % per_sequence
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = i // per_sequence
            batch.logits[i] = i % per_sequence == per_sequence - 1
        self.length += per_sequence
        if L.llama_decode(self.context, batch) != 0:
            raise SystemExit("llama_decode failed")
        chosen = []
        for s in range(self.count):
            row = L.llama_get_logits_ith(self.context, (s + 1) * per_sequence - 1)
            chosen.append(int(np.ctypeslib.as_array(row, (self.vocab,)).argmax()))
        L.llama_batch_free(batch)
        return chosen


def timed(call):
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, (time.perf_counter() - wall, time.process_time() - cpu)


def report(what, batch, tokens, times):
    wall = sorted(t[0] for t in times)
    cpu = sorted(t[1] for t in times)
    middle = len(times) // 2
    print(f"{what:<8} batch {batch:>2}  {tokens / wall[middle]:>8.1f} tokens/s ({tokens / wall[-1]:.1f} to "
          f"{tokens / wall[0]:.1f})  {tokens / cpu[middle]:>8.1f} tokens per CPU second", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--batches", default="1,4,16")
    args = parser.parse_args()
    batches = [int(b) for b in args.batches.split(",")]

    quiet = L.llama_log_callback(lambda *_: None)
    L.llama_log_set(quiet, ctypes.c_void_p(0))
    L.llama_backend_init()
    model = L.llama_model_load_from_file(args.model.encode(), L.llama_model_default_params())
    vocab = L.llama_vocab_n_tokens(L.llama_model_get_vocab(model))
    params = L.llama_context_default_params()
    params.n_threads = params.n_threads_batch = args.threads
    params.n_seq_max = max(batches)
    params.n_ctx = max(batches) * (args.prompt + args.steps + 1)
    params.n_batch = max(batches) * args.prompt
    params.kv_unified = True
    context = L.llama_init_from_model(model, params)
    print(f"{args.threads} threads, llama-cpp-python {L.__version__}, prompts of {args.prompt}, {args.steps} steps, "
          f"{args.repeats} repeats")

    rng = random.Random(1)
    for batch in batches:
        prefill, decode = [], []
        for repeat in range(-1, args.repeats):  # the first one warms up
            prompt = [rng.randrange(100, 40100) for _ in range(batch * args.prompt)]
            sequences = Sequences(context, batch, vocab)
            chosen, prefilled = timed(lambda: sequences.step(prompt, args.prompt))

            def steps(tokens=chosen):
                for _ in range(args.steps):
                    tokens = sequences.step(tokens, 1)

            _, decoded = timed(steps)
            if repeat >= 0:
                prefill.append(prefilled)
                decode.append(decoded)
        report("prefill", batch, batch * args.prompt, prefill)
        report("decode", batch, batch * args.steps, decode)


main()
