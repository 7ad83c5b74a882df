#!/usr/bin/env python3
"""Makes tests/fixtures/models and tests/fixtures/tokenizers: tiny random checkpoints with reference outputs.

Needs torch, transformers, tokenizers and safetensors; runs on a CPU in about a minute. The tests read only what is
committed, so this is run again only when a fixture is added:

    python3 ci/make_fixtures.py [--out tests/fixtures] [--only NAME ...]

Every reference is computed in float32 with eager attention. `reference.json` of a model holds, per prompt, the logits
after the prompt, 24 greedy tokens, their log-probabilities and the margin of each over the runner-up.

Rope types whose frequencies depend on the length (dynamic, longrope) follow one rule here: the length is that of the
whole request, prompt plus new tokens, and stays fixed while the request runs. Keys in the cache are then consistent, and
neither chunking nor preemption nor the order of requests changes a result. transformers itself follows the current
length instead, which makes its cached and its uncached generation differ.
"""

import argparse
import copy
import json
import re
import shutil
import tempfile
from collections import OrderedDict
from pathlib import Path

import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

NEW_TOKENS = 24
PROMPT_LENGTHS = (1, 6, 37, 50, 130)
MIN_MARGIN = 0.02
MIN_DISTINCT = 6

LENGTH_RULE = (
    "The rope length is prompt + new tokens of the request, fixed while it runs: "
    "dynamic uses L = max(that, max_position_embeddings), longrope uses long_factor if that exceeds "
    "original_max_position_embeddings, else short_factor."
)

WEIGHTS_RULE = "Computed on the weights widened to float32. config.alt.json means the same model."

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "torch_dtype": "float32",
}
LONG_FACTORS = [1.0, 1.3, 2.0, 3.1, 4.6, 6.4, 8.0, 9.5]
SHORT_FACTORS = [1.0, 1.05, 1.1, 1.1, 1.2, 1.35, 1.5, 1.7]


