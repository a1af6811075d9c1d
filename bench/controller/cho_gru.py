# SPDX-License-Identifier: Apache-2.0
"""The GRU in the form of Cho et al. 2014 (arXiv:1406.1078), which PyTorch does not have: the reset gate
works on the state before its product, and the update gate is the share of what is new."""
import torch
from torch import nn


class ChoGru(nn.Module):
    """One layer, batch first. Its weights have the names and shapes of nn.GRU's; one bias is enough.

    r = sigmoid(W_r x + U_r z + b_r); u = sigmoid(W_u x + U_u z + b_u)
    c = tanh(W_c x + U_c (r z) + b_c); z' = (1 - u) z + u c
    """

    def __init__(self, inputs, hidden, bidirectional=False):
        super().__init__()
        self.hidden = hidden
        self.directions = ("", "_reverse") if bidirectional else ("",)
        for direction in self.directions:
            for name, shape in (("weight_ih", (3 * hidden, inputs)),
                                ("weight_hh", (3 * hidden, hidden)), ("bias_ih", (3 * hidden,))):
                weight = nn.Parameter(torch.empty(shape).uniform_(-1, 1) * hidden**-0.5)
                self.register_parameter(f"{name}_l0{direction}", weight)

    def forward(self, x, lengths=None):
        """States [sequence, token, d'], those of both directions side by side.

        x        [sequence, token, D]
        lengths  [sequence] where the second direction starts from; default: all tokens. States of
                 later tokens mean nothing
        """
        states = [self._scan(x, "")]
        if len(self.directions) > 1:
            last = x.shape[1] - 1 if lengths is None else lengths[:, None] - 1
            index = torch.arange(x.shape[1], device=x.device)
            back = (last - index).clamp(min=0).expand(len(x), -1)  # its own inverse up to `last`
            row = torch.arange(len(x), device=x.device)[:, None]
            states.append(self._scan(x[row, back], "_reverse")[row, back])
        return torch.cat(states, -1)

    def _scan(self, x, direction):
        weight_ih, weight_hh, bias = (
            getattr(self, f"{name}_l0{direction}") for name in ("weight_ih", "weight_hh", "bias_ih"))
        gates, candidate = weight_hh.split((2 * self.hidden, self.hidden))
        z = x.new_zeros(len(x), self.hidden)
        states = []
        for of_input in nn.functional.linear(x, weight_ih, bias).unbind(1):
            of_gates, of_candidate = of_input.split((2 * self.hidden, self.hidden), -1)
            reset, update = torch.sigmoid(of_gates + z @ gates.T).chunk(2, -1)
            new = torch.tanh(of_candidate + (reset * z) @ candidate.T)
            z = (1 - update) * z + update * new
            states.append(z)
        return torch.stack(states, 1)

    def file_tensors(self):
        """What a controller file has beside the parameters: the second bias of PyTorch's form."""
        return {f"bias_hh_l0{direction}": torch.zeros(3 * self.hidden)
                for direction in self.directions}
