# SPDX-License-Identifier: Apache-2.0
"""The files that gather_labels writes, for train.py."""
import hashlib
import sys

import torch
from safetensors import SafetensorError, safe_open


def read_file(path):
    """Tensors and metadata of a safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        sys.exit(f"train.py: {path} cannot be read: {error}")


def read_embeddings(path, labels):
    """[vocabulary, D] of the model whose tokens the labels are about."""
    tensors, _ = read_file(path)
    if "embeddings" not in tensors:
        sys.exit(f"train.py: {path} holds no tensor \"embeddings\"")
    vocabulary, largest = len(tensors["embeddings"]), int(labels.tokens.max())
    if largest >= vocabulary:
        sys.exit(f"train.py: {path} has {vocabulary} embeddings, the labels a token {largest}")
    return tensors["embeddings"].float()


class Labels:
    """A label file: tokens [sequence, token], queries [sequence, query], labels and mass."""

    def __init__(self, path, device):
        tensors, self.metadata = read_file(path)
        missing = {"tokens", "queries", "labels"} - tensors.keys()
        if missing or "k" not in self.metadata:
            sys.exit(f"train.py: {path} is no label file: it lacks {sorted(missing) or 'k'}")
        self.tokens, self.queries, self.bits = (
            tensors[name] for name in ("tokens", "queries", "labels"))
        self.mass = tensors.get("mass")
        self.k = int(self.metadata["k"])
        self.sequences, self.length = self.tokens.shape
        self.outputs, self.per_sequence = self.bits.shape[1:3]
        expected = (self.sequences, self.outputs, self.queries.shape[1], (self.length + 7) // 8)
        if tuple(self.bits.shape) != expected:
            sys.exit(f"train.py: {path}: labels are {tuple(self.bits.shape)}, not {expected}")
        if self.sequences < 2:
            sys.exit(f"train.py: {path} has one sequence: two are needed, one to validate")
        self.hash = hashlib.sha256(self.tokens.numpy().tobytes()).hexdigest()
        self.tokens, self.queries = self.tokens.long(), self.queries.long()
        everything = sum(t.nbytes for t in tensors.values())
        if device.type == "cuda" and everything < torch.cuda.mem_get_info()[0] / 3:
            self.tokens, self.queries, self.bits = (
                t.to(device) for t in (self.tokens, self.queries, self.bits))
            self.mass = None if self.mass is None else self.mass.to(device)
        self.device = device

    def batch(self, rows):
        """What a batch of sequences holds, on the device; labels stay packed, mass float16."""
        rows = rows.to(self.tokens.device)
        taken = [self.tokens[rows], self.queries[rows], self.bits[rows]]
        taken.append(None if self.mass is None else self.mass[rows])
        return [None if t is None else t.to(self.device, non_blocking=True) for t in taken]

    def unpacked(self, bits):
        """[sequence, output, query, byte] to 0 or 1 [sequence, query, token, output]."""
        shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
        flags = (bits[..., None] >> shifts) & 1
        return flags.flatten(-2)[..., : self.length].permute(0, 2, 3, 1).float()
