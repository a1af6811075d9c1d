# SPDX-License-Identifier: Apache-2.0
# `compare --retrieval` as a user meets it: on a tiny random model whose tokens are the bytes of the
# text, and on one that is made to count. Cases have prompts of different lengths.
# Usage: retrieval_test.py COMPARE
import csv
import json
import pathlib
import random
import string
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "bench" / "retrieval"))
from make_lines import line, make_case, names_of  # noqa: E402
from tiny_model import write_counting_model, write_tiny_model  # noqa: E402

PROGRAM = sys.argv[1]


def compare(*arguments):
    return subprocess.run(
        [PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False
    )


class Case(unittest.TestCase):
    def setUp(self):
        held = tempfile.TemporaryDirectory(prefix="adore_")
        self.addCleanup(held.cleanup)
        self.folder = pathlib.Path(held.name)
        self.cases, self.model = self.folder / "cases.jsonl", self.folder / "tiny.gguf"

    def write(self, prompts, expected):
        with open(self.cases, "w") as file:
            for prompt, number in zip(prompts, expected):
                file.write(json.dumps({"prompt": prompt, "expected_number": number}) + "\n")

    def results(self, *arguments):
        document, table = self.folder / "out.json", self.folder / "out.csv"
        done = compare("--model", self.model, "--retrieval", self.cases, "--threads", 1,
                       "--json", document, "--csv", table, *arguments)  # fmt: skip
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        results = json.loads(document.read_text())["results"]
        with open(table, newline="") as file:
            for written, line in zip(results, csv.DictReader(file)):
                self.assertAlmostEqual(written["exact_match"], float(line["exact_match"]), places=5)
                self.assertEqual((written["perplexity"], line["perplexity"]), (None, ""))
        return results


class Counting(Case):
    """A model that answers the byte behind the last one, whatever it attends."""

    def test_the_first_number_of_an_answer_counts(self):
        write_counting_model(self.model)
        prompts = ["x4", "longer, 2", "7", "a"]  # answers: 56789:;<, 3456789:, 89:;<=>?, bcdefghi
        self.write(prompts, [56789, 3456789, 9, 0])
        full, window = self.results("--policies", "sliding_window", "--budgets", "2",
                                    "--answer-tokens", 8)  # fmt: skip
        self.assertEqual(full["answers"], ["56789:;<", "3456789:", "89:;<=>?", "bcdefghi"])
        self.assertEqual(full["exact_match"], 0.5)
        self.assertEqual(window["answers"], full["answers"])
        # 4 tokens cut the second number
        full, _ = self.results("--policies", "sliding_window", "--budgets", "2",
                               "--answer-tokens", 4)  # fmt: skip
        self.assertEqual(full["answers"][1], "3456")
        self.assertEqual(full["exact_match"], 0.0)

    def test_the_first_cases_alone(self):
        write_counting_model(self.model)
        self.write(["4", "4", "4"], [56, 1, 1])
        run = ("--policies", "sliding_window", "--budgets", "2", "--answer-tokens", 2)
        self.assertEqual(self.results(*run)[0]["exact_match"], 1 / 3)
        self.assertEqual(self.results(*run, "--cases", 1)[0]["exact_match"], 1.0)


class Random(Case):
    def setUp(self):
        super().setUp()
        write_tiny_model(self.model)
        draw = random.Random(3)
        self.prompts = ["".join(draw.choices(string.ascii_letters, k=n)) for n in (40, 31, 52, 37)]
        self.write(self.prompts, [1] * 4)

    def test_cases_do_not_see_each_other(self):
        run = ("--policies", "h2o;tova;streaming_llm", "--budgets", "16", "--answer-tokens", 6)
        beside = [one["answers"] for one in self.results(*run)]
        for together in (1, 3):
            alone = [one["answers"] for one in self.results(*run, "--together", together)]
            self.assertEqual(alone, beside)
        self.assertNotEqual(beside[0], beside[3])  # what was released is missed

    def test_a_budget_that_holds_everything(self):
        results = self.results("--policies", "h2o", "--budgets", "58", "--answer-tokens", 6)
        self.assertEqual(results[0]["answers"], results[1]["answers"])

    def test_shares(self):
        # the mean prompt has 40 tokens
        results = self.results("--policies", "tova", "--budgets", "50%,25%,7")
        self.assertEqual([one["budget"] for one in results], [None, 20, 10, 7])
        self.assertEqual([one["tokens"] for one in results], [40] * 4)

    def test_tokens_that_come_back(self):
        # all released tokens come back with their own K and V: full attention
        text = "h2o+rebuild(count=60,schedule=restore)"
        results = self.results("--policies", text, "--budgets", "16", "--scope", "model",
                               "--answer-tokens", 6)  # fmt: skip
        self.assertEqual(results[1]["answers"], results[0]["answers"])

    def test_mistakes(self):
        def refused(*arguments, says):
            done = compare("--model", self.model, *arguments)
            self.assertEqual((done.returncode, done.stdout), (2, ""))
            self.assertRegex(done.stderr, r"\Acompare: [^\n]+\n\Z")
            for part in says:
                self.assertIn(part, done.stderr)

        missing = self.folder / "missing.jsonl"
        refused("--retrieval", missing, says=["--retrieval", str(missing)])
        refused("--retrieval", self.cases, "--text", self.cases, says=["--text", "--retrieval"])
        refused("--retrieval", self.cases, "--prompt", 4, says=["--prompt", "--retrieval"])
        refused("--text", self.cases, "--answer-tokens", 4, says=["--answer-tokens"])
        refused("--retrieval", self.cases, "--budgets", "101%", says=["--budgets", "101%"])
        self.cases.write_text('{"prompt": "a", "expected_number": 1}\n{"prompt": "b"}\n')
        refused("--retrieval", self.cases, says=["line 2", "expected_number"])
        self.cases.write_text("")
        refused("--retrieval", self.cases, says=[str(self.cases)])


class Lines(Case):
    def test_a_case_holds_its_answer_once(self):
        case = make_case(random.Random(5), 6)
        self.assertEqual(case["prompt"].count(case["correct_line"]), 1)
        name, index = case["random_idx"]
        self.assertEqual(case["correct_line"], line(name, case["expected_number"]))
        record = [row for row in case["prompt"].split("\n") if row.startswith("line ")]
        self.assertEqual(record[index] + "\n", case["correct_line"])
        self.assertEqual(len(set(record)), 6)
        self.assertTrue(case["prompt"].endswith(f"in line {name}? I need the number. "))

    def test_seeds(self):
        self.assertEqual(make_case(random.Random(5), 6), make_case(random.Random(5), 6))
        self.assertNotEqual(make_case(random.Random(5), 6), make_case(random.Random(6), 6))

    def test_names_of_other_cases(self):
        case = make_case(random.Random(5), 6)
        self.cases.write_text(json.dumps(case) + "\n")
        names = names_of(self.cases)
        self.assertEqual(len(names), 6)
        self.assertIn(case["random_idx"][0], names)
        other = make_case(random.Random(6), 4, names)
        self.assertIn(other["random_idx"][0], names)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0]], verbosity=2)
