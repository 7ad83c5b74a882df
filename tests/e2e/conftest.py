import pytest
from server import DEMO, DEVICE, Server, copy_template


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The shipped repository on the demo model, plus the LLM without decoupled replies as `tensorrt_llm_unary`."""
    folder = tmp_path_factory.mktemp("server")
    repository = folder / "repository"
    repository.mkdir()
    demo = str(DEMO)
    copy_template(repository, "ensemble")
    copy_template(repository, "preprocessing", tokenizer_dir=demo)
    copy_template(repository, "postprocessing", tokenizer_dir=demo)
    values = {"engine_dir": demo, "tokenizer_dir": demo, "device": DEVICE, "max_beam_width": "2"}
    copy_template(repository, "tensorrt_llm", **values)
    copy_template(
        repository,
        "tensorrt_llm",
        name="tensorrt_llm_unary",
        edit=lambda text: text.replace("decoupled: true", "decoupled: false"),
        **values,
    )
    copy_template(repository, "tensorrt_llm_bls")
    copy_template(repository, "tensorrt_llm_bls", name="bls_whole_text", accumulate_tokens="true")
    copy_template(
        repository,
        "tensorrt_llm_bls",
        name="bls_unary",
        edit=lambda text: text.replace("decoupled: true", "decoupled: false"),
        tensorrt_llm_model_name="tensorrt_llm_unary",
    )
    running = Server(folder, repository, "--model-control-mode=explicit", "--load-model=*")
    yield running
    assert running.stop() == 0, running.log[-4000:]
    assert "panicked" not in running.log
