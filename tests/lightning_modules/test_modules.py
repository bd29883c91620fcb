import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint

from callbacks import OpeningRates
from datamodules import ContinualDataModule, fit_sequence
from lightning_modules import (
    KLPenaltyModule,
    OnPolicyDistillationModule,
    RewardedSDFTModule,
    SDFTModule,
    SFTModule,
)
from lightning_modules.anchor import Anchor
from sdft.loss.divergence_registry import make_divergence
from sdft.stages import WarmupCosine
from sdft.types import Rollout
from tests.sample_tasks import write_task


class Recorder(Callback):
    """Keeps what a hook returns at every call of it."""

    def __init__(self, hook, read):
        self.seen = []
        setattr(self, hook, lambda trainer, module, *args: self.seen.append(read(trainer, module)))


class Referenced(SDFTModule):
    """Compares every loss with one computed from whole logits in float64."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        expected = self.naive_loss(batch)
        self.compared = [*getattr(self, "compared", []), (loss.item(), expected.item())]
        return loss

    @torch.no_grad()
    def naive_loss(self, batch):
        """Mean over each completion's unmasked tokens, then over completions."""
        means = []
        for index, completion in enumerate(self.last_rollout.completions):
            student = self.log_probs(self.student, batch.student_prompts[index], completion)
            teacher = self.log_probs(self.teacher.model, batch.teacher_prompts[index], completion)
            if self.divergence == make_divergence("reverse_kl"):
                student, teacher = teacher, student
            masked = self.early_mask(self.last_rollout)[index]
            tokens = (teacher.exp() * (teacher - student)).sum(-1)[masked:]
            means.append(tokens.mean() if len(tokens) else torch.zeros(()).double())
        return torch.stack(means).mean()

    def log_probs(self, model, prompt, completion):
        logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        return logits.double().log_softmax(-1)


def train(module, folder, *callbacks, num_train=(6, 4), ckpt_path=None, specs=None, **options):
    """Two short tasks in sequence, or those of ``specs``."""
    specs = specs or [
        write_task(folder, name, num_train=count, num_test=1)
        for name, count in zip(("one", "two"), num_train, strict=True)
    ]
    data = ContinualDataModule(
        specs, module.tokenizer, **{"batch_size": 2, "teacher_template": "dialogue", **options}
    )
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=any(isinstance(each, Checkpoint) for each in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=list(callbacks),
    )
    fit_sequence(trainer, module, data, ckpt_path)
    return trainer


def trained_under_watch(module, folder, *callbacks):
    """Weights after training with the callbacks; rollout, random state and modes at each step."""
    seen = Recorder(
        "on_train_batch_end",
        lambda trainer, module: (
            module.last_rollout,
            torch.get_rng_state().tolist(),
            [part.training for part in module.modules()],
        ),
    )
    torch.manual_seed(0)
    train(module, folder, *callbacks, seen)
    return module.state_dict(), seen.seen


def sdft(kind=SDFTModule, **options):
    return kind(
        **{
            "pretrained": "tiny-random",
            "learning_rate": 1e-2,
            "warmup_steps": 0,
            "max_new_tokens": 6,
            **options,
        }
    )


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
@pytest.mark.parametrize("masked", [0, 2])
def test_loss_equals_the_naive_divergence_in_float64(divergence, masked, tmp_path):
    module = sdft(
        Referenced,
        divergence=divergence,
        num_masked_tokens=masked,
        teacher={"reset_each_stage": False},
    )
    torch.manual_seed(0)
    with torch.no_grad():  # another teacher, so that the divergence is no rounding error
        for parameter in module.teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    train(module, tmp_path)
    assert len(module.compared) == 5
    for loss, expected in module.compared:
        assert loss == pytest.approx(expected, rel=1e-4)
        assert loss > 1e-3


def test_teacher_starts_each_stage_from_the_student_and_then_follows_it(tmp_path):
    module = sdft(teacher={"rate": 0.25})
    weights = Recorder(
        "on_train_batch_start",
        lambda trainer, module: (
            module.student.model.norm.weight.clone(),
            module.teacher.model.model.norm.weight.clone(),
        ),
    )
    train(module, tmp_path, weights)
    starts = {0, 3}
    for step, (student, teacher) in enumerate(weights.seen):
        if step in starts:
            assert torch.equal(student, teacher)
        else:
            before = weights.seen[step - 1][1]
            torch.testing.assert_close(teacher, 0.25 * student + 0.75 * before)
            assert not torch.equal(student, teacher)


def test_the_base_teacher_stays_the_base_model(tmp_path):
    module = sdft(teacher={"kind": "base"})
    base = [parameter.clone() for parameter in module.teacher.parameters()]
    train(module, tmp_path)
    for own, expected in zip(module.teacher.parameters(), base, strict=True):
        assert torch.equal(own, expected)
    assert not torch.equal(next(module.student.parameters()), base[0])


