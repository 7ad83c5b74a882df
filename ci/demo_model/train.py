#!/usr/bin/env python3
"""Makes the demo model: generates text, trains a tokenizer and a small Llama on it, writes a Hugging Face folder.

Needs torch, transformers, tokenizers and safetensors and, in practice, a GPU:

    python3 ci/demo_model/train.py --out ci/demo_model/hf --reference tests/fixtures/demo_greedy.json --minutes 4
"""

import argparse
import json
import math
import multiprocessing
import os
import random
import time
from pathlib import Path

import generate
import numpy as np
import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"
VOCABULARY = 4096
CONTEXT = 2048
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CONFIG_KEYS = (
    "architectures model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "num_key_value_heads head_dim hidden_act max_position_embeddings rms_norm_eps attention_bias mlp_bias "
    "tie_word_embeddings bos_token_id eos_token_id pad_token_id"
).split()
PROMPTS = [
    "Once upon a time",
    "The capital of France is",
    "Question: What is the capital of Japan?\nAnswer:",
    "User: Tell me a story about a dragon and a lantern.\nAssistant:",
    "How to make pancakes",
    "Hello, my name is",
]
MORE_PROMPTS = [
    "In a small village by the sea, there lived",
    "Question: What is 7 plus 5?\nAnswer:",
    "Dear Anna,",
    "The weather today",
    "One cold winter night, a fox",
    "A dog is",
    "User: How do I make tea?\nAssistant:",
    "It was a dark and stormy night.",
    "What is machine learning?",
    "The little robot opened the door and",
]


def shard(job):
    count, seed = job
    return list(generate.documents(count, seed))


