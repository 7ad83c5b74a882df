#!/usr/bin/env python3
"""Makes the references of tests/fixtures/tokenizers/{sentencepiece,tiktoken} and of tests/fixtures/chat.

Needs sentencepiece, tokenizers, transformers and tiktoken, but no torch; runs in a few seconds. The tests read only what
is committed, so this is run again only when a fixture changes:

    python3 ci/make_tokenizer_fixtures.py [--out tests/fixtures]

Vocabularies are trained here on a few sentences. The ids of SentencePiece models are those of Hugging Face's
LlamaTokenizer where special tokens or its options play a role, those of sentencepiece itself for everything else; the
ids of tiktoken files are those of tiktoken. The chat templates (*.jinja beside cases.json) are written for these tests;
their texts and ids are those of apply_chat_template.
"""

import argparse
import base64
import datetime
import json
import tempfile
from pathlib import Path

import sentencepiece
import tiktoken
import transformers
import transformers.utils.chat_template_utils as chat_template_utils
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode, generate_merges
from transformers.integrations.mistral.tokenizer import MistralConverter

CORPUS = [
    "The quick brown fox jumps over the lazy dog. The dog did not mind; it was a warm day and the dog was asleep.",
    "Once upon a time there was a little village between the hills and the sea, where the people told stories.",
    "She said that they'd come again, but I'm not sure we'll be here when they're back. It's 12345 steps, isn't it?",
    "def add(a, b):\n    return a + b\n\n\nfor i in range(10):\n    print(i, add(i, i))\n",
    "Les élèves sont allés à l'école. Où est le café? Voilà: ça va, merci beaucoup. Grüße aus Köln, schöne Straße.",
    "Привет, как дела? Сегодня хорошая погода, и мы идём гулять в парк.",
    "你好，世界。今天天气很好，我们去公园散步。日本語のテキストもあります。こんにちは、世界。",
    "the village and the dog and the sea and the hills told the people stories again and again",
]

TEXTS = [
    "",
    "a",
    "Hello, world!",
    "The dog and the fox told stories.",
    "trailing space ",
    "two  spaces   three    four",
    "line one\nline two\n\n  indented\r\n\ttab",
    "it's we'll they'RE I'd",
    "1234567890 3.14159 1,000,000",
    "caf\u00e9 and cafe\u0301",
    "Привет, мир! Ещё раз: ёлка",
    "你好，世界。日本語のテキスト",
    "สวัสดีชาวโลก ครับ",
    "family 👨‍👩‍👧‍👦 and flag 🏳️‍🌈 and thumb 👍🏽!",
    "ａｂｃ　wide and ﬁne",
    "control \u0001\u0007 and replacement \ufffd",
    "aaaaaaaaaaaaaaaaaaaaaa",
]
LEADING = [" ", " leading space", "  two"]
SPECIAL = ["<s>a</s>", "Hi <tool>call</tool> there", "x<|end|> y <|end|>z", "<|end|>", "<tool>", "a <unk> b"]


def case(text, ids, decoded, **more):
    return {"text": text, "ids": ids, "decoded": decoded, **more}


def train(folder, name, **options):
    """A SentencePiece model of CORPUS."""
    with tempfile.TemporaryDirectory() as scratch:
        sentences = [line for text in CORPUS for line in text.split("\n") if line]
        trainer = {"sentence_iterator": iter(sentences * 3), "model_prefix": f"{scratch}/m", "minloglevel": 2, **options}
        sentencepiece.SentencePieceTrainer.train(**trainer)
        (folder / name).write_bytes(Path(f"{scratch}/m.model").read_bytes())
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / name))


def llama(processor, legacy):
    """Hugging Face's tokenizer of the same pieces: LlamaTokenizer, for `legacy` with the normalizer that it had then."""
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    is_text = [not (processor.is_control(i) or processor.is_unknown(i) or processor.is_byte(i)) for i in range(len(pieces))]
    skip = [piece for piece, text in zip(pieces, is_text) if not text]
    scores = [(piece, processor.get_score(i)) for i, piece in enumerate(pieces)]
    tokenizer = LlamaTokenizer(vocab=vocab, merges=generate_merges(vocab, scores, skip), add_bos_token=True)
    backend = tokenizer.backend_tokenizer
    if legacy:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.pre_tokenizer = None
    tokenizer.add_tokens([transformers.AddedToken(token, normalized=False) for token in ("<tool>", "</tool>")])
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|end|>"]})
    return tokenizer


