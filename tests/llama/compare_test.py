# SPDX-License-Identifier: Apache-2.0
# The program `compare` as a user meets it: each mistake is one sentence and exit code 2; the
# tables of a run agree with each other and with the runs that they are made of. Most of it on a
# tiny random model whose tokens are the bytes of the text.
# Usage: compare_test.py COMPARE           mistakes, and runs on a tiny model
#        compare_test.py COMPARE MODEL     a run on a real model; exits with 77 if there is none
import csv
import json
import math
import os
import pathlib
import random
import re
import string
import subprocess
import sys
import tempfile
import unittest

from tiny_model import CHANNELS, KV_HEADS, LAYERS, write_tiny_model

PROGRAM = sys.argv[1]
MODEL = sys.argv[2] if len(sys.argv) > 2 else None
COLUMNS = (
    "policy,budget,scope,tokens,perplexity,perplexity_second_half,kl,top1,kept_weight,"
    "exact_match,kv_bytes,kv_bytes_live,stage_us_per_token,tokens_per_second,rebuilt,"
    "computed_per_token,deferred_per_token,settings"
).split(",")
# two runs agree only so far in what they measure by the clock
TIMES = ("stage_us_per_token", "tokens_per_second")


def compare(*arguments):
    return subprocess.run(
        [PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False
    )


def draws(python):
    try:
        done = subprocess.run([python, "-c", "import matplotlib"], capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0


class Case(unittest.TestCase):
    def setUp(self):
        self.held = tempfile.TemporaryDirectory(prefix="adore_")
        self.addCleanup(self.held.cleanup)
        self.folder = pathlib.Path(self.held.name)
        self.text = self.folder / "text.txt"
        self.model = MODEL

    def table(self, *arguments, text=None, threads=1):
        """Runs compare; returns the lines of its CSV, which must say what its JSON says."""
        table, document = self.folder / "table.csv", self.folder / "table.json"
        done = compare(
            "--model", self.model, "--text", text or self.text, "--threads", threads,
            "--csv", table, "--json", document, *arguments,
        )  # fmt: skip
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        with open(table, newline="") as file:
            lines = list(csv.DictReader(file))
        self.assertEqual(list(lines[0]), COLUMNS)
        self.check_json(json.loads(document.read_text())["results"], lines)
        for line in lines:
            self.assertIn(line["policy"], done.stdout)
        return lines

    def check_json(self, results, lines):
        self.assertEqual(len(results), len(lines))
        for result, line in zip(results, lines):
            self.assertEqual(set(result), set(COLUMNS))
            for column in COLUMNS:
                value = result[column]
                if isinstance(value, float):
                    close = 1e-3 if column in TIMES else 1e-5
                    self.assertTrue(math.isfinite(value), column)
                    self.assertTrue(
                        math.isclose(value, float(line[column]), rel_tol=close, abs_tol=1e-12),
                        f"{column}: {value} in JSON, {line[column]} in CSV",
                    )
                else:
                    self.assertEqual("" if value is None else str(value), line[column])

    def check_run(self, lines, tokens):
        """What holds of every run of 2 budgets and the policies h2o, tova, keep_all."""
        names = [(line["policy"], line["budget"]) for line in lines]
        self.assertEqual(
            names,
            [("keep_all", ""), ("h2o", "8"), ("h2o", "16"), ("tova", "8"), ("tova", "16")],
        )
        full, *others = lines
        self.assertEqual((full["kl"], full["top1"], full["kept_weight"]), ("0", "1", "1"))
        for line in lines:
            self.assertEqual(line["tokens"], str(tokens))
            self.assertGreater(float(line["perplexity"]), 1.0)
            self.assertGreater(float(line["tokens_per_second"]), 0.0)
        for line in others:
            self.assertGreater(float(line["kl"]), 0.0)
            self.assertLess(float(line["kept_weight"]), 1.0)
            # as many bytes live as the budget says, no more
            share = int(line["kv_bytes_live"]) / int(full["kv_bytes_live"])
            self.assertAlmostEqual(share, int(line["budget"]) / tokens)
            self.assertLess(int(line["kv_bytes"]), int(full["kv_bytes"]))
        for small, large in (others[0:2], others[2:4]):
            self.assertLess(float(small["kept_weight"]), float(large["kept_weight"]))


class Tiny(Case):
    def setUp(self):
        super().setUp()
        draw = random.Random(2)
        self.letters = "".join(draw.choice(string.ascii_letters) for _ in range(120))
        self.text.write_text(self.letters)
        self.model = self.folder / "tiny.gguf"
        write_tiny_model(self.model)


class Mistakes(Tiny):
    def refused(self, *arguments, says=(), model=None, text=None):
        """One line on stderr, nothing on stdout, no file left behind, exit code 2."""
        before = sorted(self.folder.iterdir())
        arguments = ["--model", model or self.model, "--text", text or self.text, *arguments]
        for option, value in (("--tokens", 48), ("--csv", self.folder / "never.csv")):
            if option not in arguments:
                arguments += [option, value]
        done = compare(*arguments)
        self.check_refusal(done, says)
        self.assertEqual(before, sorted(self.folder.iterdir()))

    def check_refusal(self, done, says):
        self.assertEqual(done.returncode, 2, done)
        self.assertEqual(done.stdout, "")
        self.assertRegex(done.stderr, r"\Acompare: [^\n]{10,400}\n\Z")
        for part in says:
            self.assertIn(part, done.stderr)

    def test_no_such_policy(self):
        self.refused("--policies", "h3o", says=["'h3o'", "h2o", "keep_all"])
        self.refused("--policies", "h2o;window", says=["'window'", "sliding_window"])

    def test_unknown_field(self):
        self.refused("--policies", "h2o(size=4)", says=["h2o", "'size'", "heavy, recent"])

    def test_bad_value(self):
        self.refused("--policies", "h2o(recent=many)", says=["h2o.recent", "many", "a number"])
        self.refused("--policies", "h2o(recent=-1)", says=["recent"])
        self.refused("--policies", "dynamic_top_k(agreed=all)", says=["agreed", "all", "layer"])

    def test_bad_policy_text(self):
        for policy in ("h2o(recent=4", "h2o(recent)", "(recent=4)"):
            self.refused("--policies", policy, says=[policy, "name(field=value"])

    def test_budget_below_the_sinks(self):
        run = ("--policies", "streaming_llm", "--budgets", "3")
        self.refused(*run, says=["streaming_llm", "window", "sinks"])

    def test_bad_budgets(self):
        for budgets in ("many", "64,-1", "8x", "99999999999"):
            self.refused("--budgets", budgets, says=["--budgets", budgets.split(",")[-1]])
        self.refused("--budgets", ",", says=["--budgets", "at least one"])

    def test_snapkv_without_a_prompt(self):
        self.refused("--policies", "snapkv", says=["snapkv", "--prompt"])

    def test_sentinel(self):
        self.refused("--policies", "sentinel(open=1,close=2)", says=["sentinel", "trained"])

    def test_bad_words(self):
        self.refused("--scope", "head", says=["--scope", "'head'", "kv_head"])
        self.refused("--positions", "none", says=["--positions", "'none'", "cache_index"])
        self.refused("--device", "gpu", says=["--device", "'gpu'", "cuda"])

    def test_what_no_device_can_do(self):  # whether there is one or not
        self.refused("--device", "cuda", "--prompt", "8", says=["--device cuda"])
        self.refused("--device", "cuda", "--policies", "snapkv", says=["--device cuda"])

    def test_bad_numbers(self):
        self.refused("--prompt", "48", says=["--prompt", "48"])
        self.refused("--prompt", "-1", says=["--prompt"])
        self.refused("--tokens", "1", says=["--tokens"])
        self.refused("--sequences", "0", says=["--sequences"])
        self.refused("--threads", "0", says=["--threads"])
        self.refused("--threads", "two", says=["--threads", "two"])
        self.refused("--tokens", "99999999999", says=["--tokens"])

    def test_command_line(self):
        self.refused("--budget", "8", says=["--budget", "--help"])
        self.refused("more", says=["more"])
        self.check_refusal(compare(), ["--model"])
        self.check_refusal(compare("--model", self.model), ["--text"])

    def test_missing_files(self):
        missing = self.folder / "missing"
        self.refused(model=missing, says=[str(missing)])
        self.refused(model=self.folder, says=[str(self.folder)])
        self.refused(text=missing, says=["--text", str(missing)])
        self.refused(text=self.folder, says=["--text", str(self.folder)])

    def test_damaged_models(self):
        whole = self.model.read_bytes()
        damaged = self.folder / "damaged.gguf"
        for content in (b"", b"no model at all\n" * 100, b"GGUF" + b"\xff" * 5000):
            damaged.write_bytes(content)
            self.refused(model=damaged, says=[str(damaged)])
        for size in (100, 3000, len(whole) // 2, len(whole) - 64):
            damaged.write_bytes(whole[:size])
            self.refused(model=damaged, says=[str(damaged)])

    def test_damaged_vocabulary(self):
        damaged = self.folder / "damaged.gguf"
        damaged.write_bytes(self.model.read_bytes().replace(b"<0x41>", b"<0x42>"))
        self.refused(model=damaged, says=[str(damaged), "token 69"])
        damaged.write_bytes(self.model.read_bytes().replace(b"tokenizer.ggml.model", b"x" * 20))
        self.refused(model=damaged, says=[str(damaged), "vocabulary"])

    def test_damaged_text(self):
        text = self.folder / "text.jsonl"
        text.write_text('{"text": "one"}\n{"text": 2}\n')
        self.refused(text=text, says=["--text", str(text), "line 2"])

    def test_short_text(self):
        self.refused("--tokens", "121", says=["--text", "120 tokens", "1 x 121"])
        self.refused("--sequences", "3", says=["--text", "120 tokens", "3 x 48"])
        self.text.write_text("")
        self.refused(says=["--text", "0 tokens"])

    def test_files_that_cannot_be_written(self):
        for option in ("--csv", "--json", "--plot"):
            name = self.folder / "missing" / "out"
            self.refused(option, name, says=["cannot write", str(name)])


class Runs(Tiny):
    def test_a_table(self):
        lines = self.table("--tokens", 48, "--budgets", "8,16", "--policies", "keep_all;h2o;tova")
        self.check_run(lines, 48)
        scopes = [line["scope"] for line in lines]
        self.assertEqual(scopes, ["model", "kv_head", "kv_head", "layer", "layer"])
        # float32 K and V of 48 tokens, and as much as is allocated for the 7 timed steps
        per_token = 2 * LAYERS * KV_HEADS * CHANNELS * 4
        self.assertEqual(int(lines[0]["kv_bytes_live"]), 48 * per_token)
        self.assertGreaterEqual(int(lines[0]["kv_bytes"]), 55 * per_token)
        self.assertEqual(lines[2]["settings"], "h2o(heavy=8,recent=8)")

    def test_all_policies(self):
        lines = self.table("--tokens", 60, "--budgets", "8,16")
        self.assertGreater(len(lines), 30)
        self.assertEqual(lines[0]["policy"], "keep_all")
        prompted = self.table("--tokens", 100, "--budgets", "40", "--prompt", 50)
        self.assertIn("snapkv", [line["policy"] for line in prompted])

    def test_scopes(self):
        for scope in ("model", "layer", "kv_head"):
            run = ("--tokens", 48, "--budgets", "8", "--policies", "h2o", "--scope", scope)
            lines = self.table(*run)
            self.assertEqual([line["scope"] for line in lines], [scope] * 2)

    def test_the_same_run_twice(self):
        run = ("--tokens", 48, "--budgets", "8", "--policies", "h2o;random_victim;streaming_llm")
        first, second = self.table(*run), self.table(*run)
        for one, other in zip(first, second):
            for column in COLUMNS:
                if column not in TIMES:
                    self.assertEqual(one[column], other[column])

    def test_more_threads(self):
        run = ("--tokens", 48, "--budgets", "8", "--policies", "h2o;tova")
        first, second = self.table(*run), self.table(*run, threads=2)
        for one, other in zip(first, second):
            self.assertTrue(
                math.isclose(float(one["perplexity"]), float(other["perplexity"]), rel_tol=1e-4)
            )

    def test_two_sequences_are_pooled(self):
        run = ("--tokens", 40, "--budgets", "8", "--policies", "h2o;streaming_llm")
        halves = []
        for begin in (0, 40):
            half = self.folder / f"from_{begin}.txt"
            half.write_text(self.letters[begin : begin + 40])
            halves.append(self.table(*run, text=half))
        both = self.table(*run, "--sequences", 2)
        self.assertNotEqual(halves[0][0]["perplexity"], halves[1][0]["perplexity"])
        for one, other, pooled in zip(*halves, both):
            for column in ("perplexity", "perplexity_second_half"):
                expected = math.sqrt(float(one[column]) * float(other[column]))
                self.assertTrue(math.isclose(expected, float(pooled[column]), rel_tol=1e-4), column)
            for column in ("kl", "top1", "kept_weight"):
                expected = (float(one[column]) + float(other[column])) / 2
                self.assertAlmostEqual(expected, float(pooled[column]), places=4, msg=column)
            self.assertEqual(2 * int(one["kv_bytes_live"]), int(pooled["kv_bytes_live"]))

    def test_full_attention_is_what_its_budget_never_limits(self):
        for budget in ("47", "48", "64"):
            full, wide = self.table("--tokens", 48, "--budgets", budget, "--policies", "h2o")
            self.assertEqual(full["perplexity"], wide["perplexity"])
            self.assertAlmostEqual(float(wide["kl"]), 0.0, places=5)
            self.assertEqual((wide["top1"], wide["kept_weight"]), ("1", "1"))

    def test_prompts(self):
        run = ("--tokens", 48, "--prompt", 24, "--policies", "snapkv(window=4)")
        full, small, large = self.table(*run, "--budgets", "8,16")
        self.assertEqual((full["kl"], full["top1"], full["kept_weight"]), ("0", "1", "1"))
        self.assertGreater(float(small["kl"]), 0.0)
        self.assertLess(float(small["kept_weight"]), float(large["kept_weight"]))
        # nothing is released after the prompt: 8 of 24 tokens stay, and the 24 that follow
        self.assertEqual(int(small["kv_bytes_live"]) * 48, int(full["kv_bytes_live"]) * (8 + 24))
        # a prompt that the budget holds loses nothing
        full, wide = self.table(*run, "--budgets", "24")
        self.assertAlmostEqual(float(wide["kl"]), 0.0, places=5)
        self.assertEqual(wide["perplexity"], full["perplexity"])

    def test_tiny_texts(self):
        for tokens in (2, 3, 8):
            full, small = self.table("--tokens", tokens, "--budgets", "1", "--policies", "tova")
            self.assertEqual(full["tokens"], str(tokens))

    def test_json_lines(self):
        lines = self.folder / "text.jsonl"
        lines.write_text(json.dumps({"text": self.letters[:60] + "\n"}) + "\n"
                         + json.dumps({"text": self.letters[61:]}) + "\n")  # fmt: skip
        self.text.write_text(self.letters[:60] + "\n" + self.letters[61:])
        run = ("--tokens", 100, "--budgets", "8", "--policies", "tova")
        one, other = self.table(*run), self.table(*run, text=lines)
        self.assertEqual(one[1]["perplexity"], other[1]["perplexity"])

    def test_blas_kernels(self):
        """OpenBLAS reports each choice; the last is what the products ran on."""
        done = subprocess.run(
            [PROGRAM, "--help"], env={**os.environ, "OPENBLAS_VERBOSE": "2"},
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        chosen = re.findall(r"^Core: (\w+)$", done.stderr, re.MULTILINE)
        if not chosen or "OPENBLAS_CORETYPE" in os.environ:
            self.skipTest("no OpenBLAS that chooses")
        cpu = pathlib.Path("/proc/cpuinfo")
        if not cpu.is_file() or " avx2 " not in cpu.read_text():
            self.skipTest("no AVX2 here")
        self.assertNotEqual(chosen[-1], "Prescott")

    def test_help(self):
        done = compare("--help")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("--policies", done.stdout)

    def test_plots(self):
        if not any(draws(python) for python in ("python3", "/usr/bin/python3")):
            self.skipTest("no Python here has matplotlib")
        name = self.folder / "it's a plot"  # a name that a shell would take apart
        self.table("--tokens", 32, "--budgets", "4,8", "--policies", "h2o;tova", "--plot", name)
        self.assertTrue((self.folder / "it's a plot.png").read_bytes().startswith(b"\x89PNG"))
        self.assertIn("<svg", (self.folder / "it's a plot.svg").read_text())

    def test_names_that_are_no_utf_8(self):
        name = str(self.folder).encode() + b"/caf\xe9.txt"
        with open(name, "w") as file:
            file.write(self.letters)
        document = self.folder / "out.json"
        done = subprocess.run(
            [PROGRAM, "--model", self.model, "--text", name, "--tokens", "8", "--budgets", "4",
             "--policies", "h2o", "--json", document],
            capture_output=True, timeout=300, check=False,
        )  # fmt: skip
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertEqual(len(json.loads(document.read_text())["results"]), 2)


class RealModel(Case):
    def setUp(self):
        super().setUp()
        self.text.write_text(
            "The harbour was quiet in the morning. Two men carried a long ladder along the wall "
            "and talked about the weather, which had been bad for a week. Nobody expected the ship "
            "before noon, and so the children played between the barrels until their mothers "
            "called them."
        )

    def test_a_table(self):
        run = ("--tokens", 48, "--budgets", "8,16", "--policies", "keep_all;h2o;tova")
        lines = self.table(*run)
        self.check_run(lines, 48)
        self.assertLess(float(lines[0]["perplexity"]), 100.0)  # of 49152 words
        for line in lines[1:]:
            self.assertGreater(float(line["perplexity"]), float(lines[0]["perplexity"]))
        for one, other in zip(lines, self.table(*run)):
            self.assertEqual(one["perplexity"], other["perplexity"])

    def test_a_prompt(self):
        full, small = self.table(
            "--tokens", 40, "--prompt", 16, "--budgets", "8", "--policies", "snapkv(window=4)"
        )
        self.assertEqual((full["kl"], full["top1"], full["kept_weight"]), ("0", "1", "1"))
        self.assertGreater(float(small["kl"]), 0.0)

    def test_a_truncated_file(self):
        damaged = self.folder / "damaged.gguf"
        with open(self.model, "rb") as file:
            damaged.write_bytes(file.read(8_000_000))
        done = compare("--model", damaged, "--text", self.text, "--tokens", 48)
        self.assertEqual((done.returncode, done.stdout), (2, ""))
        self.assertRegex(done.stderr, r"\Acompare: [^\n]+\n\Z")
        self.assertIn(str(damaged), done.stderr)


def main():
    if MODEL is not None and not pathlib.Path(MODEL).is_file():
        print("skipped: there is no model file")
        return 77
    cases = [Mistakes, Runs] if MODEL is None else [RealModel]
    load = unittest.defaultTestLoader.loadTestsFromTestCase
    suite = unittest.TestSuite(load(case) for case in cases)
    return 0 if unittest.TextTestRunner(verbosity=2).run(suite).wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main())
