# SPDX-License-Identifier: Apache-2.0
"""Figures of a controller on sequences that it was not trained on, and of rules that know less."""
import math

import torch

from kept_attention import kept_attention

SINKS = 4  # of the baseline that keeps the first and the newest tokens


class Validation:
    """Some sequences of a label file and what scores them."""

    def __init__(self, asked, scoring, labels, rows):
        self.asked, self.scoring, self.labels, self.rows = asked, scoring, labels, rows
        # of the attention of a query itself it is known what a policy would have kept of it
        self.tells_kept = (labels.attention is not None and not asked.join_mass
                           and labels.metadata.get("kind") == "query")

    def chunks(self, scorer):
        """Slices (queries, labels, decided, scores) of the sequences."""
        for rows in self.rows.split(self.asked.batch):
            tokens, pairs = self.labels.batch(rows)
            x, z = self.scoring.hear(tokens)
            for part in self.scoring.slices(*tokens.shape, self.labels.per_sequence):
                some = pairs.part(part)
                wanted = self.labels.unpacked(some.bits)
                scores = scorer(x, z, some.queries, some.mass)
                decided = self.scoring.decided(some.queries, self.labels.length)
                yield some.queries, wanted, decided, scores.expand_as(wanted)

    def hits(self):
        return Hits(self.labels, self.scoring.protected)

    @torch.no_grad()
    def evaluate(self):
        """Figures over all pairs that are decided on; float32."""
        counts = torch.zeros(4, dtype=torch.float64, device=self.labels.device)
        ranked = self.hits()
        for queries, wanted, decided, scores in self.chunks(self.scoring.scores):
            yes, true = (scores > 0) & decided, (wanted > 0) & decided
            counts += torch.stack([(yes & true).sum(), (yes & ~true).sum(), (~yes & true).sum(),
                                   decided.sum() * self.labels.outputs])
            ranked.add(scores, wanted, decided, queries)
        hit, false, missed, pairs = counts.tolist()
        figures = {"f1": 2 * hit / max(1.0, 2 * hit + false + missed),
                   "accuracy": 1 - (false + missed) / pairs, "prevalence": (hit + missed) / pairs,
                   **ranked.rates()}
        if self.tells_kept:
            figures["kept"] = {
                f"R = {count}": share for count, share in zip(self.asked.rebuilt, self.kept())}
        return figures

    @torch.no_grad()
    def kept(self):
        """What a policy that ranks by these scores keeps of the queries' attention, per number of
        rebuilt tokens."""
        sums, sequences = 0.0, 0
        for rows in self.rows.split(self.asked.batch):
            tokens, pairs = self.labels.batch(rows)
            sums = sums + len(rows) * kept_attention(
                self.scoring, tokens, pairs, self.labels.k, self.asked.rebuilt)
            sequences += len(rows)
        return (sums / sequences).tolist()

    @torch.no_grad()
    def baselines(self, trained):
        """Hit rates of rules that know nothing but positions, and of the mass where it is there.

        trained  (labels, rows): where the rule of ages is taken from
        """
        index = torch.arange(self.labels.length, device=self.labels.device, dtype=torch.float32)
        by_age = self.label_rate_by_age(*trained)
        first = torch.where(index < SINKS, self.labels.length - index, torch.zeros_like(index))

        def age(x, z, queries, mass):
            return by_age[(queries[..., None] - index.long()).clamp(min=0)]

        rules = {"window": lambda *_: index[:, None],
                 "sinks_and_window": lambda *_: (index + 2 * first)[:, None],
                 "age": age}
        if self.labels.mass is not None:
            rules["mass"] = lambda x, z, queries, mass: mass.permute(0, 2, 3, 1).float()
        found = {}
        for name, rule in rules.items():
            ranked = self.hits()
            for queries, wanted, decided, scores in self.chunks(rule):
                ranked.add(scores, wanted, decided, queries)
            found[name] = ranked.rates()
        return found

    def label_rate_by_age(self, labels, trained):
        """How often a token n - i steps old is in the label set, [age, output], of the training
        sequences: the best rule that looks at the age alone."""
        length, outputs = labels.length, labels.outputs
        hits = torch.zeros(length, outputs, dtype=torch.float64, device=labels.device)
        seen = torch.zeros(length, 1, dtype=torch.float64, device=labels.device)
        ages = torch.arange(length, device=labels.device)
        for rows in trained.split(self.asked.batch):
            _, pairs = labels.batch(rows)
            for part in self.scoring.slices(len(rows), length, labels.per_sequence):
                some = pairs.part(part)
                of_age = some.queries[..., None] - ages  # the token of each age
                there = (of_age >= 0)[..., None]
                wanted = labels.unpacked(some.bits)
                wanted = wanted.take_along_dim(of_age.clamp(min=0)[..., None], 2) * there
                hits += wanted.sum((0, 1), dtype=torch.float64)
                seen += there.sum((0, 1), dtype=torch.float64)
        return (hits / seen.clamp(min=1)).float()


class Hits:
    """Of the tokens with the largest scores, as many as K leaves beside the protected ones, how many
    are in the label set? Queries that see at most K tokens say nothing and are left out."""

    def __init__(self, labels, protected):
        self.k = min(labels.k, labels.length)
        self.places = max(1, self.k - sum(protected))
        self.sums = torch.zeros(2, labels.outputs, dtype=torch.float64)

    def add(self, scores, wanted, decided, queries):
        told = (queries >= self.k)[..., None]
        best = scores.masked_fill(~decided, -math.inf).topk(self.places, dim=2, sorted=False).indices
        hits = wanted.take_along_dim(best, 2).sum(2) * told
        of = told.expand_as(hits) * self.places
        self.sums += torch.stack([hits, of]).sum((1, 2), dtype=torch.float64).cpu()

    def rates(self):
        hits, of = self.sums
        rates = {"hit_rate": (hits.sum() / of.sum().clamp(min=1)).item()}
        if len(of) > 1:
            rates["hit_rate_by_output"] = (hits / of.clamp(min=1)).tolist()
        return rates
