#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Table and plots of the device benchmarks. Usage: table.py FOLDER, which holds attention.json and
stages.json (Google Benchmark) and, where PyTorch and FlashInfer ran, pytorch.csv and flashinfer.json;
writes table.md, and attention.png and .svg where matplotlib is installed."""
import json
import pathlib
import re
import sys

PLOTTED = ["sdpa-fastest", "flashinfer-fastest", "keep_all", "sliding_window",
           "h2o, unobserved step", "h2o"]
FLASHINFER = ["flashinfer", "flashinfer hnd", "flashinfer, tensor cores",
              "flashinfer, tensor cores hnd"]
COLUMNS = ["read", "copy"] + PLOTTED + ["h2o, weights exported", "h2o, scope layer",
                                        "pytorch-h2o"] + FLASHINFER + [
                                            "keep_all, pages", "keep_all, pages hnd", "h2o, pages",
                                            "h2o, pages hnd"]
# A copy reads half of what attention reads and writes as much: the same traffic.
HEADINGS = {"read": "reading K, V", "copy": "copying, the same bytes moved"}


def medians(path):
    """{name: {shape: microseconds}} of a file of Google Benchmark."""
    found = {}
    for run in json.loads(path.read_text())["benchmarks"]:
        if run.get("aggregate_name") == "median":
            name, shape = run["run_name"].split("/iterations")[0].split("/", 1)
            found.setdefault(name, {})[shape] = run["real_time"]
    return found


def with_pytorch(times, path):
    for line in path.read_text().splitlines() if path.exists() else []:
        name, _, rest = line.partition(",")
        fields = rest.split(",")
        if len(fields) >= 2 and re.fullmatch(r"[0-9.]+", fields[1]):
            times.setdefault(name, {})[fields[0]] = float(fields[1])
    return times


def markdown(times, stages):
    columns = [name for name in COLUMNS if name in times]
    lines = ["Microseconds per layer; rows x query/KV heads x slots.", "",
             "| shape | " + " | ".join(HEADINGS.get(name, name) for name in columns) +
             " | h2o / keep_all | h2o / sdpa |",
             "|---" * (len(columns) + 3) + "|"]
    for shape in times["keep_all"]:
        h2o = times["h2o"].get(shape)
        ratios = [h2o / times[other][shape] if h2o and shape in times.get(other, {}) else None
                  for other in ("keep_all", "sdpa-fastest")]
        cells = [f"{times[name][shape]:.1f}" if shape in times[name] else "–" for name in columns]
        cells += [f"{ratio:.3f}" if ratio else "–" for ratio in ratios]
        lines.append(f"| {shape} | " + " | ".join(cells) + " |")
    lines += ["", "The same behind a matrix product, whose own time is taken off.", ""]
    behind = ["sdpa", "keep_all", "sliding_window", "h2o"]
    lines += ["| shape | " + " | ".join(behind) + " | h2o / keep_all |",
              "|---" * (len(behind) + 2) + "|"]
    for shape, product in times["product"].items():
        us = [times.get("sdpa-behind-product", {}).get(shape)]
        us += [times[f"product, {name}"][shape] - product for name in behind[1:]]
        cells = [f"{x:.1f}" if x is not None else "–" for x in us]
        lines.append(f"| {shape} | " + " | ".join(cells) + f" | {us[3] / us[1]:.3f} |")
    lines += ["", "| stage | shape | µs |", "|---|---|---|"]
    lines += [f"| {name} | {shape} | {us:.2f} |"
              for name, shapes in stages.items() for shape, us in shapes.items()]
    return "\n".join(lines) + "\n"


def plot(times, folder):
    try:
        import matplotlib
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        print("no matplotlib: no plots")
        return
    families = {}
    for shape in times["keep_all"]:
        family, slots = shape.rsplit("x", 1)
        families.setdefault(family, []).append(int(slots))
    families = {family: sorted(slots) for family, slots in families.items() if len(slots) > 1}
    if not families:
        print("no plots: they need a second number of slots")
        return
    figure, axes = plt.subplots(1, len(families), figsize=(6 * len(families), 4.5), squeeze=False)
    reading = times["read"]
    for axis, (family, slots) in zip(axes[0], families.items()):
        for name in PLOTTED + ["copy"]:
            at = [n for n in slots if f"{family}x{n}" in times.get(name, {})]
            look = {"color": "0.7", "linestyle": "--"} if name == "copy" else {"marker": "o"}
            if at:
                axis.semilogx(at, [times[name][shape] / reading[shape]
                                   for shape in (f"{family}x{n}" for n in at)],
                              label=HEADINGS.get(name, name), **look)
        apart = [n for n, following in zip(slots, slots[1:] + [None])
                 if following is None or following > 1.2 * n]
        axis.set_xticks(apart, [str(n) for n in apart])
        axis.minorticks_off()
        axis.set(title=f"{family} (sequences x query/KV heads)", xlabel="slots",
                 ylabel="time / reading K and V once")
        axis.grid(True, alpha=0.3)
        axis.legend()
    figure.tight_layout()
    for kind in ("png", "svg"):
        figure.savefig(folder / f"attention.{kind}", dpi=150)


def main():
    folder = pathlib.Path(sys.argv[1])
    times = with_pytorch(medians(folder / "attention.json"), folder / "pytorch.csv")
    if (folder / "flashinfer.json").exists():
        times.update(medians(folder / "flashinfer.json"))
        times["flashinfer-fastest"] = {
            shape: min(times[name][shape] for name in FLASHINFER if shape in times.get(name, {}))
            for shape in times["flashinfer"]}
    table = markdown(times, medians(folder / "stages.json"))
    (folder / "table.md").write_text(table)
    print(table)
    plot(times, folder)


if __name__ == "__main__":
    main()
