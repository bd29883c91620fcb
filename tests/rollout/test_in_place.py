import math
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from sdft.model.modes import evaluation_mode
from sdft.rollout.in_place import sample
from sdft.rollout.kv_cache import cache_keyword
from sdft.rollout.request import RolloutRequest, SamplingSettings
from sdft.rollout.sampling import draw

SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
SCALED_ROPE = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
MODELS = {
    "llama, scaled rope, tied head": lambda: LlamaForCausalLM(
        LlamaConfig(**SMALL, rope_parameters=SCALED_ROPE, tie_word_embeddings=True)
    ),
    "qwen2, grouped queries": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL)),
    "gemma2, soft-capping and sliding window": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SMALL, sliding_window=6, query_pre_attn_scalar=8)
    ),
    "mistral, sliding window": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=5)),
    "gpt2, learned positions": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=40,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=128,
            bos_token_id=None,
            eos_token_id=None,
        )
    ),
}
PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [3], [20, 21, 22, 23]]


@pytest.fixture(params=list(MODELS))
def model(request):
    return random_model(request.param)


def random_model(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():  # spread the logits, so that greedy choices are not close calls
        for parameter in model.parameters():
            parameter.mul_(3.0) if parameter.dim() > 1 else None
    return model


def by_full_forward(model, prompt, length, end_ids=frozenset()):
    """Greedy decoding without cache, padding or batch: the reference."""
    ids, drawn = list(prompt), []
    while len(drawn) < length and not (drawn and drawn[-1] in end_ids):
        with torch.no_grad():
            drawn.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
        ids.append(drawn[-1])
    return drawn


def test_greedy_completions_equal_decoding_one_prompt_at_a_time(model):
    rollout = sample(
        model, RolloutRequest(PROMPTS, SamplingSettings(12, temperature=0), end_ids=frozenset())
    )
    expected = [by_full_forward(model, prompt, 12) for prompt in PROMPTS]
    assert rollout.completions == expected
    assert rollout.ended == [False] * 3


def test_rows_that_end_leave_without_disturbing_the_others(model):
    free = sample(
        model, RolloutRequest(PROMPTS, SamplingSettings(12, temperature=0), end_ids=frozenset())
    )
    end_ids = frozenset([free.completions[0][2], free.completions[2][5]])
    rollout = sample(
        model, RolloutRequest(PROMPTS, SamplingSettings(12, temperature=0), end_ids=end_ids)
    )
    expected = [by_full_forward(model, prompt, 12, end_ids) for prompt in PROMPTS]
    assert rollout.completions == expected
    assert rollout.ended == [completion[-1] in end_ids for completion in expected]


def test_the_cache_forgets_columns_that_no_row_left_reads(tiny):
    prompts = [list(range(3, 33)), [5, 6]]
    settings = SamplingSettings(10, temperature=0)
    free = sample(tiny.model, RolloutRequest(prompts, settings, end_ids=frozenset())).completions
    end = next(index for index, token in enumerate(free[0]) if token not in free[1])
    widths = []
    keyword = cache_keyword(tiny.model)
    hook = tiny.model.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(kwargs[keyword].get_seq_length()),
        with_kwargs=True,
    )
    request = RolloutRequest(prompts, settings, end_ids=frozenset([free[0][end]]))
    found = sample(tiny.model, request)
    hook.remove()
    assert found.completions == [free[0][: end + 1], free[1]]
    width = [len(prompts[0]) if step <= end else len(prompts[1]) for step in range(1, 10)]
    assert widths == [0, *(each + step for step, each in enumerate(width))]


@contextmanager
def shapes_read(model):
    """The shapes of the token ids that every pass reads."""
    shapes = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    yield shapes
    hook.remove()


def test_prompts_of_very_different_lengths_are_read_apart(model):
    prompts = [[3], [5 + step % 30 for step in range(100)], [20, 21]]
    request = RolloutRequest(prompts, SamplingSettings(6, temperature=0), end_ids=frozenset())
    with shapes_read(model) as shapes:
        found = sample(model, request).completions
    assert found == [by_full_forward(model, prompt, 6) for prompt in prompts]
    slides = getattr(model.config, "sliding_window", None)
    assert shapes[:2] == ([(3, 100), (3, 1)] if slides else [(2, 2), (1, 100)])
    assert sample(model, replace(request, drafts=found)).completions == found
    end = replace(request, end_ids=frozenset([found[1][1]]))
    assert sample(model, end).completions == [
        by_full_forward(model, prompt, 6, end.end_ids) for prompt in prompts
    ]


