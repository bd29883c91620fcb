"""vLLM's weight transfer, against a server that speaks it; gloo groups stand for NCCL's."""

import base64
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch.cuda import nccl
from torch.distributed.device_mesh import init_device_mesh

from sdft.model.pretrained import load_model
from sdft.model.sharding import shard
from sdft.rollout.engine_registry import make_engine
from sdft.rollout.in_place import sample
from sdft.rollout.request import RolloutRequest
from sdft.rollout.vllm import vllm_engine, vllm_server
from sdft.rollout.vllm.nccl_transfer import NCCLGroup
from sdft.rollout.vllm.vllm_server import VLLMError
from tests.processes import on_ranks
from tests.rollout import gloo_group
from tests.rollout.gloo_group import GlooGroup, WorkerGroup
from tests.rollout.test_vllm_engine import GREEDY, PROMPTS, Stub, answering, move

CONNECT = ["/shutdown_weight_transfer_engine", "/get_world_size", "/init_weight_transfer_engine"]
SEND = ["/start_weight_update", "/update_weights", "/finish_weight_update"]
WAIT_S = 15  # after which a group that is not complete gives up


class TransferStub(Stub):
    """A server with two workers in one process, which receive weights as vLLM's workers do."""

    num_workers = 2

    def __init__(self):
        super().__init__()
        self.weight_transfer = {"backend": "nccl"}
        self.bodies, self.late = {}, {}

    def restart(self):
        super().restart()
        self.workers = []

    def get(self, path):
        if path == "/get_world_size":
            return {"world_size": self.num_workers}
        return super().get(path)

    def post(self, path, body):
        self.bodies[path] = body
        time.sleep(self.late.get(path, 0.0))
        if path == "/shutdown_weight_transfer_engine":
            self.workers = []
        elif path == "/init_weight_transfer_engine":
            self.workers = self.by_every_worker(self.worker_group)
        elif path == "/update_weights":
            first, second = self.by_every_worker(self.received)
            assert all(torch.equal(first[name], second[name]) for name in first)
            self.pushed.append(first)
            self.model.load_state_dict(first, strict=False)
        return super().post(path, body)

    def by_every_worker(self, work):
        with ThreadPoolExecutor(self.num_workers) as pool:
            return list(pool.map(work, range(self.num_workers)))

    def handle_error(self, *_):
        """Workers whose group broke drop the connection, without a traceback."""

    def worker_group(self, worker):
        given = self.bodies["/init_weight_transfer_engine"]["init_info"]
        unique_id = base64.b64decode(given["nccl_unique_id_b64"], validate=True)
        assert len(unique_id) == 128
        return WorkerGroup(unique_id, given["rank_offset"] + worker, given["world_size"], None)

    def received(self, worker):
        info = self.bodies["/update_weights"]["update_info"]
        found = {}
        for name, dtype, shape in zip(*(info[key] for key in info), strict=True):
            found[name] = torch.empty(shape, dtype=getattr(torch, dtype))
            self.workers[worker].broadcast(found[name], src=0)
        return found


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setattr(vllm_server, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(vllm_engine, "NCCLGroup", GlooGroup)
    monkeypatch.setattr(gloo_group, "WAIT", timedelta(seconds=WAIT_S))
    with answering(TransferStub()) as server:
        yield server


@pytest.fixture
def connect(stub):
    def engine(**options):
        given = {"url": stub.url, "retries": 2, "timeout_s": 20.0, "dtype": "float32", **options}
        return make_engine("vllm", transfer="nccl", **given)

    return engine


def asked(tiny):
    return RolloutRequest(PROMPTS, GREEDY, end_ids=tiny.end_ids)


def updates(stub):
    """The requests that belong to weight transfer, in their order."""
    return [path for path in stub.seen if path in {*CONNECT, *SEND}]


def test_completions_follow_the_weights_through_one_group(stub, connect, tiny):
    engine = connect()
    for _ in range(2):
        move(tiny.model)
        assert engine(tiny.model, asked(tiny)) == sample(tiny.model, asked(tiny))
    assert updates(stub) == [*CONNECT, *SEND, *SEND]
    named = dict(tiny.model.named_parameters(remove_duplicate=False))
    for name, weight in stub.pushed[-1].items():
        assert torch.equal(weight, named[name])
    assert named.keys() == stub.pushed[-1].keys()


def test_an_update_lies_between_pause_and_resume(stub, connect, tiny):
    engine = connect()
    stub.seen.clear()
    engine(tiny.model, asked(tiny))
    before, after = ["/pause?mode=abort", "/weight_info"], ["/reset_prefix_cache"]
    after += ["/update_weight_version", "/resume"]
    completions = ["/v1/completions"] * len(PROMPTS)
    assert stub.seen == [*before, *CONNECT, *SEND, *after, *completions, "/weight_info"]


def test_workers_are_told_their_ranks_and_what_comes(stub, connect, tiny):
    stub.dtype = "torch.bfloat16"
    connect(dtype="bfloat16")(tiny.model, asked(tiny))
    given = stub.bodies["/init_weight_transfer_engine"]["init_info"]
    del given["nccl_unique_id_b64"]  # the workers joined with it
    assert given == {"rank_offset": 1, "world_size": 3, "packed": False}
    info = stub.bodies["/update_weights"]["update_info"]
    assert set(info) == {"names", "dtype_names", "shapes"}
    assert set(info["dtype_names"]) == {"bfloat16"}
    sizes = dict(zip(info["names"], info["shapes"], strict=True))
    assert sizes == {name: list(each.shape) for name, each in stub.pushed[-1].items()}


def test_a_restarted_server_gets_a_group_of_its_own(stub, connect, tiny):
    engine = connect()
    for _ in range(2):
        move(tiny.model)
        assert engine(tiny.model, asked(tiny)) == sample(tiny.model, asked(tiny))
        stub.restart()
    assert updates(stub) == [*CONNECT, *SEND] * 2


def test_two_runs_on_one_server_each_form_a_group_again(stub, connect, tiny):
    for engine in (connect(), connect()) * 2:
        assert engine(tiny.model, asked(tiny)) == sample(tiny.model, asked(tiny))
    assert updates(stub) == [*CONNECT, *SEND] * 4


@pytest.mark.parametrize("path", [path for path in CONNECT + SEND if path != "/get_world_size"])
def test_a_request_that_fails_ends_the_run_and_is_not_repeated(stub, connect, tiny, path):
    engine = connect()
    stub.fail_at = {path: 500}
    started = time.monotonic()
    with pytest.raises(VLLMError, match=rf"{path}: HTTP 500.*out of luck"):
        engine(tiny.model, asked(tiny))
    assert time.monotonic() - started < WAIT_S  # although this side waits for the workers
    assert stub.seen.count(path) == 1
    assert "/resume" not in stub.seen
    assert engine(tiny.model, asked(tiny)) == sample(tiny.model, asked(tiny))
    assert updates(stub)[-6:] == [*CONNECT, *SEND]


def send_from_a_rank(rank, directory):
    """One update of a sharded student."""
    vllm_engine.NCCLGroup = GlooGroup
    model = load_model("tiny-random").model
    shard(model, init_device_mesh("cpu", (2,)))
    url = Path(directory, "url").read_text()
    engine = make_engine("vllm", transfer="nccl", url=url, dtype="float32", timeout_s=60.0)
    with engine.prepared(model):
        pass


@pytest.mark.slow
def test_a_sharded_student_is_sent_by_one_rank(stub, tiny, tmp_path):
    (tmp_path / "url").write_text(stub.url)
    on_ranks(send_from_a_rank, tmp_path)
    assert updates(stub) == [*CONNECT, *SEND]
    for name, weight in tiny.model.named_parameters():
        assert torch.equal(stub.pushed[-1][name], weight)


class BrokenGroup(GlooGroup):
    """Fails on this side, while the server's workers wait."""

    def broadcast(self, weight):
        raise RuntimeError("CUDA out of memory")


def test_a_failure_of_this_side_ends_the_run_although_the_server_waits(
    stub, connect, tiny, monkeypatch
):
    monkeypatch.setattr(vllm_engine, "NCCLGroup", BrokenGroup)
    engine, started = connect(), time.monotonic()
    with pytest.raises(VLLMError, match=r"/update_weights: .*failed \(CUDA out of memory\)"):
        engine(tiny.model, asked(tiny))
    assert time.monotonic() - started < WAIT_S


class SlowGroup(GlooGroup):
    """Does not come back from a broadcast."""

    def broadcast(self, weight):
        super().broadcast(weight)
        time.sleep(8)


def test_a_broadcast_that_does_not_end_ends_the_run(stub, connect, tiny, monkeypatch):
    monkeypatch.setattr(vllm_engine, "NCCLGroup", SlowGroup)
    engine = connect(timeout_s=1.0)
    monkeypatch.setattr(stub, "received", lambda worker: {})
    with pytest.raises(VLLMError, match="the server is done, but weights are still being sent"):
        engine(tiny.model, asked(tiny))


def test_a_server_that_does_not_answer_ends_the_run(stub, connect, tiny):
    engine = connect(timeout_s=1.0)
    stub.late["/update_weights"] = 4.0
    with pytest.raises(VLLMError, match=r"/update_weights: no answer within 1 s \(timeout_s\)"):
        engine(tiny.model, asked(tiny))


@pytest.mark.parametrize("config", [None, {"backend": "ipc"}])
def test_a_server_without_this_transfer_is_refused(stub, connect, config):
    stub.weight_transfer = config
    with pytest.raises(ValueError, match=r"start it with --weight-transfer-config '.*nccl"):
        connect()


def receive(unique_id, shape, path):
    """What a server's worker does on the second GPU, with torch's calls."""
    torch.cuda.set_device(1)
    communicator = nccl.init_rank(2, unique_id, 1)
    nccl.all_reduce([torch.zeros(1, device="cuda")], comms=[communicator])
    weight = torch.empty(shape, device="cuda")
    nccl.broadcast([weight], comms=[communicator])
    torch.save(weight.cpu(), path)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_nccl_sends_a_weight_to_another_gpu(tmp_path):
    group, weight = NCCLGroup(), torch.randn(300, 50)
    given = (group.unique_id, weight.shape, str(tmp_path / "weight.pt"))
    worker = torch.multiprocessing.get_context("spawn").Process(target=receive, args=given)
    worker.start()
    group.join(2)
    group.broadcast(weight)
    worker.join(60)
    assert torch.equal(torch.load(tmp_path / "weight.pt", weights_only=True), weight)
