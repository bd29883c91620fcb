"""Rows that a model cannot read are refused before the first evaluation, in one line."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from lightning_modules import OnPolicyDistillationModule, SDFTModule, SFTModule
from sdft.model.pretrained import load_model, save_model
from sdft.model.tiny_model import byte_tokenizer
from tests.architectures import COMMON
from tests.conftest import write_rows
from tests.lightning_modules.test_modules import sdft, train
from tests.model.test_limits import LONG
from tests.sample_tasks import letter_rows, write_task

NUM_IDS = len(byte_tokenizer())


def saved(folder, model):
    """A transformers directory of a model with the byte tokenizer."""
    torch.manual_seed(0)
    save_model(model(), byte_tokenizer(), folder / "model")
    return str(folder / "model")


def short_gpt2(folder, num_positions):
    config = GPT2Config(
        vocab_size=NUM_IDS, n_embd=32, n_layer=2, n_head=4, n_positions=num_positions
    )
    return saved(folder, lambda: GPT2LMHeadModel(config))


@pytest.mark.parametrize("splits", [["train"], ["validation"], ["test"]])
def test_token_without_an_embedding_is_named_with_its_row(splits, tmp_path):
    spec = write_task(tmp_path, "one")
    module = sdft(SFTModule)
    module.tokenizer.add_tokens(["<extra>", "<more>"])
    for split in splits:
        rows = letter_rows("one", split, 3)
        rows[1]["prompt"] = "what is <more>?"
        write_rows(tmp_path / "one" / f"{split}.jsonl", rows)
    with pytest.raises(ValueError, match=r"has token 260 .'<more>'.*embeddings of 259") as refusal:
        train(module, tmp_path / "run", specs=[spec])
    assert f"task 'one', {splits[0]} row 'one-{splits[0]}-1'" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_tokenizer_with_more_tokens_than_rows_use_is_fine(tmp_path):
    module = sdft(SFTModule)
    module.tokenizer.add_tokens(["<extra>", "<more>"])
    train(module, tmp_path)


def longest_prompts(module, folder):
    """Tokens of the longest prompts of student and teacher in the small tasks."""
    students, teachers = [], []

    def training_step(self, batch, batch_idx):
        students.extend(map(len, batch.student_prompts))
        teachers.extend(map(len, batch.teacher_prompts))
        return type(self).training_step(self, batch, batch_idx)

    def evaluate(self, batch):
        students.extend(map(len, batch.prompts))
        return type(self)._evaluate(self, batch)

    module.training_step = training_step.__get__(module)
    module._evaluate = evaluate.__get__(module)
    train(module, folder)
    return max(students), max(teachers)


def test_rows_may_take_every_position_and_none_more(tmp_path):
    student, teacher = longest_prompts(sdft(), tmp_path / "lengths")
    for kind, prompt in ((SFTModule, student), (SDFTModule, teacher)):
        for missing in (0, 1):
            folder = tmp_path / f"{kind.__name__}-{missing}"
            module = sdft(kind, pretrained=short_gpt2(folder, prompt + 6 - missing))
            if missing:
                with pytest.raises(ValueError, match=f"need {prompt + 6} positions, and the model"):
                    train(module, folder)
            else:
                train(module, folder)


def test_longer_demonstrations_count_and_the_message_names_what_to_lower(tmp_path):
    spec = write_task(tmp_path, "one")
    rows = letter_rows("one", "train", 3)
    rows[2]["demonstration"] = "a" * 200
    write_rows(tmp_path / "one" / "train.jsonl", rows)
    module = sdft(SFTModule, pretrained=short_gpt2(tmp_path, 150))
    complaint = r"row 'one-train-2': a prompt of \d+ tokens and demonstration of 201 need"
    with pytest.raises(ValueError, match=complaint) as refusal:
        train(module, tmp_path / "run", specs=[spec])
    assert "lower model.max_new_tokens" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_rows_that_would_depend_on_their_neighbours_are_refused(tmp_path):
    options = {**COMMON, "vocab_size": NUM_IDS, "max_position_embeddings": 4096}

    def model():
        return LlamaForCausalLM(LlamaConfig(**options, rope_parameters=LONG))

    module = sdft(
        OnPolicyDistillationModule, teacher={"kind": "base"}, pretrained=saved(tmp_path, model)
    )
    with pytest.raises(ValueError, match="reads a row differently beside one of more than 32"):
        train(module, tmp_path, train_on="prompts")


def test_another_models_positions_count_where_it_teaches(tmp_path):
    teacher = {"kind": "model", "pretrained": short_gpt2(tmp_path, 30)}
    with pytest.raises(ValueError, match="positions, and the model has 30"):
        train(sdft(OnPolicyDistillationModule, teacher=teacher), tmp_path, train_on="prompts")


def test_model_that_reads_ahead_is_refused_when_it_is_loaded(tmp_path):
    options = {**COMMON, "vocab_size": NUM_IDS}
    path = saved(tmp_path, lambda: BertLMHeadModel(BertConfig(**options)))
    with pytest.raises(ValueError, match="BertLMHeadModel is no causal language model"):
        load_model(path)
