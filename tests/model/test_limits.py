import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from sdft.model.limits import (
    check_reads_rows_alone,
    longest_independent,
    num_positions,
    num_token_ids,
)
from tests.architectures import ATTENTION, COMMON, OTHERS, random_architecture

HALF = 8 // 2  # of a head's entries
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * HALF,
    "long_factor": [4.0] * HALF,
    "original_max_position_embeddings": 32,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}


def scaled(rope, **options):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**COMMON, **options}, rope_parameters=rope)).eval()
    with torch.no_grad():
        for each in model.parameters():
            each.mul_(3.0)
    return model


@pytest.mark.parametrize("name", [*ATTENTION, *OTHERS])
def test_causal_architectures_read_rows_alone(name):
    check_reads_rows_alone(random_architecture(name))


def bert(is_decoder):
    torch.manual_seed(0)
    return BertLMHeadModel(BertConfig(**COMMON, is_decoder=is_decoder)).eval()


def test_model_that_reads_ahead_is_refused():
    check_reads_rows_alone(bert(is_decoder=True))
    with pytest.raises(ValueError, match="BertLMHeadModel is no causal language model"):
        check_reads_rows_alone(bert(is_decoder=False))


def hidden(model, rows):
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    with torch.no_grad():
        return model.model(input_ids=ids).last_hidden_state


@pytest.mark.parametrize(
    ("rope", "options", "crossing", "found"),
    # Dynamic frequencies change little at first.
    [(LONG, {}, 32, [32]), (DYNAMIC, {"max_position_embeddings": 48}, 48, range(48, 52))],
    ids=["longrope", "dynamic"],
)
def test_length_beyond_which_rows_depend_on_each_other_is_found(rope, options, crossing, found):
    model = scaled(rope, **options)
    assert longest_independent(model, 1000) in found
    assert longest_independent(model, crossing) == crossing
    # The same with whole rows: a short one beside one of that length, and a longer one.
    short, alone = [5, 6, 7], hidden(model, [[5, 6, 7]])
    beside = hidden(model, [short, [9] * crossing])[:1, :3]
    torch.testing.assert_close(beside, alone)
    beyond = hidden(model, [short, [9] * (found[-1] + 1)])[:1, :3]
    assert (beyond - alone).abs().max() > 1e-4 * alone.abs().max()


@pytest.mark.parametrize("name", ["phi3", "bloom", "opt", "mamba", "gemma3_text"])
def test_rows_of_other_architectures_do_not_depend_on_each_other(name):
    model = random_architecture(name)
    assert longest_independent(model, 120) == 120


def test_limits_are_the_models_own():
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=8, n_layer=1, n_head=1, n_positions=96))
    bloom = BloomForCausalLM(BloomConfig(vocab_size=50, hidden_size=8, n_layer=1, n_head=1))
    assert (num_positions(gpt2), num_token_ids(gpt2)) == (96, 40)
    assert (num_positions(bloom), num_token_ids(bloom)) == (None, 50)
