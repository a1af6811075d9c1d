#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes labels for bench/controller/train.py from cases of line retrieval: a label file and, beside it,
embeddings.safetensors. Needs torch, numpy, gguf and safetensors.

    label_lines.py --model tuned.gguf --cases cases.jsonl --tokens cases.tokens.jsonl --out labels.safetensors

A sequence is a prompt with its answer, and for kind line --repeats more lines of its record behind it,
as if they had been asked for, padded at its end. Its queries are --record of the record's tokens, the
others from what comes behind the question's name, all at random. What a query's set holds:

  line       the record's tokens of the line that is asked for; nothing for a query in the record. While
             the line is being answered, only those from --before ahead of the query's own place in it
             to --after behind it: what the next tokens of the answer are copied from
  attention  the --k tokens that the query attends most, summed over all layers and heads, but for the
             first --sinks and the newest --recent ones, which a policy keeps anyway"""
import argparse
import pathlib
import random
import re

import torch
from safetensors.torch import save_file

from encoded_cases import padded, read_cases
from llama_model import Llama

def sequence_of(case, text, repeats, draw):
    """Tokens of prompt, answer and repeated lines; the range of positions that each line of the record
    has; what each token behind the question's name asks for, {position: (line, place in it)}, the
    place None in the question."""
    starts, ends = [0, *case["ends"][:-1]], case["ends"]

    def tokens_of(first, last):
        inside = [i for i in range(len(ends)) if starts[i] < last and ends[i] > first]
        return range(inside[0], inside[-1] + 1)

    prompt = text["prompt"]
    spans = [m.span() for m in re.finditer(r"^line .*\n", prompt, re.MULTILINE)]
    record = [tokens_of(*span) for span in spans]
    asked = [prompt[first:last] for first, last in spans].index(text["correct_line"])
    name = prompt.rindex(text["random_idx"][0])
    behind = tokens_of(name, name + len(text["random_idx"][0]))[-1]
    tokens = case["prompt"] + case["answer"]
    about = {position: (asked, None) for position in range(behind, len(case["prompt"]))}
    about.update({len(case["prompt"]) + i: (asked, i) for i in range(len(case["answer"]))})
    for line in draw.sample(range(len(record)), min(repeats, len(record))):
        about.update({len(tokens) + i: (line, i) for i in range(len(record[line]))})
        tokens = tokens + [case["prompt"][i] for i in record[line]]
    return tokens, record, about


def choose_queries(about, asked, draw):
    """Ascending positions."""
    early = range(asked.sinks + asked.k, min(about))
    count = max(asked.record, asked.queries - len(about))
    return sorted(draw.sample(early, count) + draw.sample(sorted(about), asked.queries - count))


def line_sets(record, about, queries, length, asked):
    """[query, token], 1 where the token is of the record's line that the query asks for."""
    sets = torch.zeros(len(queries), length, dtype=torch.bool)
    for row, query in zip(sets, queries):
        if query in about:
            line, place = about[query]
            wanted = record[line]
            if place is not None:
                wanted = wanted[max(0, place - asked.before) : place + asked.after + 1]
            row[list(wanted)] = True
    return sets


@torch.no_grad()
def attention_sets(model, tokens, queries, asked):
    """[sequence, query, token] of a batch."""
    seen = model.hidden(tokens.to(model.device), queries.to(model.device))[1].cpu()
    index = torch.arange(tokens.shape[1])
    decided = (index >= asked.sinks) & (index <= queries[..., None] - asked.recent)
    best = seen.masked_fill(~decided, -1.0).topk(asked.k, -1).indices
    return torch.zeros_like(decided).scatter(-1, best, True) & decided


def packed(sets):
    """Bit i % 8 of byte i / 8 says that token i is in the set; the last dimension becomes bytes."""
    sets = torch.nn.functional.pad(sets.to(torch.uint8), (0, -sets.shape[-1] % 8))
    powers = 2 ** torch.arange(8, dtype=torch.uint8)
    return (sets.unflatten(-1, (-1, 8)) * powers).sum(-1, dtype=torch.uint8)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True)
    add("--cases", required=True, help="what make_lines.py wrote")
    add("--tokens", required=True, help="what encode_cases made of it")
    add("--out", required=True)
    add("--labels", choices=("line", "attention"), default="line")
    add("--queries", type=int, default=64, help="of a sequence, default: 64")
    add("--record", type=int, default=0, help="of them in what comes before the name, default: 0")
    add("--repeats", type=int, default=6, help="lines behind the answer, default: 6")
    add("--before", type=int, default=64, help="tokens, default: 64, the whole line")
    add("--after", type=int, default=64)
    add("--k", type=int, default=20, help="tokens in a set of kind attention, and what hit rates are "
        "measured at; default: 20")
    add("--sinks", type=int, default=4)
    add("--recent", type=int, default=64)
    add("--batch", type=int, default=32)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--seed", type=int, default=1)
    asked = parser.parse_args()
    draw = random.Random(asked.seed)
    texts, cases = read_cases(asked.cases), read_cases(asked.tokens)
    if len(texts) != len(cases):
        parser.error(f"{asked.tokens} holds other cases than {asked.cases}")
    model = Llama(asked.model, asked.device)
    save_file({"embeddings": model.weights["token_embd.weight"].half().cpu().contiguous()},
              pathlib.Path(asked.out).with_name("embeddings.safetensors"))
    repeats = asked.repeats if asked.labels == "line" else 0
    sequences = [sequence_of(case, text, repeats, draw) for case, text in zip(cases, texts)]
    tokens = padded([sequence for sequence, _, _ in sequences])
    queries = [choose_queries(about, asked, draw) for _, _, about in sequences]
    chosen, sets = torch.tensor(queries), []
    if asked.labels == "line":
        for (_, record, about), positions in zip(sequences, queries):
            sets.append(packed(line_sets(record, about, positions, tokens.shape[1], asked)))
    else:
        if asked.device == "cuda":
            model.cast(torch.bfloat16)
        for part in torch.arange(len(cases)).split(asked.batch):
            sets.extend(packed(attention_sets(model, tokens[part], chosen[part], asked)))
    save_file({"tokens": tokens.int(), "queries": chosen.int(), "labels": torch.stack(sets)[:, None]},
              asked.out,
              {"kind": asked.labels, "k": str(asked.k), "outputs": "model", "seed": str(asked.seed),
               "model": pathlib.Path(asked.model).name})
    print(f"{asked.out}: {len(cases)} sequences of {tokens.shape[1]} tokens, {asked.queries} queries each")


if __name__ == "__main__":
    main()
