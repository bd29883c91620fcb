"""The base class of all methods: options, model, scored completions and token weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from lightning_modules.anchor import Anchor, StageAnchor
from lightning_modules.options import (
    require,
    require_above,
    require_at_least,
    warn_of_short_stages,
)
from lightning_modules.row_limits import check_rows
from lightning_modules.stage_training import StageTraining
from sdft.loss.hidden_states import LossPositions, hidden_states_in_parts
from sdft.loss.reductions import reduction_weights
from sdft.model.head import VocabularyHead
from sdft.model.limits import check_reads_rows_alone
from sdft.model.lora import LoRA
from sdft.model.pretrained import LoadedModel, load_model
from sdft.model.sharding import gathered_head, load_shards, shard
from sdft.rollout.engine_registry import EngineName, make_engine
from sdft.rollout.request import SamplingSettings
from sdft.seeds import Stream, mix_seed
from sdft.types import DemonstrationBatch, TokenIds

DTYPES = {"full": torch.float32, "lean": torch.bfloat16}  # of the trained weights, by option


class ContinualModule(StageTraining):
    """A language model that learns tasks one after another.

    A method subclasses it and defines ``training_step``. Optimizer and schedule restart with
    every stage: AdamW, linear warm-up, then a cosine to zero over the stage's own steps.

    Args:
        pretrained: The model to start from: a packaged name (smollm2-135m-instruct), a local
            transformers directory, a .gguf file, or a hub id (Qwen/Qwen2.5-0.5B-Instruct).
        learning_rate: Peak learning rate of every stage.
        weight_decay: AdamW's decoupled weight decay.
        warmup_steps: Optimizer steps of linear warm-up at the start of every stage.
        max_new_tokens: Longest completion in rollouts and in evaluation.
        stop_strings: Completions end, in rollouts and in evaluation, with the token that completes
            one of these texts; null for none.
        rollout_engine: What computes completions, in rollouts and in evaluation: in_place (the
            training weights themselves), generate (transformers), continuous_batching
            (transformers, on a GPU) or vllm (a server that is sent the weights).
        rollout_engine_options: The engine's own options; null for its defaults.
        lora: Train low-rank adapters on a frozen backbone; null trains all weights.
        memory: Precision of weights, optimizer state and EMA teacher when all weights are
            trained. full: float32, 20 bytes a parameter with gradients. lean: bfloat16 weights,
            gradients and teacher, updated with stochastic rounding, and 8-bit moments: 8 bytes.
        anchor: Add weight * KL(model at the stage's start || student) on prompts without
            demonstrations, as {weight, prompts, …}; null for none.
        micro_batch_size: Rows scored and differentiated at a time, for memory; null for the whole
            batch. Loss and gradient do not depend on it; smaller parts take longer.
        activation_checkpointing: Recompute the student's activations, layer by layer, in the
            backward pass instead of keeping them: less memory, more time, the same gradient.
        revision: Commit, tag or branch of a hub model.
        trust_remote_code: Run Python code that the model's repository ships; off unless you
            trust it.
        seed: Seed of the rollouts; follows seed_everything.
    """

    method_name = "none"
    train_on = "demonstrations"  # or documents, or prompts: what it reads of training rows
    reads_teacher_prompts = False  # whether a model answers or is scored after them
    reduction: str  # what the loss averages over, one of sdft.loss.reductions.REDUCTIONS

    def __init__(
        self,
        pretrained: str = "smollm2-135m-instruct",
        *,
        learning_rate: float = 1e-5,
        weight_decay: float = 0.0,
        warmup_steps: int = 10,
        max_new_tokens: int = 1024,
        stop_strings: list[str] | None = None,
        rollout_engine: EngineName = "in_place",
        rollout_engine_options: dict[str, Any] | None = None,
        lora: LoRA | None = None,
        memory: Literal["full", "lean"] = "full",
        anchor: Anchor | None = None,
        micro_batch_size: int | None = None,
        activation_checkpointing: bool = False,
        revision: str | None = None,
        trust_remote_code: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check(learning_rate, weight_decay, warmup_steps, micro_batch_size, memory, lora)
        if torch.get_default_device().type == "meta":
            _check_sharded(memory, lora)
        self.model_name, self.lora, self.memory = pretrained, lora, memory
        self.micro_batch_size = micro_batch_size
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.warmup_steps = warmup_steps
        self.greedy = SamplingSettings(
            max_new_tokens, temperature=0.0, stop_strings=tuple(stop_strings or ())
        )
        self.rollout_engine = make_engine(rollout_engine, **(rollout_engine_options or {}))
        self.anchor = None if anchor is None else StageAnchor(anchor)
        if anchor is not None:
            self.method_name += " + anchor"
        source = {"revision": revision, "trust_remote_code": trust_remote_code}
        loaded = load_model(pretrained, **source, lora=lora, seed=seed, dtype=DTYPES[memory])
        self._take_on(loaded, activation_checkpointing)
        self.seed = seed
        self._has_checked_rows = False

    def _take_on(self, loaded: LoadedModel, activation_checkpointing: bool) -> None:
        """Hold the model as the student."""
        if activation_checkpointing:  # takes effect only in training mode, never in rollouts
            loaded.model.activation_checkpointing_enable({"use_reentrant": False})
        self.student = loaded.model.train()
        self.student_head = VocabularyHead.of(self.student)
        self.tokenizer, self.end_ids = loaded.tokenizer, loaded.end_ids

    def setup(self, stage: str) -> None:
        """Check that the data module reads rows as this method needs them, and that they fit.

        Raises:
            ValueError: They do not (``stage`` is Lightning's: fit, validate, …).
        """
        found = self.trainer.datamodule.train_on
        if stage == "fit" and found != self.train_on:
            raise ValueError(
                f"data.train_on is {found}, and {type(self).__name__} trains on {self.train_on}: "
                f"pass train_on={self.train_on!r} to the data module"
            )
        if not self._has_checked_rows:
            self.configure_model()  # the check needs the weights
            check_rows(self, self.trainer.datamodule)
            self._has_checked_rows = True
        num_done = self.trainer.datamodule.num_stages_done
        begins = stage == "validate" and num_done == self.plan.first_stage
        if begins and self.trainer.is_global_zero:
            warn_of_short_stages(self.plan, self.warmup_steps)

    def on_train_start(self) -> None:
        """Record the anchor's answers, unless a resumed stage has them already.

        Their cost is counted separately from that of the stage's steps.
        """
        self.clock.start(self.device)
        self.passes.start()
        if self.anchor is not None and self.at_stage_start():
            self.anchor.start_stage(self)
            self.clock.lap("anchor")

    def anchored(self, loss: Tensor) -> Tensor:
        """The method's loss plus the anchor's loss."""
        kl = None if self.anchor is None else self.anchor.kl(self)
        if self.anchor is None or kl is None:
            return loss
        self.clock.lap("anchor")
        self.log("train/anchor_kl", kl, batch_size=self.anchor.options.rows_per_step)
        return loss + self.anchor.options.weight * kl

    def configure_model(self) -> None:
        """Shard student and teacher over the ranks, if the strategy has a device mesh.

        Of a module that was made under ``torch.device("meta")``, each rank reads only its shards.
        """
        if self.device_mesh is not None:
            self._shard(self.device_mesh)

    def _shard(self, mesh: DeviceMesh) -> None:
        _check_sharded(self.memory, self.lora)
        size = mesh["tensor_parallel"].size()
        require(size == 1, "tensor_parallel_size, of the strategy,", size, "1")
        for each in list(self.modules()):
            if isinstance(each, PreTrainedModel) and each.get_output_embeddings() is not None:
                empty = each.device.type == "meta"
                shard(each, mesh["data_parallel"])
                if empty:
                    load_shards(each)
                    check_reads_rows_alone(each)
                    with gathered_head(each):
                        VocabularyHead.of(each)

    def hidden_states(
        self,
        model: PreTrainedModel,
        prompts: Sequence[TokenIds],
        completions: Sequence[TokenIds],
        positions: LossPositions,
    ) -> Tensor:
        """(N, D) hidden states that predict the loss-bearing tokens, in micro-batches."""
        return hidden_states_in_parts(model, prompts, completions, positions, self.micro_batch_size)

    def scored(
        self,
        purpose: str,
        model: PreTrainedModel,
        prompts: Sequence[TokenIds],
        completions: Sequence[TokenIds],
        positions: LossPositions,
    ) -> Tensor:
        """:meth:`hidden_states` in a training step; the pass is reported to callbacks.

        Args:
            purpose: What the pass is for: teacher, student, …
            model: The model that reads.
            prompts: B token-id lists.
            completions: B token-id lists.
            positions: N positions, which the loss projects to the vocabulary once.
        """
        gradient = torch.is_grad_enabled()
        self.passes.read(purpose, model, prompts, completions, len(positions), gradient=gradient)
        return self.hidden_states(model, prompts, completions, positions)

    def token_weights(self, positions: LossPositions, reduction: str | None = None) -> Tensor:
        """(N,) weights of tokens: the reduction over the sequences of all ranks.

        Masked tokens and those of padding rows have weight 0.

        Args:
            positions: The N tokens.
            reduction: What the loss averages over; None for the module's own reduction.
        """
        num_own = positions.num_sequences - self._num_padding_rows
        rows = positions.rows[~positions.masked]
        own = rows < num_own
        totals, num_ranks = torch.tensor([int(own.sum()), num_own], device=self.device), 1
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(totals)
            num_ranks = distributed.get_world_size()
        num_tokens, num_sequences = totals.tolist()
        weights = torch.zeros(len(positions), device=self.device)
        weights[~positions.masked] = own * reduction_weights(
            reduction or self.reduction,
            rows,
            num_sequences,
            num_tokens=max(num_tokens, 1),
            averaged_over=num_ranks,
        )
        return weights

    def on_train_batch_start(self, batch: DemonstrationBatch, *_: Any) -> None:
        """Start the clock, and seed dropout from the counters, as the rollouts are."""
        self._num_padding_rows = batch.num_padding_rows
        self.clock.start(self.device)
        self.passes.start()
        counters = self.trainer.global_step, self.trainer.global_rank
        torch.manual_seed(mix_seed(Stream.DROPOUT, self.seed, *counters))

    def on_after_backward(self) -> None:
        """Attribute the time to the backward pass."""
        self.clock.lap("backward")

    def rollout_seeds(self, num_rows: int, stream: Stream = Stream.ROLLOUTS) -> list[int]:
        """A seed for every rollout of this optimizer step: a function of the counters alone.

        It depends on the row's place in the batch of all ranks, of which rank r of n has places r,
        r + n, r + 2n, …, so that completions do not depend on the number of ranks.

        Args:
            num_rows: Rollouts on this rank.
            stream: The random stream; samples other than the step's rollouts need another one.
        """
        rank, num_ranks = self.trainer.global_rank, self.trainer.world_size
        places = range(rank, rank + num_rows * num_ranks, num_ranks)
        return [mix_seed(stream, self.seed, self.trainer.global_step, place) for place in places]


def _check(
    learning_rate: float,
    weight_decay: float,
    warmup_steps: int,
    micro_batch_size: int | None,
    memory: str,
    lora: LoRA | None,
) -> None:
    """Refuse options that are out of range or do not go together."""
    require_above(0, learning_rate=learning_rate)
    require_at_least(0, weight_decay=weight_decay, warmup_steps=warmup_steps)
    require_at_least(1, micro_batch_size=micro_batch_size)
    require(memory in DTYPES, "memory", memory, " or ".join(DTYPES))
    require(
        memory == "full" or lora is None,
        "memory",
        memory,
        "full with adapters, which are few; lora.backbone_dtype: bfloat16 saves the rest",
    )


def _check_sharded(memory: str, lora: LoRA | None) -> None:
    """Refuse options that do not go with sharded weights."""
    require(memory == "full", "memory", memory, "full where weights are sharded")
    require(lora is None, "lora", lora, "null where weights are sharded; use ddp")
