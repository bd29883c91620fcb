import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from sdft.tasks.columns import check_columns
from sdft.tasks.hub import kept_indices, load_hub_split, rows_from_dataset

COLUMNS = {
    "prompt": "Label: {{ text }}",
    "demonstration": "label",
    "answer": "label",
    "context": "article",
}


@pytest.fixture
def dataset():
    features = Features(
        {
            "uid": Value("int64"),
            "text": Value("string"),
            "label": ClassLabel(names=["cold", "warm"]),
            "article": Value("string"),
        }
    )
    columns = {"uid": [7, 8, 9], "text": ["ice", "{{ 1 + 1 }}", "<fire>"], "label": [0, 0, 1]}
    return Dataset.from_dict({**columns, "article": ["A.", "B.", None]}, features=features)


def convert(dataset, columns=COLUMNS, indices=(0, 1, 2), **options):
    options = {"needs_demonstration": True, **options}
    return rows_from_dataset(dataset, list(indices), "mine", "train", columns, **options)


def test_columns_and_templates_fill_the_fields(dataset):
    first, second, third = convert(dataset)
    assert first.prompt == ({"role": "user", "content": "Label: ice"},)
    assert (first.id, first.task, first.context) == ("train-0", "mine", "A.")
    assert second.prompt[0]["content"] == "Label: {{ 1 + 1 }}"  # a value is never a template
    assert third.prompt[0]["content"] == "Label: <fire>"
    assert third.context is None


def test_class_labels_become_their_names(dataset):
    assert [row.answer for row in convert(dataset)] == ["cold", "cold", "warm"]
    templated = convert(dataset, {**COLUMNS, "demonstration": "It is {{ label }}."})
    assert templated[2].demonstration == "It is warm."


def test_rows_are_chosen_by_their_index(dataset):
    assert [row.id for row in convert(dataset, indices=[2, 0])] == ["train-2", "train-0"]
    mapped = convert(dataset, {**COLUMNS, "id": "uid"}, indices=[2])
    assert [row.id for row in mapped] == ["9"]


def test_a_filter_keeps_the_rows_it_holds_for(dataset):
    assert kept_indices(dataset, 'label == "warm" or uid == 7', "mine", "train") == [0, 2]
    assert kept_indices(dataset, None, "mine", "train") == [0, 1, 2]
    odd = dataset.rename_column("text", "self")
    assert kept_indices(odd, "uid == 7", "mine", "train") == [0]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("label ==", "is broken"),
        ("colour == 1", "fails on train row 0: 'colour' is undefined"),
        ("colour", "fails on train row 0: 'colour' is undefined"),
        ("label > 3", "fails on train row 0: '>' not supported"),
        ("(" * 500, "is broken"),
        ("uid > 100", "keeps no row of train"),
    ],
)
def test_a_filter_that_fails_or_keeps_nothing_is_an_error(dataset, where, message):
    with pytest.raises(ValueError, match=message):
        kept_indices(dataset, where, "mine", "train")


def test_without_a_mapping_columns_of_the_field_names_are_used():
    messages = [{"role": "user", "content": "Hi"}]
    plain = {
        "prompt": [messages],
        "demonstration": ["Hello"],
        "answer": [["Hello", "Hi"]],
        "x": [1],
    }
    (row,) = convert(Dataset.from_dict(plain), None, indices=[0])
    assert row.prompt == tuple(messages)
    assert row.answer == ["Hello", "Hi"]
    with pytest.raises(ValueError, match=r"field 'answer': there is no column 'answer'.*prompt, x"):
        convert(Dataset.from_dict({"prompt": ["a"], "x": ["b"], "demonstration": ["c"]}), None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "lable"}, "columns: field 'answer': there is no column 'lable'.*uid, text"),
        ({"prompt": "{{ txt }}"}, "train row 0: columns: field 'prompt': 'txt' is undefined"),
        ({"prompt": "{{ text.x.y }}"}, "train row 0: columns: field 'prompt'"),
        ({"prompt": "{{ 1 / 0 }}"}, "train row 0: columns: field 'prompt': division by zero"),
        ({"prompt": "{{ ''.__class__.__mro__ }}"}, "field 'prompt': access to attribute"),
        ({"answer": "article"}, "train row 2: field 'answer' is null"),
        ({"demonstration": "uid"}, "train row 0: field 'demonstration': 7 is not a string"),
        ({"id": "article"}, "train row 2: field 'id' is null"),
    ],
)
def test_a_mapping_that_fails_is_an_error_that_names_row_and_field(dataset, change, message):
    with pytest.raises(ValueError, match=f"task 'mine': .*{message}"):
        convert(dataset, {**COLUMNS, **change})


def test_a_column_of_chats_needs_no_mapping():
    user, reply = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}
    texts = {"role": Value("string"), "content": Value("string"), "name": Value("string")}
    chats = Dataset.from_dict(
        {"messages": [[{**turn, "name": None} for turn in (user, reply)]], "topic": ["greeting"]},
        features=Features({"messages": [texts], "topic": Value("string")}),
    )
    (row,) = convert(chats, None, indices=[0])
    assert (row.prompt, row.demonstration, row.answer) == ((user,), "Yes.", "Yes.")


def test_an_unlabelled_row_is_an_error(dataset):
    unlabelled = Dataset.from_dict({**dataset.to_dict(), "label": [0, -1, 1]}, dataset.features)
    with pytest.raises(ValueError, match="train row 1: column 'label': no label has the number -1"):
        convert(unlabelled)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({**COLUMNS, "question": "text"}, "unknown field 'question'"),
        ({**COLUMNS, "prompt": "{{ text"}, "field 'prompt': the template .* is broken"),
        ({"prompt": "text", "answer": "label"}, "field 'demonstration' is not mapped"),
    ],
)
def test_a_mapping_is_checked_before_any_data_is_loaded(columns, message):
    with pytest.raises(ValueError, match=f"task 'mine': columns: {message}"):
        check_columns(columns, "mine")


def test_a_hub_set_that_cannot_be_loaded_is_an_error_that_says_what_to_do(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match=r"task 'mine': .*'train\[:5\]'.*'no/such'.*path, a"
    ) as one:
        load_hub_split("mine", "no/such", None, "main", "train[:5]")
    assert "\n" not in str(one.value)
