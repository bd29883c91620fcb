"""The vllm engine against a real server on the CPU: ``make test-vllm``."""

import json
import os
import shutil
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from transformers import LlamaConfig, LlamaForCausalLM

from sdft.model.lora import trained_parameters
from sdft.model.pretrained import load_model, save_model
from sdft.model.sharding import shard
from sdft.model.tiny_model import byte_tokenizer
from sdft.rollout.engine_registry import make_engine
from sdft.rollout.in_place import sample
from sdft.rollout.request import RolloutRequest, SamplingSettings
from sdft.rollout.vllm.vllm_server import VLLMError
from tests.processes import on_ranks
from tests.rollout.vllm_process import VLLMProcess

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

COMMAND = os.environ.get("SDFT_VLLM")
PROMPTS = [[5 + row, 60, 7 * row % 200 + 3, 9] for row in range(16)]
ROUNDING = 1e-3  # nats; largest gap of two tokens' log-probabilities that kernels may swap


@contextmanager
def serving(folder, *options, plugins=None):
    """A server of the random model; what it needs is written to the folder."""
    if COMMAND is None:
        pytest.skip("SDFT_VLLM names no vllm program: run make test-vllm")
    save_model(random_model(), byte_tokenizer(), folder / "tied")
    untie(folder / "tied", folder / "untied")
    log = folder / "server.log"
    running = VLLMProcess(COMMAND, folder / "untied", log, *options, plugins=plugins)
    yield running
    running.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("vllm")) as running:
        yield running


def random_model():
    """A Llama with heads of 64, the smallest that vLLM's attention on a CPU computes."""
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
    sizes |= {"intermediate_size": 256, "num_hidden_layers": 2, "vocab_size": 259}
    ids = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 2}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**sizes, **ids, tie_word_embeddings=True))


