"""Weights go to a server under the names that the hub's files have."""

from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from sdft.rollout.vllm.vllm_server import VLLMServer
from sdft.rollout.vllm.weight_transfer import ServedWeights
from tests.architectures import random_architecture
from tests.rollout.test_vllm_engine import Stub, answering


@pytest.fixture
def server():
    with answering(Stub()) as stub:
        yield VLLMServer(stub.url, 5.0, 0)


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral", "olmoe", "deepseek_v3", "phi3"])
def test_weights_are_sent_under_the_names_of_the_hubs_files(name, server, tmp_path):
    model, sent = random_architecture(name), {}
    transport = SimpleNamespace(connect=lambda: None, send=sent.update)
    with ServedWeights(server, transport, torch.float32).of(model):
        pass
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        saved = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert saved.keys() <= sent.keys()
    assert sent.keys() - saved.keys() <= {"lm_head.weight"}  # where it is tied
    assert all(torch.equal(sent[key], each) for key, each in saved.items())
