from types import SimpleNamespace

import pytest
import torch

from datamodules.chat_options import ChatOptions
from lightning_modules import RewardedSDFTModule
from lightning_modules.reward import advantages
from tests.lightning_modules.one_step import (
    BATCH,
    assert_step_equals,
    logprobs,
    moved,
    token_logprobs,
)
from tests.lightning_modules.test_modules import Recorder, sdft, train


def test_the_reward_joins_the_divergence_as_a_policy_gradient(monkeypatch):
    module = moved(RewardedSDFTModule, reward_weight=0.7)
    rewards = torch.tensor([1.0, 0.0, 0.5])
    monkeypatch.setattr(module, "rewards", lambda batch, rollout: rewards)
    module.training_step(BATCH, 0)
    losses = []
    rows = zip(
        BATCH.student_prompts, BATCH.teacher_prompts, module.last_rollout.completions, strict=True
    )
    for (prompt, shown, tokens), advantage in zip(rows, [0.75, -0.75, 0.0], strict=True):
        student = logprobs(module.student, prompt, tokens)
        teacher = logprobs(module.teacher.model, shown, tokens).detach()
        kl = (teacher.exp() * (teacher - student)).sum(-1)
        own = token_logprobs(module.student, prompt, tokens)
        losses.append((kl - 0.7 * advantage * own).mean())
    assert_step_equals(module, torch.stack(losses).mean())


def test_advantages_have_mean_zero_and_leave_their_own_reward_out_of_the_baseline():
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0])
    found = advantages(rewards)
    assert found.mean().item() == pytest.approx(0.0, abs=1e-7)
    assert found[0].item() == pytest.approx(1.0 - 2 / 4)
    assert advantages(torch.tensor([1.0])).tolist() == [1.0]
    assert advantages(torch.ones(4)).abs().max() == 0.0


def test_a_rollout_is_scored_by_its_own_rows_rule():
    module = sdft(RewardedSDFTModule)
    module._trainer = SimpleNamespace(
        datamodule=SimpleNamespace(
            score=lambda answer, row: float(answer == row),
            reader=SimpleNamespace(chat=ChatOptions()),
        )
    )
    ids = [module.tokenizer(text)["input_ids"] for text in ("a", "b", "c")]
    rollout = SimpleNamespace(completions=[[*ids[0], 0], ids[1], ids[2]])
    batch = SimpleNamespace(rows=("a", "b", "d"), student_prompts=[[5], [5], [5]])
    assert module.rewards(batch, rollout).tolist() == [1.0, 1.0, 0.0]


def test_rewards_are_logged_while_training(tmp_path):
    seen = Recorder("on_train_batch_end", lambda trainer, module: dict(trainer.callback_metrics))
    train(sdft(RewardedSDFTModule), tmp_path, seen)
    assert all(0.0 <= metrics["train/reward"] <= 1.0 for metrics in seen.seen)


def test_without_a_weight_there_is_no_reward():
    with pytest.raises(ValueError, match=r"model\.reward_weight is 0\.0; it must be above 0"):
        sdft(RewardedSDFTModule, reward_weight=0.0)
