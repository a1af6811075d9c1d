# SPDX-License-Identifier: Apache-2.0
# The program adore-llama as a user meets it, on a tiny random model whose tokens are the bytes of
# the text; at last on two RPC servers of this machine.
# Usage: adore_llama_test.py ADORE_LLAMA RPC_SERVER
import json
import os
import pathlib
import random
import re
import socket
import string
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "llama"))
from tiny_controller import write_tiny_controller  # noqa: E402
from tiny_model import CHANNELS, KV_HEADS, LAYERS, write_tiny_model  # noqa: E402

PROGRAM, RPC_SERVER = sys.argv[1:3]
BYTES_PER_CELL = 2 * LAYERS * KV_HEADS * CHANNELS * 2  # K and V in float16


class Case(unittest.TestCase):
    def setUp(self):
        self.held = tempfile.TemporaryDirectory(prefix="adore_")
        self.addCleanup(self.held.cleanup)
        folder = pathlib.Path(self.held.name)
        draw = random.Random(2)
        self.text = folder / "text.txt"
        self.text.write_text("".join(draw.choice(string.ascii_letters) for _ in range(700)))
        self.model = folder / "tiny.gguf"
        write_tiny_model(self.model)
        self.controller = folder / "tiny.safetensors"
        write_tiny_controller(self.controller)

    def start(self, *arguments, model=None, lines=""):
        return subprocess.run(
            [PROGRAM, "--model", model or self.model, *map(str, arguments)],
            input=lines.encode(), capture_output=True, timeout=300, check=False,
        )  # fmt: skip

    def run_text(self, *arguments, lines=""):
        """Standard output and error of a run that must succeed."""
        done = self.start(*arguments, lines=lines)
        error = done.stderr.decode()
        self.assertEqual(done.returncode, 0, error)
        return done.stdout, error

    def kept(self, error):
        return [int(p) for p in re.search(r"^kept:(.*)$", error, re.M)[1].split()]


class Mistakes(Case):
    def refused(self, *arguments, says, model=None):
        done = self.start(*arguments, model=model)
        self.assertEqual((done.returncode, done.stdout), (2, b""))
        last = done.stderr.decode().splitlines()[-1]
        self.assertRegex(last, r"\Aadore-llama: .{10,400}\Z")
        self.assertIn(says, last)

    def test_sentences(self):
        prompt = ("--prompt", "abc")
        self.refused(says="there is no text")
        self.refused(*prompt, "--policy", "nonsense", says="there is no policy 'nonsense'")
        self.refused(*prompt, "--policy", "key_norm", says="llama.h does not show")
        self.refused(*prompt, "--budget", 1, says="--budget: at least 2 cells")
        self.refused(*prompt, "--chunk", 0, says="chunk = 0")
        self.refused(
            *prompt, "--policy", "h2o", "--flash-attention", "on", says="computes none"
        )
        self.refused(
            *prompt, "--policy", "tova", "--scores-every", 3, says="must be read at each step"
        )
        self.refused(*prompt, "--tensor-split", "1,-1", says="--tensor-split")
        self.refused(*prompt, "--tensor-split", ",".join("1" * 999), says="has at most")
        self.refused(*prompt, "--split-mode", "row", says="--split-mode")
        self.refused(
            *prompt, "--cache-type", "q8_0", "--flash-attention", "off", says="makes no context"
        )
        self.refused("--file", self.text.with_name("none.txt"), says="none.txt cannot be read")
        self.refused(*prompt, model=self.text, says="cannot be read as GGUF")
        self.refused(*prompt, "--budget", 3, "--policy", "none", "--file", self.text, says="--file")
        self.refused(*prompt, "--policy", "adaptive_release", says="write adaptive_release@FILE")
        self.refused(*prompt, "--policy", "h2o@some.file", says="takes no scores")
        self.refused(*prompt, "--policy", "none", "--rebuild", 2, says="nothing is released")
        self.refused(
            *prompt, "--policy", "h2o", "--budget", 256, "--rebuild", 255,
            says="nothing of the budget",
        )  # fmt: skip
        self.refused(
            *prompt, "--policy", "h2o+rebuild(count=2)", "--rebuild", 2,
            says="--policy says already",
        )  # fmt: skip
        self.refused(
            *prompt, "--policy", "h2o+rebuild(schedule=on_entry)", says="must be every_step"
        )
        self.refused(*prompt, "--rebuild", 2, says="positions must be original")  # streaming_llm
        per_layer = self.controller.with_name("layers.safetensors")
        write_tiny_controller(per_layer, outputs=LAYERS)
        self.refused(*prompt, "--policy", f"adaptive_release@{per_layer}", says="one output")

    def test_a_cache_that_is_too_small_for_everything(self):
        self.refused(
            "--file", self.text, "--policy", "keep_all", "--budget", 512,
            says="512 cells of the context are taken",
        )  # fmt: skip


