"""Shards that each of two processes reads from a model's files, against the whole model."""

import gc
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM

from lightning_modules import SDFTModule
from sdft.model.lora import LoRA
from sdft.model.pretrained import load_model
from sdft.model.sharding import gathered_weights, load_shards, shard
from sdft.model.teacher import make_teacher
from sdft.model.tiny_model import byte_tokenizer
from tests.processes import on_ranks

IDS = torch.arange(1, 20)[None]
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "eos_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
WIDE = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "vocab_size": 8192}
MODELS = {
    "tied": ("llama", torch.float32, {"tie_word_embeddings": True}),
    "converted": ("qwen3_moe", torch.float32, EXPERTS),  # experts are stacked as they are read
    "wide": ("llama", torch.bfloat16, WIDE),
}


def write_models(folder):
    """Random models, each with a tokenizer of bytes."""
    for name, (kind, dtype, changes) in MODELS.items():
        config = AutoConfig.for_model(kind, **{**SMALL, **changes})
        AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder / name)
        byte_tokenizer().save_pretrained(folder / name)


def anonymous_bytes():
    """Resident bytes of this process that are not pages of files."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def peak_growth(work, *args):
    """The result, and by how many bytes the process grew at most."""
    gc.collect()
    start = peak = anonymous_bytes()
    done = threading.Event()

    def watch():
        nonlocal peak
        while not done.is_set():
            peak = max(peak, anonymous_bytes())
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        result = work(*args)
    finally:
        done.set()
        thread.join()
    return result, max(peak, anonymous_bytes()) - start


def sharded_models(name, mesh):
    """A student and its EMA teacher, each of which read its shards."""
    with torch.device("meta"):
        student = load_model(name).model
        teacher = make_teacher(student, {"kind": "ema"})
    for model in (student, teacher.model):
        shard(model, mesh)
        load_shards(model)
    return student, teacher


def whole_models(name, mesh):
    student = load_model(name).model
    teacher = make_teacher(student, {"kind": "ema"})
    for model in (student, teacher.model):
        shard(model, mesh)
    return student, teacher


def load_on_a_rank(rank, directory):
    mesh = init_device_mesh("cpu", (2,))
    found = {}
    for name in MODELS:
        (student, teacher), grown = peak_growth(sharded_models, f"{directory}/{name}", mesh)
        assert all(isinstance(each, DTensor) for each in student.parameters())
        assert not any(each.requires_grad for each in teacher.parameters())
        for model in (student, teacher.model):
            with torch.no_grad(), gathered_weights(model):
                found.setdefault(name, []).append(model(input_ids=IDS).logits)
    num_bytes = 2 * 4 * sum(each.numel() for each in student.parameters())
    del student, teacher, model
    _, before = peak_growth(whole_models, f"{directory}/{name}", mesh)
    torch.save((found, grown / num_bytes, before / num_bytes), f"{directory}/found-{rank}.pt")


@pytest.mark.slow
def test_each_process_reads_its_shards_and_the_logits_are_the_whole_models(tmp_path, monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # what is freed leaves the resident set
    write_models(tmp_path)
    on_ranks(load_on_a_rank, tmp_path)
    for rank in range(2):
        found, grown, before = torch.load(tmp_path / f"found-{rank}.pt")
        for name, logits in found.items():
            with torch.no_grad():
                expected = load_model(str(tmp_path / name)).model(input_ids=IDS).logits
            for each in logits:
                torch.testing.assert_close(each, expected)
        assert before > 0.95  # every process held student and teacher whole
        assert grown < 0.6  # half of each, and what libraries hold


def test_a_module_made_without_weights_has_shapes_only():
    with torch.device("meta"):
        module = SDFTModule(pretrained="tiny-random")
    assert all(each.is_meta for each in module.parameters())
    assert module.end_ids == SDFTModule(pretrained="tiny-random").end_ids


def test_a_teacher_whose_head_has_to_be_cut_is_read_whole(tmp_path, caplog):
    write_models(tmp_path)
    with torch.device("meta"):
        student = load_model("tiny-random")
        options = {"kind": "model", "pretrained": str(tmp_path / "tied")}
        teacher = make_teacher(student.model, options, student.tokenizer)
    assert "reads all of" in caplog.text
    assert not any(each.is_meta for each in teacher.parameters())
    assert teacher.model.get_output_embeddings().weight.shape[0] == 259


@pytest.mark.parametrize(
    ("options", "message"),
    [({"lora": LoRA(r=4)}, r"model\.lora"), ({"memory": "lean"}, r"model\.memory is lean")],
)
def test_what_cannot_be_sharded_is_refused_before_anything_is_loaded(options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        SDFTModule(pretrained="no/such/model", **options)


def read_a_file_without_a_weight(rank, directory):
    name = f"{directory}/tied"
    with torch.device("meta"):
        model = load_model(name).model
    shard(model, init_device_mesh("cpu", (2,)))
    with pytest.raises(ValueError, match=r"the weights of .*tied lack model\.norm\.weight"):
        load_shards(model)


@pytest.mark.slow
def test_a_missing_weight_is_an_error(tmp_path):
    write_models(tmp_path)
    file = tmp_path / "tied" / "model.safetensors"
    weights = load_file(file)
    del weights["model.norm.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    on_ranks(read_a_file_without_a_weight, tmp_path)
