"""Makes tests/fixtures/rope.json: the frequencies of every kind of rotary scaling with the numbers of released models, by transformers.

Needs torch and transformers; run from the project's root.
"""

import json
import pathlib

import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

OUT = pathlib.Path("tests/fixtures/rope.json")
LLAMA = {"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "max_position_embeddings": 4096,
         "rope_theta": 10000.0}
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
YARN = {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 4096}
DEEPSEEK = {"model_type": "llama", "hidden_size": 2048, "num_attention_heads": 32, "head_dim": 64,
            "max_position_embeddings": 163840, "rope_theta": 10000}
PHI = {"model_type": "phi3", "hidden_size": 3072, "num_attention_heads": 32, "max_position_embeddings": 131072,
       "original_max_position_embeddings": 4096, "rope_theta": 10000.0}
FACTORS = {"short_factor": [1.0 + i / 64 for i in range(48)], "long_factor": [1.0 + i / 2 for i in range(48)]}


def scaled(base, scaling, **changes):
    return {**base, **changes, "rope_scaling": scaling}


# What it is, the configuration, the longest sequence, the length that it was trained for.
CASES = [
    ("none, as in Llama 2", LLAMA, 64, 4096),
    ("linear, as in Vicuna 16k", scaled(LLAMA, {"type": "linear", "factor": 4.0}), 64, 4096),
    ("dynamic within the trained length, as in InternLM2", scaled(LLAMA, {"type": "dynamic", "factor": 2.0}), 4096, 4096),
    ("dynamic beyond it", scaled(LLAMA, {"type": "dynamic", "factor": 2.0}), 6000, 4096),
    ("yarn, as in Qwen2.5", scaled(LLAMA, {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
                                   max_position_embeddings=131072, rope_theta=1e6), 64, 4096),
    ("yarn with equal mscales, as in DeepSeek V3", scaled(DEEPSEEK, {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}), 64, 4096),
    ("yarn, as in DeepSeek V2 Lite", scaled(DEEPSEEK, {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707}), 64, 4096),
    ("yarn with two mscales", scaled(DEEPSEEK, {**YARN, "mscale": 1.0, "mscale_all_dim": 0.8}), 64, 4096),
    ("yarn with an mscale alone", scaled(DEEPSEEK, {**YARN, "mscale": 0.5}), 64, 4096),
    ("yarn without rounding, as in gpt-oss", scaled(LLAMA, {**YARN, "factor": 32.0, "truncate": False}, head_dim=64,
                                                   max_position_embeddings=131072, rope_theta=150000), 64, 4096),
    ("yarn with its own factor, as in OLMo 3", scaled(LLAMA, {**YARN, "factor": 8.0, "attention_factor": 1.2079441541679836,
                                                             "original_max_position_embeddings": 8192},
                                                     max_position_embeddings=65536, rope_theta=500000), 64, 8192),
    ("llama3, as in Llama 3.1", scaled(LLAMA, {**LLAMA3, "factor": 8.0}, max_position_embeddings=131072, rope_theta=5e5), 64, 8192),
    ("llama3, as in Llama 3.2", scaled(LLAMA, {**LLAMA3, "factor": 32.0}, head_dim=64, max_position_embeddings=131072,
                                       rope_theta=5e5), 64, 8192),
    ("llama3 without a ramp, as in Llama 4 Scout", scaled(LLAMA, {**LLAMA3, "factor": 16.0, "high_freq_factor": 1.0},
                                                        max_position_embeddings=1048576, rope_theta=5e5), 64, 8192),
    ("longrope, short, as in Phi-3", scaled(PHI, {"type": "longrope", **FACTORS}), 4096, 4096),
    ("longrope, long", scaled(PHI, {"type": "longrope", **FACTORS}), 4100, 4096),
    ("longrope of a part of the head, as in Phi-4-mini", scaled(PHI, {"type": "longrope", **FACTORS}, num_attention_heads=24,
                                                               partial_rotary_factor=0.75), 4100, 4096),
    ("a part of the head, as in Pythia", {"model_type": "gpt_neox", "hidden_size": 4096, "num_attention_heads": 32,
                                         "max_position_embeddings": 2048, "rotary_pct": 0.25, "rotary_emb_base": 10000}, 64, 2048),
]


def reference(config, length):
    parsed = AutoConfig.for_model(**config)
    parameters = parsed.rope_parameters
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        dim = getattr(parsed, "head_dim", None) or parsed.hidden_size // parsed.num_attention_heads
        dim = int(dim * parameters.get("partial_rotary_factor", 1.0))
        return 1.0 / parameters["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim), 1.0
    return ROPE_INIT_FUNCTIONS[kind](parsed, torch.device("cpu"), seq_len=length)


def main():
    cases = []
    for what, config, length, trained in CASES:
        frequencies, multiplier = reference(config, length)
        cases.append({"what": what, "config": config, "max_seq_len": length, "trained": trained,
                      "multiplier": round(multiplier, 9), "frequencies": [float(f"{f:.8g}") for f in frequencies.tolist()]})
    OUT.write_text("[\n" + ",\n".join("  " + json.dumps(case) for case in cases) + "\n]\n")


if __name__ == "__main__":
    main()