class Runs(Case):
    def test_with_room_for_everything_the_text_is_that_of_llama_cpp(self):
        scored = f"adaptive_release@{self.controller}"
        for flash, policies in (
            ("off", ("streaming_llm", "h2o", "tova", scored)),
            ("on", ("strided", scored, scored + "+rebuild(count=5)")),
        ):
            same = ("--file", self.text, "--predict", 60, "--flash-attention", flash)
            alone, _ = self.run_text(*same, "--policy", "none", "--budget", 1024)
            for policy in policies:
                out, _ = self.run_text(*same, "--policy", policy, "--budget", 768)
                self.assertEqual(out, alone, policy)

    def test_the_budget_counts_cells_and_is_rounded_up(self):
        for chunk, cells in ((1, 512), (256, 768), (2, 768)):
            _, error = self.run_text(
                "--file", self.text, "--policy", "sliding_window", "--budget", 300, "--predict", 9,
                "--chunk", chunk, "--kept",
            )  # fmt: skip
            self.assertIn("budget: 300, rounded up to 512 cells; m = 511 tokens are kept", error)
            self.assertIn(f"K/V: {cells * BYTES_PER_CELL / 2**20:.2f} MiB in {cells} cells", error)
            end = 701 + 9  # the model begins a text with a token of its own
            self.assertIn(f"released: {end - 511} tokens", error)
            self.assertEqual(self.kept(error), list(range(end - 511, end)))

    def test_numbers_in_the_policy_are_taken_as_they_are(self):
        _, error = self.run_text(
            "--file", self.text, "--policy", "h2o(heavy=20,recent=30)", "--predict", 5, "--kept"
        )
        self.assertIn("rounded up to 256 cells; m = 50 tokens are kept", error)
        self.assertIn("scope: model, instead of kv_head", error)
        self.assertEqual(len(self.kept(error)), 50)

    def test_released_tokens_come_back_within_the_budget(self):
        same = ("--file", self.text, "--chunk", 1, "--predict", 9, "--budget", 256, "--kept")
        scored = f"adaptive_release@{self.controller}"
        for policy in (scored, f"attentive_release@{self.controller}", "h2o", "streaming_llm"):
            positions = ("--positions", "original")
            out, error = self.run_text(*same, *positions, "--policy", policy, "--rebuild", 6)
            self.assertIn("rounded up to 256 cells; m = 249 tokens are kept", error)
            self.assertIn(f"{256 * BYTES_PER_CELL / 2**20:.2f} MiB in 256 cells", error)
            seen = 701 + 9
            back = sum(min(6, t - 249) for t in range(250, seen))  # t tokens before the step
            self.assertIn(f"rebuilt: {back} tokens", error)
            self.assertEqual(len(self.kept(error)), 249)
            text = self.run_text(*same, *positions, "--policy", policy + "+rebuild(count=6)")[0]
            self.assertEqual(text, out)

    def test_a_file_of_json_lines_is_its_texts(self):
        lines = self.text.with_name("text.jsonl")
        lines.write_text(json.dumps({"text": self.text.read_text()}) + "\n")
        same = ("--predict", 9, "--policy", "sliding_window", "--budget", 256)
        self.assertEqual(
            self.run_text("--file", lines, *same)[0], self.run_text("--file", self.text, *same)[0]
        )

    def test_what_a_shift_costs_is_said(self):
        _, error = self.run_text(
            "--file", self.text, "--budget", 256, "--chunk", 1, "--predict", 20, "--shift-every", 10
        )
        self.assertIn(f"shifts: {(701 + 20 - 255 - 1) // 10}\n", error)
        self.assertRegex(error, r"a step with a shift takes \d+\.\d+ ms, any other \d+\.\d+ ms")
        _, error = self.run_text("--file", self.text, "--budget", 256, "--positions", "original")
        self.assertNotIn("shift", error)

    def test_where_the_time_goes_is_said(self):
        same = ("--file", self.text, "--limit", 300, "--perplexity", "--chunk", 1, "--budget", 512)
        for policy, reads in (("none", False), ("sliding_window", False), ("h2o", True)):
            _, error = self.run_text(*same, "--policy", policy)
            parts = re.search(
                r"^per token: in llama\.cpp (\S+) ms, in its callback (\S+) ms \((\S+) %\), "
                r"in the policy (\S+) ms \((\S+) %\)$", error, re.M,
            )  # fmt: skip
            llama, callback, callback_share, own, own_share = map(float, parts.groups())
            self.assertGreater(min(llama, own), 0.0)
            self.assertEqual(callback > 0.0, reads, policy)
            whole = llama + callback + own
            self.assertAlmostEqual(100.0 * own / whole, own_share, delta=0.5)
            self.assertAlmostEqual(100.0 * callback / whole, callback_share, delta=0.5)
        self.assertRegex(error, r"processor time of the process: \S+ s, in the system \S+ s\n")

    def test_perplexity_needs_less_than_uniform_guessing(self):
        out, error = self.run_text("--file", self.text, "--perplexity", "--policy", "none")
        full = float(re.match(rb"perplexity (\S+) over 700 tokens", out)[1])
        out, error = self.run_text("--file", self.text, "--perplexity", "--policy", "keep_all")
        self.assertAlmostEqual(full, float(out.split()[1]), places=3)
        out, error = self.run_text(
            "--file", self.text, "--perplexity", "--policy", "h2o", "--budget", 256, "--chunk", 1
        )
        self.assertRegex(out, rb"over 700 tokens; \S+ over the 444 after the first 256\n")
        self.assertRegex(error, r"read: 700 tokens in \S+ s, \S+ tokens/s")
        out, _ = self.run_text("--file", self.text, "--perplexity", "--limit", 100)
        self.assertIn(b"over 99 tokens\n", out)

    def test_a_talk_goes_on_past_the_budget(self):
        out, error = self.run_text(
            "--interactive", "--budget", 256, "--predict", 150, lines="one\ntwo\nthree\n"
        )
        self.assertRegex(error, r"written: \d+ tokens")
        self.assertGreater(len(out), 0)
        seen = sum(int(n) for n in re.findall(r"^(?:read|written): (\d+)", error, re.M))
        released = int(re.search(r"^released: (\d+)", error, re.M)[1])
        self.assertEqual(released, max(0, seen - 255))


