import json

import datasets
import pytest
from jsonargparse import ArgumentParser

from sdft.tasks.generated import GENERATORS
from sdft.tasks.tasks import SCORER_OF_GENERATOR, TaskSpec, load_task, load_tasks


def make_rows(split, number, **fields):
    row = {"prompt": "Which team?", "demonstration": "parcels", "answer": "parcels", **fields}
    return [{"id": f"{split}-{index}", **row} for index in range(number)]


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "mine", train=make_rows("train", 20), validation=make_rows("validation", 5))
    return tmp_path / "mine"


def write(folder, **splits):
    folder.mkdir(exist_ok=True)
    for split, rows in splits.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text)


def spec(folder, **options):
    return TaskSpec(**{"name": "mine", "path": str(folder), "scorer": "exact_label", **options})


def ids(rows):
    return [row.id for row in rows]


def test_a_folder_is_loaded_whole_in_the_order_of_its_files(folder):
    write(folder, test=make_rows("test", 3, task="theirs"))
    task = load_task(spec(folder))
    assert ids(task.train) == [f"train-{index}" for index in range(20)]
    assert (len(task.validation), len(task.test)) == (5, 3)
    assert {row.task for row in (*task.train, *task.test)} == {"mine"}
    assert task.scorer("Parcels.", task.test[0]) == 1
    assert task.source == f"read from the folder {folder}"


