# SPDX-License-Identifier: Apache-2.0
"""The network of the ADORE controller (arXiv:2407.02328, Eq. 2 and appendix B) as train.py trains it:
a GRU over the model's word embeddings, a position layer, tanh, one logit per output. The names of
its weights are those of a controller file."""
import math

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from cho_gru import ChoGru

MODES = ("static", "distance", "index_over_length", "query_conditioned", "bilinear", "bidirectional")
POSITIONS = ("index_over_max", "raw", "log1p", "index_over_length", "distance")


def rms_normalised(x):
    """Each embedding divided by its root mean square; `x` [..., D]."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class Controller(nn.Module):
    """Scores of the tokens i that a query n may see.

    t = tanh(W_I (W_p pos + b_p + z_i) + b_I [+ W_c z_n]); logit = W_o t + b_o [+ z_n^T M z_i / sqrt(d')]

    mode      whether a score is fixed when its token comes ("static"), or depends on the query
              through the position feature ("distance", "index_over_length"), through the query's
              state ("query_conditioned", "bilinear"), or through all tokens up to the query
              ("bidirectional")
    position  what the position layer is given; "raw" saturates the tanh, see `max_length`
    gru       "pytorch", "cho", or "none": a linear layer in its place
    """

    def __init__(self, inputs, hidden=128, outputs=1, mode="static", position="index_over_max",
                 max_length=4096, gru="pytorch"):
        super().__init__()
        if mode in ("distance", "index_over_length") and position != mode:
            raise ValueError(f"mode {mode} needs the position feature {mode}, not {position}")
        if mode == "static" and position in ("distance", "index_over_length"):
            raise ValueError(f"with the position feature {position} scores depend on the query: "
                             f"the mode is {position}, not static")
        if mode == "bidirectional" and gru == "none":
            raise ValueError("mode bidirectional needs a GRU")
        self.mode, self.position_feature, self.max_length, self.form = mode, position, max_length, gru
        if gru == "none":
            self.input = nn.Linear(inputs, hidden)
        else:
            both_ways = mode == "bidirectional"
            self.gru = (ChoGru(inputs, hidden, both_ways) if gru == "cho" else
                        nn.GRU(inputs, hidden, batch_first=True, bidirectional=both_ways))
        if mode == "bidirectional":
            self.merge = nn.Linear(2 * hidden, hidden)
        self.position = nn.Linear(1, hidden)
        self.interaction = nn.Linear(hidden, hidden)
        # zero: training starts from the static score
        if mode == "query_conditioned":
            self.query = nn.Linear(hidden, hidden, bias=False)
            nn.init.zeros_(self.query.weight)
        if mode == "bilinear":
            self.bilinear = nn.Linear(hidden, hidden, bias=False)
            nn.init.zeros_(self.bilinear.weight)
        self.output = nn.Linear(hidden, outputs)

    def hear(self, x):
        """States z [sequence, token, d'] of embeddings [sequence, token, D]; None for bidirectional,
        whose states depend on the query."""
        if self.mode == "bidirectional":
            return None
        if self.form == "none":
            return self.input(x)
        return self.gru(x) if self.form == "cho" else self.gru(x)[0]

    def logits(self, x, z, queries, pair_type=torch.float32):
        """Logits [sequence, query or 1, token, output]; 1 where all queries give the same.

        x          embeddings [sequence, token, D]; only bidirectional reads them
        z          what `hear` made of them
        queries    positions n [sequence, query]
        pair_type  arithmetic of what exists once per query and token
        """
        tokens = x.shape[1]
        if self.mode == "bidirectional":
            z = self._heard_both_ways(x, queries)  # [sequence, query, token, d']
        else:
            z_query = z[torch.arange(len(z), device=z.device)[:, None], queries]
            z = z[:, None]  # [sequence, 1, token, d']
        index = torch.arange(tokens, device=x.device, dtype=torch.float32)
        n = queries[..., None].float()
        feature = {
            "index_over_max": lambda: index / self.max_length,
            "raw": lambda: index,
            "log1p": lambda: torch.log1p(index),
            "index_over_length": lambda: index / n.clamp(min=1),
            "distance": lambda: (n - index) / self.max_length,
        }[self.position_feature]()  # [token] or [sequence, query, token]
        per_pair = feature.dim() > 1
        token_part = self.interaction(z + self.position.bias)
        slope = self.interaction.weight @ self.position.weight[:, 0]
        if not per_pair:
            token_part = token_part + feature[:, None] * slope
        before = token_part.to(pair_type)
        if per_pair:
            before = torch.addcmul(before, feature[..., None].to(pair_type), slope.to(pair_type))
        if self.mode == "query_conditioned":
            before = before + self.query(z_query)[:, :, None].to(pair_type)
        logits = nn.functional.linear(torch.tanh(before), self.output.weight.to(pair_type)).float()
        logits = logits + self.output.bias
        if self.mode == "bilinear":
            products = z_query @ self.bilinear(z[:, 0]).transpose(1, 2)  # [sequence, query, token]
            logits = logits + products[..., None] / math.sqrt(z.shape[-1])
        return logits

    def _heard_both_ways(self, x, queries):
        """States from tokens 0..n for each query n: the GRU runs once per query."""
        sequences, tokens, _ = x.shape
        per_query = queries.shape[1]
        x, lengths = x.repeat_interleave(per_query, 0), queries.flatten() + 1
        if self.form == "cho":
            both = self.gru(x, lengths)
        else:
            packed = pack_padded_sequence(
                x, lengths.cpu(), batch_first=True, enforce_sorted=False)
            both, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=tokens)
        return self.merge(both).view(sequences, per_query, tokens, -1)

    def file_tensors(self, mass_exponent=None):
        """The tensors of a controller file, float32.

        mass_exponent  [output], a > 0 where the model was trained on logit + a log(mass): the file's
                       logit is divided by it, so that mass exp(logit) ranks the same tokens first
        """
        tensors = {name: weight.detach().float().cpu().clone()
                   for name, weight in self.state_dict().items()}
        if self.form == "cho":
            tensors.update((f"gru.{name}", bias) for name, bias in self.gru.file_tensors().items())
        tensors["position.weight"] = tensors["position.weight"][:, 0].clone()
        if mass_exponent is not None:
            a = mass_exponent.detach().float().cpu()
            tensors["output.weight"] /= a[:, None]
            tensors["output.bias"] /= a
        return tensors
