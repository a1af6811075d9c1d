# SPDX-License-Identifier: Apache-2.0
"""A controller's scores of the pairs of a query and a token, in pieces that fit in memory; and which
of the pairs a policy decides on."""
import torch


class Scoring:
    """The model, what it scores by, and what it is asked about.

    protected  (sinks, recent): tokens that the policy keeps whatever their score
    """

    def __init__(self, asked, model, embeddings, log_exponent, device):
        self.model, self.embeddings, self.device = model, embeddings, device
        self.log_exponent, self.mass_epsilon = log_exponent, asked.mass_epsilon
        self.joins_mass, self.protected = asked.join_mass, asked.protect
        per_channel = asked.hidden * (8 if asked.mode == "bidirectional" else 1)  # the GRU's own
        self.per_pair = per_channel + 4 * model.output.out_features

    def hear(self, tokens):
        x = self.embeddings[tokens]
        return x, self.model.hear(x)

    def slices(self, sequences, tokens, queries):
        """Slices of the queries: what exists per query, token and channel has to fit in memory."""
        elements = 2**28 if self.device.type == "cuda" else 2**25
        count = -(-queries // max(1, elements // (sequences * tokens * self.per_pair)))
        step = -(-queries // count)
        return [slice(q, q + step) for q in range(0, queries, step)]

    def visible(self, queries, tokens):
        """1 where token i <= query n, [sequence, query, token, 1]."""
        return (torch.arange(tokens, device=self.device) <= queries[..., None])[..., None]

    def decided(self, queries, tokens):
        """The visible pairs that no protection decides on, of the same shape."""
        sinks, recent = self.protected
        index = torch.arange(tokens, device=self.device)
        return ((index >= sinks) & (index <= queries[..., None] - recent))[..., None]

    def scores(self, x, z, queries, mass, pair_type=torch.float32):
        """Logits [sequence, query or 1, token, output], with the mass if it is joined."""
        logits = self.model.logits(x, z, queries, pair_type)
        if self.joins_mass:
            logs = torch.log(mass.permute(0, 2, 3, 1).float() + self.mass_epsilon)
            logits = logits + self.log_exponent.exp() * logs
        return logits
