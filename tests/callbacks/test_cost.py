"""What a run costs: FLOPs as torch counts them, for every method."""

import json
import time
from dataclasses import replace

import lightning as L
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTBigCodeConfig,
    GPTBigCodeForCausalLM,
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    MptConfig,
    MptForCausalLM,
)

import lightning_modules
from callbacks import CostTracker
from lightning_modules import (
    CPTModule,
    DFTModule,
    KLPenaltyModule,
    OfflineDistillationModule,
    OnPolicyDistillationModule,
    ReinvokeModule,
    RewardedSDFTModule,
    SDFTModule,
    SFTModule,
    TeacherSFTModule,
)
from lightning_modules.anchor import Anchor
from sdft.evaluation.cost import LapClock, ModelShape, Passes
from sdft.model.lora import LoRA
from sdft.model.pretrained import save_model
from sdft.model.tiny_model import byte_tokenizer
from sdft.tasks.task_spec import TaskSpec
from tests.conftest import write_rows
from tests.lightning_modules.test_modules import sdft, train

SMALL = {"vocab_size": 99, "hidden_size": 32}
DENSE = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4)),
    "gptj": lambda: GPTJForCausalLM(
        GPTJConfig(vocab_size=99, n_embd=32, n_layer=2, n_head=4, rotary_dim=4)
    ),
    "bloom": lambda: BloomForCausalLM(BloomConfig(**SMALL, n_layer=2, n_head=4)),
    "mpt": lambda: MptForCausalLM(MptConfig(vocab_size=99, d_model=32, n_layers=2, n_heads=4)),
    "starcoder": lambda: GPTBigCodeForCausalLM(
        GPTBigCodeConfig(vocab_size=99, n_embd=32, n_layer=2, n_head=4)
    ),
    "llama": lambda: another_llama(99, num_key_value_heads=2),
}
UNKNOWN = {
    "mamba": lambda: MambaForCausalLM(MambaConfig(**SMALL, num_hidden_layers=2)),
    "mixtral": lambda: MixtralForCausalLM(
        MixtralConfig(
            **SMALL,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    ),
}


def another_llama(vocab_size, **options):
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 1}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=vocab_size, **sizes, num_attention_heads=4, **options)
    )


@pytest.mark.parametrize("build", DENSE.values(), ids=DENSE)
def test_flops_of_a_forward_pass_are_those_that_are_counted(build):
    model, read, projected = build(), 20, 7
    model.set_attn_implementation("eager")  # the counter does not see into the fused one
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.arange(read)[None], logits_to_keep=projected)
    shape = ModelShape.of(model)
    never_needed = 4 * shape.attention * read * (read - 1) // 2  # attention to later tokens
    expected = counter.get_total_flops() - never_needed
    assert shape.flops([read], projected, gradient=False) == expected


@pytest.mark.parametrize("build", UNKNOWN.values(), ids=UNKNOWN)
def test_flops_of_other_architectures_are_unknown(build):
    model, passes = build(), Passes()
    assert ModelShape.of(model) is None
    passes.read("student", model, [[1, 2]], [[3]], 1, gradient=True)
    passes.read("student", another_llama(99), [[1, 2]], [[3]], 1, gradient=True)
    assert passes.flops == {"student": None}


def test_adapters_save_the_gradient_of_the_weights():
    whole = ModelShape.of(sdft(SFTModule).student)
    assert whole.trained_body == whole.body
    assert whole.trained_head == whole.head
    adapted = ModelShape.of(sdft(SFTModule, lora=LoRA(r=2)).student)
    assert adapted.trained_head == 0
    assert 0 < adapted.trained_body == adapted.body - whole.body
    by_hand = 2 * (10 * (2 * adapted.body + adapted.trained_body) + 2 * 3 * adapted.head)
    attention = 3 * 4 * adapted.attention * 10 * 11 / 2
    assert adapted.flops([10], 3, gradient=True) == by_hand + attention


def addmm(total, left, right, **_):
    """FLOPs, from shapes."""
    return 2 * left[0] * left[1] * right[1]


class Counter(L.Callback):
    """Counts the FLOPs of training, its stages' starts included, as torch sees them."""

    def __init__(self):
        self.flops = 0

    def on_train_start(self, trainer, module):
        in_place = {torch.ops.aten.addmm_: addmm}  # of which the counter does not know
        self.mode = FlopCounterMode(display=False, custom_mapping=in_place)
        self.mode.__enter__()

    def on_train_end(self, trainer, module):
        self.mode.__exit__(None, None, None)
        self.flops += self.mode.get_total_flops()


def specs(folder):
    """Two tasks and a stage of general prompts; all rows are equally long, without padding."""
    for name in ("one", "two", "gen"):
        for split, count in (("train", 6), ("validation", 2)):
            rows = [
                {
                    "id": f"{split}{index}",
                    "prompt": f"{name} {split} {index}?",
                    "context": f"{name} is {index}.",
                    **({"demonstration": 5 * "abc"[index % 3]} if name != "gen" else {}),
                    "answer": "abc"[index % 3],
                }
                for index in range(count)
            ]
            write_rows(folder / name / f"{split}.jsonl", rows)
    return {
        name: TaskSpec(
            name, path=str(folder / name), scorer="exact_label", prompts_only=name == "gen"
        )
        for name in ("one", "two", "gen")
    }


