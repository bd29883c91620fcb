import csv
import gzip
import json

import datasets
import pyarrow
import pytest

from sdft.tasks.rows import read_rows
from sdft.tasks.tasks import TaskSpec, load_task

ROWS = [
    {"prompt": "What is 2 + 3?", "demonstration": "5", "answer": "5"},
    {"prompt": 'Say "hi", please\nin two lines', "demonstration": "hi\nthere", "answer": "hi"},
    {"prompt": "Größe, 東京?", "demonstration": "groß", "answer": "007"},
]


def write_csv(path, delimiter=",", encoding="utf-8", line_end="\n", rows=ROWS):
    with path.open("w", encoding=encoding, newline="") as stream:
        writer = csv.DictWriter(stream, rows[0], delimiter=delimiter, lineterminator=line_end)
        writer.writeheader()
        writer.writerows(rows)


def as_lines(rows=ROWS):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_zst(path, content):
    with pyarrow.output_stream(str(path), compression="zstd") as stream:
        stream.write(content)


def table():
    return datasets.Dataset.from_list(ROWS)


WRITERS = {
    "train.jsonl": lambda path: path.write_text(as_lines(), "utf-8"),
    "train.ndjson": lambda path: path.write_text(as_lines(), "utf-8"),
    "train.json": lambda path: path.write_text(json.dumps(ROWS, indent=1), "utf-8"),
    "train.csv": write_csv,
    "train.tsv": lambda path: write_csv(path, "\t"),
    "train.parquet": lambda path: table().to_parquet(path),
    "train.arrow": lambda path: write_arrow(path),
    "train": lambda path: table().save_to_disk(path),
    "train.jsonl.gz": lambda path: path.write_bytes(gzip.compress(as_lines().encode())),
    "train.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "train.jsonl.zst": lambda path: write_zst(path, as_lines().encode()),
}
VARIANTS = {
    "lines in a .json": ("train.json", lambda path: path.write_text(as_lines(), "utf-8")),
    "semicolons": ("train.csv", lambda path: write_csv(path, ";")),
    "byte order mark and CRLF": (
        "train.csv",
        lambda path: write_csv(path, encoding="utf-8-sig", line_end="\r\n"),
    ),
    "byte order mark in a list": (
        "train.json",
        lambda path: path.write_text(json.dumps(ROWS), "utf-8-sig"),
    ),
}


def write_arrow(path):
    with pyarrow.OSFile(str(path), "wb") as sink:
        rows = pyarrow.Table.from_pylist(ROWS)
        with pyarrow.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_table(rows)


def read(path, **options):
    return read_rows(path, "mine", needs_demonstration=True, **options)


@pytest.mark.parametrize(
    ("name", "write"), [*WRITERS.items(), *VARIANTS.values()], ids=[*WRITERS, *VARIANTS]
)
def test_the_same_rows_come_out_of_every_format(name, write, tmp_path):
    write(tmp_path / name)
    rows = read(tmp_path / name)
    assert [row.prompt[0]["content"] for row in rows] == [row["prompt"] for row in ROWS]
    assert [row.demonstration for row in rows] == [row["demonstration"] for row in ROWS]
    assert [row.answer for row in rows] == [row["answer"] for row in ROWS]
    assert len({row.id for row in rows}) == 3
    assert all(row.id.startswith("train-") for row in rows)


def test_other_columns_of_a_table_are_meta_and_empty_cells_are_left_out(tmp_path):
    rows = [{**ROWS[0], "context": "", "topic": "sums"}, {**ROWS[0], "context": "c", "topic": ""}]
    write_csv(tmp_path / "train.csv", rows=rows)
    first, second = read(tmp_path / "train.csv")
    assert (first.context, first.meta) == (None, {"topic": "sums"})
    assert (second.context, second.meta) == ("c", {})


def test_numbers_in_columns_of_text_are_text(tmp_path):
    rows = [{"prompt": 5, "demonstration": 7.5, "answer": 12, "id": 3}]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    [row] = read(tmp_path / "train.parquet")
    assert (row.id, row.prompt[0]["content"]) == ("3", "5")
    assert (row.demonstration, row.answer) == ("7.5", "12")


