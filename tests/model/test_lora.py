import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM

from sdft.model.exported_weights import plain_weights
from sdft.model.head import final_hidden_states
from sdft.model.lora import (
    LoRA,
    adapters_off,
    backbone_state,
    digest,
    save_adapters,
    trained_parameters,
)
from sdft.model.pretrained import load_model, save_model
from tests.model.test_teacher import INPUTS, answer, move


def adapted(**options):
    model = load_model("tiny-random", lora=LoRA(**{"r": 4, **options})).model
    move(model, 0.1)
    return model


def test_only_the_adapters_are_trained_in_float32_and_the_head_has_none():
    model = adapted(backbone_dtype="bfloat16")
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        assert parameter.dtype == (torch.float32 if "lora_" in name else torch.bfloat16)
    assert type(model.get_output_embeddings()) is torch.nn.Linear
    final_hidden_states(model, input_ids=INPUTS).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in trained_parameters(model))


def test_the_adapters_start_is_a_function_of_the_seed_and_spares_the_global_state():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    starts = [
        trained_parameters(load_model("tiny-random", lora=LoRA(), seed=seed).model)[0]
        for seed in (1, 1, 2)
    ]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
    assert torch.equal(torch.rand(1), expected)


def test_rank_alpha_and_targets_are_taken():
    model = adapted(r=3, alpha=6.0, target_modules=["q_proj"])
    names = [name for name, each in model.named_parameters() if each.requires_grad]
    assert all("q_proj" in name for name in names)
    layer = model.model.layers[0].self_attn.q_proj
    change = 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    expected = layer.base_layer.weight + change
    found = plain_weights(model)["model.layers.0.self_attn.q_proj.weight"]
    torch.testing.assert_close(found, expected)


def test_dropout_acts_while_the_student_is_scored_and_not_in_eval_mode():
    model = adapted(dropout=0.5).train()
    assert not torch.equal(answer(model), answer(model))
    model.eval()
    assert torch.equal(answer(model), answer(model))


def test_merging_leaves_the_model_untouched_and_an_export_loads_with_plain_transformers(tmp_path):
    model = adapted().eval()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    save_model(model, load_model("tiny-random").tokenizer, tmp_path / "export")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert not any("lora" in name or "base_layer" in name for name in plain.state_dict())
    torch.testing.assert_close(answer(plain), answer(model), rtol=1e-4, atol=1e-4)
    assert plain.dtype == torch.float32
    for name, each in model.state_dict().items():
        assert torch.equal(each, before[name])


def test_a_model_without_adapters_is_exported_as_it_is(tiny):
    weights, saved = plain_weights(tiny.model), tiny.model.state_dict()
    assert weights.keys() == saved.keys() - {"lm_head.weight"}  # tied to the embedding
    assert all(torch.equal(weight, saved[name]) for name, weight in weights.items())


def test_weights_are_cast_for_who_reads_them(tiny):
    weights = plain_weights(adapted(), torch.bfloat16)
    assert {each.dtype for each in weights.values()} == {torch.bfloat16}
    assert weights.keys() == plain_weights(tiny.model).keys()


def test_turning_the_adapters_off_is_undone_also_after_an_error():
    model = adapted()
    expected = answer(model)

    def fail():
        with adapters_off(model):
            assert not torch.equal(answer(model), expected)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert torch.equal(answer(model), expected)
    assert trained_parameters(model)


def test_the_digest_tells_a_changed_backbone_from_changed_adapters():
    model = adapted()
    before = digest(backbone_state(model))
    move(model, 0.1)
    assert digest(backbone_state(model)) == before
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.base_layer.weight[0, 0] += 1e-6
    assert digest(backbone_state(model)) != before


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"r": 0}, "lora.r is 0; it must be at least 1"),
        ({"alpha": 0.0}, "lora.alpha is 0"),
        ({"dropout": 1.0}, "lora.dropout is 1"),
        ({"backbone_dtype": "int8"}, "lora.backbone_dtype is int8; it must be float32 or bfloat16"),
    ],
)
def test_adapter_options_out_of_range_are_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        LoRA(**options)


def test_exported_adapters_on_the_backbone_are_the_merged_model(tmp_path):
    base, ids = tmp_path / "base", torch.tensor([[5, 6, 7, 8]])
    plain = load_model("tiny-random")
    save_model(plain.model, plain.tokenizer, base)
    adapted = load_model(str(base), lora=LoRA(r=4)).model
    with torch.no_grad():
        for parameter in trained_parameters(adapted):
            parameter.add_(torch.randn_like(parameter) / 8)
    save_adapters(adapted, str(base), tmp_path / "adapter")
    save_adapters(plain.model, str(base), tmp_path / "none")
    assert not (tmp_path / "none").exists()
    loaded = PeftModel.from_pretrained(load_model(str(base)).model, tmp_path / "adapter")
    assert loaded.peft_config["default"].base_model_name_or_path == str(base)
    expected = adapted.eval()(ids).logits
    assert not torch.allclose(expected, load_model(str(base)).model.eval()(ids).logits)
    torch.testing.assert_close(loaded.eval()(ids).logits, expected)


def test_adapters_of_two_runs_are_averaged_by_peft(tmp_path):
    for seed in (0, 1):
        model = load_model("tiny-random", lora=LoRA(r=4), seed=seed).model
        with torch.no_grad():
            for parameter in trained_parameters(model):
                parameter.add_(seed + 1.0)
        save_adapters(model, "tiny-random", tmp_path / str(seed))
    both = PeftModel.from_pretrained(load_model("tiny-random").model, tmp_path / "0", "first")
    both.load_adapter(tmp_path / "1", "second")
    both.add_weighted_adapter(["first", "second"], [0.5, 0.5], "mean", combination_type="cat")
    both.set_adapter("mean")
    (layer, *_) = (each for each in both.modules() if isinstance(each, LoraLayer))
    mean = (layer.get_delta_weight("first") + layer.get_delta_weight("second")) / 2
    torch.testing.assert_close(layer.get_delta_weight("mean"), mean)
