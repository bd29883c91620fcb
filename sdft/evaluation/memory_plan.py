"""Estimate the bytes of a training step on each GPU, by part and phase, without the weights.

Weights, gradients, moments and teacher are counted on a model without data. The other memory of a
pass is found by running the actual pass and loss on tensors without data (``FakeTensorMode``) and
counting those in memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from sdft.evaluation.live_bytes import LiveBytes
from sdft.loss.distillation import distillation_loss
from sdft.loss.divergence_registry import make_divergence
from sdft.loss.tiling import default_tile_rows
from sdft.model.head import VocabularyHead, final_hidden_states
from sdft.model.lean_adamw import CHUNK, moment_bytes
from sdft.model.lora import BACKBONE_DTYPES, LoRA, add_adapters, trained_parameters
from sdft.model.modes import evaluation_mode
from sdft.rollout.kv_cache import cache_keyword, growing_cache
from sdft.rollout.request import SamplingSettings
from sdft.rollout.sampling import draw

FLOAT = 4
TYPES = {"full": torch.float32, "lean": torch.bfloat16}
CHUNKS_ALIVE = 8  # float32 intermediates of the lean optimizer


@dataclass(frozen=True)
class PlannedStep:
    """The settings that determine the bytes of a step.

    Args:
        config: The student's configuration.
        memory: full or lean, for trained weights.
        lora: Adapters; None if all weights are trained.
        teacher: Kind of the teacher.
        teacher_config: The teacher's configuration, if it is another model.
        rows: Rows of a step on each rank.
        micro_batch_size: Rows scored at a time; None for all.
        activation_checkpointing: Whether the student's layers are recomputed.
        prompt_tokens: Longest prompt, the teacher's.
        completion_tokens: Longest completion.
        autocast: Whether passes compute in bfloat16.
        engine: Rollout engine.
        max_cache_tokens: Tokens that ``in_place`` decodes together.
        num_shards: Number of ranks that weights and state are sharded over; 1 without FSDP2.
        device_type: cuda or cpu, which determines the size of the loss's tiles.
    """

    config: PreTrainedConfig
    memory: str = "full"
    lora: LoRA | None = None
    teacher: str = "ema"
    teacher_config: PreTrainedConfig | None = None
    rows: int = 32
    micro_batch_size: int | None = None
    activation_checkpointing: bool = False
    prompt_tokens: int = 512
    completion_tokens: int = 1024
    autocast: bool = True
    engine: str = "in_place"
    max_cache_tokens: int | None = None
    num_shards: int = 1
    device_type: str = "cuda"


@dataclass
class MemoryPlan:
    """Bytes on each rank.

    Args:
        parts: Bytes by purpose; not all are in memory at the same time.
        phases: Most bytes in memory in each phase of a step.
        num_parameters: Number of the student's parameters.
        num_trained: Number of these that are trained.
    """

    parts: dict[str, int] = field(default_factory=dict)
    phases: dict[str, int] = field(default_factory=dict)
    num_parameters: int = 0
    num_trained: int = 0

    @property
    def peak(self) -> int:
        """Most bytes in memory in any phase."""
        return max(self.phases.values())


def plan_memory(step: PlannedStep) -> MemoryPlan:
    """Estimate the bytes of a step."""
    student = _student(step)
    with FakeTensorMode():
        _without_data(student)
        plan = MemoryPlan(
            num_parameters=sum(each.numel() for each in student.parameters()),
            num_trained=sum(each.numel() for each in trained_parameters(student)),
        )
        plan.parts |= _held(step, student)
        plan.parts |= _of_the_rollout(step, student)
        plan.parts |= _of_the_loss(step, student)
    plan.phases = _phases(plan.parts, step)
    return plan


def _student(step: PlannedStep) -> PreTrainedModel:
    dtype = TYPES[step.memory] if step.lora is None else BACKBONE_DTYPES[step.lora.backbone_dtype]
    with torch.device("meta"):
        build: Any = AutoModelForCausalLM.from_config
        model: PreTrainedModel = build(step.config, dtype=dtype)
        if step.lora is not None:
            add_adapters(model, step.lora, seed=0)
    if step.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    return model


def _without_data(model: nn.Module) -> None:
    """Replace a meta model's tensors with tensors that have a device but no data."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                    made[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Total bytes of some tensors."""
    return sum(each.numel() * each.element_size() for each in tensors)