def test_columns_may_have_other_names(tmp_path):
    write_csv(tmp_path / "train.csv", rows=[{"question": "1 + 1?", "solution": "2", "level": "3"}])
    columns = {"prompt": "Level {{ level }}: {{ question }}", "demonstration": "solution"}
    [row] = read(tmp_path / "train.csv", columns={**columns, "answer": "solution"})
    assert row.prompt[0]["content"] == "Level 3: 1 + 1?"
    assert row.answer == "2"
    with pytest.raises(
        ValueError, match=r"train\.csv:2: .*no column 'gold'; map the field to one of"
    ):
        read(tmp_path / "train.csv", columns={**columns, "answer": "gold"})


BAD = {
    "a cell too many": ("train.csv", b"prompt,demonstration,answer\na,b,c\n1, 2,3,4\n",
                        r"train\.csv:3: 4 cells under a header of 3"),
    "an empty cell": ("train.csv", b"prompt,demonstration,answer\na,b,c\na,,c\n",
                      r"train\.csv:3: field 'demonstration' is missing"),
    "an open quote": ("train.csv", b'prompt,demonstration,answer\n"a,b,c\n',
                      r"train\.csv:\d: unexpected end of data; check the quotes"),
    "not UTF-8": ("train.csv", "prompt,demonstration,answer\né,b,c\n".encode("latin-1"),
                  r"train\.csv:2: not UTF-8 at byte 0 of the line"),
    "two columns of a name": ("train.csv", b"prompt,prompt\n", "two columns have one name"),
    "a number in a list": ("train.json", b"[3]", r"train\.json: row 1: a int, not a JSON object"),
    "a bad row of a list": ("train.json", b'[{"prompt": "a"}]',
                            r"train\.json: row 1: field 'demonstration' is missing"),
    "half a list": ("train.json", b'[{"prompt": "a"}', r"train\.json: not valid JSON"),
    "no gzip": ("train.jsonl.gz", b"plain", r"train\.jsonl\.gz: not a whole gzip file"),
    "half a gzip": ("train.jsonl.gz", gzip.compress(as_lines().encode())[:40],
                    r"train\.jsonl\.gz: not a whole gzip file"),
    "no zstd": ("train.jsonl.zst", b"plain text", r"train\.jsonl\.zst: not a whole zstd file"),
    "no parquet": ("train.parquet", b"plain", r"train\.parquet: not readable as parquet"),
    "no arrow": ("train.arrow", b"plain", r"train\.arrow: not readable as arrow"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), BAD.values(), ids=BAD)
def test_a_bad_file_is_named_with_the_place_in_it(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_task_takes_a_file_of_another_format_for_each_split(tmp_path, monkeypatch):
    write_csv(tmp_path / "train.csv")
    WRITERS["train.parquet"](tmp_path / "validation.parquet")
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    task = load_task(TaskSpec("sums", path=f"~/{tmp_path.name}", scorer="contains"))
    assert (len(task.train), len(task.validation), task.test) == (3, 3, ())


def test_two_files_of_a_split_are_refused(tmp_path):
    for name in ("train.csv", "train.parquet", "validation"):
        WRITERS["train" if name == "validation" else name](tmp_path / name)
    with pytest.raises(ValueError, match=r"train\.csv, train\.parquet are all train rows"):
        load_task(TaskSpec("sums", path=str(tmp_path), scorer="contains"))


def test_a_folder_without_validation_rows_says_what_it_holds(tmp_path):
    write_csv(tmp_path / "train.csv")
    with pytest.raises(FileNotFoundError, match=r"has no validation rows; .* holds train\.csv"):
        load_task(TaskSpec("sums", path=str(tmp_path), scorer="contains"))


def test_a_dataset_dict_on_the_disk_is_a_tasks_folder(tmp_path):
    datasets.DatasetDict(train=table(), validation=table()).save_to_disk(tmp_path / "saved")
    task = load_task(TaskSpec("sums", path=str(tmp_path / "saved"), scorer="contains"))
    assert len(task.validation) == 3


def test_a_local_folder_as_hub_id_needs_no_splits(tmp_path):
    for split in ("train", "validation"):
        (tmp_path / "hub").mkdir(exist_ok=True)
        table().to_parquet(tmp_path / "hub" / f"{split}.parquet")
    task = load_task(TaskSpec("sums", hub_id=str(tmp_path / "hub"), scorer="contains"))
    assert (len(task.train), len(task.validation), task.test) == (3, 3, ())
    (tmp_path / "hub" / "validation.parquet").unlink()
    with pytest.raises(ValueError, match=r"has the splits train; say which are train and valid"):
        load_task(TaskSpec("sums", hub_id=str(tmp_path / "hub"), scorer="contains"))
