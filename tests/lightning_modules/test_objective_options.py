"""The options of SDFTModule's objective, each turned and compared with a float64 reference."""

import pytest
import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_modules import SDFTModule
from sdft.loss.divergence_registry import make_divergence
from sdft.types import Rollout
from tests.conftest import REPOSITORY
from tests.lightning_modules.test_modules import Recorder, sdft, train
from tests.references import assert_all_close, surrogate

OPTIONS = (
    {"divergence": "jsd", "divergence_options": {"beta": 0.2}},
    {"divergence": "forward_kl", "divergence_options": {"clip": 0.01}},
    {"divergence": "topk_student", "divergence_options": {"k": 7}},
    {
        "divergence": "topk_teacher",
        "divergence_options": {"k": 7, "tail": False, "direction": "jsd", "beta": 0.3},
    },
    {"divergence": "reverse_kl", "distillation_temperature": 2.5},
    {"divergence": "sampled_token", "num_masked_tokens": 2},
    {"divergence": "rao_blackwellised", "num_masked_tokens": 2},
    {"divergence": "rao_blackwellised", "reduction": "token_mean"},
)


class Referenced(SDFTModule):
    """Compares every step's gradient with one taken from whole logits in float64."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        parameters = list(self.student.parameters())
        found = torch.autograd.grad(loss, parameters, retain_graph=True)
        expected = torch.autograd.grad(self.reference(batch), parameters)
        assert any(each.abs().max() > 1e-4 for each in expected)
        assert_all_close(found, expected, rtol=1e-3, atol=1e-6)
        self.num_compared = getattr(self, "num_compared", 0) + 1
        return loss

    def reference(self, batch):
        """The loss with a weight of 0 for masked tokens, which all the same have a score."""
        masked, total = self.num_masked_tokens, 0.0
        completions = self.last_rollout.completions
        num_tokens = sum(max(len(each) - masked, 0) for each in completions)
        for index, completion in enumerate(completions):
            weights = torch.zeros(len(completion)).double()
            length = len(completion) - masked
            by_sequence = self.reduction == "sequence_mean"
            weights[masked:] = 1 / (length * len(completions) if by_sequence else num_tokens)
            weights *= self.expected_ratios(batch, index)
            total = total + surrogate(
                self.divergence_name,
                self.divergence_options,
                self.logits(self.student, batch.student_prompts[index], completion),
                self.logits(self.teacher.model, batch.teacher_prompts[index], completion),
                torch.tensor(completion),
                weights,
                torch.zeros(len(completion)),
            )
        return total

    def expected_ratios(self, batch, index):
        return 1.0

    def logits(self, model, prompt, completion, temperature=None):
        ids = torch.tensor([[*prompt, *completion]])
        logits = model(ids).logits[0, len(prompt) - 1 : -1].double()
        return logits / (temperature or self.distillation_temperature)


def referenced(kind=Referenced, **options):
    """Such a module with a teacher far from its student, so that no gradient is rounding error."""
    module = sdft(kind, teacher={"reset_each_stage": False}, **options)
    module.divergence_name = options.get("divergence", "forward_kl")
    module.divergence_options = options.get("divergence_options", {})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.teacher.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_steps_gradient_is_that_of_the_divergence_asked_for(options, tmp_path):
    module = referenced(**options)
    train(module, tmp_path)
    assert module.num_compared == 5


class OtherEngine(Referenced):
    """Its rollouts carry the log-probabilities that a slightly different engine would report."""

    def sample(self, batch):
        rollout = super().sample(batch)
        generator = torch.Generator().manual_seed(self.trainer.global_step)
        self.drift = [torch.randn(len(each), generator=generator) for each in rollout.completions]
        off = [
            (torch.tensor(own) + drift).tolist()
            for own, drift in zip(rollout.logprobs, self.drift, strict=True)
        ]
        return Rollout(rollout.completions, off, rollout.ended)

    @torch.no_grad()
    def expected_ratios(self, batch, index):
        completion = torch.tensor(self.last_rollout.completions[index])
        logits = self.logits(
            self.student, batch.student_prompts[index], completion, self.sampling.temperature
        )
        own = logits.log_softmax(-1).gather(-1, completion[:, None])[:, 0]
        sampler = torch.tensor(self.last_rollout.logprobs[index]).double() + self.drift[index]
        return (own - sampler).exp().clamp(max=self.importance_clip)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_importance_weights_correct_token_by_token_for_another_sampler(temperature, tmp_path):
    module = referenced(OtherEngine, importance_clip=1.5, temperature=temperature)
    shares = Recorder(
        "on_train_batch_end",
        lambda trainer, module: trainer.callback_metrics["train/importance_ess"].item(),
    )
    train(module, tmp_path, shares)
    assert module.num_compared == 5
    assert all(0.1 < share < 0.99 for share in shares.seen)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_importance_weights_are_one_where_the_sampler_is_the_student(temperature, tmp_path):
    figures = Recorder(
        "on_train_batch_end",
        lambda trainer, module: [
            trainer.callback_metrics[f"train/importance_{name}"].item() for name in ("ess", "mean")
        ],
    )
    train(sdft(importance_clip=2.0, temperature=temperature), tmp_path, figures)
    for seen in figures.seen:
        assert seen == pytest.approx([1.0, 1.0], abs=1e-4)


class Projections(TorchDispatchMode):
    """Counts matrix products whose result is as wide as a vocabulary."""

    def __init__(self, vocab_size):
        super().__init__()
        self.vocab_size, self.count = vocab_size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten.mm and result.shape[-1] == self.vocab_size:
            self.count += 1
        return result


class WithoutLogprobs(SDFTModule):
    """A sampler that reports none."""

    def sample(self, batch):
        rollout = super().sample(batch)
        return Rollout(rollout.completions, [], rollout.ended)


def test_importance_weights_are_off_and_free_by_default(tmp_path):
    def num_projections(kind, **options):
        module = sdft(kind, **options)

        def counted(batch, batch_idx, step=module.training_step):
            with Projections(module.student_head.vocab_size) as projections:
                loss = step(batch, batch_idx)
            counts.append(projections.count)
            return loss

        counts = []
        module.training_step = counted
        train(module, tmp_path / str(options))
        return counts

    free = num_projections(WithoutLogprobs)
    weighted = num_projections(SDFTModule, importance_clip=2.0)
    assert [one + 1 for one in free] == weighted


@pytest.mark.parametrize("name", ["jsd", "topk_student", "other_sampler"])
def test_a_shipped_divergence_config_builds_what_it_says(name):
    file = REPOSITORY / "configs" / "divergences" / f"{name}.yaml"
    options = yaml.safe_load(file.read_text(encoding="utf-8"))["model"]["init_args"]
    module = sdft(**options)
    chosen = options.get("divergence", "forward_kl")
    assert module.divergence == make_divergence(chosen, **options.get("divergence_options", {}))
    assert module.distillation_temperature == options.get("distillation_temperature", 1.0)
    assert module.importance_clip == options.get("importance_clip")
