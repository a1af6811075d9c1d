# SPDX-License-Identifier: Apache-2.0
"""A tiny random model whose tokens are the bytes of the text, for tests of whole programs."""
import array
import itertools
import math
import random
import struct

WIDTH, LAYERS, HEADS, KV_HEADS, HIDDEN, VOCABULARY = 32, 2, 4, 2, 48, 259
CHANNELS = WIDTH // HEADS


def write_counting_model(path):
    """A model that predicts the next larger byte, whatever it attends: its layers add nothing, and
    the output head is the embedding, moved by one token."""
    draw = random.Random(1)
    embedding = [[draw.gauss(0.0, 1.0) for _ in range(WIDTH)] for _ in range(VOCABULARY)]
    # of the same length, so that no other token's product is larger than a token's own
    embedding = [[x / math.hypot(*row) for x in row] for row in embedding]

    def weights(name, count, _):
        if name == "token_embd.weight":
            return itertools.chain(*embedding)
        if name == "output.weight":
            return itertools.chain(*(embedding[token - 1] for token in range(VOCABULARY)))
        return itertools.repeat(1.0 if "norm" in name else 0.0, count)

    write_tiny_model(path, weights, {"output.weight": (VOCABULARY, WIDTH)})


def write_tiny_model(path, weights_of=None, more_shapes=()):
    """A GGUF file of random weights; the tokeniser knows bytes only, token = byte + 3.

    weights_of   (name, count, shape) -> the weights of a tensor, if they are not to be random
    more_shapes  {name: shape} of tensors beside the usual ones"""

    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    def numbers(code, form, values):
        head = struct.pack("<IIQ", 9, code, len(values))
        return head + struct.pack(f"<{len(values)}{form}", *values)

    def number(value):
        return struct.pack("<II", 4, value)

    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    entries = {
        "general.architecture": struct.pack("<I", 8) + text("llama"),
        "llama.embedding_length": number(WIDTH),
        "llama.block_count": number(LAYERS),
        "llama.feed_forward_length": number(HIDDEN),
        "llama.attention.head_count": number(HEADS),
        "llama.attention.head_count_kv": number(KV_HEADS),
        "llama.context_length": number(256),
        "llama.vocab_size": number(VOCABULARY),
        "llama.rope.dimension_count": number(CHANNELS),
        "llama.attention.layer_norm_rms_epsilon": struct.pack("<If", 6, 1e-5),
        "tokenizer.ggml.model": struct.pack("<I", 8) + text("llama"),
        "tokenizer.ggml.tokens": struct.pack("<IIQ", 9, 8, VOCABULARY)
        + b"".join(map(text, tokens)),
        "tokenizer.ggml.scores": numbers(6, "f", [0.0] * VOCABULARY),
        "tokenizer.ggml.token_type": numbers(5, "i", [2, 3, 3] + [6] * 256),
        "tokenizer.ggml.add_space_prefix": struct.pack("<IB", 7, 0),
    }
    shapes = {"token_embd.weight": (VOCABULARY, WIDTH), "output_norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        for name, shape in {
            "attn_norm": (WIDTH,),
            "attn_q": (WIDTH, WIDTH),
            "attn_k": (KV_HEADS * CHANNELS, WIDTH),
            "attn_v": (KV_HEADS * CHANNELS, WIDTH),
            "attn_output": (WIDTH, WIDTH),
            "ffn_norm": (WIDTH,),
            "ffn_gate": (HIDDEN, WIDTH),
            "ffn_up": (HIDDEN, WIDTH),
            "ffn_down": (WIDTH, HIDDEN),
        }.items():
            shapes[f"blk.{layer}.{name}.weight"] = shape
    shapes.update(more_shapes)
    draw = random.Random(1)

    def random_weights(_, count, shape):
        middle, spread = (1.0, 0.3) if len(shape) == 1 else (0.0, 0.5)
        return (middle + draw.uniform(-spread, spread) for _ in range(count))

    header, data = b"", b""
    for name, shape in shapes.items():
        header += text(name) + struct.pack("<I", len(shape))
        header += struct.pack(f"<{len(shape)}Q", *reversed(shape))
        header += struct.pack("<IQ", 0, len(data))
        weights = (weights_of or random_weights)(name, math.prod(shape), shape)
        data += array.array("f", weights).tobytes()
        data += bytes(-len(data) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(entries))
    head += b"".join(text(key) + value for key, value in entries.items()) + header
    path.write_bytes(head + bytes(-len(head) % 32) + data)