def test_optimizer_and_schedule_start_anew_with_every_stage(tmp_path):
    rates = Recorder(
        "on_train_batch_start",
        lambda trainer, module: trainer.optimizers[0].param_groups[0]["lr"],
    )
    steps = Recorder(
        "on_train_end",
        lambda trainer, module: {s["step"].item() for s in trainer.optimizers[0].state.values()},
    )
    train(sdft(), tmp_path, rates, steps)
    first = [1e-2 * WarmupCosine(0, 3)(step) for step in range(3)]
    second = [1e-2 * WarmupCosine(0, 2)(step) for step in range(2)]
    assert rates.seen == pytest.approx([*first, *second])
    assert steps.seen == [{3.0}, {2.0}]


def test_rollouts_depend_on_the_seed_and_the_step_alone(tmp_path):
    def rollouts(name, seed):
        recorder = Recorder(
            "on_train_batch_end", lambda trainer, module: module.last_rollout.completions
        )
        train(sdft(seed=seed), tmp_path / name, recorder)
        return recorder.seen

    torch.manual_seed(1)
    first = rollouts("a", seed=1)
    torch.manual_seed(2)
    assert rollouts("b", seed=1) == first
    assert rollouts("c", seed=2) != first
    assert first[0] != first[1]


def test_no_gradient_outlives_its_step(tmp_path):
    held = Recorder(
        "on_train_batch_end",
        lambda trainer, module: any(each.grad is not None for each in module.parameters()),
    )
    train(sdft(), tmp_path, held)
    assert held.seen
    assert not any(held.seen)


def test_completions_shorter_than_the_mask_train_on_without_loss(tmp_path):
    module = sdft(num_masked_tokens=50)
    before = module.student.model.norm.weight.clone()
    train(module, tmp_path)
    assert torch.equal(module.student.model.norm.weight, before)


def test_one_row_and_partial_batches_are_trained(tmp_path):
    losses = Recorder("on_train_batch_end", lambda trainer, module: trainer.global_step)
    train(sdft(), tmp_path, losses, num_train=(1, 3))
    assert losses.seen == [1, 2, 3]


def test_sft_loss_is_the_librarys_cross_entropy(tmp_path):
    class ReferencedSFT(SFTModule):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            logits, labels = [], []
            for prompt, answer in zip(batch.student_prompts, batch.demonstrations, strict=True):
                out = self.student(torch.tensor([[*prompt, *answer]])).logits[0]
                logits.append(out[len(prompt) - 1 : -1].detach())
                labels += answer
            expected = torch.nn.functional.cross_entropy(torch.cat(logits), torch.tensor(labels))
            assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
            self.count = getattr(self, "count", 0) + 1
            return loss

    module = sdft(ReferencedSFT)
    train(module, tmp_path)
    assert module.count == 5


def test_sft_learns_to_answer_from_demonstrations(tmp_path):
    last = Recorder(
        "on_train_batch_end", lambda trainer, module: trainer.callback_metrics["train/loss"].item()
    )
    train(sdft(SFTModule, learning_rate=1e-2), tmp_path, last, epochs_per_stage=20)
    assert last.seen[59] < 0.5 * last.seen[0]


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 1 / 5), (3, 4 / 5), (4, 1.0), (12, 0.5), (20, 0.0)]
)
def test_schedule_warms_up_and_then_falls_along_a_cosine(step, factor):
    assert WarmupCosine(4, 20)(step) == pytest.approx(factor)


def test_warmup_longer_than_the_stage_is_cut_to_it():
    schedule = WarmupCosine(10, 3)
    assert [schedule(step) for step in range(3)] == pytest.approx([0.25, 0.5, 0.75])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"teacher": {"rate": 2.0}}, r"teacher\.rate is 2"),
        ({"divergence": "kl"}, "model.divergence is kl; it must be one of forward_kl"),
        ({"teacher": {"kind": "base", "rate": 0.1}}, r"teacher\.rate is 0\.1, but"),
        (
            {"teacher": "base"},
            r"model\.teacher is base; it must be a mapping such as \{kind: base\}",
        ),
        ({"micro_batch_size": 0}, "model.micro_batch_size is 0"),
        (
            {"divergence": "jsd", "divergence_options": {"alpha": 0.5}},
            r"model\.divergence_options {'alpha': 0\.5}: divergence jsd has no option alpha; "
            "it has: clip, beta",
        ),
        ({"divergence": "jsd", "divergence_options": {"beta": 2.0}}, "beta is 2.0; it must lie"),
        (
            {"divergence": "topk_student", "divergence_options": {"tail": "no"}},
            "tail of divergence topk_student is 'no'; it must be bool",
        ),
        ({"distillation_temperature": 0.0}, "model.distillation_temperature is 0.0"),
        (
            {"divergence": "rao_blackwellised", "temperature": 0.7},
            "model.divergence is rao_blackwellised; it must be used with temperature 1",
        ),
        (
            {"divergence": "rao_blackwellised", "top_p": 0.9},
            "model.divergence is rao_blackwellised",
        ),
        ({"masked_preambles": [" "]}, "preamble ' ' is empty"),
        ({"importance_clip": 0.5}, "model.importance_clip is 0.5; it must be at least 1"),
        ({"importance_clip": 2.0, "top_k": 5}, "model.importance_clip is 2.0"),
        ({"warmup_steps": -1}, "model.warmup_steps is -1"),
        ({"weight_decay": -0.1}, "model.weight_decay is -0.1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"top_p": 0.0}, "top_p is 0"),
    ],
)
def test_options_out_of_range_are_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        sdft(**options)


