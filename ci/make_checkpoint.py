#!/usr/bin/env python3
"""Writes a Hugging Face folder of numbers that mean nothing, to measure loading: `make_checkpoint.py DIR [--small]`.

bfloat16 in four safetensors files with an index, names in the order that Hugging Face writes them. The shape is that of
Llama-3.1-8B (15 GiB); with --small of TinyLlama-1.1B (2 GiB).
"""
import argparse
import json
import math
import os
import struct
from pathlib import Path

SHARDS = 4
BF16_BYTES = 2
LLAMA_8B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256,
}
TINY_LLAMA = {
    "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
    "num_key_value_heads": 4, "vocab_size": 32000,
}
COMMON = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "hidden_act": "silu",
    "bos_token_id": 1, "eos_token_id": 2,
}


def shapes(config):
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    layer = {
        "input_layernorm": [hidden], "post_attention_layernorm": [hidden],
        "self_attn.q_proj": [hidden, hidden], "self_attn.k_proj": [kv, hidden], "self_attn.v_proj": [kv, hidden],
        "self_attn.o_proj": [hidden, hidden],
        "mlp.gate_proj": [inner, hidden], "mlp.up_proj": [inner, hidden], "mlp.down_proj": [hidden, inner],
    }
    outer = {"model.embed_tokens": [config["vocab_size"], hidden], "model.norm": [hidden],
             "lm_head": [config["vocab_size"], hidden]}
    layers = {f"model.layers.{i}.{name}": shape for i in range(config["num_hidden_layers"]) for name, shape in layer.items()}
    return sorted((f"{name}.weight", shape) for name, shape in (outer | layers).items())


def write_shard(path, tensors, numbers):
    header, end = {}, 0
    for name, shape in tensors:
        start, end = end, end + math.prod(shape) * BF16_BYTES
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for start in range(0, end, len(numbers)):
            file.write(numbers[:end - start])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    config = TINY_LLAMA if arguments.small else LLAMA_8B
    arguments.folder.mkdir(parents=True, exist_ok=True)
    (arguments.folder / "config.json").write_text(json.dumps(COMMON | config, indent=1))
    # High bytes of small numbers, low bytes of any.
    numbers = bytearray(os.urandom(4 << 20))
    numbers[1::2] = b"\x3c" * (len(numbers) // 2)
    tensors, index = shapes(config), {}
    each = -(-len(tensors) // SHARDS)
    for shard in range(SHARDS):
        part = tensors[shard * each:(shard + 1) * each]
        name = f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        write_shard(arguments.folder / name, part, memoryview(numbers))
        index |= {tensor: name for tensor, _ in part}
    (arguments.folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


if __name__ == "__main__":
    main()
