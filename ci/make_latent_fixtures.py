#!/usr/bin/env python3
"""Makes tests/fixtures/formats/trtllm/deepseek-*: models with compressed keys as TensorRT-LLM checkpoints.

Needs numpy and safetensors. The references are those of the Hugging Face folders:

    python3 ci/make_latent_fixtures.py [--fixtures tests/fixtures]
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from make_format_fixtures import chunk, read_safetensors, widened
from safetensors.numpy import save_file

# Fixture, ranks, pipeline stages; modes of the weights of experts: as they are, and in groups.
MODELS = [("deepseek-v2", 1, 2), ("deepseek-v2-groups", 2, 1), ("deepseek-v3-yarn", 2, 1)]
AS_THEY_ARE, IN_GROUPS = 0, 3


def written_config(config, tp, pp):
    grouped = "n_group" in config
    is_v3 = "DeepseekV3" in config["architectures"][0]
    return {
        "architecture": config["architectures"][0],
        "dtype": "float32",
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "num_hidden_layers": config["num_hidden_layers"],
        "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": 1,
        "head_size": config["kv_lora_rank"] + config["qk_rope_head_dim"],
        "hidden_act": "swiglu",
        "intermediate_size": config["intermediate_size"],
        "norm_epsilon": config.get("rms_norm_eps", 1e-6),
        "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": config["max_position_embeddings"],
        "rotary_base": config.get("rope_theta", 10000.0),
        "rotary_scaling": config.get("rope_scaling"),
        "moe": {
            "num_experts": config["n_routed_experts"],
            "shared_expert_intermediate_size": config["n_shared_experts"] * config["moe_intermediate_size"],
            "top_k": config["num_experts_per_tok"],
            "normalization_mode": IN_GROUPS if grouped else AS_THEY_ARE,
            "device_limited_n_group": config.get("n_group", 0),
            "device_limited_topk_group": config.get("topk_group", 0),
            "device_limited_routed_scaling_factor": config.get("routed_scaling_factor", 1.0),
        },
        "topk_method": "noaux_tc" if is_v3 else config.get("topk_method", "greedy"),
        **{key: config.get(key) for key in ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")},
        "first_k_dense_replace": config["first_k_dense_replace"],
        "moe_layer_freq": 1,
        "moe_inter_size": config["moe_intermediate_size"],
        "mapping": {"world_size": tp * pp, "tp_size": tp, "pp_size": pp, "moe_tp_size": tp, "moe_ep_size": 1},
        "quantization": {"quant_algo": None},
    }


def attention(get, config, rank, tp):
    """The attention of a layer of one rank."""
    heads, plain, value = (config[key] for key in ("num_attention_heads", "qk_nope_head_dim", "v_head_dim"))
    compressed = config["q_lora_rank"] is not None
    query = get("self_attn.q_b_proj" if compressed else "self_attn.q_proj")
    down = [get("self_attn.q_a_proj")] if compressed else []
    both = chunk(get("self_attn.kv_b_proj").reshape(heads, plain + value, -1), rank, tp, 0)
    queries = chunk(query.reshape(heads, plain + config["qk_rope_head_dim"], -1), rank, tp, 0)
    absorbed = np.einsum("hdq,hdk->hkq", queries[:, :plain], both[:, :plain])
    flat = lambda part: part.reshape(-1, part.shape[-1])
    out = {
        "fused_a.weight": np.concatenate([*down, get("self_attn.kv_a_proj_with_mqa")]),
        "kv_a_layernorm.weight": get("self_attn.kv_a_layernorm"),
        "fused_q_proj": flat(np.concatenate([absorbed, queries[:, plain:]], 1)),
        "q_b_proj": flat(queries),
        "kv_b_proj": np.concatenate([flat(both[:, :plain]), flat(both[:, plain:])]),
        "dense.weight": chunk(get("self_attn.o_proj"), rank, tp, 1),
    }
    if compressed:
        out["q_a_layernorm.weight"] = get("self_attn.q_a_layernorm")
    return {f"attention.{name}": tensor for name, tensor in out.items()}


def feed_forward(get, weights, prefix, config, rank, tp):
    rows, columns = lambda part: chunk(get(part), rank, tp, 0), lambda part: chunk(get(part), rank, tp, 1)
    if f"{prefix}mlp.gate.weight" not in weights:
        return {"mlp.fc.weight": rows("mlp.gate_proj"), "mlp.gate.weight": rows("mlp.up_proj"), "mlp.proj.weight": columns("mlp.down_proj")}
    experts = range(config["n_routed_experts"])
    above = lambda part: np.concatenate([rows(f"{part}.up_proj"), rows(f"{part}.gate_proj")])
    out = {
        "mlp.router.weight": get("mlp.gate"),
        "mlp.fc.weight": np.stack([above(f"mlp.experts.{expert}") for expert in experts]),
        "mlp.proj.weight": np.stack([columns(f"mlp.experts.{expert}.down_proj") for expert in experts]),
        "mlp.shared_expert.fc.weight": above("mlp.shared_experts"),
        "mlp.shared_expert.proj.weight": columns("mlp.shared_experts.down_proj"),
    }
    bias = f"{prefix}mlp.gate.e_score_correction_bias"
    return {**out, **({"mlp.e_score_correction_bias": weights[bias]} if bias in weights else {})}


def write(source, folder, tp, pp):
    config = json.loads((source / "config.json").read_text())
    weights = {name: widened(*value) for name, value in read_safetensors(source / "model.safetensors").items()}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy(source / "reference.json", folder)
    (folder / "config.json").write_text(json.dumps(written_config(config, tp, pp), indent=1) + "\n")
    layers, first = config["num_hidden_layers"], 0
    for stage in range(pp):
        count = layers // pp + (1 if stage < layers % pp else 0)
        for rank in range(tp):
            out = {}
            for local in range(count):
                prefix = f"model.layers.{first + local}."
                get = lambda part: weights[f"{prefix}{part}.weight"]
                here = {
                    "input_layernorm.weight": get("input_layernorm"),
                    "post_layernorm.weight": get("post_attention_layernorm"),
                    **attention(get, config, rank, tp),
                    **feed_forward(get, weights, prefix, config, rank, tp),
                }
                out |= {f"transformer.layers.{local}.{name}": value for name, value in here.items()}
            if stage == 0:
                out["transformer.vocab_embedding.weight"] = weights["model.embed_tokens.weight"]
            if stage == pp - 1:
                out["transformer.ln_f.weight"] = weights["model.norm.weight"]
                out["lm_head.weight"] = chunk(weights["lm_head.weight"], rank, tp, 0)
            tensors = {name: np.ascontiguousarray(value, np.float32) for name, value in out.items()}
            save_file(tensors, folder / f"rank{stage * tp + rank}.safetensors")
        first += count


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fixtures", type=Path, default=Path("tests/fixtures"))
    fixtures = parser.parse_args().fixtures
    for name, tp, pp in MODELS:
        write(fixtures / "models" / name, fixtures / "formats" / "trtllm" / f"{name}-tp{tp}-pp{pp}", tp, pp)


if __name__ == "__main__":
    main()
