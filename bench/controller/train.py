#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains an ADORE controller on the labels that gather_labels wrote, and writes a controller file
(safetensors) with its figures beside it (.json). Needs torch, numpy and safetensors.

    train.py --labels labels.safetensors --embeddings embeddings.safetensors --out controller.safetensors

Without options: the settings of arXiv:2407.02328, appendix B, where it gives them; it is silent on
batch size and number of steps."""
import argparse
import copy
import json
import math
import os
import pathlib
import shlex
import sys
import time

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # the same sums in every run
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import losses  # noqa: E402
from controller_model import MODES, POSITIONS, Controller, rms_normalised  # noqa: E402
from label_file import Labels, read_embeddings  # noqa: E402
from scoring import Scoring  # noqa: E402
from validation import Validation  # noqa: E402


class Trainer:
    def __init__(self, asked, labels, validated, embeddings, device):
        self.asked, self.labels, self.device = asked, labels, device
        embeddings = embeddings.to(device)
        if asked.normalise == "rms":
            embeddings = rms_normalised(embeddings)
        self.model = Controller(
            embeddings.shape[1], asked.hidden, labels.outputs, asked.mode, asked.position,
            asked.max_length, asked.gru).to(device)
        # a = exp of this, so that it stays positive
        self.log_exponent = torch.zeros(labels.outputs, device=device, requires_grad=asked.join_mass)
        self.scoring = Scoring(asked, self.model, embeddings, self.log_exponent, device)
        if validated is None:
            order = torch.randperm(
                labels.sequences, generator=torch.Generator().manual_seed(asked.seed))
            count = min(max(1, round(0.2 * labels.sequences)), labels.sequences - 1)  # 8:2
            validated, rows, self.trained = labels, order[:count], order[count:]
        else:
            rows, self.trained = torch.arange(validated.sequences), torch.arange(labels.sequences)
        self.validation = Validation(asked, self.scoring, validated, rows)
        self.pair_type = torch.bfloat16 if asked.precision == "bfloat16" else torch.float32
        self.positive_weight = torch.tensor(asked.pos_weight, device=device)

    def parameters(self):
        return list(self.model.parameters()) + ([self.log_exponent] if self.asked.join_mass else [])

    def chunk_loss(self, x, z, pairs):
        """Sum of the losses of some queries."""
        logits = self.scoring.scores(x, z, pairs.queries, pairs.mass, self.pair_type)
        decided = self.scoring.decided(pairs.queries, self.labels.length)
        if self.asked.loss == "sets":
            return losses.binary(logits, self.labels.unpacked(pairs.bits), decided,
                                 self.positive_weight)
        weights = pairs.attention.permute(0, 2, 3, 1).float()
        return losses.attention(logits, weights / weights.sum(2, keepdim=True), decided)

    def backward(self, rows, draw):
        """Adds the gradient of the mean loss of a batch; returns the loss."""
        tokens, pairs = self.labels.batch(rows, self.asked.queries, draw)
        x, z = self.scoring.hear(tokens)
        if self.asked.loss == "sets":
            count = self.scoring.decided(pairs.queries, self.labels.length).sum()
        else:
            count = pairs.queries.numel()
        loss = 0.0
        for part in self.scoring.slices(*tokens.shape, pairs.queries.shape[1]):
            # computed again for its gradient, so that only one chunk is ever held
            loss = loss + checkpoint(self.chunk_loss, x, z, pairs.part(part), use_reentrant=False)
        loss = loss / (count * self.labels.outputs)
        loss.backward()
        return loss.detach()

    def learning_rate(self, step):
        if self.asked.schedule == "cosine":
            return self.asked.lr * 0.5 * (1 + math.cos(math.pi * step / self.asked.steps))
        return self.asked.lr * 0.98 ** (step // 2000)

    def merit(self, figures):
        """What the weights are chosen by: the paper's F1, or the attention kept with the first number
        of rebuilt tokens."""
        return figures["f1"] if self.asked.select == "f1" else next(iter(figures["kept"].values()))

    def train(self):
        """Leaves the weights of the best validation figure in the model; returns the history."""
        adam = torch.optim.Adam(self.parameters(), lr=self.asked.lr)
        draw = torch.Generator().manual_seed(self.asked.seed + 1)
        batch = min(self.asked.batch, len(self.trained))
        waiting = torch.empty(0, dtype=torch.long)
        best, history, start, seen = None, [], time.perf_counter(), []
        for step in range(1, self.asked.steps + 1):
            if len(waiting) < batch:  # the next epoch; the rest of the last is left out
                waiting = self.trained[torch.randperm(len(self.trained), generator=draw)]
            rows, waiting = waiting[:batch], waiting[batch:]
            for group in adam.param_groups:
                group["lr"] = self.learning_rate(step - 1)
            adam.zero_grad(set_to_none=True)
            seen.append(self.backward(rows, draw))
            adam.step()
            if step % self.asked.evaluate_every == 0 or step == self.asked.steps:
                line = {"step": step, "loss": torch.stack(seen).mean().item(),
                        **self.validation.evaluate(), "seconds": time.perf_counter() - start}
                seen = []
                if not math.isfinite(line["loss"]):
                    sys.exit(f"train.py: the loss is {line['loss']} at step {step}: try a lower --lr")
                history.append(line)
                print(f"step {step}: loss {line['loss']:.4f}, validation {in_words(line)}, "
                      f"{line['seconds']:.1f} s", flush=True)
                if best is None or self.merit(line) > best[0]:
                    state = [copy.deepcopy(self.model.state_dict()), self.log_exponent.detach().clone()]
                    best = (self.merit(line), step, state)
        self.model.load_state_dict(best[2][0])
        self.log_exponent.data.copy_(best[2][1])
        print(f"best validation {self.asked.select} at step {best[1]}")
        return history


def in_words(figures):
    kept = "".join(f", kept at {what}: {share:.4f}" for what, share in figures.get("kept", {}).items())
    return (f"F1 {figures['f1']:.4f}, accuracy {figures['accuracy']:.4f}, "
            f"hit rate {figures['hit_rate']:.4f}{kept}")


def write_controller(asked, trainer, figures):
    """The weights as safetensors, the figures as JSON beside them."""
    exponent = trainer.log_exponent.exp() if asked.join_mass else None
    tensors = trainer.model.file_tensors(exponent)
    if asked.half:
        tensors = {name: weight.half() for name, weight in tensors.items()}
    if not all(weight.isfinite().all() for weight in tensors.values()):
        sys.exit("train.py: a weight is not finite; nothing is written")
    labels = {f"label_{key}": value for key, value in trainer.labels.metadata.items()}
    metadata = {"gru": asked.gru, "score_mode": asked.mode, "position_feature": asked.position,
                "max_length": str(asked.max_length), "input": asked.normalise,
                "model": trainer.labels.metadata.get("model", ""), "command": figures["command"],
                "tokens_sha256": trainer.labels.hash, "figures": json.dumps(figures["best"]), **labels}
    if exponent is not None:
        metadata["mass_exponent"] = json.dumps(exponent.tolist())
        metadata["mass_epsilon"] = repr(asked.mass_epsilon)
        figures["mass_exponent"] = exponent.tolist()
    save_file(tensors, asked.out, metadata)
    beside = pathlib.Path(asked.out).with_suffix(".json")
    beside.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"{asked.out}: {sum(t.numel() for t in tensors.values())} weights, "
          f"{os.path.getsize(asked.out)} bytes; figures in {beside}")


def sinks_and_recent(text):
    sinks, recent = (int(part) for part in text.split(","))
    if min(sinks, recent) < 0:
        raise ValueError
    return sinks, recent


def arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--labels", required=True)
    add("--embeddings", required=True)
    add("--out", required=True, help="controller file to write")
    add("--mode", choices=MODES, default="static", help="default: static")
    add("--position", choices=POSITIONS, help="default: index_over_max, or what the mode needs")
    add("--max-length", type=int, default=4096, help="default: 4096")
    add("--gru", choices=("pytorch", "cho", "none"), default="pytorch",
        help="default: pytorch; cho: the form of Cho et al. 2014, slower; none: a linear layer instead")
    add("--hidden", type=int, default=128, help="d', default: 128")
    add("--normalise", choices=("none", "rms"), default="none", help="of the embeddings")
    add("--lr", type=float, default=0.005, help="default: 0.005")
    add("--schedule", choices=("staircase", "cosine"), default="staircase",
        help="staircase (default): x 0.98 every 2000 steps")
    add("--steps", type=int, default=500, help="default: 500")
    add("--batch", type=int, default=32, help="sequences per step, default: 32")
    add("--evaluate-every", type=int, default=50, help="steps, default: 50")
    add("--validate", help="label file to validate on, of texts that share nothing with the training "
        "ones; default: a fifth of the pieces of --labels")
    add("--loss", choices=("sets", "attention"), default="sets",
        help="sets (default): cross entropy of the label sets; attention: cross entropy between the "
        "attention and the softmax of the logits, which then rank, but whose zero means nothing")
    add("--protect", type=sinks_and_recent, default=(0, 0), metavar="SINKS,RECENT",
        help="first and newest tokens that the policy keeps anyway: they count nowhere")
    add("--queries", type=int, help="of a sequence in one step, drawn anew each time; default: all")
    add("--select", choices=("f1", "kept"), default="f1", help="the figure of the validation that "
        "chooses among the steps; kept: attention kept with the first R of --rebuilt")
    add("--rebuilt", type=int, nargs="+", default=[0, 16], metavar="R",
        help="rebuilt tokens that the figure of kept attention is given for, default: 0 16")
    add("--pos-weight", type=float, default=1.0, help="weight of a label in the loss, default: 1")
    add("--join-mass", action="store_true", help="score = logit + a log(mass), a learned per output; "
        "the file's logit is divided by a, for a policy that keeps by mass x exp(logit)")
    add("--mass-epsilon", type=float, default=1e-6, help="added to the mass, default: 1e-6")
    add("--precision", choices=("float32", "tf32", "bfloat16"), default="tf32",
        help="of the products on a GPU (default: tf32); bfloat16: also of what exists per pair")
    add("--half", action="store_true", help="write float16 weights")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--seed", type=int, default=1)
    asked = parser.parse_args()
    asked.position = asked.position or (asked.mode if asked.mode in POSITIONS else "index_over_max")
    for name in ("steps", "batch", "evaluate_every", "hidden", "max_length", "lr", "pos_weight",
                 "mass_epsilon"):
        if not getattr(asked, name) > 0:
            parser.error(f"--{name.replace('_', '-')} must be positive")
    if asked.queries is not None and asked.queries < 1:
        parser.error("--queries must be positive")
    if asked.join_mass and asked.mode == "bilinear":
        parser.error("--join-mass cannot be folded into a bilinear controller")
    return asked


def check(asked, labels, validated):
    """Ends the program if the files cannot do what is asked."""
    if asked.join_mass and labels.mass is None:
        sys.exit(f"train.py: --join-mass: {labels.path} holds no mass")
    if asked.loss != "sets" and labels.attention is None:
        sys.exit(f"train.py: --loss {asked.loss}: {labels.path} holds no attention")
    if asked.loss == "attention" and asked.select == "f1":
        sys.exit("train.py: --loss attention leaves open where the logits' zero lies, on which F1 "
                 "depends: --select kept")
    if sum(asked.protect) >= labels.k:
        sys.exit(f"train.py: --protect: K = {labels.k} leaves no token to decide on")
    if validated is None and labels.sequences < 2:
        sys.exit(f"train.py: {labels.path} has one sequence: two are needed, one to validate")
    shown = labels if validated is None else validated
    if shown.outputs != labels.outputs:
        sys.exit(f"train.py: {shown.path} has {shown.outputs} outputs, {labels.path} {labels.outputs}")
    if asked.join_mass and shown.mass is None:
        sys.exit(f"train.py: --join-mass: {shown.path} holds no mass")
    if asked.select == "kept" and (shown.attention is None or shown.metadata.get("kind") != "query"
                                   or asked.join_mass):
        sys.exit(f"train.py: --select kept: {shown.path} holds no attention of kind query, or "
                 "--join-mass is asked for")


def main():
    asked = arguments()
    torch.manual_seed(asked.seed)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cuda.matmul.allow_tf32 = asked.precision != "float32"
    torch.backends.cudnn.allow_tf32 = asked.precision != "float32"
    device = torch.device(asked.device)
    labels = Labels(asked.labels, device)
    validated = None if asked.validate is None else Labels(asked.validate, device)
    check(asked, labels, validated)
    embeddings = read_embeddings(asked.embeddings, labels)
    try:
        trainer = Trainer(asked, labels, validated, embeddings, device)
    except ValueError as mistake:
        sys.exit(f"train.py: {mistake}")
    validation = trainer.validation
    print(f"{len(trainer.trained)} sequences to train, {len(validation.rows)} to validate; "
          f"{labels.length} tokens, {labels.per_sequence} queries, {labels.outputs} outputs, "
          f"K = {labels.k}; {sum(p.numel() for p in trainer.parameters())} weights", flush=True)
    history = trainer.train()
    best = validation.evaluate()
    baselines = validation.baselines((labels, trainer.trained))
    print(f"validation: {in_words(best)}, prevalence {best['prevalence']:.4f} (hit rates: " +
          ", ".join(f"{name} {rates['hit_rate']:.4f}" for name, rates in baselines.items()) + ")")
    command = shlex.join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]])
    write_controller(asked, trainer, {
        "command": command, "seed": asked.seed, "labels": labels.metadata, "best": best,
        "baselines": baselines, "validated": validation.rows.tolist(), "history": history})


if __name__ == "__main__":
    main()
