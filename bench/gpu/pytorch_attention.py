#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""PyTorch's attention without weights, by each of its backends, and its plain way to do H2O, at the
shapes of attention_bench: microseconds per layer inside a CUDA graph, medians, buffers rotated past
L2; one after the other, and each behind a matrix product as in bench/gpu/products.cuh.
Usage: pytorch_attention.py [rows x heads/kv_heads x slots]..."""
import statistics
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

CHANNELS = 128
SHAPES = ["64x32/32x193", "64x32/32x200", "64x32/8x200", "64x32/32x1024", "64x32/8x1024",
          "64x32/32x4096", "64x32/8x4096", "64x64/8x1024", "16x32/8x4096", "4x32/8x8192",
          "1x32/8x200", "1x32/8x1024", "1x32/8x4096", "1x32/8x32768", "1x64/8x32768",
          "1x4/1x32768"]
BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION,
            "efficient": SDPBackend.EFFICIENT_ATTENTION}


def median_us(work, units, repeats=20):
    """Median time of one of the `units` of `work`, replayed as a graph."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    graph.replay()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / units)
    return statistics.median(times)


def h2o_step(q, k, v, mass, recent):
    """Matmul, softmax, sum, selection, and the victim's row overwritten by the newest."""
    rows, kv_heads = k.shape[:2]
    q = q.view(rows, kv_heads, -1, CHANNELS)
    weights = torch.softmax((torch.matmul(q, k.transpose(2, 3)) * CHANNELS ** -0.5).float(), dim=-1)
    out = torch.matmul(weights.to(v.dtype), v)
    mass += weights.sum(dim=2)
    victim = mass[:, :, : mass.shape[2] - recent].argmin(dim=2, keepdim=True)
    index = victim.unsqueeze(3).expand(-1, -1, 1, CHANNELS)
    k.scatter_(2, index, k[:, :, -1:])
    v.scatter_(2, index, v[:, :, -1:])
    mass.scatter_(2, victim, 0.0)
    return out


def measure(name):
    rows, heads, slots = name.split("x")
    heads, kv_heads = (int(x) for x in heads.split("/"))
    rows, slots = int(rows), int(slots)
    layer_bytes = 2 * rows * kv_heads * slots * CHANNELS * 2
    layers = max(2, min(128, 2_000_000_000 // layer_bytes))
    kv = [[torch.randn(rows, kv_heads, slots, CHANNELS, device="cuda", dtype=torch.bfloat16)
           for _ in range(2)] for _ in range(layers)]
    q = torch.randn(rows, heads, 1, CHANNELS, device="cuda", dtype=torch.bfloat16) * 2
    group_as_rows = q.view(rows, kv_heads, heads // kv_heads, CHANNELS)  # the same attention
    ways = [("", q, heads != kv_heads)]
    if heads != kv_heads:
        ways.append(("-rows", group_as_rows, False))
    x = torch.randn(rows, 4096, device="cuda", dtype=torch.bfloat16)
    projections = [torch.randn(3 * 4096, 4096, device="cuda", dtype=torch.bfloat16)
                   for _ in range(6)]

    def multiply():
        for layer in range(layers):
            F.linear(x, projections[layer % 6])
    product = median_us(multiply, layers)
    best = best_behind = None
    for backend, enum in BACKENDS.items():
        for suffix, queries, gqa in ways:
            def attend(behind=False):
                with sdpa_kernel(enum):
                    for layer, (k, v) in enumerate(kv):
                        if behind:
                            F.linear(x, projections[layer % 6])
                        F.scaled_dot_product_attention(queries, k, v, enable_gqa=gqa)
            try:
                us = median_us(attend, layers)
                behind = median_us(lambda: attend(behind=True), layers) - product
            except RuntimeError as error:
                torch.cuda.synchronize()
                print(f"sdpa-{backend}{suffix},{name},-,{str(error).splitlines()[0][:60]}")
                continue
            best = us if best is None else min(best, us)
            best_behind = behind if best_behind is None else min(best_behind, behind)
            print(f"sdpa-{backend}{suffix},{name},{us:.2f},{layer_bytes / us * 1e-6:.2f} TB/s")
    print(f"sdpa-fastest,{name},{best:.2f}")
    print(f"sdpa-behind-product,{name},{best_behind:.2f}")
    if rows > 1 and slots <= 1024:
        masses = [torch.rand(rows, kv_heads, slots, device="cuda") for _ in range(layers)]
        def plain_h2o():
            for (k, v), mass in zip(kv, masses):
                h2o_step(q, k, v, mass, slots // 4)
        print(f"pytorch-h2o,{name},{median_us(plain_h2o, layers):.2f}")
    sys.stdout.flush()


if __name__ == "__main__":
    print(f"# torch {torch.__version__}, {torch.cuda.get_device_name()}")
    with torch.inference_mode():
        for shape in sys.argv[1:] or SHAPES:
            measure(shape)
