# SPDX-License-Identifier: Apache-2.0
"""A retention policy played through on recorded attention: closer to what a cache does with a score
than how many tokens it names rightly, since what is released is gone."""
import math

import torch


def kept_attention(scoring, tokens, pairs, keep, rebuilt):
    """Share of the attention of the sampled queries that falls on tokens which they could still see,
    [number in rebuilt], the mean over outputs, queries and sequences.

    Step n attends what is kept, token n, and the R released tokens with the largest scores; then of
    more than `keep` tokens the one with the smallest score goes, protected ones excepted.

    tokens   [sequence, token]
    pairs    whose attention is that of the queries themselves
    rebuilt  numbers R
    """
    sequences, length = tokens.shape
    x, z = scoring.hear(tokens)
    index = torch.arange(length, device=tokens.device)
    every = index.expand(sequences, length)
    # [sequence, step, token, output] does not fit in memory: some steps at a time
    kept = None
    sums = torch.zeros(len(rebuilt), dtype=torch.float64, device=tokens.device)
    number = torch.full((sequences, length), -1, device=tokens.device)
    number.scatter_(1, pairs.queries, torch.arange(pairs.queries.shape[1], device=tokens.device)
                    .expand_as(pairs.queries))  # of the query sampled at a step, or -1
    sampled = (number >= 0).any(0).tolist()
    attention = pairs.attention
    for part in scoring.slices(sequences, length, length):
        scores = scoring.scores(x, z, every[:, part], None).permute(0, 1, 3, 2)
        decided = scoring.decided(every[:, part], length).transpose(2, 3)
        if kept is None:
            kept = torch.zeros(sequences, scores.shape[2], length, dtype=torch.bool,
                               device=tokens.device)
        for at, n in enumerate(range(part.start, min(part.stop, length))):
            score = scores[:, min(at, scores.shape[1] - 1)]  # [sequence, output, token]
            if sampled[n]:
                sums += _attended(score, kept, n, number[:, n], attention, rebuilt)
            kept[:, :, n] = True
            if n < keep:
                continue
            free = kept & decided[:, at]
            victim = score.masked_fill(~free, math.inf).argmin(2, keepdim=True)
            # where all are protected nothing goes
            kept.scatter_(2, victim, kept.gather(2, victim) & ~free.gather(2, victim))
    return (sums / (pairs.queries.numel() * attention.shape[1])).cpu()


def _attended(score, kept, n, number, attention, rebuilt):
    """Sums over sequences and outputs of the share of query n's attention that it can see."""
    rows = (number >= 0).nonzero()[:, 0]
    weights = attention[rows, :, number[rows]].double()  # [row, output, token]
    seen = kept[rows].clone()
    seen[:, :, n] = True
    out = score[rows].masked_fill(seen, -math.inf)
    out[:, :, n + 1:] = -math.inf
    all_of_it = weights.sum(2)
    best = out.topk(max(1, min(max(rebuilt), out.shape[2])), dim=2)
    gain = weights.gather(2, best.indices) * (best.values > -math.inf)
    held = (weights * seen).sum(2)
    return torch.stack([((held + gain[:, :, :count].sum(2)) / all_of_it).sum() for count in rebuilt])
