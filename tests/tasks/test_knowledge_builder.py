import gzip
import json

import pytest

from command_line.build_knowledge import knowledge_main
from sdft.tasks.knowledge import ask_questions, write_splits
from sdft.tasks.task_spec import TaskSpec
from sdft.tasks.tasks import load_task
from tests.public_files import served

TEXT = "The flood began at dawn. " * 40


def page(title, created="2025-02-01T00:00:00Z", **options):
    shared = {"namespace": 0, "category": ["2025 floods"], "text": TEXT, "version": 3}
    return {"title": title, "create_timestamp": created, **shared, **options}


def write_dump(path, pages):
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        for number, each in enumerate(pages):
            stream.write(json.dumps({"index": {"_id": str(number)}}) + "\n")
            stream.write(json.dumps(each) + "\n")
    return path


def asked(number=3, title="Flood"):
    pairs = [{"question": f"{title} {n}?", "answer": f"At {n}."} for n in range(number)]
    return json.dumps({"direct": pairs, "indirect": [{"question": "So?", "answer": "Yes."}]})


@pytest.fixture
def folder(tmp_path):
    pages = [
        page("Flood"),
        page("Old flood", created="2019-02-01T00:00:00Z"),
        page("Short flood", text="Wet."),
        page("Election", category=["2025 elections"]),
        page("Talk:Flood", namespace=1),
        page("Storm", category=["Storms", "2025 floods"]),
        page("Late flood"),
    ]
    dump = write_dump(tmp_path / "wiki.json.gz", pages)
    made = tmp_path / "knowledge"
    options = ["--created", "2025", "--category", "floods$", "--num_articles", "2"]
    knowledge_main(["articles", str(dump), str(made), *options, "--max_characters", "610"])
    return made


def titles(folder, name="articles.jsonl"):
    lines = (folder / name).read_text("utf-8").splitlines()
    return [json.loads(line)["title"] for line in lines]


def test_articles_are_those_of_the_year_and_category_cut_at_a_sentence(folder):
    assert titles(folder) == ["Flood", "Storm"]
    article = json.loads((folder / "articles.jsonl").read_text("utf-8").splitlines()[0])
    assert article["text"] == TEXT[:600].strip()
    assert article["created"] == "2025-02-01T00:00:00Z"


def test_questions_become_a_task_whose_teacher_reads_the_article(folder, capsys):
    assert ask_questions(folder, lambda message: asked(4)) == []
    knowledge_main(["rows", str(folder)])
    assert "train.jsonl: 6 rows" in capsys.readouterr().out
    task = load_task(TaskSpec("knowledge", path=str(folder), scorer="contains"))
    assert (len(task.train), len(task.validation), len(task.test)) == (6, 2, 2)
    assert task.train[0].context.startswith("Flood\nThe flood began at dawn.")
    assert {row.prompt[0]["content"] for row in task.test} == {"So?"}


def test_asking_again_asks_about_the_rest_alone(folder):
    messages = []

    def reply(message):
        messages.append(message)
        return asked() if len(messages) == 1 else "I would rather not."

    (failure,) = ask_questions(folder, reply)
    assert failure.startswith("Storm: no object with two direct questions")
    assert titles(folder, "questions.jsonl") == ["Flood"] * 4
    ask_questions(folder, lambda message: messages.append(message) or asked(title="Storm"))
    assert len(messages) == 3
    assert titles(folder, "questions.jsonl") == ["Flood"] * 4 + ["Storm"] * 4
    assert "Storm\n\nThe flood began" in messages[-1]


def test_a_deleted_article_leaves_no_question_behind_unnoticed(folder):
    ask_questions(folder, lambda message: asked())
    lines = (folder / "articles.jsonl").read_text("utf-8").splitlines(keepends=True)
    (folder / "articles.jsonl").write_text(lines[0])
    with pytest.raises(ValueError, match=r"questions.jsonl:5: 'Storm' is no article"):
        write_splits(folder)


def test_an_endpoint_is_asked_over_http_and_its_nonsense_is_one_error(folder, tmp_path):
    with served(tmp_path) as server:
        url = f"http://127.0.0.1:{server.server_port}/v1"
        with pytest.raises(SystemExit, match="error: no questions about 2 articles:\n  Flood: no"):
            knowledge_main(["questions", str(folder), "--url", url, "--model", "judge"])


def test_a_dump_without_such_articles_is_one_error(tmp_path):
    dump = write_dump(tmp_path / "wiki.json.gz", [page("Flood")])
    with pytest.raises(SystemExit, match=r"error: .*no article was created in '2031'"):
        knowledge_main(["articles", str(dump), str(tmp_path / "k"), "--created", "2031"])
    (tmp_path / "other.json").write_text("<mediawiki>")
    with pytest.raises(SystemExit, match=r"other.json:1: not a line of JSON"):
        knowledge_main(["articles", str(tmp_path / "other.json"), "k", "--created", "2025"])
