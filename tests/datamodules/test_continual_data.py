from dataclasses import replace

import pytest

from datamodules import ContinualDataModule
from tests.sample_tasks import write_task


@pytest.fixture
def specs(tmp_path):
    return [write_task(tmp_path, "one", num_train=6), write_task(tmp_path, "two", num_train=5)]


def build(specs, tiny, **options):
    options = {"batch_size": 4, "teacher_template": "dialogue", **options}
    return ContinualDataModule(specs, tiny.tokenizer, **options)


def test_each_stage_serves_its_own_tasks_rows(specs, tiny):
    data = build(specs, tiny)
    for stage, name in enumerate(("one", "two")):
        data.stage = stage
        rows = [row for batch in data.train_dataloader() for row in batch.rows]
        assert {row.task for row in rows} == {name}
        assert len(rows) == data.plan.num_rows[stage]


def test_a_batch_holds_both_prompts_and_the_demonstration(specs, tiny):
    batch = next(iter(build(specs, tiny).train_dataloader()))
    decode = tiny.tokenizer.decode
    row = batch.rows[0]
    question = row.prompt[-1]["content"]
    assert decode(batch.student_prompts[0]).count(question) == 1
    assert decode(batch.teacher_prompts[0]).count(question) == 2
    assert f"assistant\n{row.demonstration}<|end|>" in decode(batch.teacher_prompts[0])
    assert decode(batch.demonstrations[0]) == row.demonstration + "<|end|>"


def test_a_budget_of_examples_may_exceed_the_rows(specs, tiny):
    data = build(specs, tiny, examples_per_stage=10)
    assert data.plan.num_examples == (10, 10)
    assert [len(batch) for batch in data.train_dataloader()] == [4, 4, 2]


def test_loader_state_goes_on_with_the_next_batch(specs, tiny):
    data = build(specs, tiny, epochs_per_stage=2)
    loader = data.train_dataloader()
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    expected = [row.id for batch in batches for row in batch.rows]
    resumed = data.train_dataloader()
    resumed.load_state_dict(state)
    assert [row.id for batch in resumed for row in batch.rows] == expected
    assert len(resumed) == len(loader)


def test_another_stages_loader_state_is_ignored(specs, tiny):
    data = build(specs, tiny)
    state = {"stage": 0, "num_given": 2}
    data.stage = 1
    loader = data.train_dataloader()
    loader.load_state_dict(state)
    assert len(list(loader)) == len(loader)


def test_evaluation_covers_every_task_and_row(specs, tiny):
    loaders = build(specs, tiny, eval_batch_size=2).val_dataloader()
    seen = [(batch.task, len(batch)) for loader in loaders for batch in loader]
    assert seen == [("one", 2), ("one", 1), ("two", 2), ("two", 1)]
    assert [len(loader) for loader in loaders] == [2, 2]


def test_a_prompt_over_the_limit_is_an_error_that_names_the_row(specs, tiny):
    with pytest.raises(ValueError, match=r"task 'one', train row 'one-train-0'.*max_prompt_tokens"):
        build(specs, tiny, max_prompt_tokens=20)


def test_dropped_rows_are_counted_aloud(tmp_path, tiny, caplog):
    spec = write_task(tmp_path, "mixed", num_train=6)
    file = tmp_path / "mixed" / "train.jsonl"
    file.write_text(file.read_text().replace("mixed train 3?", "mixed train 3?" + "x" * 500))
    data = build([spec], tiny, max_prompt_tokens=200, overlong="drop")
    assert data.plan.num_rows == (5,)
    assert "dropped 1 of 6 train rows" in caplog.text


