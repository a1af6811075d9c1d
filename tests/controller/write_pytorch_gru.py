#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes what PyTorch's GRU makes of random weights, and what train.py's GRU in Cho's form makes of the
same, as a table for gru_test.cpp:

    tests/controller/write_pytorch_gru.py > tests/controller/gru_of_pytorch.hpp
"""
import pathlib
import sys

import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "bench" / "controller"))
from cho_gru import ChoGru  # noqa: E402

INPUTS, HIDDEN, TOKENS = 7, 5, 20

torch.manual_seed(1)
gru = torch.nn.GRU(INPUTS, HIDDEN, batch_first=True)
with torch.no_grad():
    for weights in gru.parameters():
        weights.normal_()
embeddings = torch.randn(1, TOKENS, INPUTS)
states = gru(embeddings)[0]
cho = ChoGru(INPUTS, HIDDEN)
cho.load_state_dict({"weight_ih_l0": gru.weight_ih_l0, "weight_hh_l0": gru.weight_hh_l0,
                     "bias_ih_l0": gru.bias_ih_l0 + gru.bias_hh_l0})


def table(name, numbers, shape):
    words = [f"{float(x):#.9g}F" for x in numbers.detach().flatten()]
    print(f"// {shape}\ninline constexpr float {name}[] = {{")
    for first in range(0, len(words), 4):
        print("    " + ", ".join(words[first : first + 4]) + ("," if first + 4 < len(words) else "};"))


print(f"""// SPDX-License-Identifier: Apache-2.0
// What PyTorch {torch.__version__.split("+")[0]} makes of random weights, and train.py of them in Cho's form. Written by
// write_pytorch_gru.py, not by hand.
#pragma once

#include "adore/types.hpp"

// clang-format off
namespace adore::testing::gru_of_pytorch {{

inline constexpr index_t inputs = {INPUTS};
inline constexpr index_t hidden = {HIDDEN};
inline constexpr index_t tokens = {TOKENS};
""")
table("weight_ih", gru.weight_ih_l0, "[3 hidden, inputs]")
table("weight_hh", gru.weight_hh_l0, "[3 hidden, hidden]")
table("bias_ih", gru.bias_ih_l0, "[3 hidden]")
table("bias_hh", gru.bias_hh_l0, "[3 hidden]")
table("embeddings", embeddings, "[token, inputs]")
table("states", states, "[token, hidden]")
table("states_of_cho", cho(embeddings), "[token, hidden]")
print("\n}  // namespace adore::testing::gru_of_pytorch")
