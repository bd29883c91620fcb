import logging
import random
import re

import numpy as np
import pytest
import torch

from sdft.loss.hidden_states import LossPositions, completion_hidden_states
from sdft.model.head import VocabularyHead
from sdft.rollout.engine_registry import make_engine
from sdft.rollout.in_place import sample
from sdft.rollout.request import RolloutRequest, SamplingSettings
from sdft.rollout.self_check import CheckedDecoder, check_decoding
from sdft.types import Rollout
from tests.architectures import ATTENTION, NEITHER, OTHERS, random_architecture

PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [3], [20, 21, 22, 23], [7] * 30]
NUM_TOKENS = 8
GREEDY = SamplingSettings(NUM_TOKENS, temperature=0)


def by_full_passes(model, prompt):
    """Greedy decoding by one forward pass a token, without cache, padding or batch."""
    ids, drawn = list(prompt), []
    while len(drawn) < NUM_TOKENS:
        with torch.no_grad():
            logits = model(torch.tensor([ids]), use_cache=False).logits
        drawn.append(logits[0, -1].argmax().item())
        ids.append(drawn[-1])
    return drawn


def cut(completion, end_ids):
    ends = [place for place, token in enumerate(completion) if token in end_ids]
    return completion[: ends[0] + 1] if ends else completion


@pytest.mark.parametrize("name", [*ATTENTION, *OTHERS])
def test_architecture_is_decoded_and_scored_as_by_full_forward_passes(name, caplog):
    model, engine = random_architecture(name), make_engine("in_place")
    expected = [by_full_passes(model, prompt) for prompt in PROMPTS]
    drafts = [[*each[:4], (each[4] + 1) % 40, *each[4:]] for each in expected]
    end_ids = frozenset([expected[0][2], expected[3][5]])
    free = RolloutRequest(PROMPTS, GREEDY, frozenset())
    ending = RolloutRequest(PROMPTS, GREEDY, end_ids)
    drafted = RolloutRequest(PROMPTS, GREEDY, end_ids, drafts=drafts)
    assert engine(model, free).completions == expected
    for request in (ending, drafted):
        assert engine(model, request).completions == [cut(each, end_ids) for each in expected]
    lines = [record.getMessage() for record in caplog.records if "decoded with" in record.msg]
    assert len(lines) == (name in OTHERS)

    positions = LossPositions.of(expected)
    with torch.no_grad():
        hidden = completion_hidden_states(model, PROMPTS, expected, positions)
        found = VocabularyHead.of(model).logits(hidden)
        alone = [
            model(torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0]
            for prompt, completion in zip(PROMPTS, expected, strict=True)
        ]
    rows = zip(alone, PROMPTS, strict=True)
    reference = torch.cat([logits[len(prompt) - 1 : -1] for logits, prompt in rows])
    assert (found - reference).abs().max() < 1e-4 * reference.abs().max()


@pytest.mark.parametrize("name", NEITHER)
@pytest.mark.parametrize("engine", ["in_place", "generate"])
def test_architecture_that_no_engine_decodes_is_refused_in_one_line(name, engine):
    model = random_architecture(name)
    request = RolloutRequest(PROMPTS, GREEDY, frozenset())
    with pytest.raises(ValueError, match="cannot be sampled from") as refusal:
        make_engine(engine)(model, request)
    assert type(model).__name__ in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_fallback_is_said_once_and_names_the_model_and_what_failed(caplog):
    model, engine = random_architecture("mamba"), make_engine("in_place")
    request = RolloutRequest(PROMPTS, GREEDY, frozenset())
    with caplog.at_level(logging.WARNING, "sdft"):
        engine(model, request)
        engine(model, request)
    (record,) = [each for each in caplog.records if each.name.startswith("sdft")]
    assert record.getMessage().startswith("MambaForCausalLM is decoded with generate, because")


def shifted(model, request):
    """A decoder that gets every second token's log-probability wrong."""
    rollout = sample(model, request)
    logprobs = [
        [value + 0.05 * (place % 2) for place, value in enumerate(row)] for row in rollout.logprobs
    ]
    return Rollout(rollout.completions, logprobs, rollout.ended)


def deaf_to_ends(model, request):
    """A decoder that does not know where completions end."""
    free = RolloutRequest(request.prompts, request.settings, frozenset(), seeds=request.seeds)
    return sample(model, free)


def with_rows_mixed_up(model, request):
    """A decoder that returns the rows in another order."""
    rollout = sample(model, request)
    return Rollout(rollout.completions[::-1], rollout.logprobs[::-1], rollout.ended[::-1])


def believing_drafts(model, request):
    """A decoder that takes drafts for completions."""
    rollout = sample(model, request)
    if request.drafts is None:
        return rollout
    drafts = [
        draft[: len(row)] for draft, row in zip(request.drafts, rollout.completions, strict=True)
    ]
    return Rollout(drafts, rollout.logprobs, rollout.ended)


@pytest.mark.parametrize(
    ("decode", "failure"),
    [
        (shifted, "off by"),
        (with_rows_mixed_up, "off by|drafts|end"),
        (deaf_to_ends, "do not stop at their end"),
        (believing_drafts, "drafts change its completions"),
    ],
)
def test_decoder_that_does_something_else_is_found_out(tiny, decode, failure):
    assert check_decoding(tiny.model, sample) is None
    assert re.search(failure, check_decoding(tiny.model, decode))


def test_check_leaves_random_states_weights_and_modes_alone(tiny):
    model = tiny.model.train()
    weights = [each.clone() for each in model.parameters()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    assert check_decoding(model, sample) is None
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])
    assert all(module.training for module in model.modules())
    assert all(map(torch.equal, model.parameters(), weights))


def test_model_is_checked_once_and_another_model_again(tiny):
    calls = []
    decode = CheckedDecoder({"in_place": lambda *each: calls.append(each[0]) or sample(*each)})
    request = RolloutRequest([[1, 2]], GREEDY, frozenset())
    other = random_architecture("phi3")
    for model in (tiny.model, tiny.model, other, other):
        decode(model, request)
    own = [model for model in calls if model is tiny.model]
    assert (len(own), len(calls)) == (4, 8)  # two rollouts of the check, two asked for


@pytest.mark.parametrize("name", ["phi3", "olmoe", "granite"])
def test_rounding_of_half_precision_weights_is_no_failure(name):
    model = random_architecture(name).bfloat16()
    assert check_decoding(model, sample) is None


def test_half_precision_weights_do_not_hide_a_lost_state():
    model = random_architecture("mamba2").bfloat16()
    broken = CheckedDecoder({"in_place": sample})
    with pytest.raises(ValueError, match="cannot be sampled from"):
        broken(model, RolloutRequest(PROMPTS, GREEDY, frozenset()))
