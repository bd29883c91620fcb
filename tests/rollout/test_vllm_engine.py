"""Against a server that speaks the part of vLLM's HTTP interface the engine uses."""

import copy
import json
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import load_file

from sdft.model.exported_weights import plain_weights
from sdft.model.lora import LoRA, trained_parameters
from sdft.model.pretrained import load_model
from sdft.rollout.engine_registry import make_engine
from sdft.rollout.in_place import sample
from sdft.rollout.request import RolloutRequest, SamplingSettings
from sdft.rollout.vllm import vllm_server
from sdft.rollout.vllm.vllm_server import VLLMError

PROMPTS = [[5, 6, 7, 8], [3], [20, 21]]
GREEDY = SamplingSettings(6, temperature=0)


class Stub(ThreadingHTTPServer):
    """Serves a tiny model greedily; reloads its weights from the folder it is told."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.version, self.mode, self.models = "0.33.1", "processed_logprobs", ["tiny"]
        self.dtype, self.weight_transfer = "torch.float32", None
        self.delay, self.failures, self.fail_at = 0.0, [], {}
        self.answer = self.complete
        self.seen, self.requests, self.pushed = [], [], []
        self.fresh = load_model("tiny-random").model
        self.restart()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def restart(self):
        self.model, self.label = copy.deepcopy(self.fresh), "default"

    def get(self, path):
        return {
            "/version": {"version": self.version},
            "/v1/models": {"data": [{"id": each} for each in self.models]},
            "/server_info?config_format=json": {
                "vllm_config": {
                    "model_config": {"logprobs_mode": self.mode, "dtype": self.dtype},
                    "weight_transfer_config": self.weight_transfer,
                }
            },
            "/weight_info": {"weight_version": self.label},
        }[path]

    def post(self, path, body):
        if path == "/v1/completions":
            self.requests.append(body)
            return self.answer(body)
        if path == "/update_weight_version":
            self.label = body["new_version"]
        if path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            weights = load_file(f"{body['kwargs']['weights_path']}/model.safetensors")
            self.pushed.append(weights)
            self.model.load_state_dict(weights, strict=False)
        return None

    def complete(self, body):
        end_ids = frozenset(body["stop_token_ids"])
        settings = SamplingSettings(body["max_tokens"], temperature=0)
        rollout = sample(self.model, RolloutRequest([body["prompt"]], settings, end_ids=end_ids))
        tokens = rollout.completions[0]
        return answer_of(tokens, [-0.5] * len(tokens), "stop" if rollout.ended[0] else "length")


def answer_of(tokens, logprobs, reason="length"):
    return {
        "choices": [
            {
                "token_ids": tokens,
                "logprobs": {"token_logprobs": logprobs},
                "finish_reason": reason,
            }
        ]
    }


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply(lambda: self.server.get(self.path))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.reply(lambda: self.server.post(self.path, body))

    def reply(self, work):
        self.server.seen.append(self.path)
        time.sleep(self.server.delay)
        failure = self.server.failures.pop(0) if self.server.failures else None
        failure = self.server.fail_at.pop(self.path, failure)
        if failure == "drop":
            self.close_connection = True
            return
        content = work() if failure is None else {"error": "out of luck"}
        raw = b"" if content is None else json.dumps(content).encode()
        if failure == "page":
            failure, raw = None, b"<html></html>"
        self.send_response(failure or 200)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        with suppress(BrokenPipeError):  # the client of the time-out test has left
            self.wfile.write(raw)

    def log_message(self, *_):
        pass


@contextmanager
def answering(server):
    """The server, answering requests in a thread."""
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setattr(vllm_server, "FIRST_WAIT_S", 0.01)
    with answering(Stub()) as server:
        yield server


@pytest.fixture
def connect(stub, tmp_path):
    return lambda **options: make_engine(
        "vllm",
        sync_dir=str(tmp_path / "sync"),
        **{"url": stub.url, "retries": 2, "dtype": "float32", **options},
    )


def move(model):
    with torch.no_grad():
        for parameter in trained_parameters(model):
            parameter.add_(0.3 * torch.randn(parameter.shape))


@pytest.mark.parametrize("lora", [None, LoRA(r=2)], ids=["full", "lora"])
def test_completions_follow_the_weights_in_training(stub, connect, lora, tmp_path):
    engine, student = connect(), load_model("tiny-random", lora=lora)
    for _ in range(2):
        move(student.model)
        expected = sample(student.model, RolloutRequest(PROMPTS, GREEDY, end_ids=student.end_ids))
        assert (
            engine(student.model, RolloutRequest(PROMPTS, GREEDY, end_ids=student.end_ids))
            == expected
        )
    expected = plain_weights(student.model)
    assert stub.pushed[-1].keys() == expected.keys() | {"lm_head.weight"}  # tied, sent all the same
    for name, weight in expected.items():
        assert torch.equal(stub.pushed[-1][name], weight)
    assert not list((tmp_path / "sync").iterdir())


def test_weights_are_sent_once_per_change_in_this_order(stub, connect, tiny):
    engine = connect()
    stub.seen.clear()
    engine(tiny.model, RolloutRequest(PROMPTS, GREEDY, end_ids=tiny.end_ids))
    push = ["/pause?mode=abort", "/weight_info", "/collective_rpc", "/reset_prefix_cache"]
    push += ["/update_weight_version", "/resume"]
    completions = ["/v1/completions"] * len(PROMPTS)
    assert stub.seen == [*push, *completions, "/weight_info"]
    stub.seen.clear()
    engine(tiny.model, RolloutRequest(PROMPTS, GREEDY, end_ids=tiny.end_ids))
    assert stub.seen == ["/weight_info", *completions, "/weight_info"]


@pytest.mark.parametrize("fused", [False, True])
def test_an_optimizer_step_is_noticed(stub, connect, tiny, fused):
    engine = connect()
    optimizer = torch.optim.AdamW(tiny.model.parameters(), lr=1e-5, fused=fused)
    for pushes in (1, 2):
        engine(tiny.model, RolloutRequest(PROMPTS, GREEDY, end_ids=tiny.end_ids))
        assert len(stub.pushed) == pushes
        tiny.model(torch.tensor([[5, 6, 7]])).logits.square().sum().backward()
        optimizer.step()


def test_a_restarted_server_is_given_the_weights_again(stub, connect, tiny):
    engine = connect()
    move(tiny.model)
    expected = engine(tiny.model, RolloutRequest(PROMPTS, GREEDY, end_ids=tiny.end_ids))
    stub.restart()
    assert engine(tiny.model, RolloutRequest(PROMPTS, GREEDY, end_ids=tiny.end_ids)) == expected
    assert len(stub.pushed) == 2


def test_weights_that_change_during_a_rollout_end_the_run(stub, connect, tiny):
    def restarted(body):
        stub.restart()
        return stub.complete(body)

    engine, stub.answer = connect(), restarted
    with pytest.raises(VLLMError, match="changed during a rollout"):
        engine(tiny.model, RolloutRequest(PROMPTS, GREEDY, end_ids=tiny.end_ids))


def test_a_request_states_every_sampling_option_and_its_own_seed(stub, connect, tiny):
    settings = SamplingSettings(
        4, temperature=0.7, top_p=0.9, top_k=8, min_p=0.05, stop_strings=("no such text",)
    )

    def roll(seed):
        stub.requests.clear()
        rollout = engine(
            tiny.model,
            RolloutRequest(
                PROMPTS,
                settings,
                end_ids=tiny.end_ids,
                seeds=[seed + row for row in range(len(PROMPTS))],
                decode=tiny.tokenizer.decode,
            ),
        )
        assert rollout.logprobs == [[-0.5] * len(each) for each in rollout.completions]
        by_prompt = {str(each["prompt"]): each for each in stub.requests}
        return [by_prompt[str(prompt)] for prompt in PROMPTS]

    engine = connect()
    first, again, other = roll(1), roll(1), roll(2)
    assert first == again
    seeds = [request["seed"] for request in first]
    assert len(set(seeds)) == len(PROMPTS)
    assert seeds != [request["seed"] for request in other]
    stated = {"max_tokens": 4, "temperature": 0.7, "top_p": 0.9, "top_k": 8, "min_p": 0.05}
    stated |= {"stop": ["no such text"], "stop_token_ids": sorted(tiny.end_ids), "model": "tiny"}
    assert all(request | stated == request for request in first)


def test_answers_are_cut_where_they_end(stub, connect, tiny):
    tokens = tiny.tokenizer("ab. c", add_special_tokens=False)["input_ids"]
    engine, stub.answer = connect(), lambda _: answer_of(tokens, [-0.1] * len(tokens))
    settings = SamplingSettings(9, temperature=0, stop_strings=(". ",))
    rollout = engine(
        tiny.model,
        RolloutRequest(PROMPTS[:1], settings, end_ids=tiny.end_ids, decode=tiny.tokenizer.decode),
    )
    assert tiny.tokenizer.batch_decode(rollout.completions) == ["ab. "]
    assert (rollout.logprobs, rollout.ended) == ([[0.0] * 4], [True])


def test_the_server_sleeps_between_rollouts_when_asked_to(stub, connect, tiny):
    engine = connect(sleep=True)
    stub.seen.clear()
    engine(tiny.model, RolloutRequest(PROMPTS, GREEDY, end_ids=tiny.end_ids))
    assert (stub.seen[0], stub.seen[-1]) == ("/wake_up", "/sleep?level=1")


def test_each_process_has_a_server_and_a_folder_of_its_own(stub, tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("LOCAL_RANK", stub.url[-1])
    url, folder = stub.url[:-1] + "{local_rank}", tmp_path / "sync-{local_rank}"
    engine = make_engine("vllm", sync_dir=str(folder), url=url, dtype="float32")
    engine(tiny.model, RolloutRequest(PROMPTS, GREEDY, end_ids=tiny.end_ids))
    assert [path.name for path in tmp_path.iterdir()] == [f"sync-{stub.url[-1]}"]


@pytest.mark.parametrize("failure", [500, 503, "drop"])
def test_passing_failures_are_tried_again(stub, connect, tiny, failure):
    engine = connect()
    expected = engine(tiny.model, RolloutRequest(PROMPTS, GREEDY, end_ids=tiny.end_ids))
    stub.failures = [failure, failure]
    assert engine(tiny.model, RolloutRequest(PROMPTS, GREEDY, end_ids=tiny.end_ids)) == expected


@pytest.mark.parametrize(
    ("failures", "complaint"),
    [
        ([500] * 3, "HTTP 500.*out of luck.*in each of 3 attempts"),
        (["drop"] * 3, "connection failed.*in each of 3 attempts"),
        ([400], "HTTP 400.*out of luck"),
        ([404], "HTTP 404.*VLLM_SERVER_DEV_MODE=1"),
    ],
)
def test_lasting_failures_and_refusals_end_the_run(stub, connect, tiny, failures, complaint):
    engine = connect()
    stub.failures = list(failures)
    with pytest.raises(VLLMError, match=complaint):
        engine(tiny.model, RolloutRequest(PROMPTS, GREEDY, end_ids=tiny.end_ids))
    assert not stub.failures


def test_a_server_that_does_not_answer_in_time_ends_the_run(stub, connect, tiny):
    engine = connect(timeout_s=2.0, retries=1)
    stub.delay = 6.0
    with pytest.raises(VLLMError, match=r"no answer within 2 s \(timeout_s\).*2 attempts"):
        engine(tiny.model, RolloutRequest(PROMPTS, GREEDY, end_ids=tiny.end_ids))


def test_an_update_that_failed_is_made_up_for(stub, connect, tiny):
    engine = connect(retries=0)
    engine(tiny.model, RolloutRequest(PROMPTS, GREEDY, end_ids=tiny.end_ids))
    move(tiny.model)
    stub.failures = [500]
    with pytest.raises(VLLMError, match="pause"):
        engine(tiny.model, RolloutRequest(PROMPTS, GREEDY, end_ids=tiny.end_ids))
    expected = sample(tiny.model, RolloutRequest(PROMPTS, GREEDY, end_ids=tiny.end_ids))
    assert engine(tiny.model, RolloutRequest(PROMPTS, GREEDY, end_ids=tiny.end_ids)) == expected


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ({"choices": []}, "without its token ids"),
        ({"choices": [{"text": "hello", "finish_reason": "stop"}]}, "without its token ids"),
        (answer_of(None, [-1.0]), "without its token ids"),
        (answer_of([1], None), "without its token ids"),
        (answer_of([1, 2], [-1.0]), "2 tokens came with other log-probabilities"),
        (answer_of([1], [None]), "1 tokens came with other log-probabilities"),
        (answer_of([], []), "0 tokens came with other log-probabilities"),
        (answer_of([1], [-1.0], "abort"), r"given up \(abort\)"),
        (None, "without its token ids"),
    ],
)
def test_malformed_answers_are_refused(stub, connect, tiny, answer, complaint):
    engine, stub.answer = connect(), lambda _: answer
    with pytest.raises(VLLMError, match=complaint):
        engine(tiny.model, RolloutRequest(PROMPTS, GREEDY, end_ids=tiny.end_ids))


def test_no_server_is_noticed_at_construction(stub, connect, unused_port):
    with pytest.raises(VLLMError, match=r"no server is listening there.*docs/engines\.md"):
        connect(url=f"http://127.0.0.1:{unused_port}", retries=1)


@pytest.fixture
def unused_port():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        return server.server_port


@pytest.mark.parametrize("version", ["0.31.9", "0.34.0rc1", "1.0", "unknown"])
def test_another_version_is_refused(stub, connect, version):
    stub.version = version
    with pytest.raises(ValueError, match=rf"runs vLLM {version}; install 0\.32 to 0\.33"):
        connect()


def test_another_model_is_refused_and_several_need_a_name(stub, connect):
    with pytest.raises(ValueError, match=r"model is tinny; .* serves: tiny"):
        connect(model="tinny")
    stub.models = ["one", "two"]
    with pytest.raises(ValueError, match=r"model is None; .* serves: one, two"):
        connect()
    connect(model="two")


def test_logprobs_of_another_distribution_are_refused(stub, connect):
    stub.mode = "raw_logprobs"
    with pytest.raises(ValueError, match="--logprobs-mode processed_logprobs"):
        connect()


def test_a_server_of_another_precision_is_refused_and_its_own_is_sent(stub, connect, tiny):
    with pytest.raises(ValueError, match=r"has dtype float32; start it with --dtype bfloat16"):
        connect(dtype="bfloat16")
    stub.dtype = "torch.bfloat16"
    connect(dtype="bfloat16")(tiny.model, RolloutRequest(PROMPTS, GREEDY, end_ids=tiny.end_ids))
    assert {each.dtype for each in stub.pushed[-1].values()} == {torch.bfloat16}


def test_one_update_serves_all_rollouts_of_a_prepared_block(stub, connect, tiny):
    engine = connect(sleep=True)
    stub.seen.clear()
    with engine.prepared(tiny.model):
        for _ in range(2):
            engine(tiny.model, RolloutRequest(PROMPTS, GREEDY, end_ids=tiny.end_ids))
    for path in ("/wake_up", "/collective_rpc", "/update_weight_version", "/sleep?level=1"):
        assert stub.seen.count(path) == 1


def test_an_answer_that_is_no_json_is_refused(stub, connect):
    stub.failures = ["page"]
    with pytest.raises(VLLMError, match=r"the answer is no JSON.*is this a vLLM server"):
        connect()
