# SPDX-License-Identifier: Apache-2.0
"""What training makes small: sums over the queries of a batch, of the pairs that are decided on."""
import math

import torch
from torch.nn import functional


def binary(logits, wanted, decided, positive_weight):
    """Cross entropy between the label sets and sigmoid(logit), of every pair (the paper's)."""
    return functional.binary_cross_entropy_with_logits(
        logits.expand_as(wanted), wanted, decided.expand_as(wanted).float(),
        pos_weight=positive_weight, reduction="sum")


def attention(logits, weights, decided):
    """Cross entropy between attention and softmax(logit) over the tokens: the logit becomes the
    logarithm of the attention that is to be expected, up to a constant of the query.

    weights  [sequence, query, token, output], as shares of what the query attends to
    """
    shares = torch.log_softmax(logits.masked_fill(~decided, -math.inf), 2)
    return -(weights * shares.masked_fill(~decided, 0.0)).sum()
