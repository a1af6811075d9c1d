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
    """A label file: tokens [sequence, token], queries [sequence, query], labels, attention and mass
    [sequence, output, query, ...]."""

    def __init__(self, path, device):
        tensors, self.metadata = read_file(path)
        missing = {"tokens", "queries", "labels"} - tensors.keys()
        if missing or "k" not in self.metadata:
            sys.exit(f"train.py: {path} is no label file: it lacks {sorted(missing) or 'k'}")
        self.path, self.device = path, device
        self.k = int(self.metadata["k"])
        self.hash = hashlib.sha256(tensors["tokens"].numpy().tobytes()).hexdigest()
        everything = sum(t.nbytes for t in tensors.values())
        if device.type == "cuda" and everything < torch.cuda.mem_get_info()[0] / 3:
            tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        self.tokens, self.queries = tensors["tokens"].long(), tensors["queries"].long()
        self.bits, self.attention, self.mass = (
            tensors.get(name) for name in ("labels", "attention", "mass"))
        self.sequences, self.length = self.tokens.shape
        self.outputs, self.per_sequence = self.bits.shape[1:3]
        expected = (self.sequences, self.outputs, self.queries.shape[1], (self.length + 7) // 8)
        if tuple(self.bits.shape) != expected:
            sys.exit(f"train.py: {path}: labels are {tuple(self.bits.shape)}, not {expected}")

    def batch(self, rows, queries=None, generator=None):
        """Tokens of some sequences, and the pairs of so many of each one's queries, drawn anew;
        on the device."""
        rows = rows.to(self.tokens.device)
        pairs = Pairs(*(None if t is None else t[rows] for t in
                        (self.queries, self.bits, self.attention, self.mass)))
        if queries is not None and queries < self.per_sequence:
            drawn = torch.rand(len(rows), self.per_sequence, generator=generator)
            pairs = pairs.of(drawn.argsort(1)[:, :queries].sort(1)[0].to(rows.device))
        return self.tokens[rows].to(self.device, non_blocking=True), pairs.to(self.device)

    def unpacked(self, bits):
        """[sequence, output, query, byte] to 0 or 1 [sequence, query, token, output]."""
        shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
        flags = (bits[..., None] >> shifts) & 1
        return flags.flatten(-2)[..., : self.length].permute(0, 2, 3, 1).float()


class Pairs:
    """What a batch knows of queries and tokens: queries [sequence, query]; bits, attention and mass
    [sequence, output, query, ...] as in the file."""

    def __init__(self, queries, bits, attention, mass):
        self.queries, self.bits, self.attention, self.mass = queries, bits, attention, mass

    def _each(self, change_queries, change):
        return Pairs(change_queries(self.queries), *(
            None if t is None else change(t) for t in (self.bits, self.attention, self.mass)))

    def of(self, chosen):
        """The queries with these numbers, [sequence, query]."""
        index = chosen[:, None, :, None]
        return self._each(lambda queries: queries.gather(1, chosen),
                          lambda t: t.take_along_dim(index, 2))

    def part(self, queries):
        """A slice of the queries."""
        return self._each(lambda of_all: of_all[:, queries], lambda t: t[:, :, queries])

    def to(self, device):
        return self._each(*2 * [lambda t: t.to(device, non_blocking=True)])
