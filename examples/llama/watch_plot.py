#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws what watch prints: watch ... | watch_plot.py releases.png
A row per step from top to bottom, a column per token: kept, back for the step, released."""
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

KINDS = {"#": "kept", "+": "released, back in this step", ".": "released"}
COLOURS = ["white", "tab:blue", "tab:orange", "lightgrey"]


def main():
    lines = [line.rstrip("\n") for line in sys.stdin]
    lines = [line for line in lines if line and set(line) <= set(KINDS)]
    letters = " " + "".join(KINDS)
    picture = [[letters.index(c) for c in line.ljust(len(lines[-1]))] for line in lines]
    figure, axes = plt.subplots(figsize=(9, 7))
    axes.imshow(picture, cmap=ListedColormap(COLOURS), vmin=0, vmax=3, interpolation="nearest",
                aspect="auto")
    axes.set(xlabel="token", ylabel="step")
    axes.legend(handles=[Patch(color=c, label=name) for c, name in zip(COLOURS[1:], KINDS.values())],
                loc="upper right")
    figure.tight_layout()
    figure.savefig(sys.argv[1], dpi=150)


if __name__ == "__main__":
    main()
