"""Pre- and postprocessing in Python, as in upstream's repositories, beside our LLM and our BLS (contract §6)."""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest
from server import DEMO, Server, copy_template

PROMPT = "Once upon a time"
PYTHON = Path(__file__).parent / "python_models"


def python_backend(backends: Path) -> None:
    """Puts the server's Python backend with the stub for this Python into a folder of backends."""
    tree = Path(os.environ["TRITONSERVER"]).resolve().parents[1]
    shutil.copytree(tree / "backends" / "python", backends / "python")
    stub = backends / "python" / "triton_python_backend_stub"
    if not stub.exists():
        shutil.copy2(tree / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}" / stub.name, stub)
    stub.chmod(0o755)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("python_models")
    backends = folder / "backends"
    shutil.copytree(os.environ["BACKENDS"], backends, symlinks=False)
    python_backend(backends)
    repository = folder / "repository"
    repository.mkdir()
    for model in ("preprocessing", "postprocessing"):

        def edit(text):
            return text.replace('backend: "trtllm"', 'backend: "python"').replace(f'key: "model_role"\n  value: {{ string_value: "{model}" }}', 'key: "unused"\n  value: { string_value: "" }')

        target = copy_template(repository, model, tokenizer_dir=str(DEMO), edit=edit)
        assert 'backend: "python"' in (target / "config.pbtxt").read_text()
        shutil.copy2(PYTHON / f"{model}.py", target / "1" / "model.py")
        copy_template(repository, model, name=f"native_{model}", tokenizer_dir=str(DEMO))
    copy_template(repository, "ensemble")
    names = {"preprocessing": "native_preprocessing", "postprocessing": "native_postprocessing"}

    def native(text):
        for old, new in names.items():
            text = text.replace(f'model_name: "{old}"', f'model_name: "{new}"')
        return text

    copy_template(repository, "ensemble", name="native_ensemble", edit=native)
    copy_template(repository, "tensorrt_llm", engine_dir=str(DEMO), device="cpu")
    copy_template(repository, "tensorrt_llm_bls")
    packed = Path(os.environ["TRITONSERVER"]).resolve().parents[3] / "nvidia_pytriton.libs"
    libraries = [str(packed), sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH")]
    before = {name: os.environ.get(name) for name in ("PATH", "LD_LIBRARY_PATH")}
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    os.environ["LD_LIBRARY_PATH"] = ":".join(filter(None, libraries))
    try:
        running = Server(folder, repository, f"--backend-directory={backends}", "--model-control-mode=explicit", "--load-model=*")
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
    yield running
    assert running.stop() == 0, running.log[-4000:]


def test_6_the_ensemble_of_python_models_answers_like_the_native_one(server):
    body = {"text_input": PROMPT, "max_tokens": 12, "bad_words": "", "stop_words": ""}
    expected = server.text("native_ensemble", **body)
    assert expected.startswith(PROMPT)
    assert server.text("ensemble", **body) == expected


def test_6_the_ensemble_of_python_models_streams(server):
    body = {"text_input": PROMPT, "max_tokens": 8, "stream": True}
    pieces = [event["text_output"] for event in server.stream("ensemble", **body)]
    assert len(pieces) == 8
    assert "".join(pieces) == "".join(event["text_output"] for event in server.stream("native_ensemble", **body))


def test_6_our_bls_calls_python_models(server):
    body = {"text_input": PROMPT, "max_tokens": 12}
    text = server.text("tensorrt_llm_bls", **body)
    assert text == server.text("ensemble", **body)
    stop = text[-8:-4]
    stopped = server.text("tensorrt_llm_bls", **body, stop_words=[stop])
    assert stopped == text[: text.index(stop, len(PROMPT)) + len(stop)]
