import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

import report
from sdft.report import compare, read_run, write_report
from sdft.report.charts import capability_chart, pass_at_k_chart
from sdft.report.page import missing
from tests.report_runs import write_run

HOSTILE = '<script>alert("x")</script> ![](http://x) | `a` $y$ \x07 &amp; \'"'


class Page(HTMLParser):
    """The tags and ids of a page, its attributes and its text outside of the style sheet."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.ids, self.links, self.words = [], [], [], []
        self.feed(source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name in {"src", "href"}]

    def handle_data(self, data):
        if self.tags and self.tags[-1] != "style":
            self.words.append(data)


def made(tmp_path, *folders):
    """The page, the Markdown and the folder of a report."""
    output = tmp_path / "report"
    write_report(compare(map(read_run, folders)), output)
    return Page((output / "report.html").read_text()), (output / "report.md").read_text(), output


def test_one_run_makes_a_whole_report_and_says_what_it_lacks(tmp_path):
    page, markdown, output = made(tmp_path, write_run(tmp_path / "run"))
    figures = {f"{name}.{kind}" for name in ("retention", "gain") for kind in ("svg", "png")}
    expected = {"report.html", "report.md", *figures}
    assert {path.name for path in output.iterdir()} == expected
    for text in (page.text, markdown.replace("\\", "")):
        assert "No run has prior capabilities" in text
        assert "No run has pass@k" in text
        assert "No run has costs" in text
        assert "No run has answers" in text
        assert "No run has accuracies on test rows" in text
        assert "One seed has no interval: SDFT." in text
        assert "60.0" in text
        assert "±" in text  # in the explanation alone
        assert not re.search(r"\d ±", text)


def test_a_complete_report_has_every_part(tmp_path):
    seeds = [write_run(tmp_path / f"sdft-{seed}", seed=seed, parts=True) for seed in (1, 2)]
    seeds += [write_run(tmp_path / f"sft-{seed}", "SFT", seed, parts=True) for seed in (1, 2)]
    page, markdown, output = made(tmp_path, *seeds)
    for name in ("retention", "gain", "capabilities", "pass_at_k"):
        assert (output / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert ElementTree.parse(output / f"{name}.svg").getroot().tag.endswith("svg")
        assert f"]({name}.svg)" in markdown
    for text in (page.text, markdown.replace("\\", "")):
        assert "Nothing: every run has every part." in text
        assert "60.0" in text
        assert "time / SFT" in text
        assert "Lima. 0" in text
        assert "Lima. 2" in text


def test_the_page_needs_no_network_and_shares_no_id(tmp_path):
    page, _, output = made(tmp_path, write_run(tmp_path / "run", parts=True))
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    for link in page.links:
        assert link.lstrip("#") in page.ids or (output / link).is_file()
    assert len(page.ids) == len(set(page.ids))


def test_rows_of_the_data_can_be_left_out(tmp_path):
    run = write_run(tmp_path / "run", parts=True)
    report.main([str(run), "--output", str(tmp_path / "with")])
    report.main([str(run), "--output", str(tmp_path / "without"), "--no_rows"])
    for name in ("report.html", "report.md"):
        assert "capital of Peru" in (tmp_path / "with" / name).read_text()
        assert "Peru" not in (tmp_path / "without" / name).read_text()
        assert "Left out, as asked for" in (tmp_path / "without" / name).read_text()


def test_hostile_text_stays_text(tmp_path):
    tasks = (f"task {HOSTILE}", "two")
    run = write_run(tmp_path / "run", f"m {HOSTILE}", tasks=tasks, parts=True, answer=HOSTILE)
    page, markdown, _ = made(tmp_path, run)
    shown = HOSTILE.replace("\x07", "�")
    assert "script" not in page.tags
    assert f"m {shown}" in page.text
    assert f"{shown} 2" in page.text
    assert "<script" not in markdown
    assert "![](http" not in markdown
    widths = {line.count(" | ") for line in markdown.splitlines() if line.startswith("| after ")}
    assert widths == {2}


@pytest.mark.slow
def test_fifty_runs_are_ten_groups(tmp_path):
    folders = [
        write_run(tmp_path / f"{rate}-{seed}", seed=seed, learning_rate=rate, parts=True)
        for rate in range(10)
        for seed in range(5)
    ]
    page, markdown, _ = made(tmp_path, *folders)
    assert page.text.startswith("SDFT report of 50 runs")
    assert "SDFT (learning_rate 9)" in page.text
    assert "**SDFT \\(learning\\_rate 9\\)**, seeds: 5" in markdown


def test_runs_of_two_sequences_have_a_section_and_figures_each(tmp_path):
    other = write_run(tmp_path / "b", tasks=("two", "one"))
    page, _, output = made(tmp_path, write_run(tmp_path / "a"), other)
    assert page.tags.count("h2") == 3  # and the definitions
    names = {path.stem for path in output.glob("*.svg")}
    assert names == {"retention", "retention-2", "gain", "gain-2"}


def test_what_some_runs_lack_is_said_by_name_and_never_drawn_as_zero(tmp_path):
    with_parts = write_run(tmp_path / "whole", "SDFT", parts=True)
    (comparison,) = compare(map(read_run, [with_parts, write_run(tmp_path / "bare", "SFT")]))
    sentences = " ".join(missing(comparison))
    for part in ("capabilities.json", "pass_at_k.json", "cost.json", r"answers/stage-\*"):
        assert re.search(rf"1 \(\S*bare\) of 2 have no [^.]*{part}", sentences)
    assert "SFT" not in capability_chart(comparison).panels[0].description
    assert not any("SFT" in panel.description for panel in pass_at_k_chart(comparison).panels)


BROKEN = {
    "retention.json": {
        "{": "retention.json: cannot be read",
        "[]": "retention.json: the content is",
        '{"tasks": []}': "retention.json: 'tasks' is",
        '{"rows": []}': "retention.json: there is no key 'tasks', so another version "
        "wrote the file: repeat the run with this one, or leave it out",
        '{"tasks": ["a"], "rows": []}': "retention.json: there is no key 'method'",
        '{"tasks": ["a"], "rows": [{"stage": 0, "accuracy": {"a": 71}}]}': "lie between 0 and 1",
        '{"tasks": ["a"], "rows": [{"stage": 9, "accuracy": {"a": 1}}]}': "another sequence",
    },
    "config.yaml": {"a: [": "config.yaml: cannot be read", "a: &x 1\nb: *x": "holds an alias"},
    "cost.json": {
        '{"seconds": 3}': "cost.json: 'seconds' is 3, not a dict",
        '{"seconds": {}, "operations": {}}': "cost.json: 'operations' is now 'flops', so another "
        "version wrote the file: repeat the run with this one, or leave it out",
    },
    "capabilities.json": {
        '{"rows": [{"stage": 0}]}': "capabilities.json: row 0: there is no key 'scores'"
    },
    "pass_at_k.json": {'{"pass_at_k": {"one": {"x": 1}}}': "pass_at_k.json: 'one' has 'x'"},
    "answers/stage-1.jsonl": {'{"id": 3}': "stage-1.jsonl:1: there is no key 'task'"},
    "answers/stage-x.jsonl": {"{}": "stage-x.jsonl: the name has 'x' where a count"},
}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [(file, *case) for file, cases in BROKEN.items() for case in cases.items()],
)
def test_a_broken_file_is_named(tmp_path, file, content, message):
    run = write_run(tmp_path / "run", parts=True)
    (run / file).write_text(content)
    with pytest.raises(SystemExit, match=re.escape(message)) as error:
        report.main([str(run), "--output", str(tmp_path / "report")])
    assert str(run / file) in str(error.value)
    assert not (tmp_path / "report").exists()


def test_blank_answers_take_a_line(tmp_path):
    blank = write_run(tmp_path / "blank", parts=True, answer="\n" * 200)
    for stage, answer in enumerate(("", "\n" * 200, "one\n\n\n \n\ntwo\n\n")):
        line = {"task": "one", "id": "7", "prompt": "?", "expected": "", "score": 0.5}
        path = blank / "answers" / f"stage-{stage}.jsonl"
        path.write_text(json.dumps(line | {"answer": answer}))
    page, markdown, output = made(tmp_path, blank)
    for text in (page.text, markdown.replace("\\", "").replace("<br>", " ")):
        assert "(empty)" in text
        assert "(blank: 200 characters)" in text
        assert "50 %" in text
    assert "\n\n\n\n" not in (output / "report.html").read_text()
    assert "one<br><br>two (50 %)" in markdown.replace("\\", "")


def test_wide_tables_say_on_a_narrow_screen_that_they_scroll(tmp_path):
    page, _, output = made(tmp_path, write_run(tmp_path / "run", parts=True))
    assert "Retention by method Scroll sideways to see all 8 columns." in page.text
    assert re.search(r"\.hint \{ display: none;", (output / "report.html").read_text())


@pytest.mark.parametrize("file", ["config.yaml", "retention.json"])
def test_a_directory_that_is_no_run_is_named(tmp_path, file):
    run = write_run(tmp_path / "run")
    (run / file).unlink()
    with pytest.raises(SystemExit, match=f"{file}: there is no such file"):
        report.main([str(run), "--output", str(tmp_path / "report")])


def test_the_command_says_where_the_page_is(tmp_path, capsys):
    report.main([str(write_run(tmp_path / "run")), "--output", str(tmp_path / "report")])
    assert capsys.readouterr().out.splitlines()[0] == str(tmp_path / "report" / "report.html")