def test_drafts_that_keep_failing_rest(tiny):
    request = RolloutRequest([[5, 6]], SamplingSettings(16, temperature=0), end_ids=frozenset())
    (free,) = sample(tiny.model, request).completions
    wrong = next(token for token in range(3, 300) if token not in free)
    misleading = [each for token in free for each in (token, wrong)]
    with shapes_read(tiny.model) as shapes:
        found = sample(tiny.model, replace(request, drafts=[[wrong] * 4 + misleading]))
    assert found.completions == [free]
    assert [width for _, width in shapes[1:12]] == [2, 1, 2, 1, 1, 1, 2, 1, 1, 1, 2]


def drafts_of(completions, kind):
    """Guesses of known completions: right, wrong, right with one token wrong, one missing, none."""
    return {
        "right": completions,
        "wrong": [[39] * 20 for _ in completions],
        "substituted": [[*c[:3], (c[3] + 1) % 40, *c[4:]] for c in completions],
        "deleted": [[*c[:3], *c[4:]] for c in completions],
        "of unequal lengths": [completions[0], [], completions[2][:4]],
        "too long": [[*c, 1, 2, 3] for c in completions],
    }[kind]


@pytest.mark.parametrize(
    "kind", ["right", "wrong", "substituted", "deleted", "of unequal lengths", "too long"]
)
def test_drafts_do_not_change_greedy_completions(model, kind):
    settings = SamplingSettings(12, temperature=0)
    free = sample(model, RolloutRequest(PROMPTS, settings, end_ids=frozenset())).completions
    drafts = drafts_of(free, kind)
    assert (
        sample(
            model, RolloutRequest(PROMPTS, settings, end_ids=frozenset(), drafts=drafts)
        ).completions
        == free
    )
    end_ids = frozenset([free[0][2], free[2][5]])
    expected = [by_full_forward(model, prompt, 12, end_ids) for prompt in PROMPTS]
    assert (
        sample(model, RolloutRequest(PROMPTS, settings, end_ids=end_ids, drafts=drafts)).completions
        == expected
    )


def test_a_right_draft_saves_forward_passes(tiny):
    settings = SamplingSettings(12, temperature=0)
    expected = sample(
        tiny.model, RolloutRequest(PROMPTS, settings, end_ids=frozenset())
    ).completions
    passes = []
    tiny.model.register_forward_hook(lambda *_: passes.append(1))
    sample(tiny.model, RolloutRequest(PROMPTS, settings, end_ids=frozenset()))
    assert len(passes) == 12
    passes.clear()
    sample(tiny.model, RolloutRequest(PROMPTS, settings, end_ids=frozenset(), drafts=expected))
    assert len(passes) == 2  # the first draft is short


