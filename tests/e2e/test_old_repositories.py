"""Repositories as the versions of upstream's backend declared them (contract, appendix A), behind the real server."""

import json
import shutil
from pathlib import Path

import pytest
from server import DEMO, ROOT, Server

REPOSITORIES = ROOT / "tests" / "fixtures" / "repositories"
PROMPT = "Once upon a time"
ROLES = {"preprocessing": "preprocessing", "postprocessing": "postprocessing", "tensorrt_llm_bls": "bls"}


def parameter(key: str, value: str) -> str:
    return f'parameters: {{ key: "{key}" value: {{ string_value: "{value}" }} }}\n'


def plain_tokenizer(folder: Path) -> Path:
    """The demo model's tokenizer without the token that begins a text, as GPT's: version 0.5 puts that before words too."""
    shutil.copytree(DEMO, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["post_processor"] = None
    path.write_text(json.dumps(tokenizer))
    return folder


def fill(version: str, repository: Path, tokenizer: Path, edit=lambda name, text: text) -> None:
    for model in (REPOSITORIES / version).iterdir():
        text = (model / "config.pbtxt").read_text().replace("${engine_dir}", str(DEMO)).replace("${tokenizer_dir}", str(tokenizer))
        if model.name in ROLES:
            text = text.replace('backend: "python"', 'backend: "trtllm"') + parameter("model_role", ROLES[model.name])
        if model.name == "tensorrt_llm":
            text += parameter("device", "cpu")
        target = repository / model.name
        (target / "1").mkdir(parents=True)
        (target / "config.pbtxt").write_text(edit(model.name, text))


def start(folder: Path, version: str, edit=lambda name, text: text) -> Server:
    fill(version, folder / "repository", plain_tokenizer(folder / "tokenizer"), edit)
    return Server(folder, folder / "repository", "--disable-auto-complete-config")


@pytest.mark.parametrize("version", sorted(path.name for path in REPOSITORIES.iterdir()))
def test_appendix_a_a_repository_of_each_version_answers_generate(tmp_path, version):
    server = start(tmp_path, version)
    body = {"text_input": PROMPT, "max_tokens": 12, "bad_words": "", "stop_words": "", "temperature": 1.0, "stream": False}
    reply = server.generate("ensemble", **body)
    assert reply.status == 200, reply.body
    text = reply.json["text_output"]
    assert text.startswith(PROMPT) and len(text) > len(PROMPT) + 8
    unasked = {"cum_log_probs", "output_log_probs"} & set(reply.json)
    assert bool(unasked) == (version in ("0.6", "0.7", "0.8", "0.11", "0.13")), reply.json
    if (REPOSITORIES / version / "tensorrt_llm_bls").exists():
        assert server.text("tensorrt_llm_bls", **body) == text
        told = server.generate("tensorrt_llm_bls", **body, return_log_probs=True)
        assert told.status == 200, told.body
        assert told.json["text_output"] == text and all(value < 0 for value in told.json["output_log_probs"]), told.json
    assert server.stop() == 0, server.log[-4000:]


def test_6_1_version_0_5_takes_its_words_as_one_text(tmp_path):
    """Its LLM had no word lists; one that has them gets what its preprocessing makes of the texts."""
    names = {"STOP_WORDS_IDS": "stop_words_list", "BAD_WORDS_IDS": "bad_words_list"}

    def edit(name, text):
        if name == "tensorrt_llm":
            inputs = "".join(f'  {{ name: "{to}" data_type: TYPE_INT32 dims: [ 2, -1 ] optional: true }},\n' for to in names.values())
            return text.replace("input [\n", "input [\n" + inputs, 1)
        if name == "ensemble":
            maps = {"output_map": [(key, f"_{key}") for key in names], "input_map": [(to, f"_{key}") for key, to in names.items()]}
            for (kind, pairs), model in zip(maps.items(), ("preprocessing", "tensorrt_llm")):
                lines = "".join(f'      {kind} {{ key: "{key}" value: "{value}" }}\n' for key, value in pairs)
                head = f'      model_name: "{model}"\n'
                text = text.replace(head, head + lines)
        return text

    server = start(tmp_path, "0.5", edit)
    body = {"text_input": PROMPT, "max_tokens": 40}
    whole = server.text("ensemble", **body, bad_words="", stop_words="")
    answer = whole[len(PROMPT) :]
    word = next(word for word in answer.split()[3:] if word.isalpha() and len(word) > 3)
    stopped = server.text("ensemble", **body, bad_words="", stop_words=f'"no, such words", {word}')
    assert stopped == whole[: whole.index(word, len(PROMPT)) + len(word)]
    without = server.text("ensemble", **body, bad_words=f"nothing, {word}", stop_words="")
    assert word not in without[len(PROMPT) :] and without != whole
    assert "as in version 0.5: the words of a prompt are one comma-separated text" in server.log
    missing = server.generate("ensemble", text_input=PROMPT, max_tokens=4)
    assert missing.status == 400 and "bad_words" in missing.error, "words were mandatory"
    assert server.stop() == 0, server.log[-4000:]
