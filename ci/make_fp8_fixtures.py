#!/usr/bin/env python3
"""Makes tests/fixtures/models/*-fp8*: models of tests/fixtures/models with matrices of 8-bit floats.

Needs what ci/make_fixtures.py needs. The reference is that of transformers with the numbers that the 8-bit floats and their
scales stand for, in float32:

    python3 ci/make_fp8_fixtures.py [--out tests/fixtures/models]
"""

import argparse
import json
import re
import shutil
from pathlib import Path

import torch
import transformers
from make_fixtures import SMALL, family_reference, load, prompts_for, write_config, write_reference
from safetensors.torch import load_file, save_file

# The largest number of the format.
MOST = 448.0
KEPT = re.compile(r"norm|embed_tokens|lm_head|mlp\.gate\.|bias")
NOTE = "The weights are what the 8-bit floats stand for, in float32."
# Fixture: source, rows and columns that share a scale (0: all), type and name of the scales, quantization_config.
FIXTURES = {
    "deepseek-v3-fp8": (
        "deepseek-v3",
        (16, 16),
        torch.float32,
        "weight_scale_inv",
        {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [16, 16]},
    ),
    "qwen3-moe-fp8": (
        "qwen3-moe",
        (128, 128),
        torch.bfloat16,
        "weight_scale_inv",
        {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "modules_to_not_convert": ["lm_head"]},
    ),
    "phi3-fp8-tensors": ("phi3", (0, 0), torch.float32, "weight_scale", {"activation_scheme": "static", "quant_method": "fp8"}),
    "granite-fp8-rows": (
        "granite",
        (1, 0),
        torch.bfloat16,
        "weight_scale",
        {"quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head"]},
    ),
}


def quantised(weight, block, dtype, jitter):
    """Codes, scales, and what they stand for."""
    rows, cols = (size or full for size, full in zip(block, weight.shape))
    down, across = -(-weight.shape[0] // rows), -(-weight.shape[1] // cols)
    padded = torch.zeros(down * rows, across * cols)
    padded[: weight.shape[0], : weight.shape[1]] = weight
    amax = padded.reshape(down, rows, across, cols).abs().amax((1, 3))
    scales = (amax / MOST * jitter).clamp(min=1e-9).to(dtype)
    wide = scales.float().repeat_interleave(rows, 0).repeat_interleave(cols, 1)[: weight.shape[0], : weight.shape[1]]
    codes = (weight / wide).clamp(-MOST, MOST).to(torch.float8_e4m3fn)
    return codes, scales, codes.float() * wide


def make(folder, source, block, dtype, suffix, quantization):
    folder.mkdir(parents=True, exist_ok=True)
    original = {name: value.float() for name, value in load_file(source / "model.safetensors").items()}
    prompts = [prompt for prompt in prompts_for(SMALL) if len(prompt) != 50]
    config = json.loads((source / "config.json").read_text())
    # The choices of the source are clear, those of the rounded numbers need not be: another scale rounds otherwise.
    for attempt in range(400):
        stored, meant = {}, {}
        for name, value in original.items():
            stored[name], meant[name] = value.to(torch.bfloat16), value
            if value.dim() == 2 and not KEPT.search(name):
                stored[name], scales, meant[name] = quantised(value, block, dtype, 1 + 0.004 * attempt)
                stored[name.removesuffix("weight") + suffix] = scales.reshape(()) if block == (0, 0) else scales
                if quantization["quant_method"] == "fp8" and block == (0, 0):
                    stored[name.removesuffix("weight") + "input_scale"] = torch.tensor(0.5)
        scratch = folder / "scratch"
        scratch.mkdir(exist_ok=True)
        write_config(scratch / "config.json", config)
        save_file(meant, scratch / "model.safetensors", metadata={"format": "pt"})
        model = load(scratch)
        shutil.rmtree(scratch)
        cases = family_reference(model, prompts, use_cache=True, name=folder.name)
        if cases:
            break
    else:
        raise SystemExit(f"{folder.name}: no scale gives clear greedy choices")
    write_config(folder / "config.json", {**config, "quantization_config": quantization})
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    write_reference(folder, cases, NOTE)
    print(f"{folder.name}: attempt {attempt}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "tests" / "fixtures" / "models")
    parser.add_argument("--only", nargs="*", default=list(FIXTURES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in arguments.only:
        source, *rest = FIXTURES[name]
        make(arguments.out / name, arguments.out / source, *rest)


if __name__ == "__main__":
    main()