class Remote(Case):
    def serve(self):
        with socket.socket() as any_port:
            any_port.bind(("127.0.0.1", 0))
            port = any_port.getsockname()[1]
        log = self.text.with_name(f"server_{port}.log")
        with open(log, "wb") as file:
            server = subprocess.Popen(
                [RPC_SERVER, f"127.0.0.1:{port}"], stdout=file, stderr=file,
                env={**os.environ, "GGML_RPC_DEBUG": "1"},
            )  # fmt: skip
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        for _ in range(200):
            if server.poll() == 77:
                self.skipTest("this llama.cpp has no RPC")
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return f"127.0.0.1:{port}", log
            except ConnectionRefusedError:
                time.sleep(0.05)
        self.fail("the server does not answer")

    def graphs(self, log):
        """How many parts of a graph a server has computed."""
        return log.read_bytes().count(b"n_nodes")

    def test_two_servers_keep_and_write_the_same(self):
        addresses, logs = zip(self.serve(), self.serve())
        servers = ",".join(addresses)
        for policy in (
            "h2o(heavy=40,recent=40)",
            "streaming_llm(sinks=4,window=76)",
            "h2o(heavy=40,recent=40)+rebuild(count=5)",
        ):
            same = (
                "--file", self.text, "--policy", policy, "--predict", 60, "--chunk", 64, "--kept",
                "--flash-attention", "off",
            )  # fmt: skip
            here, error = self.run_text(*same)
            there, remote_error = self.run_text(
                *same, "--rpc", servers, "--n-gpu-layers", 99, "--tensor-split", "1,3"
            )  # the first of two layers here, the second one and the output there
            self.assertEqual(there, here)
            self.assertEqual(self.kept(remote_error), self.kept(error))
            self.assertEqual(len(self.kept(error)), 80)
        for log in logs:
            self.assertGreater(self.graphs(log), 20)

    def test_one_device_can_have_all(self):
        for choice in (("--split-mode", "none"), ("--tensor-split", "1,0")):
            addresses, logs = zip(self.serve(), self.serve())
            self.run_text(
                "--prompt", "abc", "--predict", 5, "--rpc", ",".join(addresses),
                "--n-gpu-layers", 99, *choice,
            )  # fmt: skip
            self.assertGreater(self.graphs(logs[0]), 5)
            self.assertEqual(self.graphs(logs[1]), 0, choice)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
