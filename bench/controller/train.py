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
from torch.nn import functional  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from controller_model import MODES, POSITIONS, Controller, rms_normalised  # noqa: E402
from label_file import Labels, read_embeddings  # noqa: E402

SINKS = 4  # of the baseline that keeps the first and the newest tokens


class Trainer:
    def __init__(self, asked, labels, embeddings, device):
        self.asked, self.labels, self.device = asked, labels, device
        self.embeddings = embeddings.to(device)
        if asked.normalise == "rms":
            self.embeddings = rms_normalised(self.embeddings)
        self.model = Controller(
            self.embeddings.shape[1], asked.hidden, labels.outputs, asked.mode, asked.position,
            asked.max_length, asked.gru).to(device)
        # a = exp of this, so that it stays positive
        self.log_exponent = torch.zeros(labels.outputs, device=device, requires_grad=asked.join_mass)
        order = torch.randperm(labels.sequences, generator=torch.Generator().manual_seed(asked.seed))
        validated = min(max(1, round(0.2 * labels.sequences)), labels.sequences - 1)  # 8:2
        self.validated, self.trained = order[:validated], order[validated:]
        self.pair_type = torch.bfloat16 if asked.precision == "bfloat16" else torch.float32
        self.positive_weight = torch.tensor(asked.pos_weight, device=device)

    def parameters(self):
        return list(self.model.parameters()) + ([self.log_exponent] if self.asked.join_mass else [])

    def chunks(self, sequences):
        """Slices of the queries: what exists per query, token and channel has to fit in memory."""
        elements = 2**28 if self.device.type == "cuda" else 2**25
        per_query = sequences * self.labels.length * (self.asked.hidden + 4 * self.labels.outputs)
        if self.asked.mode == "bidirectional":
            per_query *= 8  # the GRU's own states and inputs
        count = -(-self.labels.per_sequence // max(1, elements // per_query))
        step = -(-self.labels.per_sequence // count)
        return [slice(q, q + step) for q in range(0, self.labels.per_sequence, step)]

    def visible(self, queries):
        """1 where token i <= query n, [sequence, query, token, 1]."""
        index = torch.arange(self.labels.length, device=self.device)
        return (index <= queries[..., None])[..., None]

    def scores(self, x, z, queries, mass, pair_type):
        """Logits [sequence, query or 1, token, output], with the mass if it is joined."""
        logits = self.model.logits(x, z, queries, pair_type)
        if self.asked.join_mass:
            logs = torch.log(mass.permute(0, 2, 3, 1).float() + self.asked.mass_epsilon)
            logits = logits + self.log_exponent.exp() * logs
        return logits

    def chunk_loss(self, x, z, queries, bits, mass):
        """Sum of the cross entropies of all visible pairs."""
        logits = self.scores(x, z, queries, mass, self.pair_type)
        wanted = self.labels.unpacked(bits)
        return functional.binary_cross_entropy_with_logits(
            logits.expand_as(wanted), wanted, self.visible(queries).float(),
            pos_weight=self.positive_weight, reduction="sum")

    def backward(self, rows):
        """Adds the gradient of the mean loss of a batch; returns the loss."""
        tokens, queries, bits, mass = self.labels.batch(rows)
        x = self.embeddings[tokens]
        z = self.model.hear(x)
        pairs = (queries + 1).sum() * self.labels.outputs
        loss = 0.0
        for part in self.chunks(len(rows)):
            # computed again for its gradient, so that only one chunk is ever held
            loss = loss + checkpoint(
                self.chunk_loss, x, z, queries[:, part], bits[:, :, part],
                None if mass is None else mass[:, :, part], use_reentrant=False)
        loss = loss / pairs
        loss.backward()
        return loss.detach()

    def learning_rate(self, step):
        if self.asked.schedule == "cosine":
            return self.asked.lr * 0.5 * (1 + math.cos(math.pi * step / self.asked.steps))
        return self.asked.lr * 0.98 ** (step // 2000)

    def train(self):
        """Leaves the weights of the best validation F1 in the model; returns the history."""
        adam = torch.optim.Adam(self.parameters(), lr=self.asked.lr)
        draw = torch.Generator().manual_seed(self.asked.seed + 1)
        batch = min(self.asked.batch, len(self.trained))
        waiting = torch.empty(0, dtype=torch.long)
        best, history, start, losses = None, [], time.perf_counter(), []
        for step in range(1, self.asked.steps + 1):
            if len(waiting) < batch:  # the next epoch; the rest of the last is left out
                waiting = self.trained[torch.randperm(len(self.trained), generator=draw)]
            rows, waiting = waiting[:batch], waiting[batch:]
            for group in adam.param_groups:
                group["lr"] = self.learning_rate(step - 1)
            adam.zero_grad(set_to_none=True)
            losses.append(self.backward(rows))
            adam.step()
            if step % self.asked.evaluate_every == 0 or step == self.asked.steps:
                line = {"step": step, "loss": torch.stack(losses).mean().item(), **self.evaluate(),
                        "seconds": time.perf_counter() - start}
                losses = []
                if not math.isfinite(line["loss"]):
                    sys.exit(f"train.py: the loss is {line['loss']} at step {step}: try a lower --lr")
                history.append(line)
                print(f"step {step}: loss {line['loss']:.4f}, validation F1 {line['f1']:.4f}, "
                      f"accuracy {line['accuracy']:.4f}, hit rate {line['hit_rate']:.4f}, "
                      f"{line['seconds']:.1f} s", flush=True)
                if best is None or line["f1"] > best[0]:
                    state = [copy.deepcopy(self.model.state_dict()), self.log_exponent.detach().clone()]
                    best = (line["f1"], step, state)
        self.model.load_state_dict(best[2][0])
        self.log_exponent.data.copy_(best[2][1])
        print(f"best validation F1 at step {best[1]}")
        return history

    @torch.no_grad()
    def evaluate(self):
        """Figures over all visible pairs of the validation sequences; float32."""
        counts = torch.zeros(4, dtype=torch.float64, device=self.device)
        ranked = Hits(self.labels)
        for queries, wanted, visible, scores in self.validation(self.scores):
            yes, true = (scores > 0) & visible, wanted > 0
            counts += torch.stack([(yes & true).sum(), (yes & ~true).sum(), (~yes & true).sum(),
                                   visible.sum() * self.labels.outputs])
            ranked.add(scores, wanted, visible, queries)
        hit, false, missed, pairs = counts.tolist()
        return {"f1": 2 * hit / max(1.0, 2 * hit + false + missed),
                "accuracy": 1 - (false + missed) / pairs, "prevalence": (hit + missed) / pairs,
                **ranked.rates()}

    def validation(self, scorer):
        """Chunks (queries, labels, visible, scores) of the validation sequences."""
        for rows in self.validated.split(self.asked.batch):
            tokens, queries, bits, mass = self.labels.batch(rows)
            x = self.embeddings[tokens]
            z = self.model.hear(x)
            for part in self.chunks(len(rows)):
                wanted = self.labels.unpacked(bits[:, :, part])
                asked = queries[:, part]
                scores = scorer(x, z, asked, None if mass is None else mass[:, :, part],
                                torch.float32)
                yield asked, wanted, self.visible(asked), scores.expand_as(wanted)

    @torch.no_grad()
    def baselines(self):
        """Hit rates of rules that know nothing but positions, and of the mass where it is there."""
        index = torch.arange(self.labels.length, device=self.device, dtype=torch.float32)
        by_age = self.label_rate_by_age()
        first = torch.where(index < SINKS, self.labels.length - index, torch.zeros_like(index))

        def age(x, z, queries, mass, pair_type):
            return by_age[(queries[..., None] - index.long()).clamp(min=0)]

        rules = {"window": lambda *_: index[:, None],
                 "sinks_and_window": lambda *_: (index + 2 * first)[:, None],
                 "age": age}
        if self.labels.mass is not None:
            rules["mass"] = lambda x, z, queries, mass, _: mass.permute(0, 2, 3, 1).float()
        found = {}
        for name, rule in rules.items():
            ranked = Hits(self.labels)
            for queries, wanted, visible, scores in self.validation(rule):
                ranked.add(scores, wanted, visible, queries)
            found[name] = ranked.rates()
        return found

    def label_rate_by_age(self):
        """How often a token n - i steps old is in the label set, [age, output], of the training
        sequences: the best rule that looks at the age alone."""
        length, outputs = self.labels.length, self.labels.outputs
        hits = torch.zeros(length, outputs, dtype=torch.float64, device=self.device)
        pairs = torch.zeros(length, 1, dtype=torch.float64, device=self.device)
        ages = torch.arange(length, device=self.device)
        for rows in self.trained.split(self.asked.batch):
            _, queries, bits, _ = self.labels.batch(rows)
            for part in self.chunks(len(rows)):
                of_age = queries[:, part, None] - ages  # the token of each age
                seen = (of_age >= 0)[..., None]
                wanted = self.labels.unpacked(bits[:, :, part])
                wanted = wanted.take_along_dim(of_age.clamp(min=0)[..., None], 2) * seen
                hits += wanted.sum((0, 1), dtype=torch.float64)
                pairs += seen.sum((0, 1), dtype=torch.float64)
        return (hits / pairs.clamp(min=1)).float()


class Hits:
    """Of the K visible tokens with the largest scores, how many are in the label set? Queries that
    see at most K tokens say nothing and are left out."""

    def __init__(self, labels):
        self.k = min(labels.k, labels.length)
        self.sums = torch.zeros(2, labels.outputs, dtype=torch.float64)

    def add(self, scores, wanted, visible, queries):
        told = (queries >= self.k)[..., None]
        best = scores.masked_fill(~visible, -math.inf).topk(self.k, dim=2, sorted=False).indices
        hits = wanted.take_along_dim(best, 2).sum(2) * told
        of = (wanted * visible).sum(2) * told
        self.sums += torch.stack([hits, of]).sum((1, 2), dtype=torch.float64).cpu()

    def rates(self):
        hits, of = self.sums
        rates = {"hit_rate": (hits.sum() / of.sum().clamp(min=1)).item()}
        if len(of) > 1:
            rates["hit_rate_by_output"] = (hits / of.clamp(min=1)).tolist()
        return rates


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
    add("--gru", choices=("pytorch", "none"), default="pytorch", help="none: a linear layer instead")
    add("--hidden", type=int, default=128, help="d', default: 128")
    add("--normalise", choices=("none", "rms"), default="none", help="of the embeddings")
    add("--lr", type=float, default=0.005, help="default: 0.005")
    add("--schedule", choices=("staircase", "cosine"), default="staircase",
        help="staircase (default): x 0.98 every 2000 steps")
    add("--steps", type=int, default=500, help="default: 500")
    add("--batch", type=int, default=32, help="sequences per step, default: 32")
    add("--evaluate-every", type=int, default=50, help="steps, default: 50")
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
    if asked.join_mass and asked.mode == "bilinear":
        parser.error("--join-mass cannot be folded into a bilinear controller")
    return asked


def main():
    asked = arguments()
    torch.manual_seed(asked.seed)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cuda.matmul.allow_tf32 = asked.precision != "float32"
    torch.backends.cudnn.allow_tf32 = asked.precision != "float32"
    device = torch.device(asked.device)
    labels = Labels(asked.labels, device)
    if asked.join_mass and labels.mass is None:
        sys.exit(f"train.py: --join-mass: {asked.labels} holds no mass")
    embeddings = read_embeddings(asked.embeddings, labels)
    try:
        trainer = Trainer(asked, labels, embeddings, device)
    except ValueError as mistake:
        sys.exit(f"train.py: {mistake}")
    print(f"{len(trainer.trained)} sequences to train, {len(trainer.validated)} to validate; "
          f"{labels.length} tokens, {labels.per_sequence} queries, {labels.outputs} outputs, "
          f"K = {labels.k}; {sum(p.numel() for p in trainer.parameters())} weights", flush=True)
    history = trainer.train()
    best = trainer.evaluate()
    baselines = trainer.baselines()
    print(f"validation: accuracy {best['accuracy']:.4f}, F1 {best['f1']:.4f}, prevalence "
          f"{best['prevalence']:.4f}, hit rate at {labels.k}: {best['hit_rate']:.4f} (" +
          ", ".join(f"{name} {rates['hit_rate']:.4f}" for name, rates in baselines.items()) + ")")
    command = shlex.join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]])
    write_controller(asked, trainer, {
        "command": command, "seed": asked.seed, "labels": labels.metadata, "best": best,
        "baselines": baselines, "validated": trainer.validated.tolist(), "history": history})


if __name__ == "__main__":
    main()