def sentencepiece_cases(folder):
    bytes_and_symbols = {
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "character_coverage": 0.99,
        "user_defined_symbols": ["<tool>", "</tool>"],
    }
    bpe = train(folder, "bpe.model", model_type="bpe", vocab_size=480, split_digits=True, **bytes_and_symbols)
    end = {"added_tokens_decoder": {str(bpe.get_piece_size()): {"content": "<|end|>", "special": True}}}
    for legacy in (False, True):
        tokenizer = llama(bpe, legacy)
        config = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy, **end}
        cases = []
        for text in TEXTS + LEADING + SPECIAL:
            ids = tokenizer.encode(text, add_special_tokens=False)
            if text not in SPECIAL and (legacy or not text.startswith(" ")):
                assert ids == bpe.encode(text), f"sentencepiece differs on {text!r}"
            with_special = tokenizer.encode(text)
            decoded = tokenizer.decode(ids, skip_special_tokens=True)
            cases.append(case(text, ids, decoded, ids_with_special=with_special))
        yield {"file": "bpe.model", "tokenizer_config": config, "vocab_size": len(tokenizer), "cases": cases}

    unigram = train(folder, "unigram.model", model_type="unigram", vocab_size=420, **bytes_and_symbols, add_dummy_prefix=False)
    yield own_cases("unigram.model", unigram, TEXTS + LEADING, [1], [])

    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
        # U+FF41.. to a.., "ﬁ" to "fi", a combining acute into the letter, tab, newline and the wide blank to a blank
        pairs = {"\uff41": "a", "\uff42": "b", "\uff43": "c", "\ufb01": "fi", "e\u0301": "\u00e9"}
        pairs |= {"\t": " ", "\n": " ", "\r": " ", "\u3000": " "}
        for source, target in pairs.items():
            points = [" ".join(f"{ord(c):X}" for c in text) for text in (source, target)]
            rules.write("\t".join(points) + "\n")
        rules.flush()
        options = {"bos_id": -1, "pad_id": 0, "eos_id": 1, "unk_id": 2, "normalization_rule_tsv": rules.name}
        normalised = train(folder, "normalised.model", model_type="unigram", vocab_size=220, hard_vocab_limit=False, **options)
    yield own_cases("normalised.model", normalised, TEXTS + LEADING, [], [1])


def own_cases(file, processor, texts, before, after):
    """Cases of which sentencepiece itself is the reference; it has a text of its own for what is unknown."""
    cases = []
    for text in texts:
        ids = processor.encode(text)
        decoded = None if processor.unk_id() in ids else processor.decode(ids)
        cases.append(case(text, ids, decoded, ids_with_special=before + ids + after))
    return {"file": file, "tokenizer_config": {}, "vocab_size": processor.get_piece_size(), "cases": cases}


PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_PATTERN = PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def ranks():
    """Tokens of a byte-level BPE of CORPUS with their ranks."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=520, initial_alphabet=sorted(alphabet), show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    byte_of = {char: byte for byte, char in bytes_to_unicode().items()}
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return {bytes(byte_of[char] for char in token): rank for token, rank in vocab}


def tiktoken_cases(folder):
    mergeable = ranks()
    lines = [f"{base64.b64encode(token).decode()} {rank}" for token, rank in mergeable.items()]
    (folder / "test.tiktoken").write_text("\n".join(lines) + "\n")
    n = len(mergeable)
    qwen = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] + [f"<|extra_{i}|>" for i in range(205)]
    qwen = {token: n + i for i, token in enumerate(qwen)}
    added = {"<|a|>": n, "<|b|>": n + 1}
    decoder = {"added_tokens_decoder": {str(i): {"content": token, "special": True} for token, i in added.items()}}
    for config, pattern, special in (
        (decoder, PATTERN, added),
        ({"tokenizer_class": "QWenTokenizer"}, QWEN_PATTERN, qwen),
    ):
        encoding = tiktoken.Encoding("test", pat_str=pattern, mergeable_ranks=mergeable, special_tokens=special)
        texts = TEXTS + LEADING + [f"a{token} b" for token in list(special)[:2]]
        cases = [tiktoken_case(encoding, text, 0) for text in texts]
        yield {"file": "test.tiktoken", "tokenizer_config": config, "vocab_size": encoding.n_vocab, "cases": cases}

    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    tekken = {
        "config": {"pattern": TEKKEN_PATTERN, "default_vocab_size": n + 10, "default_num_special_tokens": 16, "version": "v7"},
        "vocab": [{"rank": r, "token_bytes": base64.b64encode(t).decode(), "token_str": None} for t, r in mergeable.items()],
        "special_tokens": [{"rank": i, "token_str": token, "is_control": True} for i, token in enumerate(special)],
    }
    (folder / "tekken.json").write_text(json.dumps(tekken, separators=(",", ":")).replace("},{", "},\n{") + "\n")
    kept = {token: rank for token, rank in mergeable.items() if rank < n - 6}
    last = {token: len(kept) + i for i, token in enumerate(special)}
    encoding = tiktoken.Encoding("tekken", pat_str=TEKKEN_PATTERN, mergeable_ranks=kept, special_tokens=last)
    converted = MistralConverter(str(folder / "tekken.json")).converted()
    cases = []
    for text in TEXTS + LEADING + ["<s>[INST] hello [/INST] yes</s>"]:
        own = [i + 16 if i < len(kept) else i - len(kept) for i in encoding.encode(text, allowed_special="all")]
        assert own == converted.encode(text, add_special_tokens=False).ids, f"the references differ on {text!r}"
        decoded = converted.decode(own, skip_special_tokens=True)
        cases.append(case(text, own, decoded, ids_with_special=[1] + own))
    yield {"file": "tekken.json", "tokenizer_config": {}, "vocab_size": n + 10, "cases": cases}


def tiktoken_case(encoding, text, _):
    ids = encoding.encode(text, allowed_special="all")
    plain = [i for i in ids if i < encoding.max_token_value + 1 and i not in encoding._special_tokens.values()]
    return case(text, ids, encoding.decode(plain), ids_with_special=ids)


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather of a <place> & a day.",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "description": "City, e.g. \"Köln\""},
                    "days": {"type": "array", "items": {"type": "integer"}, "description": "Days from now", "default": [0]},
                    "unit": {"type": "string", "enum": ["C", "F"], "default": "C"},
                    "limit": {"type": ["number", "null"]},
                    "more": {"type": "object", "properties": {"wind": {"type": "boolean"}}, "required": ["wind"]},
                    "when": {"oneOf": [{"type": "string"}, {"type": "number"}], "default": "now"},
                },
                "required": ["place"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {"type": "object", "properties": {}, "required": []}}},
]
SYSTEM = {"role": "system", "content": "Be brief & <kind>. "}
USER = {"role": "user", "content": " Grüß dich! What's 1 < 2?\n"}
ANSWER = {"role": "assistant", "content": "It's \"true\". "}
AGAIN = {"role": "user", "content": "And the weather in 東京 😀?"}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": {"place": "東京", "days": [0, 1], "unit": None}}}],
}
RESULT = {"role": "tool", "tool_call_id": "call00001", "name": "weather", "content": "{\"sun\": true}"}
THOUGHT = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nSunny."}
REASONED = {"role": "assistant", "thinking": "hm, hm", "content": "Sunny."}
DOCUMENTS = [{"id": "1", "title": "On suns", "text": "The sun shines."}, {"title": "On rain", "text": "It rains."}]

PLAIN = [[USER], [SYSTEM, USER], [SYSTEM, USER, ANSWER, AGAIN], [USER, ANSWER]]
CHATS = {
    "inst": [(m, {}) for m in PLAIN] + [([USER, USER], {})],
    "headers": [(m, {}) for m in PLAIN]
    + [([SYSTEM, USER, CALL, RESULT], {"tools": TOOLS}), ([USER], {"tools": TOOLS, "tools_in_user_message": False}), ([USER], {"date_string": "1 May"})],
    "chatml": [(m, {}) for m in PLAIN]
    + [
        ([SYSTEM, USER, CALL, RESULT, RESULT, THOUGHT, AGAIN], {"tools": TOOLS}),
        ([USER, CALL, RESULT, THOUGHT], {"tools": TOOLS}),
        ([USER, REASONED], {}),
        ([USER], {"enable_thinking": False}),
    ],
    "mistral": [(m, {}) for m in PLAIN] + [([SYSTEM, USER, CALL, RESULT, ANSWER, AGAIN], {"tools": TOOLS}), ([USER, {"role": "x", "content": ""}], {})],
    "gemma": [(m, {}) for m in PLAIN] + [([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " what? "}]}], {}), ([{"role": "user", "content": 1}], {})],
    "phi": [(m, {}) for m in PLAIN],
    "deepseek": [(m, {}) for m in PLAIN] + [([SYSTEM, USER, CALL, RESULT, RESULT], {}), ([USER, THOUGHT, AGAIN], {}), ([USER, {**CALL, "content": None}, RESULT, ANSWER], {}), ([USER, {**CALL, "reasoning": None}, RESULT, ANSWER], {})],
    "granite": [(m, {}) for m in PLAIN] + [([USER], {"tools": TOOLS, "documents": DOCUMENTS, "controls": {"citations": True, "length": "short"}})],
    "command": [(m, {}) for m in PLAIN] + [([SYSTEM, USER, CALL, RESULT, ANSWER], {"tools": TOOLS, "documents": DOCUMENTS})],
    "harmony": [(m, {}) for m in PLAIN]
    + [
        ([SYSTEM, USER, {**CALL, "thinking": "look it up"}, RESULT], {"tools": TOOLS, "reasoning_effort": "high"}),
        ([USER, REASONED], {"model_identity": "You are a test."}),
        ([USER, RESULT], {}),
    ],
    "glm4": [(m, {}) for m in PLAIN]
    + [
        ([SYSTEM, USER, {"role": "assistant", "metadata": "weather", "content": "{}"}, {"role": "observation", "content": "sun"}], {"tools": TOOLS}),
        ([USER], {"tools": [TOOLS[0]["function"]]}),
    ],
    "glm45": [(m, {}) for m in PLAIN]
    + [
        ([SYSTEM, USER, CALL, RESULT, RESULT, THOUGHT, AGAIN], {"tools": TOOLS}),
        ([USER, CALL, RESULT, THOUGHT], {"tools": TOOLS}),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, "b", {"type": "image"}]}], {"enable_thinking": False}),
    ],
    "llama4": [(m, {}) for m in PLAIN]
    + [
        ([SYSTEM, USER, CALL, RESULT], {"tools": TOOLS}),
        ([SYSTEM, USER], {"tools": TOOLS, "tools_in_user_message": False}),
        ([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " what? "}]}], {"tools": TOOLS}),
        ([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " what? "}]}], {}),
    ],
    "falcon": [(m, {}) for m in PLAIN],
    "falcon3": [(m, {}) for m in PLAIN] + [([SYSTEM, USER, CALL, RESULT, ANSWER], {"tools": TOOLS}), ([USER, {**CALL, "content": ""}, RESULT], {"tools": TOOLS})],
    "starcoder2": [(m, {}) for m in PLAIN],
    "phi4": [(m, {}) for m in PLAIN],
    "python": [
        (
            [SYSTEM, USER, AGAIN],
            {
                "variables": {
                    "number": 1.5,
                    "nothing": None,
                    "flag": True,
                    "text": "élan vital",
                    "nested": {"z": 1e-7, "list": [1, "<é>\x7f\x01", None], "s": "a\u2028b", "a": {"b": []}, "e": {}, "big": 12345678901234567890},
                }
            },
        )
    ],
}
NOW = datetime.datetime(2025, 3, 9, 14, 5, 6)


class FixedTime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def chat_cases(folder, tokenizer_file):
    chat_template_utils.datetime = FixedTime
    tokens = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file), **tokens)
    for name, chats in CHATS.items():
        template = (folder / f"{name}.jinja").read_text(encoding="utf-8")
        for messages, options in chats:
            for prompt in (False, True):
                chat = {"template": name, "messages": messages, "options": {"add_generation_prompt": prompt, **options}}
                arguments = {"chat_template": template, **chat["options"]}
                try:
                    chat["text"] = tokenizer.apply_chat_template(messages, tokenize=False, **arguments)
                except Exception as error:
                    chat["error"] = str(error)
                else:
                    if len(messages) <= 2 and not options:
                        chat["ids"] = tokenizer.apply_chat_template(messages, return_dict=False, **arguments)
                yield chat


def write(path, head, name, cases):
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    body = ",\n".join(json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in cases)
    path.write_text("{" + ",\n".join(lines) + f',\n"{name}": [\n' + body + "\n]}\n", encoding="utf-8")
    print(f"{path}: {len(cases)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "tests" / "fixtures")
    out = parser.parse_args().out
    transformers.logging.set_verbosity_error()
    versions = {"made_with": ", ".join(f"{m.__name__} {m.__version__}" for m in (sentencepiece, tiktoken, transformers))}
    for name, make in (("sentencepiece", sentencepiece_cases), ("tiktoken", tiktoken_cases)):
        folder = out / "tokenizers" / name
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "cases.json", versions, "tokenizers", list(make(folder)))
    now = {**versions, "now_s": int(NOW.replace(tzinfo=datetime.timezone.utc).timestamp())}
    cases = list(chat_cases(out / "chat", out / "tokenizers" / "bytelevel" / "tokenizer.json"))
    write(out / "chat" / "cases.json", now, "cases", cases)


if __name__ == "__main__":
    main()
