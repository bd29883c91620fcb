import inspect
from types import SimpleNamespace

import pytest
import torch
import yaml

from lightning_modules import SDFTModule, SFTModule
from sdft.rollout import in_place
from sdft.rollout.engine_registry import ENGINES, make_engine
from sdft.rollout.generate import generate
from sdft.rollout.in_place import sample
from sdft.rollout.request import RolloutRequest, SamplingSettings
from sdft.types import Demonstration, EvaluationBatch
from tests.architectures import random_architecture
from tests.conftest import REPOSITORY
from tests.rollout.test_in_place import MODELS, PROMPTS, by_full_forward, random_model, spelled

GENERATE = make_engine("generate")
GREEDY = SamplingSettings(12, temperature=0)
CONFIGS = sorted((REPOSITORY / "configs" / "engines").glob("*.yaml"))
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("name", MODELS)
def test_generate_decodes_greedily_what_the_full_forward_does(name):
    model = random_model(name)
    free = [by_full_forward(model, prompt, 12) for prompt in PROMPTS]
    assert GENERATE(model, RolloutRequest(PROMPTS, GREEDY, end_ids=frozenset())).completions == free
    end_ids = frozenset([free[0][2], free[2][5]])
    expected = sample(model, RolloutRequest(PROMPTS, GREEDY, end_ids=end_ids))
    assert GENERATE(model, RolloutRequest(PROMPTS, GREEDY, end_ids=end_ids)) == expected


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.7, "min_p": 0.01}, {"top_k": 20, "top_p": 0.9}]
)
def test_generate_draws_what_in_place_draws_from_the_same_noise(tiny, options):
    settings = SamplingSettings(8, **options)
    rollouts = [
        engine(
            tiny.model,
            RolloutRequest(
                PROMPTS,
                settings,
                end_ids=frozenset(),
                seeds=range(len(PROMPTS)),
            ),
        )
        for engine in (GENERATE, sample)
    ]
    assert rollouts[0].completions == rollouts[1].completions
    torch.testing.assert_close(*(torch.tensor(each.logprobs) for each in rollouts))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_generate_with_a_static_cache_draws_the_same(tiny, precision):
    request = RolloutRequest(
        PROMPTS, SamplingSettings(8), end_ids=tiny.end_ids, seeds=range(len(PROMPTS))
    )
    engine = make_engine("generate", static_cache=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        found, expected = engine(tiny.model, request), GENERATE(tiny.model, request)
    assert found.completions == expected.completions


@pytest.mark.parametrize("name", ["gemma3_text", "qwen3_5_text", "mamba"])
def test_a_static_cache_holds_what_autocast_gives_it(name):
    """Of windows of keys, of keys beside another state, and of no keys at all."""
    request = RolloutRequest([[5, 9, 11, 7, 8, 3, 2], [6, 7]], GREEDY, end_ids=frozenset())
    model = random_architecture(name)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = (generate(model, request, static_cache=kind) for kind in (True, False))
    assert found.completions == expected.completions


@pytest.mark.parametrize("max_cache_tokens", [1, 30, 50])
def test_in_place_in_parts_draws_the_same(tiny, max_cache_tokens, monkeypatch):
    calls = []
    monkeypatch.setattr(
        in_place, "sample", lambda model, request: calls.append(1) or sample(model, request)
    )
    request = RolloutRequest(
        PROMPTS, SamplingSettings(8), end_ids=tiny.end_ids, seeds=range(len(PROMPTS)),
        drafts=[[1, 2], [], *[[3]] * (len(PROMPTS) - 2)],
    )  # fmt: skip
    engine = make_engine("in_place", max_cache_tokens=max_cache_tokens)
    engine(tiny.model, request)
    calls.clear()  # of the check of the model too
    found = engine(tiny.model, request)
    assert len(calls) > 1
    expected = sample(tiny.model, request)
    assert (found.completions, found.ended) == (expected.completions, expected.ended)
    for ours, theirs in zip(found.logprobs, expected.logprobs, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_bfloat16_is_refused_where_the_machine_does_not_compute_in_it(monkeypatch):
    monkeypatch.setattr(in_place, "computes_in_bfloat16", lambda: False)
    with pytest.raises(ValueError, match="set it to float32"):
        make_engine("in_place", dtype="bfloat16")


def test_bfloat16_samples_from_a_fresh_copy_and_evaluates_in_float32(monkeypatch):
    monkeypatch.setattr(in_place, "computes_in_bfloat16", lambda: True)
    engine, model = make_engine("in_place", dtype="bfloat16"), random_model("qwen3")
    request = RolloutRequest(
        PROMPTS, SamplingSettings(8), end_ids=frozenset(), seeds=range(len(PROMPTS))
    )
    rounded = random_model("qwen3")
    for shift in (0.0, 0.3):
        with torch.no_grad():
            for own, copied in zip(model.parameters(), rounded.parameters(), strict=True):
                own.add_(shift * torch.randn_like(own) * own.std(unbiased=False))
                copied.data = own.data.to(torch.bfloat16)
        found, exact = engine(model, request), sample(model, request)
        assert found == sample(rounded, request)  # what the copy's own weights say
        assert found.logprobs != exact.logprobs
        first = [[row[0] for row in each.logprobs] for each in (found, exact)]
        same = [a[0] == b[0] for a, b in zip(found.completions, exact.completions, strict=True)]
        close = [a == pytest.approx(b, abs=0.1) for a, b in zip(*first, strict=True)]
        assert any(same)
        assert all(near for near, equal in zip(close, same, strict=True) if equal)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    greedy = RolloutRequest(PROMPTS, GREEDY, end_ids=frozenset())
    assert engine(model, greedy) == sample(model, greedy)


def test_generate_ends_at_stop_strings_as_in_place_does(tiny):
    free = sample(tiny.model, RolloutRequest(PROMPTS, GREEDY, end_ids=frozenset())).completions
    settings = SamplingSettings(12, temperature=0, stop_strings=(spelled(free[1])[7:11],))
    rollouts = [
        engine(
            tiny.model,
            RolloutRequest(PROMPTS, settings, end_ids=frozenset([free[2][6]]), decode=spelled),
        )
        for engine in (GENERATE, sample)
    ]
    assert rollouts[0] == rollouts[1]
    assert rollouts[0].ended[1:] == [True, True]


def test_generate_heeds_no_shipped_setting_and_leaves_model_and_noise_as_they_were(tiny):
    expected = sample(tiny.model, RolloutRequest(PROMPTS, GREEDY, end_ids=frozenset()))
    shipped = tiny.model.generation_config
    shipped.repetition_penalty, shipped.max_length = 9.0, 4
    shipped.eos_token_id = sorted({completion[3] for completion in expected.completions})
    tiny.model.train()
    noise = torch.get_rng_state()
    assert GENERATE(tiny.model, RolloutRequest(PROMPTS, GREEDY, end_ids=frozenset())) == expected
    assert tiny.model.generation_config is shipped
    assert tiny.model.training
    assert torch.equal(noise, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("vlm", {}, "rollout_engine is vlm; it must be in_place or generate or"),
        ("in_place", {"url": "x"}, "in_place has no option url; it has: dtype, max_cache_tokens"),
        (
            "in_place",
            {"dtype": "half"},
            "dtype of rollout_engine in_place is 'half'; it must be float32 or bfloat16",
        ),
        ("in_place", {"max_cache_tokens": 0}, "max_cache_tokens is 0"),
        ("in_place", {"max_cache_tokens": "1k"}, "in_place is '1k'; it must be int or null"),
        ("generate", {"static_cache": "no"}, "generate is 'no'; it must be bool"),
        ("vllm", {"sync": "/x"}, "vllm has no option sync; it has: url, transfer, sync_dir"),
        ("vllm", {}, "sync_dir is None; transfer folder needs an absolute path"),
        ("vllm", {"sync_dir": "weights"}, "sync_dir is weights; .* needs an absolute path"),
        ("vllm", {"transfer": "ipc"}, "transfer of .* is 'ipc'; it must be folder or nccl"),
        ("vllm", {"transfer": "nccl", "sync_dir": "/w"}, "sync_dir is /w; .* leave it out"),
        ("vllm", {"transfer": "nccl", "sleep": True}, "NCCL cannot send; use transfer folder"),
        ("vllm", {"sync_dir": "/w", "retries": -1}, "retries is -1"),
        ("continuous_batching", {"max_memory_percent": 90}, "max_memory_percent is 90"),
    ],
)
def test_unknown_engines_and_options_are_refused(name, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        make_engine(name, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize(
    ("name", "options", "instead"),
    [
        ("continuous_batching", {}, "use in_place"),
        ("vllm", {"transfer": "nccl"}, "needs a CUDA device for training; use transfer folder"),
    ],
)
def test_engines_for_a_gpu_say_what_to_use_without_one(name, options, instead):
    with pytest.raises(ValueError, match=instead):
        make_engine(name, **options)


@pytest.mark.gpu
@needs_gpu
def test_continuous_batching_follows_the_weights(tiny):
    engine, model = make_engine("continuous_batching"), tiny.model.cuda()
    for _ in range(2):
        expected = sample(model, RolloutRequest(PROMPTS, GREEDY, end_ids=tiny.end_ids))
        assert engine(model, RolloutRequest(PROMPTS, GREEDY, end_ids=tiny.end_ids)) == expected
        with torch.no_grad():
            model.get_output_embeddings().weight.add_(
                torch.randn_like(model.get_output_embeddings().weight)
            )


@pytest.mark.gpu
@needs_gpu
def test_continuous_batching_reports_the_logprobs_it_sampled_with(tiny):
    engine, model = make_engine("continuous_batching"), tiny.model.cuda()
    rollouts = [
        engine(
            model,
            RolloutRequest(
                PROMPTS,
                SamplingSettings(8, temperature=0.7),
                end_ids=frozenset(),
                seeds=range(len(PROMPTS)),
            ),
        )
        for _ in range(2)
    ]
    assert rollouts[0] == rollouts[1]
    for prompt, completion, logprobs in zip(
        PROMPTS, rollouts[0].completions, rollouts[0].logprobs, strict=True
    ):
        with torch.no_grad():
            ids = torch.tensor([prompt + completion], device="cuda")
            logits = model(ids).logits[0, len(prompt) - 1 : -1]
        expected = (logits.double() / 0.7).log_softmax(-1).cpu()
        expected = expected.gather(1, torch.tensor(completion)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(logprobs).double(), expected, atol=2e-2, rtol=0)


class Untrained(SFTModule):
    """Evaluates without a trainer; answers have no thoughts."""

    chat = SimpleNamespace(thought_marks=())
    trainer = SimpleNamespace(datamodule=SimpleNamespace(reader=SimpleNamespace(chat=chat)))


@pytest.mark.parametrize("engine", ["in_place", "generate"])
def test_evaluation_uses_the_modules_engine_and_stop_strings(engine):
    def answers(**options):
        heard = []
        row = Demonstration("1", "task", ({"role": "user", "content": "?"},), "", None)
        batch = EvaluationBatch("task", (row,) * 3, PROMPTS, lambda *seen: heard.append(seen) or 0)
        module = Untrained(pretrained="tiny-random", max_new_tokens=12, **options)
        module.validation_step(batch, 0)
        return [text for text, _ in heard]

    free = answers()
    stop = next(letter for letter in "".join(free) if letter.isascii() and letter.isprintable())
    found = answers(rollout_engine=engine, stop_strings=[stop])
    assert found == [text.partition(stop)[0] for text in free]
    assert found != free


def test_sampling_options_reach_the_rollouts():
    module = SDFTModule(pretrained="tiny-random", min_p=0.1, stop_strings=["\n\n"], top_k=5)
    assert module.sampling.min_p == 0.1
    assert module.sampling.stop_strings == module.greedy.stop_strings == ("\n\n",)


@pytest.mark.parametrize("file", CONFIGS, ids=[file.stem for file in CONFIGS])
def test_engine_configurations_name_what_exists(file):
    chosen = yaml.safe_load(file.read_text(encoding="utf-8"))["model"]["init_args"]
    options = inspect.signature(ENGINES[chosen["rollout_engine"]]).parameters
    assert set(chosen.get("rollout_engine_options", {})) <= set(options)
