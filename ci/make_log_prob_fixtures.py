"""Makes tests/fixtures/log_probs.json: log-probabilities in float32 by transformers, of prompts, greedy tokens and their rivals.

Needs torch and transformers; run after make_fixtures.py, from the project's root.
"""

import json
import pathlib
import random

import torch
from transformers import AutoModelForCausalLM

FIXTURES = pathlib.Path("tests/fixtures")
MODELS = ["llama-gqa", "gpt2", "qwen3"]
TOP = 4
NEW_TOKENS = 6


def case(model, name, prompt):
    ids, top = list(prompt), []
    for _ in range(NEW_TOKENS):
        log_probs = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        values, tokens = log_probs[-1].topk(TOP)
        top.append([[token, round(value, 6)] for token, value in zip(tokens.tolist(), values.tolist())])
        ids.append(tokens[0].item())
    of_prompt = [round(log_probs[at - 1, ids[at]].item(), 6) for at in range(1, len(prompt))]
    return {"model": name, "prompt": prompt, "prompt_log_probs": of_prompt, "top": top}


def main():
    cases = []
    for name in MODELS:
        model = AutoModelForCausalLM.from_pretrained(FIXTURES / "models" / name, dtype=torch.float32).eval()
        draw = random.Random(name)
        with torch.no_grad():
            for length in (3, 19):
                cases.append(case(model, name, [draw.randrange(model.config.vocab_size) for _ in range(length)]))
    lines = ",\n".join("  " + json.dumps(case, separators=(",", ":")) for case in cases)
    (FIXTURES / "log_probs.json").write_text('{"cases": [\n' + lines + "\n]}\n")


if __name__ == "__main__":
    main()
