import pytest
import torch

from datamodules import ContinualDataModule
from lightning_modules import CPTModule, SFTModule
from sdft.tasks.task_spec import TaskSpec
from tests.conftest import write_rows
from tests.lightning_modules.one_step import assert_step_equals, moved, token_logprobs
from tests.lightning_modules.test_modules import Recorder, sdft, train
from tests.sample_tasks import letter_rows

ARTICLES = ["Dunmere's mascot is a fox.", "Vel\u00f6ra builds with bamb\u00f6\u00f6. " * 3]


@pytest.fixture
def spec(tmp_path):
    """Six questions about two articles."""
    for split in ("train", "validation"):
        rows = [
            {**row, "context": ARTICLES[index % 2]}
            for index, row in enumerate(letter_rows("facts", split, 6))
        ]
        write_rows(tmp_path / "facts" / f"{split}.jsonl", rows)
    return TaskSpec(name="facts", path=str(tmp_path / "facts"), scorer="exact_label")


def documents(spec, tiny, **options):
    return ContinualDataModule([spec], tiny.tokenizer, train_on="documents", **options)


def test_training_rows_are_the_documents_each_once_and_whole(spec, tiny):
    (batch,) = documents(spec, tiny).train_dataloader()
    texts = tiny.tokenizer.batch_decode(batch.demonstrations)
    assert sorted(texts) == sorted(ARTICLES)
    assert batch.student_prompts == [[tiny.tokenizer.eos_token_id]] * 2


def test_questions_evaluate_as_ever(spec, tiny):
    (loader,) = documents(spec, tiny).val_dataloader()
    (batch,) = loader
    assert len(batch) == 6
    assert "assistant" in tiny.tokenizer.decode(batch.prompts[0])


@pytest.mark.parametrize("longest", [45, 61])
def test_long_documents_are_cut_into_pieces_that_lose_nothing(longest, spec, tiny):
    data = documents(spec, tiny, max_prompt_tokens=longest)
    pieces = [row.context for row in data.tasks[0].train]
    assert "".join(pieces) == "".join(ARTICLES)
    assert len(pieces) > 2
    lengths = [len(tiny.tokenizer(piece)["input_ids"]) for piece in pieces]
    assert max(lengths) <= longest + 1  # a character of two bytes is not cut in half


def test_cpt_is_next_token_loss_on_every_token_of_the_documents(spec, tiny):
    (batch,) = documents(spec, tiny).train_dataloader()
    module = moved(CPTModule)
    start = [tiny.tokenizer.eos_token_id]
    texts = [tiny.tokenizer(row.context)["input_ids"] for row in batch.rows]
    losses = [-token_logprobs(module.student, start, ids) for ids in texts]
    assert_step_equals(module, torch.cat(losses).mean(), batch)


def test_a_task_without_documents_is_refused(tmp_path, tiny):
    write_rows(tmp_path / "bare" / "train.jsonl", letter_rows("bare", "train", 2))
    write_rows(tmp_path / "bare" / "validation.jsonl", letter_rows("bare", "validation", 2))
    spec = TaskSpec(name="bare", path=str(tmp_path / "bare"), scorer="exact_label")
    with pytest.raises(ValueError, match="task 'bare' has no documents to train on"):
        documents(spec, tiny)


def test_a_data_module_for_another_method_is_refused(spec, tmp_path):
    with pytest.raises(ValueError, match=r"data\.train_on is documents, and SFTModule trains on"):
        train(sdft(SFTModule), tmp_path, train_on="documents", specs=[spec])


def test_cpt_lowers_the_loss_of_its_documents(spec, tmp_path):
    losses = Recorder(
        "on_train_batch_end", lambda trainer, module: trainer.callback_metrics["train/loss"].item()
    )
    options = {"train_on": "documents", "epochs_per_stage": 20, "specs": [spec]}
    train(sdft(CPTModule), tmp_path, losses, **options)
    assert losses.seen[-1] < 0.8 * losses.seen[0]