def untie(tied, untied):
    """The same model with a head of its own.

    vLLM's CPU build packs a tied head when it starts and leaves it as it was when weights are
    reloaded.
    """
    shutil.copytree(tied, untied)
    config = json.loads((tied / "config.json").read_text())
    (untied / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    weights = load_file(tied / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, untied / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def connect(server, tmp_path):
    def engine(name="sync", **options):
        given = {"dtype": "float32", "retries": 0, "timeout_s": 60.0, **options}
        return make_engine("vllm", sync_dir=str(tmp_path / name), url=server.url, **given)

    return engine


@pytest.fixture
def student(server):
    return moved(server, seed=1)


def moved(server, seed):
    """A model whose weights are not those the server started with."""
    loaded = load_model(str(server.model.with_name("tied")))
    move(loaded.model, seed)
    return loaded


def move(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for each in trained_parameters(model):
            each.add_(0.1 * torch.randn(each.shape, generator=generator))


def asked(student, prompts=PROMPTS, max_new_tokens=24, temperature=1.0):
    settings = SamplingSettings(max_new_tokens, temperature=temperature)
    return RolloutRequest(prompts, settings, student.end_ids, seeds=list(range(len(prompts))))


def exact_logprobs(model, prompt, completion):
    """(T, V) log-probabilities at a completion's tokens, in float64."""
    with torch.no_grad():
        logits = model.double()(torch.tensor([[*prompt, *completion]])).logits
    model.float()
    return logits[0, len(prompt) - 1 : -1].log_softmax(-1)


def mean_difference(model, prompts, rollout):
    """Mean absolute difference of the server's log-probabilities to the model's, in nats."""
    differences = []
    for prompt, completion, found in zip(
        prompts, rollout.completions, rollout.logprobs, strict=True
    ):
        exact = exact_logprobs(model, prompt, completion)
        exact = exact.gather(1, torch.tensor(completion)[:, None])[:, 0]
        differences.append((exact - torch.tensor(found)).abs())
    return torch.cat(differences).mean().item()


def test_log_probabilities_are_the_students_and_weights_really_change(connect, student):
    engine = connect()
    for seed in (2, 3):
        move(student.model, seed)
        rollout = engine(student.model, asked(student))
        assert rollout.num_tokens > 100
        assert mean_difference(student.model, PROMPTS, rollout) <= 1e-3
        move(student.model, seed + 10)  # other weights do not agree
        assert mean_difference(student.model, PROMPTS, rollout) > 0.1


def test_greedy_completions_differ_only_where_two_tokens_are_equally_likely(connect, student):
    theirs = connect()(student.model, asked(student, temperature=0.0))
    ours = sample(student.model, asked(student, temperature=0.0))
    pairs = zip(PROMPTS, theirs.completions, ours.completions, strict=True)
    for prompt, one, other in pairs:
        if one == other:
            continue
        place = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
        here = exact_logprobs(student.model, prompt, other)[place]
        assert (here[other[place]] - here[one[place]]).abs() < ROUNDING


def test_the_prefix_cache_is_dropped_with_the_weights(connect, student):
    engine = connect()
    long_prompts = [[(7 * place + row) % 200 + 3 for place in range(300)] for row in range(2)]
    for seed in (5, 6):
        move(student.model, seed)
        for _ in range(2):  # the second reads the first's cached prompt
            rollout = engine(student.model, asked(student, long_prompts, 8))
            assert mean_difference(student.model, long_prompts, rollout) <= 1e-3


def test_two_runs_on_one_server_each_get_their_own_weights(server, connect, student):
    one, other = connect("one"), connect("other")
    second = moved(server, seed=9)
    for _ in range(2):
        rollout = one(student.model, asked(student))
        assert mean_difference(student.model, PROMPTS, rollout) <= 1e-3
        rollout = other(second.model, asked(second))
        assert mean_difference(second.model, PROMPTS, rollout) <= 1e-3


def test_an_engine_that_lets_the_server_sleep_updates_it_while_it_is_awake(connect, student):
    # The CPU build answers these calls and does not sleep: what is tested is their order.
    engine = connect(sleep=True)
    for seed in (7, 8):
        move(student.model, seed)
        rollout = engine(student.model, asked(student))
        assert mean_difference(student.model, PROMPTS, rollout) <= 1e-3


def test_a_thousand_completions_at_once(connect, student):
    prompts = [[3 + row % 200, 3 + row // 200] for row in range(1000)]
    engine = connect(num_parallel=1000, timeout_s=120.0)
    rollout = engine(student.model, asked(student, prompts, 4))
    assert len(rollout.completions) == 1000
    assert mean_difference(student.model, prompts[:50], first(rollout, 50)) <= 1e-3


def first(rollout, num_rows):
    return type(rollout)(
        rollout.completions[:num_rows], rollout.logprobs[:num_rows], rollout.ended[:num_rows]
    )


def sample_on_a_rank(rank, directory):
    """Two updates of a sharded student through one server; keep this rank's rows."""
    url, model_directory = json.loads(Path(directory, "server.json").read_text())
    model = load_model(model_directory).model
    move(model, seed=11)
    shard(model, init_device_mesh("cpu", (2,)))
    engine = make_engine("vllm", sync_dir=f"{directory}/sync", url=url, dtype="float32", retries=0)
    settings = SamplingSettings(24)
    for factor in (1.0, 1.25):
        with torch.no_grad():
            for each in trained_parameters(model):
                each.mul_(factor)
        with engine.prepared(model):
            for part in (slice(rank, None, 4), slice(rank + 2, None, 4)):
                prompts = PROMPTS[part]
                request = RolloutRequest(
                    prompts, settings, frozenset([0]), seeds=[5] * len(prompts)
                )
                rollout = engine(model, request)
                torch.save((prompts, rollout), f"{directory}/{factor}-{rank}-{part.start}.pt")


def test_a_sharded_student_is_sent_by_one_writer_and_serves_every_rank(server, tmp_path):
    tied = server.model.with_name("tied")
    (tmp_path / "server.json").write_text(json.dumps([server.url, str(tied)]))
    on_ranks(sample_on_a_rank, tmp_path)
    for factor in (1.0, 1.25):
        model = moved(server, seed=11).model
        with torch.no_grad():
            for each in trained_parameters(model):
                each.mul_(factor)
        files = sorted(tmp_path.glob(f"{factor}-*.pt"))
        assert len(files) == 4
        for file in files:
            prompts, rollout = torch.load(file, weights_only=False)
            assert mean_difference(model, prompts, rollout) <= 1e-3


@pytest.mark.parametrize("phase", ["between two rollouts", "in an update", "in a rollout"])
def test_a_killed_server_ends_the_run_and_a_new_one_gets_the_weights(
    server, connect, student, phase, monkeypatch
):
    engine = connect()
    engine(student.model, asked(student))
    if phase == "between two rollouts":
        server.kill()
    elif phase == "in an update":
        move(student.model, seed=4)
        kill_before(server, engine, monkeypatch, "/collective_rpc")
    else:
        threading.Thread(target=lambda: (time.sleep(0.3), server.kill())).start()
    with pytest.raises(VLLMError, match=r"no server is listening|connection failed|given up"):
        engine(student.model, asked(student, PROMPTS * 20, 400))
    server.process.wait()
    server.start()
    rollout = engine(student.model, asked(student))
    assert mean_difference(student.model, PROMPTS, rollout) <= 1e-3


def kill_before(server, engine, monkeypatch, path):
    """Kill the server just before the engine asks for a path, the first time."""
    post = engine._server.post

    def killing(asked_path, *body, **options):
        if asked_path == path:
            monkeypatch.setattr(engine._server, "post", post)
            server.kill()
        return post(asked_path, *body, **options)

    monkeypatch.setattr(engine._server, "post", killing)