def _held(step: PlannedStep, student: PreTrainedModel) -> dict[str, int]:
    """Bytes kept between the phases of a step; gradients are kept until the optimizer step."""
    trained = trained_parameters(student)
    moments = sum(moment_bytes(each) for each in trained)
    if step.memory == "full":
        moments = sum(2 * FLOAT * each.numel() for each in trained)
    found = {
        "weights": num_bytes(student.parameters()),
        "gradients": num_bytes(trained),
        "moments": moments,
        "teacher": _teacher_bytes(step, student),
    }
    buffers = num_bytes(student.buffers())
    return {name: -(-each // step.num_shards) for name, each in found.items()} | {
        "buffers": buffers,
    }


def _teacher_bytes(step: PlannedStep, student: PreTrainedModel) -> int:
    if step.teacher_config is not None:
        with torch.device("meta"):
            build: Any = AutoModelForCausalLM.from_config
            other = build(step.teacher_config, dtype=torch.float32)
        return num_bytes(other.parameters())
    if step.teacher == "student" or (step.teacher == "base" and step.lora is not None):
        return 0
    return num_bytes(trained_parameters(student))


@torch.no_grad()
def _of_the_rollout(step: PlannedStep, student: PreTrainedModel) -> dict[str, int]:
    """Cache, one pass over the prompts, one draw, and copies of the weights."""
    transfer = _transfer_bytes(step, student)
    if step.engine == "vllm":
        return {"cache": 0, "prompts' pass and draws": 0, "transfer buffers": transfer}
    rows, length = step.rows, step.prompt_tokens + step.completion_tokens
    if step.max_cache_tokens is not None:
        rows = max(1, min(rows, step.max_cache_tokens // length))
    with evaluation_mode(student), _Beside(student) as live, _autocast(step):
        cache = growing_cache(student.config)
        ids = torch.zeros(rows, step.prompt_tokens, dtype=torch.long)
        given: dict[str, Any] = {cache_keyword(student): cache}
        logits = student(input_ids=ids, use_cache=True, logits_to_keep=1, **given).logits
        layers: list[Any] = cache.layers
        keys: list[Tensor] = [each for layer in layers for each in (layer.keys, layer.values)]
        held = sum(each.untyped_storage().nbytes() for each in keys)
        pass_peak = live.peak - held
        live.restart_peak()
        before = live.now
        settings = SamplingSettings(step.completion_tokens)
        draw(logits.flatten(0, 1), settings, torch.zeros(rows, dtype=torch.float64))
        draw_peak = live.peak - before + num_bytes([logits])
    cached = sum(each[:, :, :1].numel() * each.element_size() for each in keys) * (length + 64)
    return {
        "cache": cached,
        "prompts' pass and draws": max(pass_peak, draw_peak),
        "transfer buffers": transfer,
    }


def _transfer_bytes(step: PlannedStep, student: PreTrainedModel) -> int:
    """Bytes of the copies of weights that a rollout uses or sends."""
    parameters = list(student.parameters())
    if step.engine == "vllm":
        return max(each.numel() for each in parameters) * 2
    if step.num_shards > 1:
        return num_bytes(parameters)
    wide = [each for each in parameters if each.element_size() == FLOAT]
    return sum(2 * each.numel() for each in wide) if step.autocast else 0


def _of_the_loss(step: PlannedStep, student: PreTrainedModel) -> dict[str, int]:
    """Bytes of a micro-batch's activations, the loss's tiles, and the backward pass."""
    rows = min(step.micro_batch_size or step.rows, step.rows)
    length = step.prompt_tokens + step.completion_tokens
    head = VocabularyHead.of(student, check=False)
    with _Beside(student) as live:
        with _autocast(step):
            hidden = final_hidden_states(
                student, input_ids=torch.zeros(rows, length, dtype=torch.long)
            )[:, -step.completion_tokens :].flatten(0, 1)
            activations = live.now
            live.restart_peak()
            count = len(hidden)
            loss = distillation_loss(
                hidden,
                head,
                hidden.detach().clone(),
                head,
                tokens=torch.zeros(count, dtype=torch.long),
                weights=torch.zeros(count),
                divergence=make_divergence("forward_kl"),
                tile_rows=default_tile_rows(head.vocab_size, torch.device(step.device_type)),
                tile_dtype=torch.float32 if step.device_type == "cuda" else None,
            ).loss
        tiles = live.peak - activations
        live.restart_peak()
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [each.grad for each in student.parameters() if each.grad is not None]
        beside = live.peak - num_bytes(gradients)
    # Hidden states of both models and the gradient of the student's, of the other micro-batches.
    others = (step.rows - rows) * step.completion_tokens * hidden.shape[-1]
    return {
        "activations": activations + others * (2 * hidden.element_size() + FLOAT),
        "head tiles": tiles + _other_head(step, student),
        "backward, beside gradients": max(beside, 0),
        "gathered layers": _gathered_layers(step, student),
    }


def _other_head(step: PlannedStep, student: PreTrainedModel) -> int:
    """The teacher's head in the type of the projection, where that is not its own."""
    weight: Tensor = student.get_output_embeddings().weight  # type: ignore[no-untyped-call]
    return 2 * weight.numel() if step.autocast and weight.element_size() == FLOAT else 0


def _gathered_layers(step: PlannedStep, student: PreTrainedModel) -> int:
    """FSDP2: two decoder layers, the heads of both models, and the head's gradient, in full."""
    if step.num_shards == 1:
        return 0
    kinds = set(student._no_split_modules or ())
    layers = [each for each in student.modules() if type(each).__name__ in kinds]
    largest = max(num_bytes(each.parameters()) for each in layers)
    head: nn.Module = student.get_output_embeddings()  # type: ignore[no-untyped-call]
    return 2 * largest + 3 * num_bytes(head.parameters())


def _phases(parts: dict[str, int], step: PlannedStep) -> dict[str, int]:
    held = sum(parts[name] for name in ("weights", "moments", "teacher", "buffers"))
    names = ("cache", "prompts' pass and draws", "transfer buffers")
    chunk = FLOAT * CHUNK * CHUNKS_ALIVE if step.memory == "lean" else 0
    gathered = parts["gathered layers"]
    return {
        "rollout": held + sum(parts[name] for name in names),
        "loss": held + parts["activations"] + parts["head tiles"] + gathered,
        "backward": held + parts["gradients"] + parts["backward, beside gradients"] + gathered,
        "optimizer": held + parts["gradients"] + chunk,
    }


class _Beside(LiveBytes):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors other than the model's."""

    def __init__(self, student: PreTrainedModel) -> None:
        super().__init__()
        self.ignore([*student.parameters(), *student.buffers()])


def _autocast(step: PlannedStep) -> torch.autocast:
    """Autocast as in Lightning's bf16-mixed, where every pass casts the weights again."""
    return torch.autocast("cpu", torch.bfloat16, enabled=step.autocast, cache_enabled=False)