@pytest.mark.parametrize("drafts", [None, [[4, 5, 6]], [[7, 7]]])
def test_logprobs_are_those_of_the_drawn_tokens(tiny, drafts):
    settings = SamplingSettings(8, temperature=0.7)
    prompts = [[4, 5, 6], [7, 8, 9, 10, 11]]
    rollout = sample(
        tiny.model,
        RolloutRequest(
            prompts,
            settings,
            end_ids=frozenset(),
            seeds=[1, 2],
            drafts=drafts and drafts * 2,
        ),
    )
    for prompt, completion, logprobs in zip(
        prompts, rollout.completions, rollout.logprobs, strict=True
    ):
        with torch.no_grad():
            logits = tiny.model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        reference = (logits.double() / 0.7).log_softmax(-1)
        expected = reference.gather(1, torch.tensor(completion)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(logprobs).double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("draft", [[], "likely", "unlikely"])
def test_samples_follow_the_models_distribution(tiny, draft):
    prompt, count = [4, 5, 6], 4000
    with torch.no_grad():
        tiny.model.get_output_embeddings().weight.mul_(6)
    exact = pair_probabilities(tiny.model, prompt)
    if draft:
        pair = exact.flatten().argmax() if draft == "likely" else exact.flatten().argmin()
        draft = [pair.item() // len(exact), pair.item() % len(exact)]
    completions = []
    for first in range(0, count, 16):  # few enough rows for every one to have its draft read
        rollout = sample(
            tiny.model,
            RolloutRequest(
                [prompt] * 16,
                SamplingSettings(2),
                end_ids=frozenset(),
                seeds=range(first, first + 16),
                drafts=[draft] * 16,
            ),
        )
        completions += rollout.completions
    drawn = torch.tensor(completions) @ torch.tensor([len(exact), 1])
    counts = torch.bincount(drawn, minlength=exact.numel()).double()
    assert_counts_fit(counts, exact.flatten() * count)


def pair_probabilities(model, prompt):
    """(V, V) exact probabilities of the first two tokens, in float64."""
    vocabulary = model.config.vocab_size
    with torch.no_grad():
        first = model(torch.tensor([prompt])).logits[0, -1].double().softmax(-1)
        continued = torch.tensor([[*prompt, token] for token in range(vocabulary)])
        second = model(continued).logits[:, -1].double().softmax(-1)
    return first[:, None] * second


def assert_counts_fit(counts, expected):
    """Chi-squared test at five standard deviations, rare outcomes pooled."""
    likely = expected >= 5
    observed = torch.cat([counts[likely], counts[~likely].sum()[None]])
    expected = torch.cat([expected[likely], expected[~likely].sum()[None]])
    chi_squared = ((observed - expected) ** 2 / expected.clamp(min=1e-9)).sum()
    degrees = len(expected) - 1
    assert degrees > 5
    assert chi_squared < degrees + 5 * (2 * degrees) ** 0.5


def test_same_seeds_give_the_same_rollout_and_leaves_global_noise_alone(tiny):
    def roll():
        return sample(
            tiny.model,
            RolloutRequest(PROMPTS, SamplingSettings(6), end_ids=frozenset(), seeds=[7, 8, 9]),
        ).completions

    before = torch.get_rng_state()
    assert roll() == roll()
    assert torch.equal(before, torch.get_rng_state())


def test_a_sampled_completion_depends_on_its_own_seed_not_on_drafts_or_other_rows(model):
    def roll(drafts=None, end_ids=frozenset(), rows=(0, 1, 2)):
        request = RolloutRequest(
            [PROMPTS[row] for row in rows],
            SamplingSettings(12),
            end_ids=end_ids,
            seeds=[30 + row for row in rows],
            drafts=drafts,
        )
        return sample(model, request).completions

    free = roll()
    assert roll(rows=(2, 0)) == [free[2], free[0]]
    assert roll(rows=(1,)) == [free[1]]
    for kind in ("right", "wrong", "substituted", "deleted", "of unequal lengths"):
        assert roll(drafts_of(free, kind)) == free
    ended = free[0][3]  # the first row leaves early, the others go on as before
    expected = [
        completion[: completion.index(ended) + 1] if ended in completion else completion
        for completion in free
    ]
    assert roll(end_ids=frozenset([ended])) == expected


def test_draws_keep_the_smallest_probabilities():
    count = 2000
    logits = torch.cat([torch.zeros(1), torch.full((count,), -20.0)]).repeat(count, 1)
    share = count * math.exp(-20) / (1 + count * math.exp(-20))
    steps = 1 - share * (torch.arange(count, dtype=torch.float64) + 0.5) / count
    tokens, logprobs = draw(logits, SamplingSettings(1), steps)
    assert torch.equal(tokens, torch.arange(count, 0, -1))
    torch.testing.assert_close(logprobs.double(), torch.full((count,), -20.0 - share).double())


def test_top_k_and_top_p_ban_the_tail_and_renormalise():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log().repeat(500, 1)
    noise = torch.rand(500, generator=torch.Generator().manual_seed(0))
    tokens, logprobs = draw(logits, SamplingSettings(1, top_k=2), noise)
    assert set(tokens.tolist()) == {0, 1}
    torch.testing.assert_close(logprobs[tokens == 0][0].exp(), torch.tensor(4 / 7))
    tokens, _ = draw(logits, SamplingSettings(1, top_p=0.65), noise)
    assert set(tokens.tolist()) == {0, 1}
    tokens, _ = draw(logits, SamplingSettings(1, top_p=0.75), noise)
    assert set(tokens.tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"min_p": 0.6}, [0.4, 0.3]),
        ({"min_p": 0.6, "top_k": 3}, [0.4, 0.3]),
        ({"min_p": 0.1, "top_k": 3}, [0.4, 0.3, 0.2]),
        ({"min_p": 0.9, "top_p": 0.65}, [0.4]),
        ({"min_p": 0.1, "top_p": 0.65}, [0.4, 0.3]),
        ({"min_p": 1.0}, [0.4]),
    ],
)
def test_min_p_bans_what_is_unlikely_beside_the_most_likely_token(options, kept):
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log().repeat(500, 1)
    noise = torch.rand(500, generator=torch.Generator().manual_seed(0))
    tokens, logprobs = draw(logits, SamplingSettings(1, **options), noise)
    assert set(tokens.tolist()) == set(range(len(kept)))
    expected = (torch.tensor(kept) / sum(kept)).log()
    torch.testing.assert_close(logprobs, expected[tokens])


