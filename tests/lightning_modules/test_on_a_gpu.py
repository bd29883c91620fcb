"""Whole steps, rollouts and runs on a real GPU, against the same on the CPU."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from sdft.model.lora import trained_parameters
from sdft.model.pretrained import load_model
from sdft.rollout.in_place import sample
from sdft.rollout.request import RolloutRequest, SamplingSettings
from tests.child_runs import write_config
from tests.command_line.test_resume import assert_same_outcome, kill_at
from tests.conftest import REPOSITORY
from tests.lightning_modules.one_step import PROMPTS, TARGETS
from tests.lightning_modules.test_pretended_gpu import CASES, one_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("case", sorted(CASES.keys() - {"continuous batching"}))
def test_a_step_is_the_step_on_a_cpu(case):
    expected, batch = one_step(*CASES[case])
    module, _ = one_step(*CASES[case])
    loss = expected.training_step(batch, 0)
    loss.backward()
    module.cuda()
    found = module.training_step(batch, 0)
    found.backward()
    assert found.is_cuda
    torch.testing.assert_close(found.detach().cpu(), loss.detach(), rtol=1e-5, atol=1e-7)
    pairs = zip(
        trained_parameters(module.student), trained_parameters(expected.student), strict=True
    )
    for one, other in pairs:
        torch.testing.assert_close(one.grad.cpu(), other.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("drafts", [None, TARGETS], ids=["no drafts", "drafts"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_completions_are_those_of_a_cpu(drafts, temperature):
    model = load_model("tiny-random").model.double()
    request = RolloutRequest(
        PROMPTS, SamplingSettings(24, temperature), frozenset([0]), seeds=[1, 2, 3], drafts=drafts
    )
    expected = sample(model, request)
    assert sample(model.cuda(), request).completions == expected.completions


def fit(tmp_path, config, name, *args):
    """The exit code of a run on one GPU, with deterministic kernels."""
    command = [
        sys.executable, "train.py", "fit", f"--config={config}", f"--run_dir={tmp_path / name}",
        "--checkpoint.every_n_steps=1", "--trainer.accelerator=gpu", "--trainer.devices=1",
        "--trainer.deterministic=true", *args,
    ]  # fmt: skip
    with (tmp_path / f"{name}.log").open("ab") as log:
        variables = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        done = subprocess.run(
            command, cwd=REPOSITORY, env=variables, stdout=log, stderr=log, check=False
        )
    return done.returncode


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"trainer.precision": "bf16-mixed", "model.init_args.memory": "lean"},
        {"trainer.precision": "bf16-mixed", "model.init_args.rollout_engine": "generate"},
    ],
    ids=["float32", "lean", "bf16-mixed, generate"],
)
def test_resumed_run_equals_uninterrupted_run(options, tmp_path):
    config, args = write_config(tmp_path), [f"--{key}={value}" for key, value in options.items()]
    log = tmp_path / "resumed.log"
    assert fit(tmp_path, config, "whole", *args) == 0, (tmp_path / "whole.log").read_text()
    killer = kill_at(tmp_path, "on_train_batch_end", 2)
    assert fit(tmp_path, config, "resumed", *args, *killer) == -signal.SIGKILL, log.read_text()
    assert fit(tmp_path, config, "resumed", *args, "--ckpt_path=last") == 0, log.read_text()
    assert_same_outcome(tmp_path / "resumed", tmp_path / "whole")
