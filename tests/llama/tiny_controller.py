# SPDX-License-Identifier: Apache-2.0
"""A tiny random controller file for the tiny model, for tests of whole programs."""
import array
import json
import random
import struct

from tiny_model import WIDTH

HIDDEN = 4


def write_tiny_controller(path, outputs=1):
    """A safetensors file; scores depend on the newest token."""
    shapes = {
        "gru.weight_ih_l0": (3 * HIDDEN, WIDTH),
        "gru.bias_ih_l0": (3 * HIDDEN,),
        "gru.weight_hh_l0": (3 * HIDDEN, HIDDEN),
        "gru.bias_hh_l0": (3 * HIDDEN,),
        "position.weight": (HIDDEN,),
        "position.bias": (HIDDEN,),
        "interaction.weight": (HIDDEN, HIDDEN),
        "interaction.bias": (HIDDEN,),
        "query.weight": (HIDDEN, HIDDEN),
        "output.weight": (outputs, HIDDEN),
        "output.bias": (outputs,),
    }
    draw = random.Random(4)
    header = {"__metadata__": {"score_mode": "query_conditioned"}}
    data = b""
    for name, shape in shapes.items():
        size = shape[0] * (shape[1] if len(shape) > 1 else 1)
        values = array.array("f", [draw.gauss(0.0, 0.5) for _ in range(size)]).tobytes()
        header[name] = {
            "dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(values)],
        }  # fmt: skip
        data += values
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
