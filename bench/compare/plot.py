# SPDX-License-Identifier: Apache-2.0
# Draws a comparison: perplexity of the second half, or exact match of a retrieval, against the
# budget, one line per policy.
# Usage: plot.py FILE... < results.json; the file names' endings choose the formats.
import json
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend comes first)
from matplotlib import ticker  # noqa: E402

results = json.load(sys.stdin)
retrieves = results[0]["exact_match"] is not None
figure_of = "exact_match" if retrieves else "perplexity_second_half"
figure, axes = plt.subplots(figsize=(9, 6), constrained_layout=True)
budgets = sorted({line["budget"] for line in results if line["budget"] is not None})
names = list(dict.fromkeys(line["policy"] for line in results if line["budget"] is not None))
markers = "osD^v<>pPX*"
for i, name in enumerate(names):
    points = sorted(
        (line["budget"], line[figure_of])
        for line in results
        if line["policy"] == name and line["budget"] is not None
    )
    bound = name.startswith(("random", "dynamic_top_k"))
    axes.plot(
        [m for m, _ in points],
        [p for _, p in points],
        marker=markers[i % len(markers)],
        linestyle="--" if bound else "-",
        color=plt.get_cmap("tab20")(i % 20),
        label=name,
    )
for line in results:
    if line["budget"] is None and line["policy"] == "keep_all":
        axes.axhline(line[figure_of], color="black", label="keep_all")
    elif line["budget"] is None:
        axes.axhline(line[figure_of], color="grey", linestyle=":", label=line["policy"])
axes.set_xlabel("budget: tokens kept per lane after a step")
if retrieves:
    axes.set_ylabel("exact match")
    axes.set_ylim(-0.03, 1.03)
else:
    axes.set_ylabel("perplexity of the second half")
    axes.set_yscale("log")
    # labels between the powers of ten only as far as there is room for them
    axes.yaxis.set_major_formatter(ticker.LogFormatter(labelOnlyBase=False))
    axes.yaxis.set_minor_formatter(ticker.LogFormatter(labelOnlyBase=False, minor_thresholds=(4, 0.5)))
if budgets:
    axes.set_xscale("log", base=2)
    axes.set_xticks(budgets, [str(m) for m in budgets])
    axes.xaxis.set_minor_locator(ticker.NullLocator())
axes.grid(True, which="both", alpha=0.3)
axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
for name in sys.argv[1:]:
    figure.savefig(name, dpi=150)