def test_no_row_left_is_an_error(specs, tiny):
    with pytest.raises(ValueError, match="no train row fits"):
        build(specs, tiny, max_prompt_tokens=10, overlong="drop")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"batch_size": 0}, "data.batch_size is 0"),
        ({"epochs_per_stage": 0}, "data.epochs_per_stage is 0"),
        ({"examples_per_stage": 0}, "data.examples_per_stage is 0"),
        ({"overlong": "cut"}, "data.overlong is 'cut'"),
        ({"teacher_context": "all"}, "teacher_context is 'all'"),
        ({"teacher_context": "context"}, "task 'one', train row 'one-train-0': has no context"),
        ({"num_demonstrations": 0}, "data.num_demonstrations is 0"),
        ({"num_demonstrations": 9}, "data.num_demonstrations is 9, it can be at most 6"),
        ({"demonstration_choice": "best"}, "demonstration_choice is 'best'"),
        ({"teacher_template": "nope"}, "teacher_template 'nope'"),
    ],
)
def test_options_out_of_range_are_refused(specs, tiny, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        build(specs, tiny, **options)


def test_a_missing_tokenizer_is_refused(specs):
    with pytest.raises(ValueError, match="tokenizer"):
        ContinualDataModule(specs)


def teacher_texts(data, tiny):
    """Each row's teacher prompt, in the first stage."""
    batches = list(data.train_dataloader())
    return {
        row.id: tiny.tokenizer.decode(prompt)
        for batch in batches
        for row, prompt in zip(batch.rows, batch.teacher_prompts, strict=True)
    }


def test_a_task_may_choose_what_the_teacher_is_shown(tmp_path, tiny):
    spec = write_task(tmp_path, "one")
    file = tmp_path / "one" / "train.jsonl"
    file.write_text(file.read_text().replace('"answer"', '"context": "Article.", "answer"'))
    both = teacher_texts(build([spec], tiny), tiny)["one-train-0"]
    spec.teacher_context = "context"
    context = teacher_texts(build([spec], tiny), tiny)["one-train-0"]
    alone = teacher_texts(build([replace(spec, teacher_context="demonstration")], tiny), tiny)
    assert [text.count("Article.") for text in (both, context, alone["one-train-0"])] == [1, 1, 0]
    assert [text.count("train 0?") for text in (both, context)] == [2, 1]


@pytest.mark.parametrize("choice", ["random", "retrieved"])
def test_examples_are_other_training_rows_of_the_task_and_the_same_in_every_run(
    choice, specs, tiny
):
    options = {"num_demonstrations": 3, "demonstration_choice": choice}
    data = build(specs, tiny, **options)
    texts = teacher_texts(data, tiny)
    assert teacher_texts(build(specs, tiny, **options), tiny) == texts
    for row, text in texts.items():
        questions = [index for index in range(6) if f"one train {index}?" in text]
        assert len(questions) == 3
        assert int(row[-1]) in questions
        assert "two" not in text
    plain = build(specs, tiny)
    for ours, theirs in zip(data.val_dataloader(), plain.val_dataloader(), strict=True):
        assert [batch.prompts for batch in ours] == [batch.prompts for batch in theirs]


def test_examples_count_towards_the_length_of_a_prompt(specs, tiny):
    batches = list(build(specs, tiny).train_dataloader())
    limit = max(len(prompt) for batch in batches for prompt in batch.teacher_prompts)
    build(specs, tiny, max_prompt_tokens=limit)
    with pytest.raises(ValueError, match="the teacher's prompt has"):
        build(specs, tiny, max_prompt_tokens=limit, num_demonstrations=2)


def test_a_task_that_chooses_something_unknown_is_named(tmp_path):
    with pytest.raises(ValueError, match="task 'one': teacher_context is 'all'"):
        replace(write_task(tmp_path, "one"), teacher_context="all")


def test_evaluation_may_read_what_the_teacher_reads(specs, tiny):
    decode = tiny.tokenizer.decode
    for evaluated_as, count in (("student", 1), ("teacher", 2)):
        batch = next(iter(build(specs, tiny, evaluated_as=evaluated_as).val_dataloader()[0]))
        for row, prompt in zip(batch.rows, batch.prompts, strict=True):
            assert decode(prompt).count(row.prompt[-1]["content"]) == count
    with pytest.raises(ValueError, match="evaluated_as is 'both'; it must be student or teacher"):
        build(specs, tiny, evaluated_as="both")


def test_replayed_rows_are_read_as_their_own_tasks(specs, tiny):
    data = build(specs, tiny, replay_fraction=0.5)
    data.stage = 1
    first, last = data.train_dataloader()
    assert [row.task for row in first.rows] == ["two"] * 4 + ["one"] * 2
    assert [row.task for row in last.rows] == ["two"]
    assert first.student_prompts[4] == data.reader.student_prompt(first.rows[4])


def test_a_negative_replay_fraction_is_refused(specs, tiny):
    with pytest.raises(ValueError, match=r"data.replay_fraction is -0.1; it must be 0 or more"):
        build(specs, tiny, replay_fraction=-0.1)