def test_a_path_is_relative_to_the_working_directory(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert len(load_task(spec("mine")).train) == 20


def test_a_condition_chooses_among_the_folders_rows(folder):
    odd = make_rows("odd", 2, meta={"kind": "odd"}, answer="lorries")
    write(folder, train=[*make_rows("train", 3), *odd], validation=make_rows("validation", 1))
    chosen = load_task(spec(folder, path_where='id != "train-0"', num_train=4))
    assert ids(chosen.train) == ["train-1", "train-2", "odd-0", "odd-1"]
    assert len(load_task(spec(folder, path_where="prompt[0].content")).train) == 5
    with pytest.raises(ValueError, match=r"'mine': path_where: .* keeps no row of validation"):
        load_task(spec(folder, path_where='answer == "lorries"'))
    with pytest.raises(
        ValueError, match=r"path_where: .* fails on train row 0: .*attribute 'kind'"
    ):
        load_task(spec(folder, path_where='meta.kind == "odd"'))


def test_a_folder_without_test_rows_gives_none(folder):
    assert load_task(spec(folder)).test == ()


def test_a_subset_is_random_by_seed_and_split_and_keeps_the_order(folder):
    write(folder, validation=make_rows("validation", 20))

    def indices(seed, number, split="train"):
        task = load_task(spec(folder, **{f"num_{split}": number}), seed)
        return [int(row.id.split("-")[1]) for row in getattr(task, split)]

    chosen = indices(1, 8)
    assert len(set(chosen)) == 8
    assert chosen == sorted(chosen) == indices(1, 8)
    assert chosen != list(range(8))
    assert chosen != indices(2, 8)
    assert chosen != indices(1, 8, "validation")
    assert set(chosen) < set(indices(1, 9))
    assert indices(1, 20) == list(range(20))


@pytest.mark.parametrize(("split", "present"), [("train", 20), ("validation", 5), ("test", 0)])
def test_asking_for_more_rows_than_there_are_is_an_error(folder, split, present):
    with pytest.raises(
        ValueError, match=rf"'mine': num_{split} asks for 21 rows, .* are {present}"
    ):
        load_task(spec(folder, **{f"num_{split}": 21}))


@pytest.mark.parametrize("missing", ["train", "validation"])
def test_a_missing_file_is_an_error_that_names_it(folder, missing):
    (folder / f"{missing}.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=rf"task 'mine': .*{missing}\.jsonl"):
        load_task(spec(folder))


def test_a_missing_folder_is_an_error_that_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"task 'mine'.*'no/such'.*{tmp_path}/no/such"):
        load_task(spec("no/such"))


def test_an_id_may_be_in_two_splits_but_not_twice_in_one(folder):
    write(folder, validation=make_rows("train", 1))
    assert ids(load_task(spec(folder)).validation) == ["train-0"]
    write(folder, validation=make_rows("train", 1) * 2)
    with pytest.raises(ValueError, match=r"validation\.jsonl:2: field 'id': 'train-0' is also"):
        load_task(spec(folder))


def test_a_gold_answer_that_does_not_suit_the_scorer_stops_the_loading(folder):
    with pytest.raises(ValueError, match=r"'mine', train: row 'train-0': .*'json_equal' needs"):
        load_task(spec(folder, scorer="json_equal"))


def test_rows_that_the_scorer_refuses_are_dropped_and_counted_where_the_task_says_so(
    folder, caplog
):
    odd = make_rows("odd", 3, answer="?!")
    write(folder, train=[*make_rows("train", 2), *odd])
    with pytest.raises(ValueError, match=r"row 'odd-0'.*\n3 of 5 train rows .*unscorable to drop"):
        load_task(spec(folder))
    task = load_task(spec(folder, unscorable="drop"))
    assert ids(task.train) == ["train-0", "train-1"]
    assert len(task.validation) == 5
    assert "dropped 3 of 5 rows; task 'mine', train: row 'odd-0'" in caplog.text
    write(folder, train=odd)
    with pytest.raises(ValueError, match="3 of 3 train rows are refused"):
        load_task(spec(folder, unscorable="drop"))


def test_the_rows_may_name_the_scorer(folder):
    meta = {"scoring": "qa_em_f1"}
    write(folder, train=make_rows("train", 2, meta=meta))
    write(folder, validation=make_rows("validation", 2, meta=meta))
    assert load_task(spec(folder, scorer=None)).scorer_name == "token_f1"
    assert load_task(spec(folder, scorer="contains")).scorer_name == "contains"


@pytest.mark.parametrize("meta", [{}, {"scoring": "mc_letter"}, {"scoring": ["exact_label"]}])
def test_rows_that_do_not_agree_on_a_scorer_are_an_error(folder, meta):
    scored = make_rows("train", 1, meta={"scoring": "exact_label"})
    write(folder, train=scored if meta else make_rows("train", 1))
    write(folder, validation=make_rows("validation", 1, meta=meta))
    with pytest.raises(ValueError, match=r"task 'mine' has no scorer.*exact_label, .*token_f1"):
        load_task(spec(folder, scorer=None))


@pytest.mark.parametrize("name", list(GENERATORS))
def test_a_generated_task_brings_its_scorer_and_solves_itself(name):
    task = load_task(TaskSpec(name="made", generator=name, num_train=24, num_test=8), seed=3)
    assert task.scorer_name == SCORER_OF_GENERATOR[name]
    assert (len(task.train), len(task.validation), len(task.test)) == (24, 64, 8)
    for row in (*task.train, *task.validation, *task.test):
        assert row.task == "made"
        assert task.scorer(row.demonstration, row) == 1
    wrong = [task.scorer(task.train[0].demonstration, row) for row in task.validation]
    assert sum(wrong) < len(wrong) / 2
    assert task == load_task(TaskSpec(name="made", generator=name, num_train=24, num_test=8), 3)
    assert task.source == f"made by the generator '{name}' with seed 3"


HUB = {
    "columns": {"prompt": "{{ q }}?", "demonstration": "a", "answer": "a", "context": "doc"},
    "splits": {"train": "train[:4]", "validation": "train[4:6]"},
}
ON_HUB = {"path": None, "hub_id": "a/b"}


@pytest.fixture
def hub_set(tmp_path, monkeypatch):
    """A folder in the layout of a hub repository, which the library loads like one."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [
        {"q": f"Which {index}", "a": f"team{index}", "doc": "An article."} for index in range(8)
    ]
    write(tmp_path / "hub", train=rows)
    return str(tmp_path / "hub")


def test_a_hub_set_is_loaded_through_its_mapping(hub_set):
    mine = TaskSpec("mine", scorer="exact_label", hub_id=hub_set, num_train=3, **HUB)
    task = load_task(mine)
    assert len(task.train) == 3
    assert [row.answer for row in task.validation] == ["team4", "team5"]
    assert ids(task.validation) == ["validation-0", "validation-1"]
    assert task.validation[0].prompt[0]["content"] == "Which 4?"
    assert task.validation[0].context == "An article."
    assert task.test == ()
    assert task.source == f"read from the hub data set '{hub_set}' at its newest revision"


def test_a_hub_task_without_a_test_split_has_no_test_rows_to_ask_for(hub_set):
    with pytest.raises(ValueError, match="num_test asks for 2 rows, but there are 0"):
        load_task(TaskSpec("mine", scorer="exact_label", hub_id=hub_set, num_test=2, **HUB))


def test_an_empty_hub_split_is_an_error(hub_set):
    options = {**HUB, "splits": {"train": "train[:0]", "validation": "train[4:]"}}
    with pytest.raises(ValueError, match=r"task 'mine': could not load the split 'train\[:0\]'"):
        load_task(TaskSpec("mine", scorer="exact_label", hub_id=hub_set, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, "task name ''"),
        ({"name": "a/b"}, "task name 'a/b' cannot name files"),
        ({"name": "a" * 101}, "task name 'a+ cannot name files; use at most 100"),
        ({"name": ".."}, "task name '..'"),
        ({"name": "mine\n"}, "task name"),
        ({"path": None}, "'mine' has no rows: give it one of generator, path, source, hub_id"),
        ({"generator": "routing"}, "'mine' has generator and path: give it one of"),
        ({"source": "banking77"}, "'mine' has path and source: give it one of"),
        ({"hub_id": "a/b"}, "'mine' has path and hub_id: give it one of"),
        ({"path": None, "generator": "rooting"}, "unknown generator 'rooting'; use .*routing"),
        ({"scorer": "f1"}, "unknown scorer 'f1'"),
        ({"num_train": 0}, "num_train is 0; use 1 or more"),
        ({"num_validation": -1}, "num_validation is -1"),
        ({"revision": "main", "splits": {}}, "revision, splits would have no effect"),
        ({"path": None, "generator": "routing", "context_field": "x"}, "context_field would have"),
        ({"path": None, "hub_id": "a/b", "path_where": "1"}, "path_where would have no effect"),
        ({"path_where": "id =="}, "path_where: 'id ==' is broken"),
        ({"path": None, "hub_id": "a/b", "where": "("}, r"where: '\(' is broken"),
        ({**ON_HUB, "context_field": "meta.x"}, "context_field would have no effect"),
        ({**ON_HUB, "splits": {"train": "train"}}, "must name train and validation"),
        ({**ON_HUB, "splits": {**HUB["splits"], "dev": "x"}}, "splits names .*dev"),
        ({**ON_HUB, "columns": {"prompt": "q"}}, "is not mapped"),
    ],
)
def test_an_unusable_spec_is_an_error_when_it_is_made(options, message):
    with pytest.raises(ValueError, match=message):
        spec("folder", **options)


def test_duplicate_names_and_no_tasks_are_errors(folder):
    with pytest.raises(ValueError, match="task names given twice: mine"):
        load_tasks([spec(folder), spec(folder, name="other"), spec("elsewhere")])
    with pytest.raises(ValueError, match="there are no tasks"):
        load_tasks([])


def test_tasks_are_loaded_in_the_order_given(folder):
    tasks = load_tasks([spec(folder, name="b"), spec(folder, name="a", num_train=2)])
    assert [(task.name, len(task.train)) for task in tasks] == [("b", 20), ("a", 2)]


def test_specs_are_read_from_a_config_and_explained_in_help(capsys):
    parser = ArgumentParser()
    parser.add_argument("--tasks", type=list[TaskSpec])
    parser.add_class_arguments(TaskSpec, "one")
    items = [{"name": "made", "generator": "routing"}, {"name": "mine", "path": "x"}]
    config = parser.parse_object({"tasks": items, "one": {"name": "other", "path": "y"}})
    specs = [TaskSpec("made", generator="routing"), TaskSpec("mine", path="x")]
    assert parser.instantiate(config).tasks == specs
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "a Jinja template over the columns" in text
    assert "How many training rows to use" in text


def test_a_generators_options_reach_it():
    spec = TaskSpec(
        name="facts", generator="new_facts", generator_options={"num_entities": 2}, num_train=30
    )
    assert len({row.meta["entity"] for row in load_task(spec).train}) == 2


@pytest.mark.parametrize(
    ("generator", "options", "message"),
    [
        ("new_facts", {"num_entities": 0}, "task 'facts': .*num_entities"),
        ("routing", {"num_entities": 2}, "generator routing has no option num_entities; it has: t"),
        ("routing", {"team": 99}, "task 'facts': team is 99"),
    ],
)
def test_an_option_the_generator_refuses_is_an_error(generator, options, message):
    with pytest.raises(ValueError, match=message):
        load_task(TaskSpec(name="facts", generator=generator, generator_options=options))
