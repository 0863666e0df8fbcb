"""What tests of instances of several ranks share: requests, their answers, and how these compare with one rank's."""
import concurrent.futures
import os
import random
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../e2e"))
from sluice_process import call  # noqa: E402


def generate(url, ids, tokens, rank=None, timeout=120):
    body = {"input_ids": ids, "return_logprob": True, "top_logprobs_num": 2,
            "sampling_params": {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}}
    if rank is not None:
        body["routed_dp_rank"] = rank
    return call(url + "/generate", body, timeout=timeout)


def workload(count, seed=5):
    rng = random.Random(seed)
    return [([rng.randrange(512) for _ in range(rng.randrange(1, 60))], rng.randrange(1, 16)) for _ in range(count)]


def answers(url, requests):
    def one(request):
        status, _, answer = generate(url, *request)
        assert status == 200, answer
        return answer

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        return list(pool.map(one, requests))


# Sums in another order move a logit of these models by less, as do routers that it tips by more: those are few.
NEAR_TIE = 2e-3


def first_difference(got, want):
    """(position, margin of the one rank) where the tokens part, or None."""
    for i, (a, b) in enumerate(zip(got["output_ids"], want["output_ids"])):
        if a != b:
            top = want["meta_info"]["output_top_logprobs"][i]
            return i, top[0][0] - top[1][0]
    return None
