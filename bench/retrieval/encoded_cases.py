# SPDX-License-Identifier: Apache-2.0
"""Cases of line retrieval with the tokens that encode_cases has written, as padded batches."""
import json

import torch

PADDING = 0  # behind a sequence's end, where no query looks


def read_cases(path):
    """[{"prompt", "ends", "answer"}], or what other lines of JSON there are."""
    with open(path) as file:
        return [json.loads(line) for line in file]


def padded(sequences, length=None):
    """Token lists as [sequence, token]."""
    length = length or max(map(len, sequences))
    tokens = torch.full((len(sequences), length), PADDING)
    for row, sequence in zip(tokens, sequences):
        row[: len(sequence)] = torch.tensor(sequence)
    return tokens


def answered(cases):
    """Prompts with their answers, [case, token], and the positions of each answer token's
    predecessor, [case, answer token], -1 behind an answer's end."""
    tokens = padded([case["prompt"] + case["answer"] for case in cases])
    predecessors = torch.full((len(cases), max(len(case["answer"]) for case in cases)), -1)
    for row, case in zip(predecessors, cases):
        first, count = len(case["prompt"]) - 1, len(case["answer"])
        row[:count] = torch.arange(first, first + count)
    return tokens, predecessors
