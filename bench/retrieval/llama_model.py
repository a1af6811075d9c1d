# SPDX-License-Identifier: Apache-2.0
"""A Llama-family model from a GGUF file in PyTorch, with low-rank additions to train, and back into
a GGUF file. Needs torch, numpy and gguf."""
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, dequantize
from torch.nn import functional

TRAINED = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
F16_FILE = 1  # general.file_type of a file whose matrices are float16


def tensor_of(tensor):
    """A file's tensor as float32 numbers, row-major as in the engine: [rows, columns]."""
    return torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), np.float32))


class Llama:
    """Weights stay as the file orders them, whose rotary pairs are adjacent channels.

    Low-rank additions (arXiv:2106.09685): y = W x + (alpha / r) B A x for all matrices of attention
    and MLP; B starts at 0."""

    def __init__(self, path, device="cpu", rank=0, alpha=32.0, seed=1):
        reader = GGUFReader(path)

        def number(key, default=None):
            field = reader.get_field(f"llama.{key}")
            return default if field is None else field.contents()

        self.path, self.device = path, device
        self.layers, self.heads = number("block_count"), number("attention.head_count")
        self.kv_heads = number("attention.head_count_kv", self.heads)
        self.channels = number("rope.dimension_count", number("embedding_length") // self.heads)
        self.epsilon = number("attention.layer_norm_rms_epsilon")
        self.rope_base = number("rope.freq_base", 10000.0)
        self.weights = {t.name: tensor_of(t).to(device) for t in reader.tensors}
        if self.weights["blk.0.attn_q.weight"].shape[0] != self.heads * self.channels:
            raise ValueError(f"{path}: rotates only a part of each head, which is not supported here")
        if "rope_freqs.weight" in self.weights:
            raise ValueError(f"{path}: scales its rotary positions, which is not supported here")
        self.scale = alpha / max(rank, 1)
        self.low, self.high = {}, {}
        draw = torch.Generator().manual_seed(seed)
        for name in self.matrices() if rank > 0 else ():
            rows, columns = self.weights[name].shape
            low = torch.randn(rank, columns, generator=draw) / columns**0.5
            self.low[name] = low.to(device).requires_grad_()
            self.high[name] = torch.zeros(rows, rank, device=device, requires_grad=True)

    def matrices(self):
        return [f"blk.{layer}.{part}.weight" for layer in range(self.layers) for part in TRAINED]

    def parameters(self):
        return [*self.low.values(), *self.high.values()]

    @torch.no_grad()
    def merge(self):
        """Adds the low-rank parts to the weights and forgets them."""
        for name in self.low:
            self.weights[name] += self.scale * (self.high[name] @ self.low[name])
        self.low, self.high = {}, {}

    def cast(self, dtype):
        """Matrices in `dtype`, for arithmetic in it; the rest stays float32."""
        for name, weight in self.weights.items():
            if weight.dim() == 2:
                self.weights[name] = weight.to(dtype)

    def multiply(self, name, x):
        weight = self.weights[name]
        y = functional.linear(x, weight)
        if name in self.low:
            inner = functional.linear(x, self.low[name].to(x.dtype))
            y = y + self.scale * functional.linear(inner, self.high[name].to(x.dtype))
        return y

    def normalise(self, name, x):
        x32 = x.float()
        x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.epsilon)
        return (x32 * self.weights[name]).to(self.weights["token_embd.weight"].dtype)

    def hidden(self, tokens, queries=None):
        """Final states [sequence, token, width] of `tokens` [sequence, token]; padding at the end does
        no harm.

        queries  positions [sequence, query]: also returns their attention, summed over all layers
                 and heads, [sequence, query, token]"""
        sequences, count = tokens.shape
        angles = self.angles(count)
        x = self.weights["token_embd.weight"][tokens].float()
        seen = 0.0
        for layer in range(self.layers):
            def part(name, y, layer=layer):
                return self.multiply(f"blk.{layer}.{name}.weight", y)

            def heads(name, y, part=part):
                return part(name, y).view(sequences, count, -1, self.channels).transpose(1, 2)

            y = self.normalise(f"blk.{layer}.attn_norm.weight", x)
            q, k = rotated(heads("attn_q", y), angles), rotated(heads("attn_k", y), angles)
            k, v = (t.repeat_interleave(self.heads // self.kv_heads, 1) for t in (k, heads("attn_v", y)))
            if queries is not None:
                seen = seen + attention_of(q, k, queries)
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + part("attn_output", y.transpose(1, 2).reshape(sequences, count, -1))
            y = self.normalise(f"blk.{layer}.ffn_norm.weight", x)
            x = x + part("ffn_down", functional.silu(part("ffn_gate", y)) * part("ffn_up", y))
        x = self.normalise("output_norm.weight", x)
        return x if queries is None else (x, seen)

    def logits(self, states):
        head = "output.weight" if "output.weight" in self.weights else "token_embd.weight"
        return functional.linear(states, self.weights[head]).float()

    def angles(self, count):
        """Cosine and sine [token, pair]."""
        pair = torch.arange(0, self.channels, 2, dtype=torch.float64, device=self.device)
        position = torch.arange(count, dtype=torch.float64, device=self.device)
        angle = position[:, None] * self.rope_base ** (-pair / self.channels)
        return angle.cos().float(), angle.sin().float()

    def write(self, path):
        """A GGUF file with all entries of the source, tokeniser included; matrices as float16."""
        reader = GGUFReader(self.path)
        writer = GGUFWriter(path, reader.get_field("general.architecture").contents())
        for field in reader.fields.values():
            if field.name.startswith("GGUF.") or field.name == "general.architecture":
                continue  # the writer has its own
            is_array = field.types[0] == GGUFValueType.ARRAY
            value = F16_FILE if field.name == "general.file_type" else field.contents()
            writer.add_key_value(field.name, value, field.types[0],
                                 sub_type=field.types[-1] if is_array else None)
        for tensor in reader.tensors:
            weight = self.weights[tensor.name].float().cpu().numpy()
            writer.add_tensor(tensor.name, weight.astype(np.float16) if weight.ndim == 2 else weight,
                              raw_dtype=GGMLQuantizationType.F16 if weight.ndim == 2 else None)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def rotated(x, angles):
    """`x` [sequence, head, token, channel], channels 2 i and 2 i + 1 a pair."""
    cosine, sine = angles
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    pairs = torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], -1)
    return pairs.flatten(-2).to(x.dtype)


def attention_of(q, k, queries):
    """Probabilities of the queries, summed over heads, [sequence, query, token]."""
    index = queries[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3])
    logits = q.gather(2, index).float() @ k.float().transpose(2, 3) / q.shape[3] ** 0.5
    hidden = torch.arange(k.shape[2], device=k.device) > queries[:, None, :, None]
    return logits.masked_fill(hidden, -torch.inf).softmax(-1).sum(1)