def llama_with_rope(scaling, **changes):
    """A Llama with `rope_scaling` in the spelling before transformers 5."""
    return {**LLAMA, "head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 1, **changes, "rope_scaling": scaling}


CONFIGS = {
    "llama-gqa": {**LLAMA, "num_hidden_layers": 3},
    "llama-8-heads": {**LLAMA, "num_attention_heads": 8, "num_key_value_heads": 4},
    "llama-bf16": {**LLAMA, "torch_dtype": "bfloat16"},
    "llama-f16": {**LLAMA, "torch_dtype": "float16"},
    "llama-bias": {**LLAMA, "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4},
    "llama-linear": llama_with_rope({"type": "linear", "factor": 4.0}),
    "llama-dynamic": llama_with_rope({"type": "dynamic", "factor": 4.0}, max_position_embeddings=64),
    "llama-yarn": llama_with_rope({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}),
    "llama-yarn-mscale": llama_with_rope(
        {
            "type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 8.0,
            "beta_slow": 2.0,
            "mscale": 1.4,
            "mscale_all_dim": 0.7,
            "truncate": False,
        }
    ),
    "llama-llama3": llama_with_rope(
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    ),
    "llama-longrope": llama_with_rope(
        {
            "rope_type": "longrope",
            "short_factor": SHORT_FACTORS,
            "long_factor": LONG_FACTORS,
            "original_max_position_embeddings": 64,
        }
    ),
    "mistral-window": {
        **{k: v for k, v in LLAMA.items() if k not in ("attention_bias", "mlp_bias")},
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "head_dim": 16,
        "sliding_window": 16,
    },
    "qwen2-tied": {
        **{k: v for k, v in LLAMA.items() if k not in ("attention_bias", "mlp_bias", "head_dim")},
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "sliding_window": 16,
        "max_window_layers": 1,
    },
    "qwen3": {
        **{k: v for k, v in LLAMA.items() if k != "mlp_bias"},
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 16,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
    },
}

# Of the families below: small, with weights in bfloat16, so that every fixture stays below 100 KB.
SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "torch_dtype": "bfloat16",
}
EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
SLIDING = "sliding_attention"
FULL = "full_attention"
NO_LLAMA_KEYS = dict.fromkeys(
    ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
)
GPT = {**NO_LLAMA_KEYS, "max_position_embeddings": None, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
LATENT = {
    **EXPERTS,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
}
DEEPSEEK_YARN = {
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32,
    "beta_slow": 1,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "truncate": False}


def family(architecture, model_type, **changes):
    """A small config; a value of None takes a key out."""
    config = {"architectures": [architecture], "model_type": model_type, **SMALL, **changes}
    return {k: v for k, v in config.items() if v is not None or k.endswith("token_id") or k == "q_lora_rank"}


FAMILIES = {
    "ministral3": family(
        "Ministral3ForCausalLM",
        "ministral3",
        head_dim=16,
        rope_theta=1e6,
        rope_scaling={
            "type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    ),
    "phi3": family("Phi3ForCausalLM", "phi3", partial_rotary_factor=0.5, sliding_window=40),
    "phi3-longrope": family(
        "Phi3ForCausalLM",
        "phi3",
        num_attention_heads=2,
        num_key_value_heads=1,
        original_max_position_embeddings=64,
        rope_scaling={"type": "longrope", "short_factor": SHORT_FACTORS, "long_factor": LONG_FACTORS},
    ),
    "phi4-mini": family("Phi3ForCausalLM", "phi3", partial_rotary_factor=0.75, head_dim=None, tie_word_embeddings=True),
    "gemma": family("GemmaForCausalLM", "gemma", head_dim=16, num_key_value_heads=1),
    "gemma2": family(
        "Gemma2ForCausalLM", "gemma2", head_dim=16, sliding_window=16, query_pre_attn_scalar=24,
        attn_logit_softcapping=5.0, final_logit_softcapping=4.0
    ),
    "gemma3": family(
        "Gemma3ForCausalLM",
        "gemma3_text",
        head_dim=16,
        num_hidden_layers=3,
        sliding_window=16,
        sliding_window_pattern=3,
        query_pre_attn_scalar=16,
        rope_theta=1e6,
        rope_local_base_freq=1e4,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
    ),
    "mixtral": family("MixtralForCausalLM", "mixtral", num_local_experts=4, num_experts_per_tok=2, intermediate_size=24),
    "qwen2-moe": family(
        "Qwen2MoeForCausalLM",
        "qwen2_moe",
        **EXPERTS,
        num_experts=6,
        num_hidden_layers=3,
        shared_expert_intermediate_size=24,
        mlp_only_layers=[1],
    ),
    "qwen3-moe": family(
        "Qwen3MoeForCausalLM", "qwen3_moe", **EXPERTS, num_experts=6, head_dim=16, norm_topk_prob=True, decoder_sparse_step=2
    ),
    "granite": family(
        "GraniteForCausalLM",
        "granite",
        embedding_multiplier=3.0,
        residual_multiplier=0.5,
        attention_multiplier=0.2,
        logits_scaling=2.0,
    ),
    "granite-moe": family(
        "GraniteMoeForCausalLM",
        "granitemoe",
        num_local_experts=4,
        num_experts_per_tok=2,
        intermediate_size=24,
        embedding_multiplier=2.0,
        residual_multiplier=0.7,
        attention_multiplier=0.3,
        logits_scaling=1.5,
    ),
    "olmo2": family("Olmo2ForCausalLM", "olmo2"),
    "olmo3": family(
        "Olmo3ForCausalLM", "olmo3", sliding_window=16, layer_types=[SLIDING, FULL], rope_theta=5e5, rope_scaling=YARN
    ),
    "smollm3": family("SmolLM3ForCausalLM", "smollm3", num_hidden_layers=3, no_rope_layers=[1, 0, 1], rope_theta=2e6),
    # What GGUF files of these two say nothing of is as in all releases.
    "smollm3-default": family("SmolLM3ForCausalLM", "smollm3", num_hidden_layers=4, rope_theta=2e6),
    "cohere": family("CohereForCausalLM", "cohere", use_qk_norm=True, logit_scale=0.5),
    "cohere2": family(
        "Cohere2ForCausalLM", "cohere2", sliding_window=16, layer_types=[SLIDING, FULL], logit_scale=0.25, head_dim=8
    ),
    "starcoder2": family(
        "Starcoder2ForCausalLM", "starcoder2", hidden_act="gelu_pytorch_tanh", sliding_window=32, use_bias=True
    ),
    "glm": family("GlmForCausalLM", "glm", head_dim=8, attention_bias=True, partial_rotary_factor=0.5),
    "glm4": family("Glm4ForCausalLM", "glm4", head_dim=8, attention_bias=True, partial_rotary_factor=0.5),
    "glm4-moe": family(
        "Glm4MoeForCausalLM",
        "glm4_moe",
        **EXPERTS,
        n_routed_experts=6,
        n_shared_experts=1,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
        head_dim=16,
        partial_rotary_factor=0.5,
        attention_bias=True,
        use_qk_norm=True,
        routed_scaling_factor=1.5,
        norm_topk_prob=True,
    ),
    "gpt-oss": family(
        "GptOssForCausalLM",
        "gpt_oss",
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        intermediate_size=16,
        sliding_window=16,
        layer_types=[SLIDING, FULL],
        rope_theta=150000.0,
        rope_scaling={**YARN, "beta_fast": 32.0, "beta_slow": 1.0},
    ),
    "exaone4": family(
        "Exaone4ForCausalLM", "exaone4", sliding_window=16, layer_types=[SLIDING, FULL], sliding_window_pattern="LG"
    ),
    "nemotron": family("NemotronForCausalLM", "nemotron", head_dim=8, hidden_act="relu2", norm_eps=1e-5),
    "stablelm": family("StableLmForCausalLM", "stablelm", partial_rotary_factor=0.25, use_qkv_bias=True),
    "stablelm-parallel": family(
        "StableLmForCausalLM", "stablelm", partial_rotary_factor=0.25, qk_layernorm=True, use_parallel_residual=True
    ),
    "phi": family("PhiForCausalLM", "phi", num_key_value_heads=4, partial_rotary_factor=0.5, hidden_act="gelu_new"),
    "gpt2": family("GPT2LMHeadModel", "gpt2", **GPT, n_inner=64, activation_function="gelu_new"),
    "gptj": family("GPTJForCausalLM", "gptj", **GPT, n_inner=64, rotary_dim=4),
    "gpt-neox": family(
        "GPTNeoXForCausalLM", "gpt_neox", num_key_value_heads=None, rotary_pct=0.25, hidden_act="gelu", rotary_emb_base=10000
    ),
    "gpt-neox-serial": family(
        "GPTNeoXForCausalLM", "gpt_neox", num_key_value_heads=None, rotary_pct=0.5, use_parallel_residual=False
    ),
    "opt": family("OPTForCausalLM", "opt", num_key_value_heads=None, ffn_dim=48, word_embed_proj_dim=32),
    "bloom": family("BloomForCausalLM", "bloom", **{**NO_LLAMA_KEYS, "hidden_size": 32}, n_layer=2, n_head=4),
    "bloom-6-heads": family("BloomForCausalLM", "bloom", **{**NO_LLAMA_KEYS, "hidden_size": 24}, n_layer=2, n_head=6),
    "mpt": family(
        "MptForCausalLM",
        "mpt",
        **NO_LLAMA_KEYS,
        max_position_embeddings=None,
        d_model=32,
        n_layers=2,
        n_heads=4,
        max_seq_len=256,
        expansion_ratio=4,
        attn_config={"clip_qkv": 1.5, "alibi": True, "alibi_bias_max": 8},
    ),
    "falcon-7b": family("FalconForCausalLM", "falcon", num_key_value_heads=None, ffn_hidden_size=64, intermediate_size=None),
    "falcon-40b": family(
        "FalconForCausalLM",
        "falcon",
        num_key_value_heads=None,
        num_kv_heads=2,
        new_decoder_architecture=True,
        ffn_hidden_size=64,
        intermediate_size=None,
    ),
    "falcon-11b": family(
        "FalconForCausalLM",
        "falcon",
        num_key_value_heads=None,
        num_kv_heads=2,
        new_decoder_architecture=True,
        num_ln_in_parallel_attn=1,
        ffn_hidden_size=64,
        intermediate_size=None,
    ),
    "falcon-rw": family(
        "FalconForCausalLM",
        "falcon",
        num_key_value_heads=None,
        multi_query=False,
        alibi=True,
        bias=True,
        parallel_attn=False,
        ffn_hidden_size=64,
        intermediate_size=None,
    ),
    "gpt-bigcode": family("GPTBigCodeForCausalLM", "gpt_bigcode", **GPT, n_inner=64, multi_query=True),
    "gpt-bigcode-mha": family("GPTBigCodeForCausalLM", "gpt_bigcode", **GPT, n_inner=64, multi_query=False),
    "deepseek-v2": family("DeepseekV2ForCausalLM", "deepseek_v2", **LATENT, q_lora_rank=None, num_hidden_layers=3),
    "deepseek-v2-groups": family(
        "DeepseekV2ForCausalLM",
        "deepseek_v2",
        **LATENT,
        q_lora_rank=12,
        topk_method="group_limited_greedy",
        n_group=3,
        topk_group=2,
        routed_scaling_factor=2.0,
        rope_theta=10000.0,
        rope_scaling={**DEEPSEEK_YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    ),
    "deepseek-v3": family(
        "DeepseekV3ForCausalLM",
        "deepseek_v3",
        **LATENT,
        q_lora_rank=12,
        n_group=3,
        topk_group=2,
        routed_scaling_factor=1.5,
        norm_topk_prob=True,
        attention_bias=True,
        rope_theta=10000.0,
        rope_scaling={**DEEPSEEK_YARN, "mscale": 1.0, "mscale_all_dim": 0.7},
    ),
    "deepseek-v3-yarn": family(
        "DeepseekV3ForCausalLM",
        "deepseek_v3",
        **LATENT,
        q_lora_rank=12,
        n_group=3,
        topk_group=1,
        routed_scaling_factor=2.5,
        norm_topk_prob=True,
        rope_theta=10000.0,
        rope_scaling={**DEEPSEEK_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    ),
    "deepseek-v3-halves": family(
        "DeepseekV3ForCausalLM", "deepseek_v3", **LATENT, q_lora_rank=12, n_group=1, topk_group=1, rope_interleave=False
    ),
    "llama4": family(
        "Llama4ForCausalLM",
        "llama4_text",
        head_dim=8,
        num_hidden_layers=4,
        intermediate_size=24,
        intermediate_size_mlp=48,
        num_local_experts=4,
        num_experts_per_tok=1,
        interleave_moe_layer_step=2,
        attention_chunk_size=16,
        floor_scale=16,
        rope_theta=500000.0,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "llama4-default": family(
        "Llama4ForCausalLM",
        "llama4_text",
        head_dim=8,
        num_hidden_layers=4,
        intermediate_size=24,
        intermediate_size_mlp=48,
        num_local_experts=4,
        num_experts_per_tok=1,
        interleave_moe_layer_step=1,
        rope_theta=500000.0,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "opt-projected": family(
        "OPTForCausalLM",
        "opt",
        num_key_value_heads=None,
        ffn_dim=48,
        word_embed_proj_dim=16,
        do_layer_norm_before=False,
    ),
    "dbrx": family(
        "DbrxForCausalLM",
        "dbrx",
        **NO_LLAMA_KEYS,
        max_position_embeddings=None,
        d_model=32,
        n_layers=2,
        n_heads=4,
        max_seq_len=256,
        attn_config={"clip_qkv": 1.5, "kv_n_heads": 2, "rope_theta": 10000.0},
        ffn_config={"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2, "ffn_act_fn": {"name": "silu"}},
    ),
}


def fuse_groups(query, key, value, kv_heads):
    """The queries of a kv head, its key and its value in turn."""
    parts = [part.reshape(kv_heads, -1, part.shape[-1]) for part in (query, key, value)]
    return torch.cat(parts, 1).reshape(-1, query.shape[-1])


def renamed(weights, names, fused):
    """Weights under other names; `fused(layer)` makes new tensors of those of a layer that have no new name."""
    layers = {}
    new = {}
    for name, weight in weights.items():
        match = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", name)
        if match and match[2] not in names:
            layers.setdefault(match[1], {})[match[2]] = weight
        elif match:
            new[f"{names['layers']}.{match[1]}.{names[match[2]]}"] = weight
        else:
            new[names[name]] = weight
    for number, layer in layers.items():
        new.update({f"{names['layers']}.{number}.{k}": v for k, v in fused(layer).items()})
    return {k: v.contiguous() for k, v in new.items()}


def stacked(layer, kind="weight"):
    return torch.cat([layer[f"self_attn.{part}_proj.{kind}"] for part in "qkv"])


PLAIN = {"model.embed_tokens.weight": "model.embed_tokens.weight", "model.norm.weight": "model.norm.weight"}
KEPT = ["input_layernorm.weight", "post_attention_layernorm.weight", "self_attn.o_proj.weight"]
MLP = [f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")]

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def quantised(weight):
    """Codes `[.., K / 32, 32]` and exponents `[.., K / 32, 1]` of 4-bit floats in blocks, and what they stand for."""
    blocks = weight.float().reshape(*weight.shape[:-1], -1, 32)
    exponents = torch.ceil(torch.log2(blocks.abs().amax(-1, keepdim=True).clamp(min=1e-9) / 6))
    scaled = blocks / 2**exponents
    codes = (scaled.abs().unsqueeze(-1) - E2M1).abs().argmin(-1)
    values = E2M1[codes] * scaled.sign() * 2**exponents
    return codes + 8 * (scaled < 0), exponents, values.reshape(weight.shape)


def four_bit(weights):
    """The experts of gpt-oss as its releases have them."""
    new = {}
    for name, weight in weights.items():
        if weight.dim() == 3 and ".experts." in name:
            codes, exponents, _ = quantised(weight.transpose(1, 2))
            new[f"{name}_blocks"] = (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8)
            new[f"{name}_scales"] = (exponents.squeeze(-1) + 127).to(torch.uint8)
        else:
            new[name] = weight
    return new


def wrapped(architecture, model_type, text):
    """Changes that put a configuration inside that of a model which also takes images."""
    outer = ("architectures", "model_type", "torch_dtype", "bos_token_id", "eos_token_id", "pad_token_id")
    inner = {key: value for key, value in text.items() if key not in outer or key == "model_type"}
    vision = {"hidden_size": 8, "num_hidden_layers": 1}
    return {
        **{key: None for key in text if key not in outer},
        "architectures": [architecture],
        "model_type": model_type,
        "text_config": inner,
        "vision_config": vision,
    }


# Models whose own code is not in transformers, but which compute the same as one that is: the source fixture, keys of
# the config, and how tensors are called.
RENAMED = {
    "baichuan": (
        family("LlamaForCausalLM", "llama", num_key_value_heads=4),
        {"architectures": ["BaichuanForCausalLM"], "model_type": "baichuan", "num_key_value_heads": None},
        lambda weights: renamed(
            weights,
            {**PLAIN, "lm_head.weight": "lm_head.weight", "layers": "model.layers", **{k: k for k in KEPT + MLP}},
            lambda layer: {"self_attn.W_pack.weight": stacked(layer)},
        ),
    ),
    "baichuan-13b": (
        family("LlamaForCausalLM", "llama", num_key_value_heads=4),
        {
            "architectures": ["BaichuanForCausalLM"],
            "model_type": "baichuan",
            "num_key_value_heads": None,
            "alibi": True,
            "model_max_length": 256,
            "max_position_embeddings": None,
        },
        lambda weights: renamed(
            weights,
            {**PLAIN, "lm_head.weight": "lm_head.weight", "layers": "model.layers", **{k: k for k in KEPT + MLP}},
            lambda layer: {"self_attn.W_pack.weight": stacked(layer)},
        ),
    ),
    "internlm": (
        family("LlamaForCausalLM", "llama", num_key_value_heads=4, attention_bias=True),
        {
            "architectures": ["InternLMForCausalLM"],
            "model_type": "internlm",
            "num_key_value_heads": None,
            "attention_bias": None,
            "bias": True,
        },
        dict,
    ),
    "internlm3": (
        family("LlamaForCausalLM", "llama", head_dim=16),
        {"architectures": ["InternLM3ForCausalLM"], "model_type": "internlm3", "bias": False, "qkv_bias": False},
        dict,
    ),
    "baichuan2": (
        family("LlamaForCausalLM", "llama", num_key_value_heads=4),
        {
            "architectures": ["BaichuanForCausalLM"],
            "model_type": "baichuan",
            "num_key_value_heads": None,
            "z_loss_weight": 0,
        },
        lambda weights: renamed(
            weights,
            {**PLAIN, "lm_head.weight": "lm_head.weight", "layers": "model.layers", **{k: k for k in KEPT + MLP}},
            lambda layer: {"self_attn.W_pack.weight": stacked(layer)},
        ),
    ),
    "gemma3-images": (
        FAMILIES["gemma3"],
        wrapped("Gemma3ForConditionalGeneration", "gemma3", FAMILIES["gemma3"]),
        lambda weights: {
            **{f"language_model.{name}": weight for name, weight in weights.items()},
            "vision_tower.vision_model.post_layernorm.weight": torch.ones(8, dtype=torch.bfloat16),
            "multi_modal_projector.mm_input_projection_weight": torch.ones(8, 8, dtype=torch.bfloat16),
        },
    ),
    "mistral3-images": (
        family("MistralForCausalLM", "mistral", head_dim=16),
        wrapped("Mistral3ForConditionalGeneration", "mistral3", family("MistralForCausalLM", "mistral", head_dim=16)),
        lambda weights: {
            **{
                name.replace("model.", "model.language_model.", 1): weight for name, weight in weights.items()
            },
            "model.vision_tower.ln_pre.weight": torch.ones(8, dtype=torch.bfloat16),
        },
    ),
    "gpt-oss-mxfp4": (
        {**FAMILIES["gpt-oss"], "intermediate_size": 32},
        {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}},
        lambda weights: four_bit(weights),
    ),
    "internlm2": (
        family("LlamaForCausalLM", "llama"),
        {"architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "bias": False},
        lambda weights: renamed(
            weights,
            {
                "model.embed_tokens.weight": "model.tok_embeddings.weight",
                "model.norm.weight": "model.norm.weight",
                "lm_head.weight": "output.weight",
                "layers": "model.layers",
                "input_layernorm.weight": "attention_norm.weight",
                "post_attention_layernorm.weight": "ffn_norm.weight",
                "self_attn.o_proj.weight": "attention.wo.weight",
                "mlp.gate_proj.weight": "feed_forward.w1.weight",
                "mlp.up_proj.weight": "feed_forward.w3.weight",
                "mlp.down_proj.weight": "feed_forward.w2.weight",
            },
            lambda layer: {
                "attention.wqkv.weight": fuse_groups(*[layer[f"self_attn.{part}_proj.weight"] for part in "qkv"], 2)
            },
        ),
    ),
    "qwen": (
        family("Qwen2ForCausalLM", "qwen2", num_key_value_heads=4),
        {
            "architectures": ["QWenLMHeadModel"],
            "model_type": "qwen",
            "num_key_value_heads": None,
            "intermediate_size": 96,
            "layer_norm_epsilon": 1e-6,
            "rotary_emb_base": 10000,
            "kv_channels": 8,
            "seq_length": 256,
            "max_position_embeddings": None,
        },
        lambda weights: renamed(
            weights,
            {
                "model.embed_tokens.weight": "transformer.wte.weight",
                "model.norm.weight": "transformer.ln_f.weight",
                "lm_head.weight": "lm_head.weight",
                "layers": "transformer.h",
                "input_layernorm.weight": "ln_1.weight",
                "post_attention_layernorm.weight": "ln_2.weight",
                "self_attn.o_proj.weight": "attn.c_proj.weight",
                "mlp.gate_proj.weight": "mlp.w2.weight",
                "mlp.up_proj.weight": "mlp.w1.weight",
                "mlp.down_proj.weight": "mlp.c_proj.weight",
            },
            lambda layer: {
                "attn.c_attn.weight": stacked(layer),
                "attn.c_attn.bias": stacked(layer, "bias"),
            },
        ),
    ),
    "chatglm": (
        FAMILIES["glm"],
        {
            "architectures": ["ChatGLMModel"],
            "model_type": "chatglm",
            "num_key_value_heads": None,
            "multi_query_attention": True,
            "multi_query_group_num": 2,
            "kv_channels": 8,
            "head_dim": None,
            "ffn_hidden_size": 48,
            "intermediate_size": None,
            "layernorm_epsilon": 1.5625e-07,
            "add_qkv_bias": True,
            "attention_bias": None,
            "partial_rotary_factor": None,
            "padded_vocab_size": 96,
            "vocab_size": None,
            "num_layers": 2,
            "num_hidden_layers": None,
            "seq_length": 256,
            "max_position_embeddings": None,
        },
        lambda weights: renamed(
            weights,
            {
                "model.embed_tokens.weight": "transformer.embedding.word_embeddings.weight",
                "model.norm.weight": "transformer.encoder.final_layernorm.weight",
                "lm_head.weight": "transformer.output_layer.weight",
                "layers": "transformer.encoder.layers",
                "input_layernorm.weight": "input_layernorm.weight",
                "post_attention_layernorm.weight": "post_attention_layernorm.weight",
                "self_attn.o_proj.weight": "self_attention.dense.weight",
                "mlp.gate_up_proj.weight": "mlp.dense_h_to_4h.weight",
                "mlp.down_proj.weight": "mlp.dense_4h_to_h.weight",
            },
            lambda layer: {
                "self_attention.query_key_value.weight": stacked(layer),
                "self_attention.query_key_value.bias": stacked(layer, "bias"),
            },
        ),
    ),
}


def as_rope_parameters(config):
    """The same config in the spelling of transformers 5."""
    new = {k: v for k, v in config.items() if k not in ("rope_theta", "rope_scaling", "torch_dtype")}
    scaling = dict(config.get("rope_scaling") or {"rope_type": "default"})
    rope_type = scaling.pop("type", None) or scaling.pop("rope_type")
    scaling.pop("rope_type", None)
    new["rope_parameters"] = {"rope_theta": config["rope_theta"], "rope_type": rope_type, **scaling}
    new["dtype"] = config["torch_dtype"]
    return new


def alternative_config(name, config):
    """A second spelling that means the same model."""
    if name == "llama-longrope":
        scaling = {k: v for k, v in config["rope_scaling"].items() if "original" not in k and k != "rope_type"}
        return {**config, "original_max_position_embeddings": 64, "rope_scaling": {"type": "su", **scaling}}
    return as_rope_parameters(config)


def random_weights(model, seed, dtype):
    """Weights that `dtype` holds exactly, large enough that the logits are far from flat."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1.0 + 0.2 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif "embed_tokens" in name:
                parameter.copy_(0.8 * noise)
            else:
                parameter.copy_(1.6 * noise / parameter.shape[-1] ** 0.5)
            parameter.copy_(parameter.to(dtype))


def fix_rope_length(model, total_length):
    """Applies LENGTH_RULE: the frequencies of a request of this length, no more updates."""
    rotary = model.model.rotary_emb
    rope_type = model.config.rope_parameters["rope_type"]
    if rope_type not in ("dynamic", "longrope"):
        return
    rotary.inv_freq, rotary.attention_scaling = ROPE_INIT_FUNCTIONS[rope_type](model.config, "cpu", seq_len=total_length)
    rotary.rope_type = "default"


@torch.no_grad()
def greedy(model, prompt, use_cache, new_tokens=NEW_TOKENS):
    """Logits after the prompt, then greedy tokens with their log-probabilities and margins."""
    ids, cache, first = list(prompt), None, None
    tokens, log_probs, margins = [], [], []
    for _ in range(new_tokens):
        fed = ids[-1:] if cache is not None else ids
        out = model(torch.tensor([fed]), past_key_values=cache, use_cache=use_cache)
        cache = out.past_key_values if use_cache else None
        logits = out.logits[0, -1]
        first = logits if first is None else first
        best = torch.topk(logits, 2)
        ids.append(best.indices[0].item())
        tokens.append(ids[-1])
        log_probs.append(torch.log_softmax(logits, -1)[ids[-1]].item())
        margins.append((best.values[0] - best.values[1]).item())
    return first, tokens, log_probs, margins


def rounded(values, digits=7):
    return [float(f"{value:.{digits}g}") for value in values]


def reference(model, prompts):
    """Reference cases, each computed with and without the cache; None if greedy choices are too close to call."""
    cases = []
    for prompt in prompts:
        fix_rope_length(model, len(prompt) + NEW_TOKENS)
        first, tokens, log_probs, margins = greedy(model, prompt, use_cache=False)
        cached, cached_tokens, _, _ = greedy(model, prompt, use_cache=True)
        if min(margins) < MIN_MARGIN or len(set(tokens)) < MIN_DISTINCT:
            return None
        assert tokens == cached_tokens, "generation with and without the cache differ"
        assert torch.allclose(first, cached, rtol=1e-5, atol=1e-5)
        cases.append(
            {
                "prompt": prompt,
                "logits": rounded(first.tolist()),
                "tokens": tokens,
                "log_probs": rounded(log_probs),
                "margins": rounded(margins, 4),
            }
        )
    return cases


def prompts_for(config):
    generator = torch.Generator().manual_seed(20)
    return [torch.randint(0, config["vocab_size"], (n,), generator=generator).tolist() for n in PROMPT_LENGTHS]


def attention_of(config):
    """Eager, but where transformers adds the linear biases of a Falcon twice then."""
    return "sdpa" if config.get("alibi") else "eager"


def load(folder):
    attention = attention_of(json.loads((Path(folder) / "config.json").read_text()))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
    return model.eval()


def write_config(path, config):
    path.write_text(json.dumps(config, indent=2) + "\n")


def write_reference(folder, cases, note):
    head = {
        "model": folder.name,
        "made_with": f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}, float32, eager",
        "note": note,
        "new_tokens": len(cases[0]["tokens"]),
        "min_margin": min(min(case["margins"]) for case in cases),
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    body = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    (folder / "reference.json").write_text("{" + ",\n".join(lines) + ',\n"cases": [\n' + body + "\n]}\n")


def make_model(folder, name, config):
    """Tries seeds until no greedy choice of any prompt is close to a tie, so that rounding cannot flip one."""
    prompts = prompts_for(config)
    dtype = getattr(torch, config["torch_dtype"])
    for seed in range(2000):
        folder.mkdir(parents=True, exist_ok=True)
        write_config(folder / "config.json", config)
        shape = AutoConfig.from_pretrained(folder)
        model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32, attn_implementation="eager").eval()
        random_weights(model, seed, dtype)
        cases = reference(model, prompts)
        if cases is not None:
            break
    else:
        raise SystemExit(f"{name}: no seed gives clear greedy choices")
    weights = {k: v.to(dtype).contiguous() for k, v in model.state_dict().items()}
    if config["tie_word_embeddings"]:
        del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_config(folder / "config.alt.json", alternative_config(name, config))
    scaling = config.get("rope_scaling") or {}
    depends_on_length = scaling.get("rope_type", scaling.get("type")) in ("dynamic", "longrope")
    write_reference(folder, cases, LENGTH_RULE if depends_on_length else WEIGHTS_RULE)
    check_reload(folder, name, prompts, cases)
    print(f"{name}: seed {seed}, smallest margin {min(min(c['margins']) for c in cases):.3f}")


def check_reload(folder, name, prompts, cases):
    """The files alone, in both spellings of the config, give the same reference again."""
    assert_same(cases, reference(load(folder), prompts))
    if name == "llama-longrope":
        return  # transformers no longer reads "su"
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copy(folder / "config.alt.json", Path(scratch) / "config.json")
        shutil.copy(folder / "model.safetensors", scratch)
        assert_same(cases, reference(load(scratch), prompts))


def assert_same(cases, again):
    for case, other in zip(cases, again, strict=True):
        assert case["tokens"] == other["tokens"]
        torch.testing.assert_close(torch.tensor(case["logits"]), torch.tensor(other["logits"]), rtol=1e-5, atol=1e-5)


def make_sharded(folder, source):
    """The model of another folder in two shards."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "config.json", folder)
    write_shards(folder, load_file(source / "model.safetensors"))
    cases = reference(load(folder), prompts_for(LLAMA))
    write_reference(folder, cases, f"The model of {source.name}, in two shards.")
    print(f"{folder.name}: smallest margin {min(min(c['margins']) for c in cases):.3f}")


def write_shards(folder, weights):
    names = sorted(weights)
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    index = {"metadata": {"total_size": sum(w.nbytes for w in weights.values())}, "weight_map": {}}
    for number, half in enumerate(halves, 1):
        file = f"model-{number:05}-of-{len(halves):05}.safetensors"
        save_file({n: weights[n] for n in half}, folder / file, metadata={"format": "pt"})
        index["weight_map"].update({n: file for n in half})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def make_pickles(folder, source, count):
    """The model of another folder as `torch.save` writes it, in so many files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "reference.json"):
        shutil.copy(source / name, folder)
    weights = OrderedDict(sorted(load_file(source / "model.safetensors").items()))
    weights["position_ids"] = torch.arange(4)
    if count == 1:
        # A storage that two tensors share, and one that is a parameter.
        shared = torch.cat([weights["model.norm.weight"], torch.ones(3)])
        weights["model.norm.weight"] = shared[: len(weights["model.norm.weight"])]
        weights["lm_head.weight"] = torch.nn.Parameter(weights["lm_head.weight"])
        torch.save(weights, folder / "pytorch_model.bin")
        return
    names = list(weights)
    index = {"metadata": {}, "weight_map": {}}
    for number in range(count):
        file = f"pytorch_model-{number + 1:05}-of-{count:05}.bin"
        part = {name: weights[name].clone() for name in names[number::count]}
        torch.save(part, folder / file)
        index["weight_map"].update({name: file for name in part})
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=1) + "\n")


FAMILY_NEW_TOKENS = 12
FAMILY_MIN_MARGIN = 0.004
FAMILY_MIN_DISTINCT = 3


@torch.no_grad()
def random_family_weights(model, seed, zero_centered, in_blocks=False):
    """Weights that bfloat16 holds exactly; what a norm's weight starts from is what the model gave it."""
    generator = torch.Generator().manual_seed(seed)
    tensors = dict(model.named_parameters()) | {k: v for k, v in model.named_buffers() if "e_score" in k}
    for name, tensor in sorted(tensors.items()):
        noise = torch.randn(tensor.shape, generator=generator)
        is_norm = re.search(r"norm|ln_", name) and name.endswith("weight")
        if "embeddings_layernorm" in name:
            value = 0.2 * noise
        elif is_norm:
            value = (0.0 if zero_centered else 1.0) + 0.2 * noise
        elif name.endswith("bias") or tensor.dim() == 1:
            value = 0.3 * noise
        elif re.search(r"embed_tokens|wte|word_embeddings|embed_in", name):
            # A tied head would repeat the last token if its embedding outweighed what the layers add.
            value = (0.1 if model.config.tie_word_embeddings else 0.8) * noise
        else:
            value = 1.6 * noise / tensor.shape[-1] ** 0.5
        if in_blocks and tensor.dim() == 3:
            value = quantised(value.transpose(1, 2))[2].transpose(1, 2)
        tensor.copy_(value.to(torch.bfloat16))


def with_linear_biases(model):
    """A Llama that does not rotate but adds the linear biases of its 4 heads."""
    model.model.rotary_emb.inv_freq.zero_()
    slopes = torch.tensor([2.0 ** (-8 * (head + 1) / 4) for head in range(4)])
    forward = model.forward

    def biased(ids, past_key_values=None, use_cache=False):
        before = past_key_values.get_seq_length() if past_key_values is not None else 0
        keys, queries = torch.arange(before + ids.shape[1]), before + torch.arange(ids.shape[1])[:, None]
        mask = slopes[:, None, None] * (keys - queries)
        mask = mask.masked_fill(keys > queries, torch.finfo(torch.float32).min)
        return forward(ids, past_key_values=past_key_values, use_cache=use_cache, attention_mask=mask[None])

    model.forward = biased
    return model


def family_reference(model, prompts, use_cache, name):
    """Reference cases; None if greedy choices are too close to call."""
    if name == "baichuan2":
        model = copy.deepcopy(model)
        model.lm_head.weight = torch.nn.Parameter(torch.nn.functional.normalize(model.lm_head.weight))
    if name == "baichuan-13b":
        model = with_linear_biases(copy.deepcopy(model))
    cases = []
    for prompt in prompts:
        if hasattr(model, "model") and "rope_type" in (getattr(model.config, "rope_parameters", None) or {}):
            fix_rope_length(model, len(prompt) + FAMILY_NEW_TOKENS)
        first, tokens, log_probs, margins = greedy(model, prompt, use_cache, FAMILY_NEW_TOKENS)
        if min(margins) < FAMILY_MIN_MARGIN or len(set(tokens)) < FAMILY_MIN_DISTINCT:
            return None
        case = {"prompt": prompt, "logits": rounded(first.tolist()), "tokens": tokens}
        cases.append({**case, "log_probs": rounded(log_probs), "margins": rounded(margins, 4)})
    return cases


def make_family(folder, name, config, changes=None, rename=None):
    """A fixture of a family, with the tensors as transformers saves them, or renamed."""
    prompts = [prompt for prompt in prompts_for(SMALL) if len(prompt) != 50]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        write_config(Path(scratch) / "config.json", config)
        shape = AutoConfig.from_pretrained(scratch)
        attention = attention_of(config)
        model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32, attn_implementation=attention).eval()
        zero_centered = config["model_type"] in ("gemma", "gemma2", "gemma3_text", "nemotron")
        for seed in range(3000):
            random_family_weights(model, seed, zero_centered, "mxfp4" in name)
            if family_reference(model, prompts, use_cache="longrope" not in name, name=name):
                break
        else:
            raise SystemExit(f"{name}: no seed gives clear greedy choices")
        model.to(torch.bfloat16).save_pretrained(scratch)
        saved = json.loads((Path(scratch) / "config.json").read_text())
        weights = load_file(Path(scratch) / "model.safetensors")
        cases = family_reference(load(scratch), prompts, use_cache=False, name=name)
        cached = family_reference(load(scratch), prompts, use_cache=True, name=name)
    if "longrope" not in name:
        assert [case["tokens"] for case in cases] == [case["tokens"] for case in cached], name
    if rename:
        config = {k: v for k, v in {**config, **changes}.items() if v is not None or k.endswith("token_id")}
        weights = rename(weights)
    elif "longrope" not in name:
        write_config(folder / "config.alt.json", saved)
    write_config(folder / "config.json", config)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_reference(folder, cases, LENGTH_RULE if "longrope" in name else WEIGHTS_RULE)
    print(f"{name}: seed {seed}, smallest margin {min(min(c['margins']) for c in cases):.3f}", flush=True)


CORPUS = [
    "The quick brown fox jumps over the lazy dog. The dog did not mind; it was a warm day and the dog was asleep.",
    "Once upon a time there was a little village between the hills and the sea, where the people told stories.",
    "She said that they'd come again, but I'm not sure we'll be here when they're back. It's 12345 steps, isn't it?",
    "def add(a, b):\n    return a + b\n\n\nfor i in range(10):\n    print(i, add(i, i))\n",
    "Les élèves sont allés à l'école. Où est le café? Voilà: ça va, merci beaucoup. Grüße aus Köln, schöne Straße.",
    "Привет, как дела? Сегодня хорошая погода, и мы идём гулять в парк.",
    "你好，世界。今天天气很好，我们去公园散步。日本語のテキストもあります。こんにちは、世界。",
    "สวัสดีชาวโลก วันนี้อากาศดีมาก",
    "مرحبا بالعالم، كيف حالك اليوم؟ الطقس جميل.",
    "😀😃😄 👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈 — “quotes” … and • bullets",
]

TEXTS = [
    "",
    " ",
    "a",
    "Hello, world!",
    "The dog and the fox told stories.",
    " leading space",
    "trailing space ",
    "two  spaces   three    four",
    "line one\nline two\n\n  indented\r\n\ttab",
    "\n",
    "\n\n\n",
    "it's we'll they'RE I'd",
    "1234567890 3.14159 1,000,000",
    "def f(x):\n    return x**2  # square\n",
    "caf\u00e9 and cafe\u0301",
    "Grüße aus Köln — schöne Straße …",
    "Привет, мир! Ещё раз: ёлка",
    "你好，世界。日本語のテキスト",
    "สวัสดีชาวโลก ครับ",
    "مرحبا بالعالم، كيف حالك؟",
    "נסיון עברית",
    "한국어 문장입니다",
    "😀",
    "family 👨‍👩‍👧‍👦 and flag 🏳️‍🌈 and thumb 👍🏽!",
    "zero\u200bwidth and nbsp\u00a0here and bom\ufeff",
    "control \u0001\u0007 and replacement \ufffd",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ∑∫√ ≠ ≤",
    "▁meta▁space literal",
    "<0x41> is text, not a byte",
    "<s> </s> <|begin_of_text|> <|end_of_text|>",
    "a" * 70,
]


def bytelevel_tokenizer():
    """Byte-level BPE in the form of Llama 3: a split regex, no unknown token, BOS from the post-processor."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    split = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=560,
        min_frequency=1,
        special_tokens=["<|begin_of_text|>", "<|end_of_text|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    bos = ("<|begin_of_text|>", 0)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1", special_tokens=[bos]
    )
    return tokenizer


def metaspace_tokenizer():
    """BPE in the form of Llama 2: "▁" for spaces, bytes for what is not in the vocabulary."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    latin = [text for text in CORPUS if text.isascii() or "é" in text]
    learner.train_from_iterator(latin, trainers.BpeTrainer(vocab_size=300, min_frequency=2, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    pieces = sorted(learned["vocab"], key=learned["vocab"].get)
    names = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + pieces
    tokenizer = Tokenizer(
        models.BPE(
            vocab={name: number for number, name in enumerate(names)},
            merges=[tuple(pair) for pair in learned["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def make_tokenizer(folder, tokenizer):
    """`cases`: texts with their ids; `decode_only`: ids that no text encodes to, such as half of a character."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    cases = [text_case(tokenizer, text) for text in TEXTS]
    emoji = tokenizer.encode("a 😀 b", add_special_tokens=False).ids
    partial = [emoji[:n] for n in range(1, len(emoji))] + [emoji[-n:] for n in range(1, len(emoji))]
    decode_only = [{"ids": ids, "decoded": tokenizer.decode(ids)} for ids in partial]
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    more = ",\n".join(json.dumps(case, ensure_ascii=False) for case in decode_only)
    head = f'"made_with": "tokenizers {tokenizers.__version__}",\n"vocab_size": {tokenizer.get_vocab_size()}'
    text = "{" + head + ',\n"cases": [\n' + lines + '\n],\n"decode_only": [\n' + more + "\n]}\n"
    (folder / "cases.json").write_text(text, encoding="utf-8")
    print(f"{folder.name}: {tokenizer.get_vocab_size()} tokens, {len(cases)} cases")


def text_case(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    with_special = tokenizer.encode(text, add_special_tokens=True).ids
    return {
        "text": text,
        "ids": ids,
        "ids_with_special": with_special,
        "decoded": tokenizer.decode(ids, skip_special_tokens=True),
        "decoded_with_special": tokenizer.decode(with_special, skip_special_tokens=False),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "tests" / "fixtures")
    parser.add_argument("--only", nargs="*", help="names of fixtures; all by default")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    def wanted(name):
        return not arguments.only or name in arguments.only

    for name, config in CONFIGS.items():
        if wanted(name):
            make_model(arguments.out / "models" / name, name, config)
    for name, config in FAMILIES.items():
        if wanted(name):
            make_family(arguments.out / "models" / name, name, config)
    for name, (config, changes, rename) in RENAMED.items():
        if wanted(name):
            make_family(arguments.out / "models" / name, name, config, changes, rename)
    if wanted("llama-sharded"):
        make_sharded(arguments.out / "models" / "llama-sharded", arguments.out / "models" / "llama-gqa")
    for name, count in (("llama-gqa", 1), ("llama-bf16", 2)):
        if wanted(f"pickle-{name}"):
            make_pickles(arguments.out / "formats" / "pickle" / name, arguments.out / "models" / name, count)
    for name, tokenizer in (("bytelevel", bytelevel_tokenizer()), ("metaspace", metaspace_tokenizer())):
        if wanted(name):
            make_tokenizer(arguments.out / "tokenizers" / name, tokenizer)


if __name__ == "__main__":
    main()
