"""The head of each architecture, checked against the model's own logits and naive loss."""

import pytest
import torch
import transformers
from torch import nn

from sdft.loss.distillation import distillation_loss
from sdft.loss.divergence_registry import make_divergence
from sdft.model.head import VocabularyHead, final_hidden_states
from tests.references import surrogate

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}
GPT2_SIZES = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}
ARCHITECTURES = {
    "Llama": SIZES,
    "Qwen2": SIZES,
    "Qwen3": SIZES,
    "Gemma2": SIZES | {"final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "Gemma3Text": SIZES | {"final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    "Granite": SIZES | {"logits_scaling": 8.0},
    "Cohere": SIZES | {"logit_scale": 0.25},
    "Olmo2": SIZES,
    "GPT2": GPT2_SIZES,
    "Phi": SIZES,  # its head has a bias
}


def build(name, seed=0, **changes):
    """A tiny random causal language model of the architecture, in float64."""
    config = getattr(transformers, f"{name}Config")(**(ARCHITECTURES[name] | changes))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
        if model.get_output_embeddings().bias is not None:
            nn.init.normal_(model.get_output_embeddings().bias)
    return model.double().eval()


INPUTS = torch.tensor([[5, 9, 11, 3, 22, 60, 7], [1, 2, 44, 3, 13, 8, 30]])
TARGETS = INPUTS.roll(-1, 1).flatten()
WEIGHTS = torch.linspace(0.0, 0.2, len(TARGETS)).double()


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_loss_from_hidden_states_equals_naive_loss_of_the_models_logits(name, divergence):
    student, teacher = build(name), build(name, seed=1)
    loss = distillation_loss(
        final_hidden_states(student, input_ids=INPUTS).flatten(0, 1),
        VocabularyHead.of(student),
        final_hidden_states(teacher, input_ids=INPUTS).flatten(0, 1),
        VocabularyHead.of(teacher),
        tokens=TARGETS,
        weights=WEIGHTS,
        divergence=make_divergence(divergence),
        tile_rows=5,
    ).loss
    loss.backward()
    found = {key: each.grad.clone() for key, each in student.named_parameters()}

    student.zero_grad()
    naive = surrogate(
        divergence,
        {},
        student(input_ids=INPUTS).logits.flatten(0, 1),
        teacher(input_ids=INPUTS).logits.flatten(0, 1).detach(),
        TARGETS,
        WEIGHTS,
    )
    naive.backward()
    assert naive > 1e-3
    torch.testing.assert_close(loss, naive, rtol=1e-9, atol=1e-12)
    for key, each in student.named_parameters():
        torch.testing.assert_close(found[key], each.grad, rtol=1e-7, atol=1e-10)
    assert all(each.grad is None for each in teacher.parameters())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_head_gives_the_models_own_logits(name):
    model = build(name).float()
    found = VocabularyHead.of(model).logits(final_hidden_states(model, input_ids=INPUTS))
    torch.testing.assert_close(found, model(input_ids=INPUTS).logits, rtol=1e-4, atol=1e-5)


def test_head_knows_scaling_capping_bias_and_tying():
    assert VocabularyHead.of(build("Granite")).multiplier == 1 / 8
    assert VocabularyHead.of(build("Cohere")).multiplier == 0.25
    assert VocabularyHead.of(build("Gemma2")).softcap == 2.0
    assert VocabularyHead.of(build("Gemma3Text", final_logit_softcapping=None)).softcap is None
    assert VocabularyHead.of(build("Phi")).bias is not None
    assert VocabularyHead.of(build("GPT2")).tied
    assert VocabularyHead.of(build("Llama", tie_word_embeddings=True)).tied
    assert not VocabularyHead.of(build("Llama", tie_word_embeddings=False)).tied


def test_head_reads_the_parameters_of_the_moment():
    model = build("Llama")
    head = VocabularyHead.of(model)
    model.get_output_embeddings().weight = nn.Parameter(torch.zeros(61, 32).double())
    assert head.logits(torch.ones(1, 32).double()).abs().max() == 0


class LogitsWithAnOffset(transformers.LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + torch.arange(61)
        return output


def test_an_architecture_whose_head_does_more_is_an_error():
    model = LogitsWithAnOffset(transformers.LlamaConfig(**SIZES))
    with pytest.raises(ValueError, match="logits of LogitsWithAnOffset are not what"):
        VocabularyHead.of(model)


def test_check_leaves_the_modes_of_all_submodules_as_they_were():
    model = build("Llama").train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    VocabularyHead.of(model)
    assert [module.training for module in model.modules()] == before


def with_lora(model, **options):
    peft = pytest.importorskip("peft")
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    config = peft.LoraConfig(task_type="CAUSAL_LM", **(settings | options))
    return peft.get_peft_model(model, config).double()


def test_lora_trains_the_adapter_and_leaves_the_head_without_gradient():
    student = with_lora(build("Llama", tie_word_embeddings=True))
    head = VocabularyHead.of(student)
    with torch.no_grad(), student.disable_adapter():
        teacher_hidden = final_hidden_states(student, input_ids=INPUTS).flatten(0, 1)
    loss = distillation_loss(
        final_hidden_states(student, input_ids=INPUTS).flatten(0, 1),
        head,
        teacher_hidden,
        head,
        tokens=TARGETS,
        weights=WEIGHTS,
        divergence=make_divergence("forward_kl"),
    ).loss
    loss.backward()
    assert loss > 1e-3
    assert head.weight.grad is None
    trained = [each for each in student.parameters() if each.requires_grad]
    assert trained
    assert all(each.grad.abs().max() > 0 for each in trained)


@pytest.mark.parametrize(
    "options", [{"target_modules": ["lm_head"]}, {"modules_to_save": ["lm_head"]}]
)
def test_an_adapted_head_is_an_error(options):
    student = with_lora(build("Llama", tie_word_embeddings=False), **options)
    with pytest.raises(ValueError, match="not a plain linear layer: leave it out of adapters"):
        VocabularyHead.of(student)


def test_gradient_checkpointing_changes_nothing():
    gradients = []
    for checkpointing in (False, True):
        model = build("Llama").train()
        if checkpointing:
            model.activation_checkpointing_enable()
        hidden = final_hidden_states(model, input_ids=INPUTS).flatten(0, 1)
        distillation_loss(
            hidden,
            VocabularyHead.of(model),
            hidden.detach().roll(1, 0),
            VocabularyHead.of(model),
            tokens=TARGETS,
            weights=WEIGHTS,
            divergence=make_divergence("forward_kl"),
        ).loss.backward()
        gradients.append([each.grad for each in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)
