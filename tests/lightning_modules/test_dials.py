"""The share of on-policy rows, and the anchor, against losses from whole logits in float64."""

import copy
import json

import pytest
import torch

from lightning_modules import (
    OfflineDistillationModule,
    OnPolicyDistillationModule,
    RewardedSDFTModule,
    SDFTModule,
    SFTModule,
)
from lightning_modules.anchor import Anchor
from tests.lightning_modules.test_modules import Recorder, Referenced, sdft, train

KEPT = {"kind": "ema", "reset_each_stage": False}


def prompts_file(folder, count=3):
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "general.jsonl"
    rows = [{"id": str(number), "prompt": f"Say {number}."} for number in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(file)


def anchor(folder, **options):
    options = {"prompts": prompts_file(folder), "num_prompts": 3, "rows_per_step": 2, **options}
    return Anchor(weight=0.7, max_new_tokens=4, **options)


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_a_share_of_the_rows_is_sampled_and_the_others_score_the_demonstration(fraction, tmp_path):
    sampled = Recorder(
        "on_train_batch_end",
        lambda trainer, module: [bool(each) for each in module.last_rollout.logprobs],
    )
    demonstrated = Recorder("on_train_batch_end", lambda trainer, module: module.last_rollout)
    demonstrated.on_train_batch_end = lambda trainer, module, outputs, batch, *_: (
        demonstrated.seen.append((module.last_rollout.completions, batch.demonstrations))
    )
    module = sdft(Referenced, on_policy_fraction=fraction, teacher=KEPT)
    torch.manual_seed(0)
    with torch.no_grad():  # another teacher, so that the divergence is no rounding error
        for parameter in module.teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    train(module, tmp_path, sampled, demonstrated, num_train=(8, 4))
    flags = [flag for step in sampled.seen for flag in step]
    assert sum(flags) == fraction * len(flags)
    for step, (completions, demonstrations) in zip(sampled.seen, demonstrated.seen, strict=True):
        for own, completion, demonstration in zip(step, completions, demonstrations, strict=True):
            assert own or completion == demonstration
    for loss, expected in module.compared:
        assert loss == pytest.approx(expected, rel=1e-4)
        assert loss > 1e-3


def test_all_rows_on_policy_draw_what_they_drew_before_there_was_a_share(tmp_path):
    def rollouts(name, **options):
        seen = Recorder(
            "on_train_batch_end", lambda trainer, module: module.last_rollout.completions
        )
        train(sdft(**options), tmp_path / name, seen)
        return seen.seen

    half = rollouts("half", on_policy_fraction=0.5, learning_rate=1e-30)
    whole = rollouts("whole", learning_rate=1e-30)
    for some, every in zip(half, whole, strict=True):
        assert some[1] == every[1]  # the second of two rows is the sampled one, with its own seed


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (SDFTModule, {"on_policy_fraction": 1.5}),
        (SDFTModule, {"on_policy_fraction": -0.1}),
        (SDFTModule, {"on_policy_fraction": 0.5, "divergence": "sampled_token"}),
        (SDFTModule, {"on_policy_fraction": 0.5, "divergence": "rao_blackwellised"}),
        (SDFTModule, {"on_policy_fraction": 0.5, "importance_clip": 2.0}),
        (OfflineDistillationModule, {"on_policy_fraction": 0.5}),
        (RewardedSDFTModule, {"on_policy_fraction": 0.5}),
        (OnPolicyDistillationModule, {"on_policy_fraction": 0.5, "teacher": {"kind": "base"}}),
    ],
)
def test_a_share_that_cannot_be_is_refused(method, options):
    with pytest.raises(ValueError, match="on_policy_fraction is"):
        sdft(method, **options)


class Anchored:
    """Compares the gradient of every step with one of whole logits in float64."""

    def on_train_start(self):
        super().on_train_start()
        if self.at_stage_start():
            self.start = copy.deepcopy(self.student).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        total = super().training_step(batch, batch_idx)
        read = self.anchor.last_read
        if self.anchor.answers is None:
            self.free = [*getattr(self, "free", []), self.stage]
            return total
        parameters = list(self.student.parameters())
        whole = torch.autograd.grad(total, parameters, retain_graph=True)
        self.anchor.last_read, kept, self.anchor = None, self.anchor, None
        alone = torch.autograd.grad(super().training_step(batch, batch_idx), parameters)
        self.anchor = kept
        expected = torch.autograd.grad(self.naive_anchor(read), parameters)
        for one, other, more in zip(whole, alone, expected, strict=True):
            torch.testing.assert_close(one - other, 0.7 * more, rtol=2e-3, atol=2e-6)
        self.sizes = [*getattr(self, "sizes", []), max(each.abs().max() for each in expected)]
        return total

    def naive_anchor(self, read):
        values = []
        for prompt, completion in zip(read.prompts, read.completions, strict=True):
            ids = torch.tensor([[*prompt, *completion]])
            p, q = (
                model(ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
                for model in (self.start, self.student)
            )
            values.append((p.exp() * (p - q)).sum(-1))
        return torch.cat(values).mean()


class AnchoredSFT(Anchored, SFTModule):
    pass


class AnchoredSDFT(Anchored, SDFTModule):
    pass


@pytest.mark.parametrize("method", [AnchoredSFT, AnchoredSDFT])
def test_the_anchor_adds_the_naive_kl_to_the_stages_start(method, tmp_path):
    module = sdft(method, anchor=anchor(tmp_path / "prompts"))
    train(module, tmp_path)
    assert len(module.sizes) == 5
    assert module.sizes[0] < 1e-5  # at a stage's start there is nothing to pull back from
    assert module.sizes[1] > 1e-3
    assert module.sizes[3] < 1e-5  # the second stage starts from another model
    assert module.sizes[4] > 1e-3


def test_an_anchor_on_earlier_tasks_reads_their_prompts_from_the_second_stage_on(tmp_path):
    module = sdft(AnchoredSFT, anchor=anchor(tmp_path / "prompts", prompts="earlier_tasks"))
    train(module, tmp_path)
    assert module.free == [0, 0, 0]
    assert len(module.sizes) == 2
    data = module.trainer.datamodule
    expected = [data.reader.student_prompt(row) for row in data.tasks[0].train[:3]]
    assert module.anchor.answers.prompts == expected


def test_a_resumed_stage_has_its_anchor(tmp_path):
    saved = Recorder(
        "on_train_batch_end",
        lambda trainer, module: (
            trainer.global_step == 2 and trainer.save_checkpoint(tmp_path / "2.ckpt")
        ),
    )
    whole = sdft(SFTModule, anchor=anchor(tmp_path / "prompts"))
    train(whole, tmp_path, saved)
    resumed = sdft(SFTModule, anchor=anchor(tmp_path / "prompts"))
    train(resumed, tmp_path, ckpt_path=tmp_path / "2.ckpt")
    for own, expected in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(own, expected)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"weight": 0.0}, r"model\.anchor\.weight is 0\.0"),
        ({"weight": 1.0, "rows_per_step": 0}, r"model\.anchor\.rows_per_step is 0"),
        ({"weight": 1.0, "num_prompts": 9}, "has 3 prompts, and 9 are asked for"),
    ],
)
def test_an_anchor_that_cannot_be_is_refused(options, complaint, tmp_path):
    with pytest.raises(ValueError, match=complaint):
        sdft(SFTModule, anchor=Anchor(**{"prompts": prompts_file(tmp_path), **options}))
