# SPDX-License-Identifier: Apache-2.0
# The programs gather_labels and train.py as their users meet them, on a tiny random model: mistakes
# are one sentence, files have the tensors they should, and the figures that a controller is saved
# with are those that its weights give when every formula is written out again.
# Usage: train_controller_test.py GATHER_LABELS            gathers only; needs no package
#        train_controller_test.py GATHER_LABELS TRAIN_PY   exits with 77 without torch and safetensors
import contextlib
import importlib.util
import io
import json
import math
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import unittest
import unittest.mock

from tiny_model import LAYERS, VOCABULARY, WIDTH, write_tiny_model

GATHER = sys.argv[1]
TRAIN = sys.argv[2] if len(sys.argv) > 2 else None
CROPS, MANY, TOKENS, QUERIES, K, HIDDEN = 10, 60, 60, 4, 8, 6  # MANY: all pieces of the text


def run(*command):
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=300, check=False
    )


def header_of(path):
    """The header of a safetensors file: {name: {dtype, shape, data_offsets}}."""
    with open(path, "rb") as file:
        return json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))


class Case(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.held = tempfile.TemporaryDirectory(prefix="adore_")
        cls.addClassCleanup(cls.held.cleanup)
        cls.folder = pathlib.Path(cls.held.name)
        cls.model = cls.folder / "tiny.gguf"
        write_tiny_model(cls.model)
        draw = random.Random(2)
        cls.text = cls.folder / "text.txt"
        cls.text.write_text("".join(draw.choice("abcdefghi") for _ in range(MANY * TOKENS)))
        cls.labels = cls.folder / "labels.safetensors"

    @classmethod
    def gather(cls, *arguments, text=None):
        return run(
            GATHER, "--model", cls.model, "--texts", text or cls.text, "--tokens", TOKENS, *arguments,
            *(() if "--k" in arguments else ("--k", K)),
            *(() if "--out" in arguments else ("--out", cls.labels)),
        )  # fmt: skip


class Gathers(Case):
    def check(self, shapes, metadata, *arguments):
        done = self.gather("--crops", CROPS, *arguments)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        header = header_of(self.labels)
        written = header.pop("__metadata__")
        for key, value in {"model": "tiny.gguf", "k": str(K), **metadata}.items():
            self.assertEqual(written[key], value)
        found = {name: (entry["dtype"], entry["shape"]) for name, entry in header.items()}
        self.assertEqual(found, {"tokens": ("I32", [CROPS, TOKENS]), **shapes})

    def test_each_kind_writes_its_tensors(self):
        sets = (TOKENS + 7) // 8
        self.check(
            {"queries": ("I32", [CROPS, 1]), "labels": ("U8", [CROPS, 1, 1, sets])},
            {"kind": "uniform", "horizon": "0"},
            "--kind", "uniform",
        )  # fmt: skip
        self.check(
            {
                "queries": ("I32", [CROPS, QUERIES]),
                "labels": ("U8", [CROPS, LAYERS, QUERIES, sets]),
                "mass": ("F16", [CROPS, LAYERS, QUERIES, TOKENS]),
            },
            {"kind": "future", "horizon": "10", "outputs": "layers"},
            "--kind", "future", "--horizon", 10, "--outputs", "layers", "--queries", QUERIES,
            "--mass-factor", 0.9,
        )  # fmt: skip
        embeddings = header_of(self.folder / "embeddings.safetensors")["embeddings"]
        self.assertEqual((embeddings["dtype"], embeddings["shape"]), ("F16", [VOCABULARY, WIDTH]))

    def test_the_same_seed_gathers_the_same(self):
        def content(*arguments):
            self.assertEqual(self.gather("--queries", QUERIES, *arguments).returncode, 0)
            return self.labels.read_bytes()

        # side by side or alone, the model is the same
        first = content("--crops", 5, "--threads", 2)
        self.assertEqual(content("--crops", 5, "--threads", 1), first)
        self.assertNotEqual(content("--crops", 5, "--seed", 2), first)

    def refused(self, *arguments, says, text=None):
        done = self.gather(*arguments, text=text)
        self.assertEqual((done.returncode, done.stdout), (2, ""))
        self.assertRegex(done.stderr, r"\Agather_labels: [^\n]+\n\Z")
        self.assertIn(says, done.stderr)

    def test_a_mistake_is_one_sentence(self):
        self.refused("--crops", MANY + 1, says=f"{MANY} pieces of {TOKENS} tokens")
        self.refused("--k", TOKENS, says=f"tokens = {TOKENS}")
        self.refused("--kind", "future", says=f"k + horizon = {K + 100}")
        self.refused("--horizon", 5, says="horizon = 5")
        self.refused("--kind", "uniform", "--queries", 2, says="--queries")
        self.refused("--kind", "uniform", "--outputs", "layers", "--crops", 1, says="outputs")
        self.refused("--queries", TOKENS, says="positions for queries")
        self.refused("--kind", "neither", says="--kind")
        self.refused("--mass-factor", 1.5, says="--mass-factor")
        self.refused(text=self.folder / "missing.txt", says="missing.txt")


def sigmoid(x):
    import numpy as np

    return 1 / (1 + np.exp(-x))


def gru(weights, suffix, inputs, form):
    """States of one direction, token by token."""
    import numpy as np

    w, u, b, c = (
        weights[f"gru.{kind}_l0{suffix}"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    z, states = np.zeros(HIDDEN), []
    for x in inputs:
        i, h = w @ x + b, u @ z + c
        r, update = (
            sigmoid(i[part] + h[part]) for part in (slice(0, HIDDEN), slice(HIDDEN, 2 * HIDDEN))
        )
        if form == "cho":
            h = u @ (r * z) + c
            z = (1 - update) * z + update * np.tanh(i[2 * HIDDEN :] + h[2 * HIDDEN :])
        else:
            new = np.tanh(i[2 * HIDDEN :] + r * h[2 * HIDDEN :])
            z = (1 - update) * new + update * z
        states.append(z)
    return np.array(states)


def logits_of(weights, metadata, embeddings, n):
    """Logits [token 0..n, output] at query n, from the tensors of a controller file."""
    import numpy as np

    x = embeddings[: n + 1]
    if metadata["input"] == "rms":
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    if metadata["gru"] == "none":
        z = x @ weights["input.weight"].T + weights["input.bias"]
    else:
        z = gru(weights, "", x, metadata["gru"])
    if metadata["score_mode"] == "bidirectional":
        back = gru(weights, "_reverse", x[::-1], metadata["gru"])[::-1]
        both = np.concatenate([z, back], 1)
        z = both @ weights["merge.weight"].T + weights["merge.bias"]
    i, longest = np.arange(n + 1), float(metadata["max_length"])
    position = {
        "index_over_max": i / longest,
        "raw": i,
        "log1p": np.log1p(i),
        "index_over_length": i / max(n, 1),
        "distance": (n - i) / longest,
    }[metadata["position_feature"]]
    p = position[:, None] * weights["position.weight"] + weights["position.bias"]
    before = (p + z) @ weights["interaction.weight"].T + weights["interaction.bias"]
    if metadata["score_mode"] == "query_conditioned":
        before = before + weights["query.weight"] @ z[n]
    logits = np.tanh(before) @ weights["output.weight"].T + weights["output.bias"]
    if metadata["score_mode"] == "bilinear":
        logits = logits + (z @ weights["bilinear.weight"].T @ z[n])[:, None] / math.sqrt(HIDDEN)
    return logits


class Trains(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        done = cls.gather(
            "--crops", CROPS, "--outputs", "layers", "--queries", QUERIES, "--mass-factor", 0.9,
            "--attention",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        cls.out = cls.folder / "controller.safetensors"
        import torch

        torch.set_num_threads(1)  # more of them wait for each other where other tests run
        sys.path.insert(0, str(pathlib.Path(TRAIN).parent))

    def train(self, *arguments, labels=None):
        """What train.py says when it gives up, or nothing. In this process: importing torch takes
        longer than the training."""
        import train

        said = io.StringIO()
        command = [
            TRAIN, "--labels", labels or self.labels, "--embeddings",
            self.folder / "embeddings.safetensors", "--out", self.out, "--hidden", HIDDEN,
            "--batch", 4, "--device", "cpu", *arguments,
        ]  # fmt: skip
        with unittest.mock.patch.object(sys, "argv", list(map(str, command))):
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
                try:
                    train.main()
                except SystemExit as end:
                    said.write(str(end.code))
        return said.getvalue()

    def trained(self, *arguments, labels=None):
        """Tensors, metadata and figures of a controller."""
        from safetensors import safe_open

        self.assertEqual(self.train(*arguments, labels=labels), "")
        with safe_open(self.out, "np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            metadata = file.metadata()
        return tensors, metadata, json.loads(self.out.with_suffix(".json").read_text())

    def literal_kept(self, weights, metadata, figures, keep, rebuilt, protect):
        """Share of the attention of the validated sequences' queries that a policy leaves them."""
        import numpy as np
        from safetensors.numpy import load_file

        labels = load_file(self.labels)
        table = load_file(self.folder / "embeddings.safetensors")["embeddings"].astype(float)
        sinks, recent = protect
        shares = []
        for sequence in figures["validated"]:
            queries = list(labels["queries"][sequence])
            kept = [set() for _ in range(LAYERS)]
            for n in range(TOKENS):
                scores = logits_of(weights, metadata, table[labels["tokens"][sequence]], n)
                for output in range(LAYERS):
                    held, score = kept[output] | {n}, scores[:, output]
                    gone = sorted(set(range(n)) - held, key=lambda i: -score[i])
                    if n in queries:
                        attention = labels["attention"][sequence, output, queries.index(n)]
                        attention = attention.astype(float)
                        seen = list(held) + gone[:rebuilt]
                        shares.append(attention[seen].sum() / attention.sum())
                    if len(held) > keep:
                        held.remove(min(
                            (i for i in held if i >= sinks and n - i >= recent),
                            key=lambda i: score[i],
                        ))  # fmt: skip
                    kept[output] = held
        return np.mean(shares)

    def literal_figures(self, weights, metadata, figures):
        """Accuracy, F1 and hit rate of the file's controller on the sequences it was validated on."""
        import numpy as np
        from safetensors.numpy import load_file

        labels = load_file(self.labels)
        table = load_file(self.folder / "embeddings.safetensors")["embeddings"].astype(float)
        a = np.array(json.loads(metadata["mass_exponent"])) if "mass_exponent" in metadata else None
        counts, hits, of = {}, 0, 0
        for sequence in figures["validated"]:
            for q, n in enumerate(labels["queries"][sequence]):
                scores = logits_of(weights, metadata, table[labels["tokens"][sequence]], n)
                for output in range(LAYERS):
                    score = scores[:, output]
                    if a is not None:  # what a policy ranks by: mass exp(logit)
                        mass = labels["mass"][sequence, output, q, : n + 1].astype(float)
                        score = np.log(mass + float(metadata["mass_epsilon"])) + score
                    bits = labels["labels"][sequence, output, q]
                    true = [bool(bits[i // 8] >> (i % 8) & 1) for i in range(n + 1)]
                    for yes, is_true in zip(score > 0, true):
                        counts[yes, is_true] = counts.get((yes, is_true), 0) + 1
                    best = sorted(range(n + 1), key=lambda i: score[i])[-K:]
                    hits += sum(true[i] for i in best)
                    of += sum(true)
        self.assertEqual(of, len(figures["validated"]) * QUERIES * LAYERS * K)
        true, false, missed = (counts.get(key, 0) for key in ((1, 1), (1, 0), (0, 1)))
        everything = sum(counts.values())
        return {
            "f1": 2 * true / max(1, 2 * true + false + missed),
            "accuracy": 1 - (false + missed) / everything,
            "prevalence": (true + missed) / everything,
            "hit_rate": hits / of,
        }

    def test_every_controller_is_saved_with_the_figures_its_weights_give(self):
        cases = [
            ["--mode", "static"],
            ["--mode", "static", "--position", "log1p", "--gru", "none", "--normalise", "rms"],
            ["--mode", "distance"],
            ["--mode", "index_over_length", "--max-length", "64"],
            ["--mode", "query_conditioned", "--normalise", "rms", "--schedule", "cosine"],
            ["--mode", "query_conditioned", "--position", "distance", "--join-mass"],
            ["--mode", "bilinear", "--pos-weight", "3"],
            ["--mode", "bidirectional"],
            ["--mode", "distance", "--gru", "cho"],
            ["--mode", "bidirectional", "--gru", "cho"],
        ]
        for case in cases:
            with self.subTest(" ".join(case)):
                weights, metadata, figures = self.trained(*case, "--steps", 15, "--lr", 0.05)
                literal = self.literal_figures(weights, metadata, figures)
                for name, value in literal.items():
                    self.assertAlmostEqual(figures["best"][name], value, delta=0.003, msg=name)

    def test_the_attention_kept_is_what_a_policy_would_keep(self):
        for case in (
            ["--mode", "static"],
            ["--mode", "distance"],
            ["--mode", "query_conditioned", "--protect", "1,2", "--loss", "attention"],
            ["--mode", "query_conditioned", "--position", "distance"],
        ):
            with self.subTest(" ".join(case)):
                weights, metadata, figures = self.trained(
                    *case, "--steps", 12, "--lr", 0.05, "--rebuilt", 0, 3, "--select", "kept"
                )
                protect = (1, 2) if "--protect" in case else (0, 0)
                kept = figures["best"]["kept"]
                for rebuilt in (0, 3):
                    literal = self.literal_kept(weights, metadata, figures, K, rebuilt, protect)
                    self.assertAlmostEqual(kept[f"R = {rebuilt}"], literal, delta=0.003)
                self.assertGreater(kept["R = 3"], kept["R = 0"])

    def test_attention_as_a_loss_keeps_more_of_it_than_at_the_start(self):
        _, _, figures = self.trained(
            "--mode", "query_conditioned", "--position", "distance", "--max-length", TOKENS,
            "--loss", "attention", "--protect", "1,2", "--queries", 3, "--steps", 60, "--lr", 0.02,
            "--evaluate-every", 2, "--select", "kept",
        )  # fmt: skip
        history = figures["history"]
        self.assertLess(history[-1]["loss"], history[0]["loss"])
        self.assertGreater(figures["best"]["kept"]["R = 0"], history[0]["kept"]["R = 0"] + 0.005)

    def test_the_file_has_the_shapes_that_the_network_needs(self):
        weights, metadata, _ = self.trained("--mode", "query_conditioned", "--half", "--steps", 2)
        self.assertEqual(
            {name: list(weight.shape) for name, weight in weights.items()},
            {
                "gru.weight_ih_l0": [3 * HIDDEN, WIDTH],
                "gru.weight_hh_l0": [3 * HIDDEN, HIDDEN],
                "gru.bias_ih_l0": [3 * HIDDEN],
                "gru.bias_hh_l0": [3 * HIDDEN],
                "position.weight": [HIDDEN],
                "position.bias": [HIDDEN],
                "interaction.weight": [HIDDEN, HIDDEN],
                "interaction.bias": [HIDDEN],
                "query.weight": [HIDDEN, HIDDEN],
                "output.weight": [LAYERS, HIDDEN],
                "output.bias": [LAYERS],
            },
        )
        self.assertEqual({str(weight.dtype) for weight in weights.values()}, {"float16"})
        for key, value in {
            "gru": "pytorch",
            "score_mode": "query_conditioned",
            "position_feature": "index_over_max",
            "max_length": "4096",
            "input": "none",
            "model": "tiny.gguf",
            "label_kind": "query",
        }.items():
            self.assertEqual(metadata[key], value)

    def test_training_learns_more_than_positions_tell(self):
        many = self.folder / "many.safetensors"
        done = self.gather("--crops", MANY, "--outputs", "layers", "--queries", 12, "--out", many)
        self.assertEqual(done.returncode, 0, done.stderr)
        _, _, figures = self.trained(
            "--mode", "query_conditioned", "--normalise", "rms", "--hidden", 16, "--batch", 16,
            "--position", "distance", "--max-length", TOKENS, "--steps", 200, "--lr", 0.02,
            labels=many,
        )  # fmt: skip
        self.assertLess(figures["history"][-1]["loss"], figures["history"][0]["loss"])
        for rule in ("window", "sinks_and_window", "age"):
            self.assertGreater(
                figures["best"]["hit_rate"], figures["baselines"][rule]["hit_rate"] + 0.05, rule
            )

    def test_the_same_seed_trains_the_same_weights(self):
        def weights(seed):
            tensors, _, _ = self.trained("--steps", 5, "--seed", seed)
            return {name: weight.tobytes() for name, weight in tensors.items()}

        first = weights(3)
        self.assertEqual(weights(3), first)
        self.assertNotEqual(weights(4), first)

    def test_a_mistake_is_said(self):
        for arguments, says in (
            (["--mode", "static", "--position", "distance"], "position feature distance"),
            (["--mode", "bidirectional", "--gru", "none"], "needs a GRU"),
            (["--mode", "bilinear", "--join-mass"], "--join-mass"),
            (["--lr", "0"], "--lr"),
            (["--protect", "4"], "--protect"),
            (["--protect", f"4,{K}"], "leaves no token"),
            (["--select", "kept", "--join-mass"], "--select kept"),
            (["--loss", "attention"], "--select kept"),
        ):
            self.assertIn(says, self.train(*arguments))
        self.assertIn("missing cannot be read", self.train(labels=self.folder / "missing"))
        self.assertIn("tiny.gguf cannot be read", self.train(labels=self.model))
        embeddings = self.folder / "embeddings.safetensors"
        self.assertIn("is no label file", self.train(labels=embeddings))
        self.assertIn('no tensor "embeddings"', self.train("--embeddings", self.labels))


def main():
    needed = [name for name in ("torch", "safetensors", "numpy") if TRAIN is not None]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        print(f"skipped: this Python has no {', '.join(missing)}")
        return 77
    load = unittest.defaultTestLoader.loadTestsFromTestCase
    suite = load(Gathers if TRAIN is None else Trains)
    return 0 if unittest.TextTestRunner(verbosity=2).run(suite).wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main())