METHODS = {
    "SDFT": (SDFTModule, {}),
    "importance weights": (SDFTModule, {"importance_clip": 2.0}),
    "early tokens masked": (SDFTModule, {"num_masked_tokens": 2}),
    "frozen teacher": (SDFTModule, {"teacher": {"kind": "base"}}),
    "live teacher": (SDFTModule, {"teacher": {"kind": "student"}}),
    "half on-policy": (SDFTModule, {"on_policy_fraction": 0.5}),
    "SFT": (SFTModule, {}),
    "anchor": (SFTModule, {"anchor": Anchor(0.1, "earlier_tasks", 4, 2, 6)}),
    "replay": (SFTModule, {}),
    "DFT": (DFTModule, {}),
    "CPT": (CPTModule, {}),
    "KL penalty": (KLPenaltyModule, {}),
    "reward": (RewardedSDFTModule, {}),
    "teacher samples": (TeacherSFTModule, {}),
    "offline": (OfflineDistillationModule, {}),
    "on-policy": (OnPolicyDistillationModule, {}),
    "re-invoke": (ReinvokeModule, {}),
}
DATA = {
    "replay": {"replay_fraction": 0.5},
    "CPT": {"train_on": "documents"},
    "on-policy": {"train_on": "prompts"},
    "re-invoke": {"train_on": "prompts"},
}
RATIOS = {"SFT": 1.0, "CPT": 1.0}
SAMPLED = dict.fromkeys(("SFT", "replay", "DFT", "CPT", "KL penalty"), 0) | {
    "half on-policy": 6, "anchor": 4, "re-invoke": 6
}  # fmt: skip


def test_every_method_is_counted():
    names = set(lightning_modules.__all__) - {"ContinualModule"}
    assert {kind.__name__ for kind, _ in METHODS.values()} == names


@pytest.mark.parametrize("name", METHODS)
def test_the_flops_of_every_method_are_those_that_torch_counts(name, tmp_path):
    kind, options = METHODS[name]
    if name == "on-policy":
        another, tokenizer = tmp_path / "another", byte_tokenizer()
        save_model(another_llama(len(tokenizer)), tokenizer, another)
        options = {"teacher": {"kind": "model", "pretrained": str(another)}}
    module = sdft(kind, rollout_engine="generate", **options)  # which reads no drafts
    module.end_ids = frozenset()  # all completions are equally long
    models = [module.student, getattr(getattr(module, "teacher", None), "model", None)]
    models.append(getattr(getattr(module, "base_model", None), "model", None))
    for model in filter(None, models):  # the counter does not see into fused attention
        module.passes._shapes[model] = replace(ModelShape.of(model), attention=0)
    tracker, counter, tasks = CostTracker(), Counter(), specs(tmp_path)
    chosen = ("one", "gen") if name == "re-invoke" else ("one", "two")
    data = {"specs": [tasks[each] for each in chosen], **DATA.get(name, {})}
    train(module, tmp_path, counter, tracker, **data)
    record = tracker.record(module.device)
    spent = sum(value for purpose, value in record["flops"].items() if purpose != "sft")
    assert spent == counter.flops > 0
    assert record["flops_vs_sft"] == pytest.approx(RATIOS.get(name, spent / record["flops"]["sft"]))
    assert record["flops_vs_sft"] > (1 if name not in RATIOS else 0)
    assert record["completion_tokens"] == 6 * SAMPLED.get(name, 12)


def test_a_model_of_unknown_flops_gives_null_and_no_error(tmp_path):
    tracker, module = CostTracker(), sdft(SFTModule)
    module.passes._shapes[module.student] = None  # as of an architecture that is not known
    train(module, tmp_path, tracker)
    record = json.loads((tmp_path / "cost.json").read_text())
    assert record["flops"] == {"student": None, "sft": None}
    assert record["flops_vs_sft"] is None
    assert record["num_steps"] == 5


def test_a_lap_is_the_time_since_the_last_one():
    clock = LapClock()
    clock.start(torch.device("cpu"))
    time.sleep(0.02)
    clock.lap("sleep")
    clock.lap("nothing")
    assert clock.seconds["sleep"] >= 0.02
    assert clock.seconds["nothing"] < 0.02


@pytest.mark.parametrize("method", [SDFTModule, SFTModule])
def test_a_run_writes_what_it_cost(method, tmp_path):
    tracker = CostTracker()
    train(sdft(method), tmp_path, tracker)
    record = json.loads((tmp_path / "cost.json").read_text())
    phases = {"student", "backward", "optimizer"}
    if method is SDFTModule:
        phases |= {"sample", "teacher", "teacher_update"}
        assert record["completion_tokens"] > 0
        assert record["completion_tokens_per_s"] > 0
    assert record["seconds"].keys() == phases
    assert record["peak_memory_bytes"] > 1e6
    assert record["num_steps"] == tracker.state_dict()["num_steps"] > 0


def test_a_resumed_run_goes_on_counting():
    first, second = CostTracker(), CostTracker()
    first._num_steps, first._tokens = 3, 50
    first._seconds.update(sample=2.0)
    first._flops.update(rollout=1.0, teacher=2.0, student=3.0, sft=2.0)
    second.load_state_dict(first.state_dict())
    assert second.record(torch.device("cpu"))["completion_tokens_per_s"] == 25
    assert second.record(torch.device("cpu"))["flops_vs_sft"] == 3
