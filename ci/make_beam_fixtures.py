"""Makes tests/fixtures/beams.json: what transformers' beam search says with the tiny models of tests/fixtures/models.

Needs torch and transformers; run after make_fixtures.py, from the project's root.
"""

import json
import pathlib
import random

import torch
from transformers import AutoModelForCausalLM

FIXTURES = pathlib.Path("tests/fixtures")
MODELS = ["llama-gqa", "gpt2", "qwen3", "mistral-window", "olmo2"]
EARLY = {True: 1, False: 0, "never": 2}
SETTINGS = [
    # width, returned, length penalty, early stopping, end ids, new tokens
    (2, 2, 0.0, True, 0, 12),
    (3, 3, 1.0, False, 24, 16),
    (4, 2, 2.0, "never", 20, 16),
    (5, 5, 0.5, True, 12, 10),
    (4, 4, 0.0, False, 20, 14),
    (4, 4, 1.0, "never", 30, 14),
]


def search(model, prompt, width, count, penalty, early, ends, new_tokens):
    """The best beams: ids without the end id, sum of log-probabilities over length ** penalty, end id counted."""
    vocab = model.config.get_text_config().vocab_size
    end_ids = [(5 * at + 3) % vocab for at in range(ends)]
    found = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        num_beams=width,
        num_return_sequences=count,
        length_penalty=penalty,
        early_stopping=early,
        eos_token_id=end_ids or None,
        pad_token_id=vocab - 1,
        max_new_tokens=new_tokens,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
    )
    beams = []
    for sequence, score in zip(found.sequences.tolist(), found.sequences_scores.tolist()):
        tokens = sequence[len(prompt) :]
        end = next((at for at, token in enumerate(tokens) if token in end_ids), None)
        ended = end is not None
        beams.append({"tokens": tokens[:end] if ended else tokens, "score": round(score, 6), "ended": ended})
    return {
        "prompt": prompt,
        "width": width,
        "len_penalty": penalty,
        "early_stopping": EARLY[early],
        "end_ids": end_ids,
        "max_tokens": new_tokens,
        "beams": beams,
    }


def main():
    cases = []
    for name in MODELS:
        model = AutoModelForCausalLM.from_pretrained(FIXTURES / "models" / name, dtype=torch.float32).eval()
        vocab = model.config.get_text_config().vocab_size
        draw = random.Random(name)
        for number, setting in enumerate(SETTINGS):
            prompt = [draw.randrange(vocab) for _ in range(5 + 9 * number)]
            with torch.no_grad():
                cases.append({"model": name} | search(model, prompt, *setting))
    lines = ",\n".join("  " + json.dumps(case, separators=(",", ":")) for case in cases)
    (FIXTURES / "beams.json").write_text('{"cases": [\n' + lines + "\n]}\n")


if __name__ == "__main__":
    main()
