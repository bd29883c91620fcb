"""Exports are the model in memory, or there is no export."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sdft.model.exported_weights import probe_logits
from sdft.model.head import VocabularyHead
from sdft.model.lora import LoRA, add_adapters, trained_parameters
from sdft.model.pretrained import load_model, save_model
from sdft.model.tiny_model import byte_tokenizer
from tests.architectures import ATTENTION, COMMON, OTHERS, random_architecture


def llama(tied):
    options = {**COMMON, "vocab_size": len(byte_tokenizer())}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**options, tie_word_embeddings=tied)).eval()


def trained(model):
    """Move what training would move."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for each in trained_parameters(model):
            each.add_(0.3 * torch.randn(each.shape, generator=generator))
    return model


def assert_exports_itself(model, folder):
    save_model(model, byte_tokenizer(), folder / "export")
    found = load_model(str(folder / "export")).model
    torch.testing.assert_close(probe_logits(found), probe_logits(model), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "lora",
    [None, LoRA(r=2), LoRA(r=2, backbone_dtype="float32", target_modules=["q_proj", "down_proj"])],
)
def test_export_of_a_trained_model_gives_its_logits(tied, lora, tmp_path):
    model = llama(tied)
    if lora is not None:
        add_adapters(model, lora, seed=0)
    assert_exports_itself(trained(model), tmp_path)


def test_adapters_of_an_untied_embedding_are_folded_into_it(tmp_path):
    model = llama(tied=False)
    add_adapters(model, LoRA(r=2, target_modules=["embed_tokens", "q_proj"]), seed=0)
    before = probe_logits(model)
    assert (probe_logits(trained(model)) - before).abs().max() > 0.1
    assert_exports_itself(model, tmp_path)


def test_adapters_of_a_weight_that_two_layers_share_are_refused():
    with pytest.raises(ValueError, match=r"names model\.embed_tokens, whose weight another layer"):
        add_adapters(llama(tied=True), LoRA(r=2, target_modules=["embed_tokens"]), seed=0)


@pytest.mark.parametrize("name", [*ATTENTION, *OTHERS])
def test_export_of_an_architecture_is_read_back_as_the_same_model(name, tmp_path):
    save_model(random_architecture(name), byte_tokenizer(), tmp_path / "export")


@pytest.mark.parametrize(
    "rotary",
    [
        {"rope_type": "default", "rope_theta": 5e5},
        {"rope_type": "linear", "rope_theta": 2e4, "factor": 4.0},
    ],
)
def test_an_export_names_its_settings_for_transformers_4_too(rotary, tmp_path):
    options = {**COMMON, "vocab_size": len(byte_tokenizer())}
    model = LlamaForCausalLM(LlamaConfig(**options, rope_parameters=rotary)).eval()
    save_model(model, byte_tokenizer(), tmp_path / "export")
    loaded = load_model(str(tmp_path / "export"))
    assert loaded.model.config.rope_parameters == rotary
    assert torch.equal(probe_logits(loaded.model), probe_logits(model))
    config, tokenizer = (
        json.loads((tmp_path / "export" / f"{name}.json").read_text())
        for name in ("config", "tokenizer_config")
    )
    assert config["rope_theta"] == rotary["rope_theta"]
    assert config.get("rope_scaling", {}).get("factor") == rotary.get("factor")
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["additional_special_tokens"] == ["<|turn|>"]
    text = "<|turn|>user\n<|end|>"
    assert loaded.tokenizer(text).input_ids == byte_tokenizer()(text).input_ids
    assert loaded.tokenizer.all_special_tokens == byte_tokenizer().all_special_tokens


def test_export_that_is_another_model_is_not_written(tmp_path, monkeypatch):
    model = llama(tied=False)
    real = LlamaForCausalLM.save_pretrained

    def without_a_layer(self, folder, state_dict):
        name = "model.layers.1.mlp.down_proj.weight"
        real(self, folder, state_dict={**state_dict, name: torch.zeros_like(state_dict[name])})

    with torch.no_grad():
        for each in model.parameters():
            each.mul_(3.0)
    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", without_a_layer)
    with pytest.raises(RuntimeError, match="the export is not the trained model") as refusal:
        save_model(model, byte_tokenizer(), tmp_path / "export")
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_checking_an_export_leaves_random_states_and_modes_alone(tmp_path):
    model = llama(tied=True).train()
    state = torch.get_rng_state()
    save_model(model, byte_tokenizer(), tmp_path / "export")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert VocabularyHead.of(model).tied


def test_half_precision_backbone_with_adapters_is_exported(tmp_path):
    model = llama(tied=True).bfloat16()
    add_adapters(model, LoRA(r=2, backbone_dtype="bfloat16"), seed=0)
    save_model(trained(model), byte_tokenizer(), tmp_path / "export")
