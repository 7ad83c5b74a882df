#!/usr/bin/env python3
"""Makes tests/fixtures/formats: checkpoints of tests/fixtures/models in other formats, and blocks of every GGUF type.

Needs numpy, safetensors, sentencepiece and gguf (for the blocks: its dequantisation is the reference). The tests read only what is
committed, so this is run again only when a format is added:

    python3 ci/make_format_fixtures.py [--models tests/fixtures/models] [--out tests/fixtures/formats]

TensorRT-LLM checkpoints are written as its converters write them: fused projections per rank, tensors cut by rank, layers
numbered anew in every pipeline stage, the vocabulary padded to a multiple of the ranks. GGUF files are written byte by
byte as the format's description says, so that the reader is not tested against a writer that shares its mistakes.
"""

import argparse
import json
import re
import shutil
import struct
import tempfile
from pathlib import Path

import gguf
import numpy as np
import sentencepiece
from safetensors.numpy import load_file, save_file

RNG = np.random.default_rng(7)
BLOCKS = 6
QUANTISED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "MXFP4", "IQ4_NL",
             "IQ4_XS"]
ALIGNMENT = 32
# Fixture, ranks, pipeline stages, options.
EXPERT_MODELS = [("mixtral", 2, 1, {}), ("mixtral", 2, 2, {"expert_groups": 2}), ("mixtral", 4, 1, {"expert_groups": 2})]
# Fixture, architecture of the file, whose folder has that name where the fixture has one already.
GGUF_MODELS = {
    "llama-gqa": "llama",
    "llama-bias": "llama",
    "llama-llama3": "llama",
    "llama-linear": "llama",
    "llama-f16": "llama",
    "llama-bf16": "llama",
    "ministral3": "mistral3",
    "qwen2-tied": "qwen2",
    "qwen3": "qwen3",
    "qwen2-moe": "qwen2moe",
    "qwen3-moe": "qwen3moe",
    "mixtral": "llama",
    "phi3": "phi3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "granite": "granite",
    "internlm2": "internlm2",
    "starcoder2": "starcoder2",
    "stablelm": "stablelm",
    "nemotron": "nemotron",
    "cohere": "command-r",
    "cohere2": "cohere2",
    "olmo2": "olmo2",
    "glm4": "glm4",
    "gpt2": "gpt2",
    "falcon-7b": "falcon",
    "falcon-40b": "falcon",
    "gpt-oss-mxfp4": "gpt-oss",
    "deepseek-v2": "deepseek2",
    "deepseek-v2-groups": "deepseek2",
    "deepseek-v3-yarn": "deepseek2",
    "glm4-moe": "glm4moe",
    "granite-moe": "granitemoe",
    "llama4-default": "llama4",
    "dbrx": "dbrx",
    "exaone4": "exaone4",
    "olmo3": "olmo2",
    "smollm3-default": "smollm3",
    "qwen": "qwen",
    "baichuan": "baichuan",
    "chatglm": "chatglm",
    "phi": "phi2",
    "gpt-neox": "gptneox",
    "gpt-neox-serial": "gptneox",
    "bloom": "bloom",
    "mpt": "mpt",
    "gpt-bigcode": "starcoder",
}
# Files that differ from others in their name only.
GGUF_ALIASES = {"qwen2-tied": "qwen2vl", "qwen3": "qwen3vl", "qwen3-moe": "qwen3vlmoe"}
PERMUTED = ("llama", "mistral3", "granite", "internlm2", "granitemoe", "smollm3", "baichuan")
WITH_ONE = ("gemma", "gemma2", "gemma3", "nemotron")
SANDWICH_NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
# What an architecture calls otherwise than the rest.
OWN_NAMES = {
    "phi3": {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"},
    "gemma2": SANDWICH_NAMES,
    "gemma3": SANDWICH_NAMES,
    "starcoder2": {"mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"},
    "olmo2": {key: SANDWICH_NAMES[key] for key in ("post_attention_layernorm", "post_feedforward_layernorm")},
    "glm4": {
        "post_self_attn_layernorm": "post_attention_norm",
        "post_mlp_layernorm": "post_ffw_norm",
        "mlp.gate_up_proj": "ffn_up",
    },
    "gpt2": {
        "ln_1": "attn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    },
    "falcon": {
        "input_layernorm": "attn_norm",
        "ln_mlp": "attn_norm",
        "ln_attn": "attn_norm_2",
        "self_attention.query_key_value": "attn_qkv",
        "self_attention.dense": "attn_output",
        "mlp.dense_h_to_4h": "ffn_up",
        "mlp.dense_4h_to_h": "ffn_down",
    },
    "gpt-oss": {"post_attention_layernorm": "post_attention_norm", "mlp.router": "ffn_gate_inp"},
    "qwen2moe": {
        "mlp.gate": "ffn_gate_inp",
        "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
        "mlp.shared_expert.up_proj": "ffn_up_shexp",
        "mlp.shared_expert.down_proj": "ffn_down_shexp",
        "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    },
    "qwen3moe": {"mlp.gate": "ffn_gate_inp"},
    "qwen3vlmoe": {"mlp.gate": "ffn_gate_inp"},
    "deepseek2": {
        "self_attn.q_a_proj": "attn_q_a",
        "self_attn.q_a_layernorm": "attn_q_a_norm",
        "self_attn.q_b_proj": "attn_q_b",
        "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
        "self_attn.kv_a_layernorm": "attn_kv_a_norm",
        "self_attn.kv_b_proj": "attn_kv_b",
        "mlp.gate": "ffn_gate_inp",
        "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
        "mlp.shared_experts.up_proj": "ffn_up_shexp",
        "mlp.shared_experts.down_proj": "ffn_down_shexp",
    },
    "glm4moe": {
        "post_attention_layernorm": "post_attention_norm",
        "mlp.gate": "ffn_gate_inp",
        "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
        "mlp.shared_experts.up_proj": "ffn_up_shexp",
        "mlp.shared_experts.down_proj": "ffn_down_shexp",
    },
    "granitemoe": {"block_sparse_moe.router.layer": "ffn_gate_inp"},
    "llama4": {
        "feed_forward.router": "ffn_gate_inp",
        "feed_forward.gate_proj": "ffn_gate",
        "feed_forward.up_proj": "ffn_up",
        "feed_forward.down_proj": "ffn_down",
        "feed_forward.shared_expert.gate_proj": "ffn_gate_shexp",
        "feed_forward.shared_expert.up_proj": "ffn_up_shexp",
        "feed_forward.shared_expert.down_proj": "ffn_down_shexp",
    },
    "dbrx": {
        "norm_attn_norm.norm_1": "attn_norm",
        "norm_attn_norm.norm_2": "attn_output_norm",
        "norm_attn_norm.attn.Wqkv": "attn_qkv",
        "norm_attn_norm.attn.out_proj": "attn_output",
        "ffn.router.layer": "ffn_gate_inp",
    },
    "exaone4": {key: SANDWICH_NAMES[key] for key in ("post_attention_layernorm", "post_feedforward_layernorm")},
    "qwen": {
        "ln_1": "attn_norm",
        "ln_2": "ffn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "mlp.w1": "ffn_up",
        "mlp.w2": "ffn_gate",
        "mlp.c_proj": "ffn_down",
    },
    "chatglm": {
        "self_attention.query_key_value": "attn_qkv",
        "self_attention.dense": "attn_output",
        "mlp.dense_h_to_4h": "ffn_up",
        "mlp.dense_4h_to_h": "ffn_down",
    },
    "phi2": {"self_attn.dense": "attn_output", "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down"},
    "gptneox": {
        "attention.query_key_value": "attn_qkv",
        "attention.dense": "attn_output",
        "mlp.dense_h_to_4h": "ffn_up",
        "mlp.dense_4h_to_h": "ffn_down",
    },
    "gptj": {
        "ln_1": "attn_norm",
        "attn.q_proj": "attn_q",
        "attn.k_proj": "attn_k",
        "attn.v_proj": "attn_v",
        "attn.out_proj": "attn_output",
        "mlp.fc_in": "ffn_up",
        "mlp.fc_out": "ffn_down",
    },
    "opt": {
        "self_attn_layer_norm": "attn_norm",
        "final_layer_norm": "ffn_norm",
        "self_attn.out_proj": "attn_output",
        "fc1": "ffn_up",
        "fc2": "ffn_down",
    },
    "bloom": {
        "self_attention.query_key_value": "attn_qkv",
        "self_attention.dense": "attn_output",
        "mlp.dense_h_to_4h": "ffn_up",
        "mlp.dense_4h_to_h": "ffn_down",
    },
    "mpt": {
        "norm_1": "attn_norm",
        "norm_2": "ffn_norm",
        "attn.Wqkv": "attn_qkv",
        "attn.out_proj": "attn_output",
        "ffn.up_proj": "ffn_up",
        "ffn.down_proj": "ffn_down",
    },
    "starcoder": {
        "ln_1": "attn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    },
    "llama": {"block_sparse_moe.gate": "ffn_gate_inp"},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("tests/fixtures/models"))
    parser.add_argument("--out", type=Path, default=Path("tests/fixtures/formats"))
    parser.add_argument("--gguf", nargs="*", help="only these GGUF models, beside what is there")
    parser.add_argument("--families", nargs="*", help="only these TensorRT-LLM checkpoints of further families, or all of them")
    parser.add_argument("--experts", action="store_true", help="only TensorRT-LLM checkpoints with experts")
    parser.add_argument("--gemma", action="store_true", help="only the tokenizer of Gemma")
    args = parser.parse_args()
    if args.gemma:
        write_gguf_gemma(args.out / "gemma-tokenizer.gguf")
        return
    if args.families is not None:
        for name in args.families or FAMILIES:
            kind, tp, pp, extra = FAMILIES[name]
            folder = args.out / "trtllm" / f"{name}-tp{tp}-pp{pp}"
            shutil.rmtree(folder, ignore_errors=True)
            write_trtllm_family(args.models / name, folder, kind, tp, pp, extra)
        return
    if args.experts:
        for name, tp, pp, options in EXPERT_MODELS:
            folder = args.out / "trtllm" / f"{name}-tp{tp}-pp{pp}"
            shutil.rmtree(folder, ignore_errors=True)
            write_trtllm(args.models / name, folder, tp, pp, **options)
        return
    if args.gguf:
        for name, architecture in GGUF_MODELS.items():
            if name in args.gguf:
                shutil.rmtree(args.out / "gguf" / name, ignore_errors=True)
                write_gguf_model(args.models / name, args.out / "gguf" / name, architecture)
        for name, alias in GGUF_ALIASES.items():
            if alias in args.gguf:
                shutil.rmtree(args.out / "gguf" / alias, ignore_errors=True)
                write_gguf_model(args.models / name, args.out / "gguf" / alias, alias)
        return
    shutil.rmtree(args.out, ignore_errors=True)
    for name, tp, pp, options in [
        ("llama-gqa", 1, 1, {}),
        ("llama-gqa", 2, 1, {}),
        ("llama-gqa", 4, 2, {"parallel_embedding": 0}),
        ("llama-8-heads", 8, 1, {"parallel_embedding": 0}),
        ("llama-bias", 2, 2, {"parallel_embedding": 1}),
        ("qwen2-tied", 2, 1, {}),
        ("qwen3", 1, 2, {}),
        ("mistral-window", 2, 1, {}),
        *EXPERT_MODELS,
    ]:
        write_trtllm(args.models / name, args.out / "trtllm" / f"{name}-tp{tp}-pp{pp}", tp, pp, **options)
    for name, (kind, tp, pp, extra) in FAMILIES.items():
        write_trtllm_family(args.models / name, args.out / "trtllm" / f"{name}-tp{tp}-pp{pp}", kind, tp, pp, extra)
    for name, architecture in GGUF_MODELS.items():
        write_gguf_model(args.models / name, args.out / "gguf" / name, architecture)
    for name, alias in GGUF_ALIASES.items():
        write_gguf_model(args.models / name, args.out / "gguf" / alias, alias)
    write_gguf_blocks(args.out / "gguf-blocks.gguf")
    write_gguf_sentencepiece(args.models.parent / "tokenizers/sentencepiece/bpe.model", args.out / "sentencepiece.gguf")
    write_gguf_gemma(args.out / "gemma-tokenizer.gguf")


# TensorRT-LLM


def write_trtllm(source, folder, tp, pp, parallel_embedding=None, expert_groups=1):
    config = json.loads((source / "config.json").read_text())
    if config["torch_dtype"] == "bfloat16":
        weights = {name: widened(*value) for name, value in read_safetensors(source / "model.safetensors").items()}
        config["torch_dtype"] = "float32"
    else:
        weights = load_file(source / "model.safetensors")
    layers = config["num_hidden_layers"]
    tied = "lm_head.weight" not in weights
    folder.mkdir(parents=True)
    shutil.copy(source / "reference.json", folder)
    architecture = config["architectures"][0]
    written = {
        "architecture": architecture,
        "dtype": config["torch_dtype"],
        "logits_dtype": "float32",
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "num_hidden_layers": layers,
        "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": config["num_key_value_heads"],
        "hidden_act": "silu" if architecture.startswith("Qwen") else "swiglu",
        "intermediate_size": config["intermediate_size"],
        "norm_epsilon": config.get("rms_norm_eps", 1e-5),
        "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": config["max_position_embeddings"],
        "rotary_base": config.get("rope_theta", 1e6),
        "rotary_scaling": config.get("rope_scaling"),
        "use_parallel_embedding": parallel_embedding is not None,
        "embedding_sharding_dim": parallel_embedding or 0,
        "share_embedding_table": tied,
        "mapping": {
            "world_size": tp * pp,
            "tp_size": tp,
            "pp_size": pp,
            "moe_tp_size": tp // expert_groups,
            "moe_ep_size": expert_groups,
        },
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
        "producer": {"name": "make_format_fixtures.py"},
    }
    if "num_local_experts" in config:
        written["moe"] = {"num_experts": config["num_local_experts"], "top_k": 2, "normalization_mode": 1}
    if "head_dim" in config:
        written["head_size"] = config["head_dim"]
    if "sliding_window" in config and not architecture.startswith("Qwen"):
        written["sliding_window"] = config["sliding_window"]
    (folder / "config.json").write_text(json.dumps(written, indent=1) + "\n")
    first = 0
    for stage in range(pp):
        count = layers // pp + (1 if stage < layers % pp else 0)
        for rank in range(tp):
            tensors = stage_tensors(weights, config, range(first, first + count), rank, tp)
            if "num_local_experts" in config:
                tensors |= expert_tensors(weights, config, range(first, first + count), (rank, tp, expert_groups))
            if stage == 0:
                tensors["transformer.vocab_embedding.weight"] = embedding(weights, rank, tp, parallel_embedding)
            if stage == pp - 1:
                tensors["transformer.ln_f.weight"] = weights["model.norm.weight"]
                if not tied:
                    tensors["lm_head.weight"] = chunk(padded(weights["lm_head.weight"], tp), rank, tp, 0)
            tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
            save_file(tensors, folder / f"rank{stage * tp + rank}.safetensors")
        first += count


def stage_tensors(weights, config, layers, rank, tp):
    tensors = {}
    for local, layer in enumerate(layers):
        here = {
            name.removeprefix(f"model.layers.{layer}."): value
            for name, value in weights.items()
            if name.startswith(f"model.layers.{layer}.")
        }
        out = f"transformer.layers.{local}."
        for suffix in ("weight", "bias"):
            if f"self_attn.q_proj.{suffix}" in here:
                parts = [here[f"self_attn.{part}_proj.{suffix}"] for part in "qkv"]
                fused = [chunk(parts[0], rank, tp, 0)] + [kv_chunk(part, config, rank, tp) for part in parts[1:]]
                tensors[f"{out}attention.qkv.{suffix}"] = np.concatenate(fused)
            for name, target in [("gate_proj", "fc"), ("up_proj", "gate")]:
                if f"mlp.{name}.{suffix}" in here:
                    tensors[f"{out}mlp.{target}.{suffix}"] = chunk(here[f"mlp.{name}.{suffix}"], rank, tp, 0)
            for name, target in [("self_attn.o_proj", "attention.dense"), ("mlp.down_proj", "mlp.proj")]:
                if f"{name}.{suffix}" in here:
                    value = here[f"{name}.{suffix}"]
                    tensors[f"{out}{target}.{suffix}"] = value if suffix == "bias" else chunk(value, rank, tp, 1)
        for name, target in [
            ("input_layernorm", "input_layernorm"),
            ("post_attention_layernorm", "post_layernorm"),
            ("self_attn.q_norm", "attention.q_layernorm"),
            ("self_attn.k_norm", "attention.k_layernorm"),
        ]:
            if f"{name}.weight" in here:
                tensors[f"{out}{target}.weight"] = here[f"{name}.weight"]
    return tensors


def expert_tensors(weights, config, layers, ranks):
    """Up above gate of some experts, and down; a router of float32."""
    rank, tp, groups = ranks
    count = config["num_local_experts"] // groups
    first, part, parts = rank % groups * count, rank // groups, tp // groups
    tensors = {}
    for local, layer in enumerate(layers):
        at = f"model.layers.{layer}.block_sparse_moe."
        of = lambda expert, name: weights[f"{at}experts.{expert}.{name}.weight"]
        mine = range(first, first + count)
        fc = [np.concatenate([chunk(of(e, "w3"), part, parts, 0), chunk(of(e, "w1"), part, parts, 0)]) for e in mine]
        out = f"transformer.layers.{local}.mlp."
        tensors[f"{out}fc.weight"] = np.stack(fc)
        tensors[f"{out}proj.weight"] = np.stack([chunk(of(e, "w2"), part, parts, 1) for e in mine])
        tensors[f"{out}router.weight"] = weights[f"{at}gate.weight"].astype(np.float32)
    return tensors


def chunk(value, rank, tp, axis):
    return np.split(value, tp, axis)[rank]


def kv_chunk(value, config, rank, tp):
    heads = config["num_key_value_heads"]
    if heads >= tp:
        return chunk(value, rank, tp, 0)
    return chunk(value, rank * heads // tp, heads, 0)


def padded(value, tp):
    """One row of zeros for each rank too many, so that padding is tested although the sizes divide."""
    return np.concatenate([value, np.zeros((tp if tp > 1 else 0, value.shape[1]), value.dtype)])


def embedding(weights, rank, tp, parallel):
    value = weights["model.embed_tokens.weight"]
    if parallel is None:
        return value
    return chunk(padded(value, tp), rank, tp, 0) if parallel == 0 else chunk(value, rank, tp, 1)


# Fixture, its architecture as a GGUF file (which has the parts under one set of names), ranks, stages, what config.json
# says beside the rest.
FAMILIES = {
    "qwen2-moe": ("qwen2moe", 2, 2, {"architecture": "QWenForCausalLM", "qwen_type": "qwen2_moe"}),
    "qwen3-moe": ("qwen3moe", 2, 1, {"architecture": "Qwen3MoeForCausalLM", "expert_groups": 2}),
    "granite": ("granite", 1, 2, {}),
    "granite-moe": ("granitemoe", 2, 1, {"expert_groups": 2}),
    "dbrx": ("dbrx", 2, 1, {}),
    "internlm2": ("internlm2", 2, 1, {}),
    "qwen": ("qwen", 2, 1, {"architecture": "QWenForCausalLM", "qwen_type": "qwen"}),
    "gemma": ("gemma", 2, 1, {"parallel_embedding": 0}),
    "gemma2": ("gemma2", 1, 2, {}),
    "gemma3": ("gemma3", 1, 1, {}),
    "phi3": ("phi3", 2, 1, {}),
    "phi": ("phi2", 2, 1, {}),
    "baichuan": ("baichuan", 2, 1, {}),
    "chatglm": ("chatglm", 2, 1, {"position_embedding_type": "rope_gptj", "chatglm_version": "chatglm3"}),
    "cohere": ("command-r", 2, 1, {"position_embedding_type": "rope_gptj", "qk_layernorm": True}),
    "gpt2": ("gpt2", 2, 2, {"position_embedding_type": "learned_absolute"}),
    "gpt-bigcode": ("starcoder", 2, 1, {"position_embedding_type": "learned_absolute"}),
    "starcoder2": ("starcoder2", 2, 1, {}),
    "nemotron": ("nemotron", 2, 1, {}),
    "gpt-neox": ("gptneox", 2, 1, {}),
    "gptj": ("gptj", 2, 1, {"position_embedding_type": "rope_gptj", "rotary_dim": 4}),
    "opt": ("opt", 2, 1, {"position_embedding_type": "learned_absolute", "do_layer_norm_before": True}),
    "bloom": ("bloom", 2, 2, {"position_embedding_type": "alibi"}),
    "mpt": ("mpt", 2, 1, {"position_embedding_type": "alibi", "alibi_bias_max": 8}),
    "falcon-7b": ("falcon", 2, 1, {"new_decoder_architecture": False, "parallel_attention": True}),
    "falcon-40b": ("falcon", 2, 1, {"new_decoder_architecture": True, "parallel_attention": True}),
}
ACTIVATIONS = {"gpt2": "gelu_new", "phi2": "gelu_new", "gptj": "gelu_new", "starcoder": "gelu_pytorch_tanh", "opt": "relu",
    "nemotron": "squared-relu", "gemma": "gelu", "gemma2": "gelu_pytorch_tanh", "gemma3": "gelu_pytorch_tanh"}
PLAIN_MLP = ("gpt2", "starcoder", "starcoder2", "nemotron", "phi2", "gptneox", "gptj", "opt", "bloom", "mpt", "falcon")


def write_trtllm_family(source, folder, kind, tp, pp, extra):
    """The parts of a GGUF file, cut by rank."""
    metadata, tensors = gguf_contents(source, kind, permuted=())
    weights = {name: widened(*value) for name, value in tensors.items() if name != "rope_freqs.weight"}
    if kind == "opt":
        # Without the two rows before position 0.
        weights["position_embd.weight"] = weights["position_embd.weight"][2:]
    config = json.loads((source / "config.json").read_text())
    config |= {**config.pop("attn_config", {}), **config.pop("ffn_config", {})}
    own = lambda key, default=None: metadata.get(f"{kind}.{key}", (0, default))[1]
    heads, kv_heads, hidden = own("attention.head_count"), own("attention.head_count_kv"), own("embedding_length")
    layers, head_dim = own("block_count"), own("attention.key_length")
    extra = dict(extra)
    groups, parallel = extra.pop("expert_groups", 1), extra.pop("parallel_embedding", None)
    eps = own("attention.layer_norm_rms_epsilon", 1e-5)
    written = {
        "architecture": config["architectures"][0],
        "dtype": "float32",
        "vocab_size": len(weights["token_embd.weight"]),
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_size": head_dim,
        "hidden_act": ACTIVATIONS.get(kind, "gelu" if kind in PLAIN_MLP else "swiglu"),
        "intermediate_size": own("feed_forward_length"),
        "norm_epsilon": eps,
        "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": own("context_length"),
        "rotary_base": own("rope.freq_base"),
        "rotary_pct": own("rope.dimension_count") / head_dim,
        "rotary_scaling": config.get("rope_scaling"),
        "share_embedding_table": "output.weight" not in weights,
        "use_parallel_embedding": parallel is not None,
        "embedding_sharding_dim": parallel or 0,
        "mapping": {"world_size": tp * pp, "tp_size": tp, "pp_size": pp, "moe_tp_size": tp // groups, "moe_ep_size": groups},
        "quantization": {"quant_algo": None},
        **extra,
    }
    for key in (
        "embedding_multiplier",
        "residual_multiplier",
        "query_pre_attn_scalar",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "sliding_window",
        "sliding_window_pattern",
        "rope_local_base_freq",
        "layer_types",
        "clip_qkv",
    ):
        if config.get(key) is not None:
            written[key] = config[key]
    if "attention_multiplier" in config:
        written["attention_multiplier"] = config["attention_multiplier"] * head_dim**0.5
    if "logits_scaling" in config or "logit_scale" in config:
        written["output_multiplier_scale"] = config.get("logit_scale", 1 / config.get("logits_scaling", 1))
    if kind == "gemma2":
        # The queries of the GGUF contents are those for this scalar.
        written["query_pre_attn_scalar"] = head_dim
    experts = own("expert_count", 0)
    if experts:
        written["moe"] = {"num_experts": experts, "top_k": own("expert_used_count"),
            "normalization_mode": int(config.get("norm_topk_prob", kind != "qwen2moe"))}
        if kind == "qwen2moe":
            written["moe"]["shared_expert_intermediate_size"] = own("expert_shared_feed_forward_length")
    folder.mkdir(parents=True)
    shutil.copy(source / "reference.json", folder)
    (folder / "config.json").write_text(json.dumps(written, indent=1) + "\n")
    first = 0
    for stage in range(pp):
        count = layers // pp + (1 if stage < layers % pp else 0)
        for rank in range(tp):
            out = {}
            for local in range(count):
                layer = {n.split(".", 2)[2]: v for n, v in weights.items() if n.startswith(f"blk.{first + local}.")}
                fused = family_layer(layer, kind, (rank, tp, groups), (heads, kv_heads, head_dim))
                out |= {f"transformer.layers.{local}.{name}": value for name, value in fused.items()}
            ends = {"token_embd": "vocab_embedding", "position_embd": "position_embedding", "token_embd_norm": "ln_embed"}
            for name, value in weights.items():
                stem, _, suffix = name.rpartition(".")
                if stem == "token_embd" and stage == 0 and parallel == 0:
                    value = chunk(padded(value, tp), rank, tp, 0)
                if stem in ends and stage == 0:
                    out[f"transformer.{ends[stem]}.{suffix}"] = value
                elif stem == "output_norm" and stage == pp - 1:
                    out[f"transformer.ln_f.{suffix}"] = value
                elif stem == "output" and stage == pp - 1:
                    out[f"lm_head.{suffix}"] = chunk(value, rank, tp, 0)
            save_file({n: np.ascontiguousarray(v) for n, v in out.items()}, folder / f"rank{stage * tp + rank}.safetensors")
        first += count


def family_layer(layer, kind, ranks, heads):
    """A layer of one rank."""
    rank, tp, groups = ranks
    count, kv_count, dim = heads
    out = {}
    sandwich = kind in ("gemma2", "gemma3")
    names = {
        "attn_norm": "input_layernorm",
        "attn_norm_2": "input_layernorm",
        "ffn_norm": "pre_feedforward_layernorm" if sandwich else "post_layernorm",
        "attn_output_norm": "post_layernorm",
        "post_attention_norm": "post_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
        "attn_q_norm": "attention.q_layernorm",
        "attn_k_norm": "attention.k_layernorm",
        "ffn_gate_inp": "mlp.router",
        "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    }
    for suffix in ("weight", "bias"):
        get = lambda part: layer.get(f"{part}.{suffix}")
        columns = lambda value: value if suffix == "bias" else chunk(value, rank, tp, 1)
        if get("attn_qkv") is not None:
            query, key, value = np.split(get("attn_qkv"), [count * dim, (count + kv_count) * dim])
        else:
            query, key, value = get("attn_q"), get("attn_k"), get("attn_v")
        if query is not None:
            of_rank = [chunk(query, rank, tp, 0)] + [kv_chunk(v, {"num_key_value_heads": kv_count}, rank, tp) for v in (key, value)]
            out[f"attention.qkv.{suffix}"] = np.concatenate(of_rank)
        for part, name in (("attn_output", "attention.dense"), ("ffn_down", "mlp.proj"), ("ffn_down_shexp", "mlp.shared_expert.proj")):
            if get(part) is not None:
                out[f"{name}.{suffix}"] = columns(get(part))
        up, gate = get("ffn_up"), get("ffn_gate")
        if kind in ("phi3", "chatglm"):
            gate, up = np.split(up, 2) if up is not None else (None, None)
            if up is not None:
                out[f"mlp.fc.{suffix}"] = np.concatenate([chunk(up, rank, tp, 0), chunk(gate, rank, tp, 0)])
        elif up is not None and kind in PLAIN_MLP:
            out[f"mlp.fc.{suffix}"] = chunk(up, rank, tp, 0)
        elif up is not None:
            out |= {f"mlp.fc.{suffix}": chunk(gate, rank, tp, 0), f"mlp.gate.{suffix}": chunk(up, rank, tp, 0)}
        if get("ffn_up_shexp") is not None:
            both = [chunk(get("ffn_up_shexp"), rank, tp, 0), chunk(get("ffn_gate_shexp"), rank, tp, 0)]
            out[f"mlp.shared_expert.fc.{suffix}"] = np.concatenate(both)
        for part, name in names.items():
            if get(part) is not None:
                value = get(part)
                if value.ndim == 2 and part in ("attn_q_norm", "attn_k_norm"):
                    value = chunk(value, rank, tp, 0)
                if part == "attn_norm" and get("attn_norm_2") is not None:
                    name = "mlp_layernorm"
                out[f"{name}.{suffix}"] = value
    if "ffn_up_exps.weight" in layer:
        up, gate, down = (layer[f"ffn_{part}_exps.weight"] for part in ("up", "gate", "down"))
        mine = np.split(np.arange(len(up)), groups)[rank % groups]
        part, parts = rank // groups, tp // groups
        out["mlp.fc.weight"] = np.stack([np.concatenate([chunk(m[e], part, parts, 0) for m in (up, gate)]) for e in mine])
        out["mlp.proj.weight"] = np.stack([chunk(down[e], part, parts, 1) for e in mine])
    return out


# GGUF

U32, F32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9
MODEL_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.tok_embeddings": "token_embd",
    "transformer.wte": "token_embd",
    "transformer.word_embeddings": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.word_embeddings_layernorm": "token_embd_norm",
    "transformer.embedding.word_embeddings": "token_embd",
    "gpt_neox.embed_in": "token_embd",
    "gpt_neox.final_layer_norm": "output_norm",
    "model.final_layernorm": "output_norm",
    "transformer.norm_f": "output_norm",
    "transformer.encoder.final_layernorm": "output_norm",
    "transformer.output_layer": "output",
    "embed_out": "output",
    "model.decoder.embed_tokens": "token_embd",
    "model.decoder.embed_positions": "position_embd",
    "model.decoder.final_layer_norm": "output_norm",
    "model.norm": "output_norm",
    "transformer.ln_f": "output_norm",
    "lm_head": "output",
    "output": "output",
}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf_model(source, folder, architecture):
    metadata, tensors = gguf_contents(source, architecture)
    folder.mkdir(parents=True)
    shutil.copy(source / "reference.json", folder)
    write_gguf(folder / "model.gguf", metadata, tensors)


def gguf_contents(source, architecture, permuted=PERMUTED):
    """Metadata, and name -> (type, array) of the tensors."""
    config = json.loads((source / "config.json").read_text())
    weights = read_safetensors(source / "model.safetensors")
    config |= {**config.pop("attn_config", {}), **config.pop("ffn_config", {})}
    of = lambda *keys, default=None: next((config[key] for key in keys if config.get(key) is not None), default)
    hidden = of("hidden_size", "n_embd", "d_model")
    heads = of("num_attention_heads", "n_head", "n_heads")
    single = architecture in ("falcon", "starcoder")
    kv_heads = of("num_key_value_heads", "num_kv_heads", "kv_n_heads", "multi_query_group_num", default=1 if single else heads)
    head_dim = config.get("head_dim", hidden // heads)
    fraction = of("partial_rotary_factor", "rotary_pct", default=0.5 if architecture in ("chatglm", "nemotron") else 1.0)
    own = {
        "context_length": (U32, of("max_position_embeddings", "n_positions", "max_seq_len", "seq_length",
            default=2048)),
        "embedding_length": (U32, hidden),
        "block_count": (U32, of("num_hidden_layers", "n_layer", "n_layers", "num_layers")),
        "feed_forward_length": (U32, of("intermediate_size_mlp", "intermediate_size", "n_inner", "ffn_hidden_size", "ffn_dim",
            default=4 * hidden)),
        "attention.head_count": (U32, heads),
        "attention.head_count_kv": (U32, kv_heads),
        "attention.key_length": (U32, head_dim),
        "attention.layer_norm_rms_epsilon": (F32, of("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon",
            "norm_eps", "layernorm_epsilon", default=EPS.get(architecture, 1e-6))),
        "rope.dimension_count": (U32, int(head_dim * fraction)),
        "rope.freq_base": (F32, of("rope_theta", "rotary_emb_base", default=THETA.get(architecture, 10000.0))),
    }
    for key, name in [
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
        ("embedding_multiplier", "embedding_scale"),
        ("residual_multiplier", "residual_scale"),
        ("attention_multiplier", "attention.scale"),
        ("logits_scaling", "logit_scale"),
        ("logit_scale", "logit_scale"),
    ]:
        if key in config:
            own[name] = (F32, config[key])
    for key, name in [
        ("sliding_window", "attention.sliding_window"),
        ("moe_intermediate_size", "expert_feed_forward_length"),
        ("shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
        ("num_experts_per_tok", "expert_used_count"),
    ]:
        if config.get(key) is not None:
            own[name] = (U32, config[key])
    own |= particular(config, architecture, of)
    if "sliding_window_pattern" in config and architecture == "gemma3":
        own["attention.sliding_window_pattern"] = (U32, config["sliding_window_pattern"])
    if architecture in ("cohere2", "exaone4", "olmo2") and "layer_types" in config:
        sliding = [kind == "sliding_attention" for kind in config["layer_types"]]
        own["attention.sliding_window_pattern"] = (ARRAY, (BOOL, sliding))
    if count := of("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"):
        own["expert_count"] = (U32, count)
    extra = {}
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "linear":
        own |= {"rope.scaling.type": (STRING, "linear"), "rope.scaling.factor": (F32, scaling["factor"])}
    if kind == "yarn":
        own |= {
            "rope.scaling.type": (STRING, "yarn"),
            "rope.scaling.factor": (F32, scaling["factor"]),
            "rope.scaling.original_context_length": (U32, scaling["original_max_position_embeddings"]),
        }
    if kind == "llama3":
        extra["rope_freqs.weight"] = (0, llama3_factors(config, scaling, head_dim))
    metadata = {"general.architecture": (STRING, architecture), "general.alignment": (U32, ALIGNMENT)}
    metadata |= {f"{architecture}.{key}": value for key, value in own.items()}
    metadata |= vocabulary(of("vocab_size", "padded_vocab_size"))
    tensors = dict(extra)
    names = {**LAYER_NAMES, **OWN_NAMES.get(architecture, {})}
    for name, (type_id, value) in separate(weights, architecture, heads, kv_heads, config).items():
        stem, suffix = name.rsplit(".", 1) if "." in name else (name, "")
        if name.endswith("self_attn.sinks"):
            tensors[f"blk.{name.split('.')[2]}.attn_sinks.weight"] = (0, widened(type_id, value))
            continue
        if name.startswith("blk."):
            tensors[name] = (0, widened(type_id, value)) if value_rank(value) == 1 else (type_id, value)
            continue
        if architecture in WITH_ONE and "norm" in stem and suffix == "weight":
            type_id, value = 0, widened(type_id, value) + 1
        # Vectors are always float32 in these files.
        if not isinstance(value, tuple) and value.ndim == 1:
            type_id, value = 0, widened(type_id, value)
        if stem in MODEL_NAMES:
            tensors[f"{MODEL_NAMES[stem]}.{suffix}"] = (type_id, value)
            continue
        layer, part = stem[re.match(r"\D*", stem).end() :].split(".", 1)
        if architecture in permuted and part in ("self_attn.q_proj", "self_attn.k_proj"):
            value = interleaved(value, heads if part == "self_attn.q_proj" else kv_heads)
        tensors[f"blk.{layer}.{names[part]}.{suffix}"] = (type_id, value)
    return metadata, tensors


def value_rank(value):
    return 0 if isinstance(value, tuple) else value.ndim


def particular(config, architecture, of):
    """Metadata that only some architectures have."""
    own = {}
    if architecture == "deepseek2":
        rotated, plain = config["qk_rope_head_dim"], config["qk_nope_head_dim"]
        value, rank = config["v_head_dim"], config["kv_lora_rank"]
        own |= {"rope.dimension_count": (U32, rotated), "attention.kv_lora_rank": (U32, rank)}
        if config["q_lora_rank"] is not None:
            own["attention.q_lora_rank"] = (U32, config["q_lora_rank"])
        if SPLIT_LATENT(config):
            own |= {
                "attention.head_count_kv": (U32, 1),
                "attention.key_length": (U32, rank + rotated),
                "attention.value_length": (U32, rank),
                "attention.key_length_mla": (U32, plain + rotated),
                "attention.value_length_mla": (U32, value),
            }
        else:
            own |= {"attention.key_length": (U32, plain + rotated), "attention.value_length": (U32, value)}
        if "rope_scaling" in config:
            own["rope.scaling.yarn_log_multiplier"] = (F32, 0.1 * config["rope_scaling"]["mscale_all_dim"])
    if architecture in ("deepseek2", "glm4moe"):
        sigmoid = architecture == "glm4moe" or "DeepseekV3" in config["architectures"][0]
        own |= {
            "expert_shared_count": (U32, config["n_shared_experts"]),
            "leading_dense_block_count": (U32, config["first_k_dense_replace"]),
            "expert_weights_scale": (F32, of("routed_scaling_factor", default=1.0)),
            "expert_weights_norm": (BOOL, of("norm_topk_prob", default=False)),
            "expert_gating_func": (U32, 2 if sigmoid else 1),
        }
        if "n_group" in config:
            own |= {"expert_group_count": (U32, config["n_group"]), "expert_group_used_count": (U32, config["topk_group"])}
    if architecture == "mistral3":
        scaling = config["rope_scaling"]
        own |= {
            "attention.temperature_scale": (F32, scaling["llama_4_scaling_beta"]),
            "rope.scaling.yarn_log_multiplier": (F32, scaling["mscale_all_dim"]),
            "rope.scaling.yarn_beta_fast": (F32, scaling["beta_fast"]),
            "rope.scaling.yarn_beta_slow": (F32, scaling["beta_slow"]),
        }
    if architecture == "llama4":
        own |= {
            "expert_feed_forward_length": (U32, config["intermediate_size"]),
            "interleave_moe_layer_step": (U32, config["interleave_moe_layer_step"]),
        }
    if architecture == "dbrx":
        own["expert_used_count"] = (U32, config["moe_top_k"])
    if "clip_qkv" in config:
        own["attention.clamp_kqv"] = (F32, config["clip_qkv"])
    if "alibi_bias_max" in config:
        own["attention.max_alibi_bias"] = (F32, config["alibi_bias_max"])
    if architecture == "gptneox":
        own["use_parallel_residual"] = (BOOL, of("use_parallel_residual", default=True))
    if architecture in ("qwen2vl", "qwen3vl", "qwen3vlmoe"):
        own["rope.dimension_sections"] = (ARRAY, (5, [2, 1, 1, 0]))
    return own


# Newer files have the keys and values of the heads apart.
SPLIT_LATENT = lambda config: config["q_lora_rank"] is not None


# Of configurations that do not say them.
EPS = {"mistral3": 1e-5, "gpt2": 1e-5, "falcon": 1e-5, "stablelm": 1e-5, "command-r": 1e-5, "cohere2": 1e-5, "starcoder2": 1e-5, "gpt-oss": 1e-5,
    "dbrx": 1e-5, "phi2": 1e-5, "gptneox": 1e-5, "bloom": 1e-5, "mpt": 1e-5, "starcoder": 1e-5, "opt": 1e-5, "gptj": 1e-5}
THETA = {"llama": 1e6, "gemma3": 1e6, "command-r": 5e5}


def separate(weights, architecture, heads, kv_heads, config):
    """Tensors in the parts and orders of GGUF files; those that get their final name here begin with `blk.`"""
    new, stacks = {}, {}
    for name, (type_id, value) in weights.items():
        layer = found[0] if (found := re.findall(r"\.(?:layers|h|blocks)\.(\d+)\.", name)) else ""
        expert = EXPERT.search(name)
        if expert:
            part = {"gate_proj": "gate", "w1": "gate", "up_proj": "up", "w3": "up", "down_proj": "down", "w2": "down"}
            stacks.setdefault((layer, part[expert[2]]), {})[int(expert[1])] = (type_id, value)
        elif name.endswith("e_score_correction_bias"):
            new[f"blk.{layer}.exp_probs_b.bias"] = (type_id, value)
        elif architecture == "deepseek2" and "kv_b_proj" in name and SPLIT_LATENT(config):
            rows = value.reshape(heads, -1, value.shape[-1])
            plain = config["qk_nope_head_dim"]
            keys = np.ascontiguousarray(rows[:, :plain].swapaxes(1, 2))
            new[f"blk.{layer}.attn_k_b.weight"] = (type_id, keys)
            new[f"blk.{layer}.attn_v_b.weight"] = (type_id, np.ascontiguousarray(rows[:, plain:]))
        elif architecture == "granitemoe" and name.endswith("input_linear.weight"):
            for part, matrices in zip(("gate", "up"), np.split(value, 2, 1)):
                new[f"blk.{layer}.ffn_{part}_exps.weight"] = (type_id, np.ascontiguousarray(matrices))
        elif architecture == "granitemoe" and name.endswith("output_linear.weight"):
            new[f"blk.{layer}.ffn_down_exps.weight"] = (type_id, value)
        elif architecture == "llama4" and name.endswith("experts.gate_up_proj"):
            for part, matrices in zip(("gate", "up"), np.split(value, 2, 2)):
                matrices = np.ascontiguousarray(matrices.swapaxes(1, 2))
                new[f"blk.{layer}.ffn_{part}_exps.weight"] = (type_id, matrices)
        elif architecture == "llama4" and name.endswith("experts.down_proj"):
            new[f"blk.{layer}.ffn_down_exps.weight"] = (type_id, np.ascontiguousarray(value.swapaxes(1, 2)))
        elif architecture == "dbrx" and ".experts.mlp." in name:
            matrices = value.reshape(config["moe_num_experts"], config["ffn_hidden_size"], -1)
            part = {"w1": "gate", "v1": "up", "w2": "down"}[name.rsplit(".", 1)[1]]
            matrices = np.ascontiguousarray(matrices.swapaxes(1, 2)) if part == "down" else matrices
            new[f"blk.{layer}.ffn_{part}_exps.weight"] = (type_id, matrices)
        elif architecture in ("gptneox", "bloom") and "query_key_value" in name:
            slots = value.reshape(heads, 3, value.shape[0] // heads // 3, -1).swapaxes(0, 1)
            new[name] = (type_id, np.ascontiguousarray(slots.reshape(value.shape)))
        elif architecture == "baichuan" and "W_pack" in name:
            for part, rows in zip("qkv", np.split(value, 3)):
                new[name.replace("W_pack", f"{part}_proj")] = (type_id, rows)
        elif architecture == "gpt-oss" and ".experts." in name:
            new |= gpt_oss_experts(weights, name, layer)
        elif architecture == "gpt2" and value.ndim == 2 and ".h." in name:
            new[name] = (type_id, np.ascontiguousarray(value.T))
        elif architecture == "falcon" and "query_key_value" in name:
            group = heads // kv_heads
            dim = value.shape[0] // (kv_heads * (group + 2))
            slots = value.reshape(kv_heads, group + 2, dim, -1)
            parts = [slots[:, :group], slots[:, group : group + 1], slots[:, group + 1 :]]
            new[name] = (type_id, np.concatenate([part.reshape(-1, value.shape[-1]) for part in parts]))
        elif architecture == "gemma2" and "q_proj" in name:
            # The file cannot say that the scale is not that of the head size.
            new[name] = (0, widened(type_id, value) * np.float32((16 / 24) ** 0.5))
        elif architecture == "internlm2" and "wqkv" in name:
            group = heads // kv_heads
            dim = value.shape[0] // (kv_heads * (group + 2))
            slots = value.reshape(kv_heads, group + 2, dim, -1)
            parts = {"q": slots[:, :group], "k": slots[:, group : group + 1], "v": slots[:, group + 1 :]}
            for part, rows in parts.items():
                rows = rows.reshape(-1, value.shape[-1])
                new[f"model.layers.{layer}.self_attn.{part}_proj.weight"] = (type_id, rows)
        elif architecture == "internlm2" and layer:
            part = name.split(".", 3)[3]
            new[f"model.layers.{layer}.{INTERNLM2[part]}"] = (type_id, value)
        elif architecture == "command-r" and "_norm" in name and value.ndim == 2:
            new[f"blk.{layer}.attn_{'q' if 'q_norm' in name else 'k'}_norm.weight"] = (0, widened(type_id, value))
        else:
            new[name] = (type_id, value)
    for (layer, part), experts in stacks.items():
        matrices = [experts[number][1] for number in sorted(experts)]
        new[f"blk.{layer}.ffn_{part}_exps.weight"] = (experts[0][0], np.stack(matrices))
    return new


EXPERT = re.compile(r"\.experts\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight$")
INTERNLM2 = {
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attention.wo.weight": "self_attn.o_proj.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
}


def gpt_oss_experts(weights, name, layer):
    """Gate and up apart; a block has its scale before its elements, the first half of which are low nibbles."""
    _, value = weights[name]
    if name.endswith("_bias"):
        value = widened(*weights[name])
        if "down" in name:
            return {f"blk.{layer}.ffn_down_exps.bias": (0, value)}
        return {f"blk.{layer}.ffn_{part}_exps.bias": (0, value[:, half::2]) for half, part in enumerate(("gate", "up"))}
    if name.endswith("_scales"):
        return {}
    scales = weights[name.removesuffix("_blocks") + "_scales"][1]
    codes = np.stack([value & 15, value >> 4], -1).reshape(*value.shape[:-1], 32)
    blocks = np.concatenate([scales[..., None], codes[..., :16] | codes[..., 16:] << 4], -1).astype(np.uint8)
    if "down" in name:
        parts = {"down": blocks}
    else:
        parts = {"gate": blocks[:, 0::2], "up": blocks[:, 1::2]}
    shape = lambda part: (*part.shape[:2], part.shape[2] * 32)
    return {f"blk.{layer}.ffn_{key}_exps.weight": (39, (shape(part), part.tobytes())) for key, part in parts.items()}


def read_safetensors(path):
    """Name -> (GGUF type, array); bfloat16 as its bits."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    types = {"F32": (0, np.float32), "F16": (1, np.float16), "BF16": (30, np.uint16), "U8": (24, np.uint8)}
    tensors = {}
    for name, entry in header.items():
        type_id, dtype = types[entry["dtype"]]
        start, end = entry["data_offsets"]
        values = np.frombuffer(data[8 + length + start : 8 + length + end], dtype)
        tensors[name] = (type_id, values.reshape(entry["shape"]))
    return tensors


def widened(type_id, value):
    if type_id == 30:
        return (value.astype(np.uint32) << 16).view(np.float32)
    return value.astype(np.float32)


def interleaved(value, heads):
    """The halves of every head interleaved, as files of the architecture llama have them."""
    shape = value.shape
    return value.reshape(heads, 2, shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(shape)


def llama3_factors(config, scaling, head_dim):
    inverse = config["rope_theta"] ** (-np.arange(0, head_dim, 2) / head_dim)
    original = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    length = 2 * np.pi / inverse
    smooth = (original / length - low) / (high - low)
    medium = 1 / ((1 - smooth) / scaling["factor"] + smooth)
    factors = np.where(length < original / high, 1.0, np.where(length > original / low, scaling["factor"], medium))
    return factors.astype(np.float32)


def vocabulary(size):
    """A byte-level vocabulary: control tokens, 100 characters, one merge."""
    tokens = ["<bos>", "<eos>"] + [chr(33 + i) for i in range(94)] + ["\u0120", "he", "\u0120he"]
    merges = ["h e", "\u0120 he"]
    tokens += [f"<unused{i}>" for i in range(size - len(tokens))]
    types = [3, 3] + [1] * 97 + [5] * (size - 99)
    return {
        "tokenizer.ggml.model": (STRING, "gpt2"),
        "tokenizer.ggml.pre": (STRING, "llama-bpe"),
        "tokenizer.ggml.tokens": (ARRAY, (STRING, tokens)),
        "tokenizer.ggml.token_type": (ARRAY, (5, types)),
        "tokenizer.ggml.merges": (ARRAY, (STRING, merges)),
        "tokenizer.ggml.bos_token_id": (U32, 0),
        "tokenizer.ggml.eos_token_id": (U32, 1),
        "tokenizer.ggml.add_bos_token": (BOOL, True),
        "tokenizer.chat_template": (STRING, "{% for m in messages %}{{ m.content }}{% endfor %}"),
    }


def write_gguf(path, metadata, tensors):
    out = bytearray(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata)))
    for key, (kind, value) in metadata.items():
        out += string(key) + struct.pack("<I", kind) + packed(kind, value)
    data = bytearray()
    for name, (type_id, value) in tensors.items():
        shape = value.shape if isinstance(value, np.ndarray) else value[0]
        data += bytes(-len(data) % ALIGNMENT)
        out += string(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *reversed(shape))
        out += struct.pack("<IQ", type_id, len(data))
        data += value.tobytes() if isinstance(value, np.ndarray) else value[1]
    out += bytes(-len(out) % ALIGNMENT)
    path.write_bytes(bytes(out + data))


def string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def packed(kind, value):
    if kind == STRING:
        return string(value)
    if kind == ARRAY:
        item, values = value
        return struct.pack("<IQ", item, len(values)) + b"".join(packed(item, value) for value in values)
    return struct.pack("<" + {U32: "I", 5: "i", F32: "f", BOOL: "?"}[kind], value)


def write_gguf_blocks(path):
    """Random blocks of every type, and what the reference makes of them."""
    tensors = {}
    for name in QUANTISED:
        kind = gguf.GGMLQuantizationType[name]
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = RNG.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
        # Scales that are ordinary numbers: the others would only test what NaN is.
        halves = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q2_K": [80, 82],
                  "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "MXFP4": [], "IQ4_NL": [0],
                  "IQ4_XS": [0]}[name]
        for at in halves:
            scale = RNG.uniform(-2, 2, BLOCKS).astype(np.float16)
            blocks[:, at : at + 2] = scale.view(np.uint8).reshape(BLOCKS, 2)
        if name == "MXFP4":
            blocks[:, 0] = RNG.integers(100, 150, BLOCKS)
            blocks[:3, 0] = [0, 1, 2]
        values = gguf.quants.dequantize(blocks, kind).astype(np.float32)
        shape = (2, BLOCKS // 2 * elements)
        tensors[f"{name}.blocks"] = (int(kind), (shape, blocks.tobytes()))
        tensors[f"{name}.values"] = (0, np.ascontiguousarray(values).reshape(shape))
    write_gguf(path, {"general.architecture": (STRING, "llama")}, tensors)


def write_gguf_sentencepiece(model, path, own=None):
    """The vocabulary of a SentencePiece model, without weights."""
    pieces = [dict(fields(piece)) for number, piece in fields(model.read_bytes()) if number == 1]
    metadata = {
        "general.architecture": (STRING, "llama"),
        "tokenizer.ggml.model": (STRING, "llama"),
        "tokenizer.ggml.tokens": (ARRAY, (STRING, [piece[1].decode() for piece in pieces])),
        "tokenizer.ggml.scores": (ARRAY, (F32, [piece.get(2, 0.0) for piece in pieces])),
        "tokenizer.ggml.token_type": (ARRAY, (5, [piece.get(3, 1) for piece in pieces])),
        "tokenizer.ggml.bos_token_id": (U32, 1),
        "tokenizer.ggml.eos_token_id": (U32, 2),
        "tokenizer.ggml.unknown_token_id": (U32, 0),
    }
    write_gguf(path, metadata | (own or {}), {})


def write_gguf_gemma(path):
    """A SentencePiece model as Gemma's are, with what the library makes of texts: no blank before a text, runs of blanks
    and turns as pieces of their own."""
    texts = ["The dog sat on the mat; the cat sat on the dog.", "def f(x):\n    return x\n\n\nprint(f(1234))", "Grüße aus Köln"]
    with tempfile.TemporaryDirectory() as scratch:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([line for text in texts for line in text.split("\n") if line] * 20),
            model_prefix=f"{scratch}/m",
            model_type="bpe",
            vocab_size=340,
            hard_vocab_limit=False,
            pad_id=0,
            eos_id=1,
            bos_id=2,
            unk_id=3,
            byte_fallback=True,
            split_digits=True,
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            normalization_rule_name="identity",
            user_defined_symbols=["<start_of_turn>", "<end_of_turn>", "\n", "\n\n", "\u2581\u2581", "\u2581\u2581\u2581\u2581"],
            minloglevel=2,
        )
        model = Path(f"{scratch}/m.model")
        processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
        own = {
            "tokenizer.ggml.bos_token_id": (U32, 2),
            "tokenizer.ggml.eos_token_id": (U32, 1),
            "tokenizer.ggml.padding_token_id": (U32, 0),
            "tokenizer.ggml.unknown_token_id": (U32, 3),
            "tokenizer.ggml.add_bos_token": (BOOL, True),
            "tokenizer.ggml.add_eos_token": (BOOL, False),
            "tokenizer.ggml.add_space_prefix": (BOOL, False),
        }
        write_gguf_sentencepiece(model, path, {"general.architecture": (STRING, "gemma2"), **own})
    texts += ["", " the dog", "  two", "    four", "a\n\nb", "<start_of_turn>user\nThe cat<end_of_turn>\n", "\u4f60 \U0001f600"]
    cases = [{"text": text, "ids": processor.encode(text), "decoded": processor.decode(processor.encode(text))} for text in texts]
    path.with_suffix(".json").write_text(json.dumps({"cases": cases}, indent=1) + "\n")


def fields(data):
    """Numbers and values of the fields of a protobuf message."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
        elif key & 7 == 2:
            length = varint()
            at += length
            yield key >> 3, data[at - length : at]
        else:
            at += 4
            yield key >> 3, struct.unpack("<f", data[at - 4 : at])[0]


if __name__ == "__main__":
    main()
