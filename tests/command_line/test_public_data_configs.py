import datasets
import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, Value

from sdft.scorers.scorer_registry import check_row, get_scorer
from sdft.tasks.hub import kept_indices, rows_from_dataset
from sdft.tasks.task_spec import TaskSpec
from tests.conftest import REPOSITORY, SHARED_DATA

CONFIG = REPOSITORY / "configs" / "smollm2" / "clinc_snips_banking.yaml"


@pytest.fixture(scope="module")
def specs() -> dict[str, TaskSpec]:
    tasks = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["data"]["tasks"]
    return {task["name"]: TaskSpec(**task) for task in tasks}


def mapped(spec: TaskSpec, dataset: Dataset):
    kept = kept_indices(dataset, spec.where, spec.name, "train")
    rows = rows_from_dataset(
        dataset, kept, spec.name, "train", spec.columns, needs_demonstration=True
    )
    for row in rows:
        check_row(spec.scorer, row)
        assert get_scorer(spec.scorer)(row.demonstration, row) == 1.0
    return rows


def test_clinc_intents_from_the_hub_become_domains(specs):
    names = ["oos", "balance", "tell_joke", "calendar"]
    features = Features({"text": Value("string"), "intent": ClassLabel(names=names)})
    dataset = Dataset.from_dict(
        {"text": ["a", "b", "c", "d"], "intent": [1, 0, 2, 3]}, features=features
    )
    rows = mapped(specs["clinc_domain"], dataset)
    assert [row.answer for row in rows] == ["banking", "small talk", "home"]
    assert "Request: c\nAnswer:" in rows[1].prompt[-1]["content"]


def test_snips_tags_from_the_hub_become_a_json_call(specs):
    dataset = Dataset.from_dict(
        {
            "input": ["book a table in new york for two", "play"],
            "intent": ["BookRestaurant", "PlayMusic"],
            "slots": ["O O O O B-city I-city O B-party_size", "O"],
        }
    )
    rows = mapped(specs["snips_json"], dataset)
    assert rows[0].demonstration == (
        '{"intent": "BookRestaurant", "slots": {"city": "new york", "party_size": "two"}}'
    )
    assert rows[1].demonstration == '{"intent": "PlayMusic", "slots": {}}'


def test_banking_labels_from_the_hub_are_taken_as_they_are(specs):
    dataset = datasets.Dataset.from_dict(
        {"text": ["Where is my card?"], "label": [11], "label_text": ["card_arrival"]}
    )
    assert mapped(specs["banking77"], dataset)[0].answer == "card_arrival"


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the shared data sets are not here")
def test_hub_and_folder_ask_the_same_question(specs):
    from sdft.tasks.tasks import load_task

    columns = {
        "clinc_domain": {"text": ["X"], "intent": ["balance"]},
        "snips_json": {"input": ["X"], "intent": ["GetWeather"], "slots": ["O"]},
        "banking77": {"text": ["X"], "label": [0], "label_text": ["card_arrival"]},
    }
    for name, spec in specs.items():
        (from_hub,) = mapped(spec, Dataset.from_dict(columns[name]))
        spec.path = str(REPOSITORY / spec.path)
        from_folder = load_task(spec).train[0].prompt[-1]["content"]
        hub_lines = from_hub.prompt[-1]["content"].splitlines()
        folder_lines = from_folder.splitlines()
        assert hub_lines[0] == folder_lines[0]
        assert hub_lines[-1] == folder_lines[-1]
        assert [line.split(":")[0] for line in hub_lines] == [
            line.split(":")[0] for line in folder_lines
        ]