@pytest.mark.parametrize(
    ("method", "options", "complaint"),
    [
        (SDFTModule, {"divergence": "jsd", "divergence_options": {"k": 2}}, "jsd has no option k"),
        (SDFTModule, {"rollout_engine_options": {"url": "x"}}, "in_place has no option url"),
        (SDFTModule, {"teacher": {"kind": "ema", "rate": 2.0}}, r"teacher\.rate is 2"),
        (SDFTModule, {"reduction": "sum"}, "model.reduction is sum"),
        (SDFTModule, {"temperature": -1.0}, "temperature is -1"),
        (SDFTModule, {"anchor": Anchor(weight=-1.0, prompts="x")}, "anchor.weight is -1"),
        (OnPolicyDistillationModule, {}, "name the other model with teacher.pretrained"),
        (SFTModule, {"max_new_tokens": 0}, "max_new_tokens is 0"),
        (KLPenaltyModule, {"penalty": 0.0}, "penalty is 0"),
        (RewardedSDFTModule, {"reward_weight": 0.0}, "reward_weight is 0"),
    ],
)
def test_a_wrong_option_is_named_before_a_model_is_looked_for(method, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        method(pretrained="/there/is/no/such/model", **options)


# What nearly every completion of the tiny model begins with; the last stands for stray bytes.
ANY_OPENING = [*map(chr, range(33, 127)), "\ufffd"]


def test_the_longer_of_the_two_masks_holds_for_each_completion():
    module = sdft(num_masked_tokens=3, masked_preambles=["So", "Based on"])
    completions = [module.tokenizer(text)["input_ids"] for text in ("So it", "based ON x", "Yes.")]
    rollout = Rollout(completions, [[0.0] * len(each) for each in completions], [True] * 3)
    assert module.early_mask(rollout) == [3, 8, 3]


def test_an_opening_phrase_carries_no_loss(tmp_path):
    class Masked(Referenced):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.masks = [*getattr(self, "masks", []), *self.early_mask(self.last_rollout)]
            return loss

    module = sdft(Masked, masked_preambles=ANY_OPENING, teacher={"reset_each_stage": False})
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    train(module, tmp_path)
    assert sum(module.masks) > 0
    for loss, expected in module.compared:
        assert loss == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_watching_the_teacher_leaves_rollouts_and_weights_as_they_were(tmp_path):
    def outcome(name, every):
        seen = Recorder(
            "on_train_batch_end",
            lambda trainer, module: (
                module.last_rollout,
                "train/preamble_rate_teacher" in trainer.callback_metrics,
                trainer.callback_metrics["train/preamble_rate_student"].item(),
            ),
        )
        module = sdft()
        train(module, tmp_path / name, OpeningRates(teacher_samples_every=every), seen)
        return module.student.state_dict(), seen.seen

    weights, without = outcome("off", 0)
    watched, seen = outcome("on", 2)
    assert [rollout for rollout, *_ in seen] == [rollout for rollout, *_ in without]
    assert all(torch.equal(weights[name], watched[name]) for name in weights)
    assert not any(logged for _, logged, _ in without)
    assert seen[0][1]


def test_a_rollout_with_a_watched_opening_counts_for_student_and_teacher(tmp_path):
    rates = Recorder("on_train_batch_end", lambda trainer, module: dict(trainer.callback_metrics))
    module = sdft(masked_preambles=ANY_OPENING)
    train(module, tmp_path, OpeningRates(teacher_samples_every=1), rates)
    for reader in ("student", "teacher"):
        seen = [metrics[f"train/preamble_rate_{reader}"].item() for metrics in rates.seen]
        assert 0 < max(seen) <= 1


def test_openings_of_a_method_without_rollouts_are_not_measured(tmp_path):
    trainer = train(sdft(SFTModule), tmp_path, OpeningRates(teacher_samples_every=1))
    assert not any("preamble_rate" in name for name in trainer.callback_metrics)


def test_a_negative_interval_between_teacher_samples_is_refused():
    with pytest.raises(ValueError, match=r"preambles\.teacher_samples_every is -1"):
        OpeningRates(teacher_samples_every=-1)


@pytest.mark.parametrize(("warmup_steps", "expected"), [(2, ["two"]), (3, ["one", "two"]), (1, [])])
def test_stages_that_are_all_warm_up_are_named_once(warmup_steps, expected, tmp_path, caplog):
    train(sdft(SFTModule, warmup_steps=warmup_steps), tmp_path)  # of 3 and 2 steps
    lines = [each.getMessage() for each in caplog.records if "warm-up" in each.msg]
    assert [line.split("(")[1].split(")")[0] for line in lines] == expected
    assert all(f"model.warmup_steps is {warmup_steps}" in line for line in lines)
