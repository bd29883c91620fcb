"""vLLM's own weight transfer into a real server: ``make test-vllm``.

The server's workers run on the CPU, so a plugin gives them gloo groups in place of NCCL's, and this
side has one too. The requests, the order of the weights and how they are loaded are as on a GPU.
"""

import pytest

from sdft.rollout.engine_registry import make_engine
from sdft.rollout.vllm import vllm_engine
from sdft.rollout.vllm.vllm_server import VLLMError
from tests.rollout.gloo_group import GlooGroup, as_plugin
from tests.rollout.test_real_vllm import (
    PROMPTS,
    asked,
    kill_before,
    mean_difference,
    move,
    moved,
    serving,
)

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm")
    transfer = '--weight-transfer-config={"backend": "nccl"}'
    with serving(folder, transfer, plugins=as_plugin(folder / "plugins")) as running:
        yield running


@pytest.fixture
def connect(server, monkeypatch):
    monkeypatch.setattr(vllm_engine, "NCCLGroup", GlooGroup)
    given = {"url": server.url, "dtype": "float32", "retries": 0, "timeout_s": 120.0}
    return lambda: make_engine("vllm", transfer="nccl", **given)


@pytest.fixture
def student(server):
    return moved(server, seed=1)


def check(engine, student):
    """Its log-probabilities are those of the student's weights, to the rounding of kernels."""
    rollout = engine(student.model, asked(student))
    assert rollout.num_tokens > 100
    assert mean_difference(student.model, PROMPTS, rollout) <= 1e-3
    return rollout


def test_log_probabilities_are_those_of_the_weights_that_were_sent(connect, student):
    engine = connect()
    for seed in (2, 3):  # the second update goes through the same group
        move(student.model, seed)
        rollout = check(engine, student)
        move(student.model, seed + 10)  # other weights do not agree
        assert mean_difference(student.model, PROMPTS, rollout) > 0.1


def test_two_runs_on_one_server_each_send_their_own_weights(server, connect, student):
    one, other, second = connect(), connect(), moved(server, seed=9)
    for _ in range(2):
        check(one, student)
        check(other, second)


def test_an_update_that_the_server_refuses_is_made_up_for(connect, student, monkeypatch):
    engine = connect()
    check(engine, student)
    move(student.model, seed=5)
    post = engine._server.post

    def misspelt(path, body=None, **options):
        if path == "/update_weights":
            body = {"update_info": {**body["update_info"], "shapes": []}}
        return post(path, body, **options)

    monkeypatch.setattr(engine._server, "post", misspelt)
    with pytest.raises(VLLMError, match="/update_weights: HTTP 500"):
        engine(student.model, asked(student))
    monkeypatch.setattr(engine._server, "post", post)
    check(engine, student)


@pytest.mark.parametrize("path", ["/weight_info", "/update_weights"])
def test_a_killed_server_ends_the_run_and_a_new_one_gets_the_weights(
    server, connect, student, path, monkeypatch
):
    engine = connect()
    check(engine, student)
    if path == "/weight_info":  # between two updates
        server.kill()
    else:
        move(student.model, seed=4)
        kill_before(server, engine, monkeypatch, path)
    with pytest.raises(VLLMError, match=r"no server is listening|connection failed|failed \("):
        engine(student.model, asked(student))
    server.start()
    check(engine, student)