def spelled(tokens):
    """Three characters a token, so that texts run across tokens."""
    return "".join(f"{token:03d}" for token in tokens)


@pytest.mark.parametrize("kind", [None, "right", "wrong", "substituted", "too long"])
def test_a_stop_string_ends_a_completion_with_the_token_that_completes_it(tiny, kind):
    free = sample(
        tiny.model,
        RolloutRequest(PROMPTS, SamplingSettings(12, temperature=0), end_ids=frozenset()),
    )
    stop = spelled(free.completions[0])[5:10]  # parts of tokens 1 and 3, and token 2
    settings = SamplingSettings(12, temperature=0, stop_strings=(stop, "no such text"))
    rollout = sample(
        tiny.model,
        RolloutRequest(
            PROMPTS,
            settings,
            end_ids=frozenset(),
            drafts=kind and drafts_of(free.completions, kind),
            decode=spelled,
        ),
    )
    lengths = [
        next((n for n in range(1, 13) if stop in spelled(completion[:n])), 12)
        for completion in free.completions
    ]
    assert lengths[0] <= 4
    assert rollout.completions == [
        completion[:length] for completion, length in zip(free.completions, lengths, strict=True)
    ]
    assert list(map(len, rollout.logprobs)) == lengths
    assert rollout.ended == [stop in spelled(completion) for completion in rollout.completions]


def test_generation_in_training_mode_equals_generation_in_eval_mode(tiny):
    settings = SamplingSettings(6, temperature=0)
    expected = sample(
        tiny.model, RolloutRequest(PROMPTS, settings, end_ids=frozenset())
    ).completions
    tiny.model.train()
    tiny.model.activation_checkpointing_enable()
    assert (
        sample(tiny.model, RolloutRequest(PROMPTS, settings, end_ids=frozenset())).completions
        == expected
    )
    assert tiny.model.training


def test_evaluation_mode_restores_each_submodules_own_mode(tiny):
    tiny.model.train()
    frozen = tiny.model.get_output_embeddings().eval()
    with evaluation_mode(tiny.model):
        assert not tiny.model.training
    assert tiny.model.training
    assert not frozen.training


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 1, "temperature": -1.0}, "temperature is -1"),
        ({"max_new_tokens": 1, "top_p": 0.0}, "top_p is 0"),
        ({"max_new_tokens": 1, "top_k": -2}, "top_k is -2"),
        ({"max_new_tokens": 1, "min_p": 1.5}, "min_p is 1.5"),
        ({"max_new_tokens": 1, "stop_strings": ("a", "")}, "stop_strings is"),
    ],
)
def test_settings_out_of_range_are_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        SamplingSettings(**options)


def test_sampling_without_a_seed_for_every_prompt_or_with_an_empty_one_is_refused(tiny):
    with pytest.raises(ValueError, match="1 prompts, 0 seeds"):
        sample(tiny.model, RolloutRequest([[1]], SamplingSettings(2), end_ids=frozenset()))
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        sample(
            tiny.model,
            RolloutRequest([[1], []], SamplingSettings(2, temperature=0), end_ids=frozenset()),
        )


def test_stop_strings_without_a_way_to_read_them_are_refused(tiny):
    settings = SamplingSettings(2, temperature=0, stop_strings=("x",))
    with pytest.raises(ValueError, match="need decode"):
        sample(tiny.model, RolloutRequest([[1]], settings, end_ids=frozenset()))
