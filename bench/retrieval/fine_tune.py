#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes a model for line retrieval with low-rank additions, and writes it as a GGUF file, float16.
Needs torch, numpy and gguf.

    fine_tune.py --model model.gguf --tokens training.tokens.jsonl --held-out test.tokens.jsonl --out tuned.gguf

Token files are what encode_cases makes of make_lines.py's cases. The loss is that of the answer, which
is the asked line as the record has it."""
import argparse
import math
import random
import time

import torch
from torch.nn import functional

from encoded_cases import answered, read_cases
from llama_model import Llama


def answer_logits(model, cases):
    """Logits and tokens of all answers' tokens, [answer token, vocabulary] and [answer token]; and the
    case that each belongs to."""
    tokens, predecessors = (t.to(model.device) for t in answered(cases))
    rows, columns = (predecessors >= 0).nonzero(as_tuple=True)
    before = predecessors[rows, columns]
    return model.logits(model.hidden(tokens)[rows, before]), tokens[rows, before + 1], rows


@torch.no_grad()
def exact_match(model, cases, batch=50):
    """Share of cases whose answer full attention would decode greedily, token for token."""
    right = 0
    for first in range(0, len(cases), batch):
        part = cases[first : first + batch]
        logits, wanted, rows = answer_logits(model, part)
        wrong = torch.zeros(len(part), dtype=torch.long, device=rows.device)
        wrong.index_add_(0, rows, (logits.argmax(-1) != wanted).long())
        right += (wrong == 0).sum().item()
    return right / len(cases)


def train(model, cases, asked):
    draw = random.Random(asked.seed)
    adam = torch.optim.AdamW(model.parameters(), lr=asked.lr, weight_decay=0.0)
    waiting, start, done = [], time.perf_counter(), 0.0
    for step in range(1, asked.steps + 1):
        # the rate falls to 0 at the last step, or when the time is up
        rate = asked.lr * min(1.0, step / 20) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        for group in adam.param_groups:
            group["lr"] = rate
        if len(waiting) < asked.batch:
            waiting = draw.sample(cases, len(cases))
        batch, waiting = waiting[: asked.batch], waiting[asked.batch :]
        logits, wanted, _ = answer_logits(model, batch)
        loss = functional.cross_entropy(logits, wanted)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        seconds = time.perf_counter() - start
        if step % 20 == 0 or step == asked.steps:
            print(f"step {step}: loss {loss.item():.4f}, {seconds:.1f} s", flush=True)
        done = max(step / asked.steps, seconds / asked.seconds)
        if done >= 1:
            break


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True)
    add("--tokens", required=True, help="encoded cases to train on")
    add("--held-out", required=True, help="encoded cases to measure on")
    add("--out", required=True, help="GGUF file to write")
    add("--rank", type=int, default=16)
    add("--steps", type=int, default=600)
    add("--seconds", type=float, default=100.0, help="at most, default: 100")
    add("--batch", type=int, default=32, help="cases per step, default: 32")
    add("--lr", type=float, default=0.001)
    add("--precision", choices=("float32", "bfloat16"), help="default: bfloat16 on a GPU")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--seed", type=int, default=1)
    asked = parser.parse_args()
    precision = asked.precision or ("bfloat16" if asked.device == "cuda" else "float32")
    cases, held_out = read_cases(asked.tokens), read_cases(asked.held_out)
    if len(cases) < asked.batch:
        parser.error(f"--batch: {asked.tokens} has {len(cases)} cases only")
    model = Llama(asked.model, asked.device, asked.rank, seed=asked.seed)
    original = dict(model.weights)
    model.cast(getattr(torch, precision))
    print(f"exact match before: {exact_match(model, held_out):.3f}", flush=True)
    train(model, cases, asked)
    model.weights = original
    model.merge()
    model.write(asked.out)
    written = Llama(asked.out, asked.device)
    print(f"exact match of {asked.out}, {len(held_out)} held-out cases, full attention: "
          f"{exact_match(written, held_out):.3f}", flush=True)


if __name__ == "__main__":
    main()