def make_text(count, seed):
    """`count` documents in 64 shards, which depend on the seed only and not on the number of processes."""
    jobs = [(count // 64, seed * 1000 + i) for i in range(64)]
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        return [text for part in pool.map(shard, jobs, chunksize=1) for text in part]


def train_tokenizer(texts):
    """Byte-level BPE; encoding puts the begin-of-text token first, as Llama 3 does. Digits stand alone."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(tokenizers.Regex(SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    template = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, 0)]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


def write_tokenizer(folder, tokenizer):
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    config = {
        "added_tokens_decoder": {str(i): {"content": t, **special} for i, t in enumerate((BOS, EOS, PAD))},
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": CONTEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def cut(text, rng):
    """Half of the texts in two parts, cut beside a space near the start.

    The parts are tokenized apart. A prompt ends where its author stops, often inside what would be one token.
    """
    at = rng.randrange(1, 160)
    if rng.random() < 0.5 or at >= len(text):
        return text, ""
    while at < len(text) and text[at] not in " \n":
        at += 1
    at = min(len(text), at + (rng.random() < 0.15))
    return text[:at], text[at:]


def tokenize(tokenizer, texts):
    """All documents in one array, each begun by BOS and ended by EOS, and where each begins."""
    rng, parts, starts, at = random.Random(1), [], [], 0
    for first in range(0, len(texts), 20000):
        heads, tails = zip(*(cut(text, rng) for text in texts[first : first + 20000]), strict=True)
        encoded = zip(
            tokenizer.encode_batch_fast(list(heads)),
            tokenizer.encode_batch_fast(list(tails), add_special_tokens=False),
            strict=True,
        )
        for head, tail in encoded:
            ids = np.array(head.ids + tail.ids + [1], dtype=np.uint16)
            parts.append(ids)
            starts.append(at)
            at += len(ids)
    return np.concatenate(parts), np.array(starts)


def model_config(arguments):
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=VOCABULARY,
        hidden_size=arguments.hidden,
        intermediate_size=arguments.hidden * 8 // 3,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.hidden // 64,
        num_key_value_heads=arguments.hidden // 192,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )


def batches(data, starts, size, length, device, seed):
    """Windows that begin where a document begins, so that training sees what a prompt looks like."""
    generator = torch.Generator(device=device).manual_seed(seed)
    starts = torch.from_numpy(starts[starts < len(data) - length - 1]).to(device)
    data = torch.from_numpy(data.astype(np.int16)).to(device)
    offsets = torch.arange(length + 1, device=device)
    while True:
        chosen = starts[torch.randint(len(starts), (size,), generator=generator, device=device)]
        window = data[chosen[:, None] + offsets].long()
        yield window[:, :-1], window[:, 1:]


def train(model, stream, arguments, device):
    """AdamW with a linear warm-up and a cosine decay over the minutes given."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=device == "cuda")
    forward = torch.compile(model) if device == "cuda" else model
    model.train()
    start, step, seen, last = None, 0, 0, None
    while start is None or time.time() - start < 60 * arguments.minutes:
        done = 0.0 if start is None else (time.time() - start) / (60 * arguments.minutes)
        rate = arguments.rate * min(1.0, (step + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        inputs, targets = next(stream)
        with torch.autocast(device, dtype=torch.bfloat16):
            logits = forward(input_ids=inputs, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step == 10:
            loss.item()
            start = time.time()
        seen += targets.numel()
        if step % 200 == 0:
            last = loss.item()
            speed = (step - 10) * targets.numel() / (time.time() - start) if start else 0
            print(f"step {step} done {done:.2f} loss {last:.4f} rate {rate:.2e} tokens/s {speed:.0f}", flush=True)
    return {"steps": step, "tokens_seen": seen, "last_loss": loss.item()}


@torch.no_grad()
def held_out_loss(model, tokenizer, device, count):
    """Mean loss per token on documents of a seed that training never uses."""
    model.eval()
    data, starts = tokenize(tokenizer, list(generate.documents(count, 999_999)))
    total = []
    stream = batches(data, starts, 8, 1024, device, 1)
    for _ in range(8):
        inputs, targets = next(stream)
        logits = model(input_ids=inputs, use_cache=False).logits
        total.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten()).item())
    return sum(total) / len(total)


def write_model(folder, model):
    known = model.config.to_dict()
    config = {key: known[key] for key in CONFIG_KEYS}
    # The spelling before transformers 5, which every version reads.
    config |= {"rope_scaling": None, "rope_theta": 10000.0, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "do_sample": True, "temperature": 0.8}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    weights = {k: v.to(torch.bfloat16).cpu().contiguous() for k, v in model.state_dict().items()}
    weights.pop("lm_head.weight", None)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def load(folder):
    """The model as saved, widened to float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@torch.no_grad()
def continue_text(model, tokenizer, prompt, count, temperature=0.0, seed=0):
    """Ids of a continuation and whether it ended by itself."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    fed = torch.tensor([tokenizer.encode(prompt).ids], device=device)
    cache, made = None, []
    while len(made) < count:
        out = model(fed, past_key_values=cache, use_cache=True)
        cache, logits = out.past_key_values, out.logits[0, -1].float().cpu()
        if temperature:
            made.append(torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=generator).item())
        else:
            made.append(logits.argmax().item())
        if made[-1] == 1:
            break
        fed = torch.tensor([[made[-1]]], device=device)
    return made


def write_samples(path, folder, device):
    model, tokenizer = load(folder).to(device), Tokenizer.from_file(str(folder / "tokenizer.json"))
    parts = []
    for number, prompt in enumerate(PROMPTS + MORE_PROMPTS):
        for temperature in (0.0, 0.8):
            made = continue_text(model, tokenizer, prompt, 160, temperature, number)
            parts.append(f"=== temperature {temperature}\n{prompt}\u2503{tokenizer.decode(made)}")
    path.write_text("\n\n".join(parts) + "\n")
    print("\n\n".join(parts), flush=True)


def write_reference(path, folder):
    """Greedy continuations in float32 on the CPU, with the margin of every choice over the runner-up."""
    model, tokenizer = load(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    cases = []
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt).ids
        made = continue_text(model, tokenizer, prompt, 48)
        with torch.no_grad():
            logits = model(torch.tensor([ids + made[:-1]])).logits[0, len(ids) - 1 :]
        best = torch.topk(logits, 2, dim=-1)
        assert best.indices[:, 0].tolist() == made, "generation with and without the cache differ"
        margins = [round(m, 4) for m in (best.values[:, 0] - best.values[:, 1]).tolist()]
        text = tokenizer.decode(made, skip_special_tokens=True)
        cases.append({"prompt": prompt, "prompt_ids": ids, "ids": made, "text": text, "margins": margins})
    head = {
        "made_with": f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}, float32, eager",
        "note": "Prompt ids begin with BOS. Up to 48 greedy tokens; a last id of 1 is EOS.",
    }
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    start = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in head.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{" + start + ',\n"cases": [\n' + lines + "\n]}\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--reference", type=Path, help="file for greedy continuations")
    parser.add_argument("--samples", type=Path, help="file for sample continuations")
    parser.add_argument("--documents", type=int, default=256_000)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rate", type=float, default=2e-3)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    began = time.time()

    def report(what):
        print(f"[{time.time() - began:6.1f} s] {what}", flush=True)

    texts = make_text(arguments.documents, arguments.seed)
    report(f"{len(texts)} documents, {sum(map(len, texts)) / 1e6:.1f} M characters")
    tokenizer = train_tokenizer(texts[: len(texts) // 8])
    write_tokenizer(arguments.out, tokenizer)
    report(f"tokenizer with {tokenizer.get_vocab_size()} tokens")
    data, starts = tokenize(tokenizer, texts)
    report(f"{len(data) / 1e6:.1f} M tokens")

    torch.manual_seed(arguments.seed)
    torch.set_float32_matmul_precision("high")
    model = LlamaForCausalLM(model_config(arguments)).to(device)
    report(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    stream = batches(data, starts, arguments.batch, arguments.length, device, arguments.seed)
    result = train(model, stream, arguments, device)
    result["held_out_loss"] = held_out_loss(model, tokenizer, device, 600)
    report(json.dumps(result))
    write_model(arguments.out, model)
    if arguments.reference:
        write_reference(arguments.reference, arguments.out)
        report("reference written")
    if arguments.samples:
        write_samples(arguments.samples, arguments.out, device)
        report("samples written")


if __name__ == "__main__":
    main()
