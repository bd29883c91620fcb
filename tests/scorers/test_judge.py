import http.server
import json
import logging
import threading

import pytest

from sdft.scorers.judge import Judge, Reference, shipped_prompts
from sdft.scorers.scorer_registry import get_scorer
from sdft.tasks.task_spec import TaskSpec
from sdft.tasks.tasks import load_task
from sdft.types import Demonstration
from tests.sample_tasks import write_task

GOLD = Reference("Where?", "In Lima")
KEY = "sk-never-to-be-seen"


class Stub(http.server.BaseHTTPRequestHandler):
    """Answers with what its server holds: a status and a body for each request in turn."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, dict(self.headers), json.loads(body)))
        answers = self.server.answers
        status, content = answers.pop(0) if len(answers) > 1 else answers[0]
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def said(text):
    return 200, json.dumps({"choices": [{"message": {"content": text}}]}).encode()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("sdft.scorers.judge_endpoint.FIRST_WAIT_S", 0.0)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stub) as stub:
        stub.asked, stub.answers = [], [said("CORRECT")]
        thread = threading.Thread(target=stub.serve_forever, daemon=True)
        thread.start()
        yield stub
        stub.shutdown()


@pytest.fixture
def judge(server, tmp_path):
    def build(**options):
        url = f"http://127.0.0.1:{server.server_port}/v1"
        cache = str(tmp_path / "cache" / "verdicts.jsonl")
        return Judge(**{"url": url, "model": "m", "cache": cache, **options})

    return build


@pytest.mark.parametrize(
    ("reply", "strict", "lenient"),
    [
        ("CORRECT", 1, 1),
        ("PARTIALLY_CORRECT", 0, 1),
        ("It is INCORRECT.", 0, 0),
        ("Not INCORRECT, rather: CORRECT", 1, 1),
        ("correct", 0, 0),
        ("", 0, 0),
    ],
)
def test_strict_counts_correct_and_lenient_counts_partly_correct_too(
    server, judge, reply, strict, lenient
):
    server.answers = [said(reply)]
    row = Demonstration("1", "t", ({"role": "user", "content": "Where?"},), "", "In Lima")
    assert get_scorer("judge_strict", judge())("Lima", row) == strict
    assert get_scorer("judge_lenient", judge())("Lima", row) == lenient
    assert len(server.asked) == 1  # the second rule reads the first one's verdict


def test_the_judge_reads_question_reference_and_answer_as_plain_text(server, judge):
    judge().verdict("{{ reference }} {% raw %}", GOLD)
    ((path, _, body),) = server.asked
    assert path == "/v1/chat/completions"
    assert (body["model"], body["temperature"]) == ("m", 0)
    (message,) = body["messages"]
    assert all(text in message["content"] for text in ("Where?", "In Lima", "{% raw %}"))


def test_failures_that_may_pass_are_retried(server, judge):
    server.answers = [(500, b""), (429, b""), (200, b"no json"), said("CORRECT")]
    assert judge().verdict("Lima", GOLD) == "CORRECT"
    assert len(server.asked) == 4


@pytest.mark.parametrize(("status", "num_asked"), [(401, 1), (302, 1), (503, 3)])
def test_no_reply_ends_the_run_and_leaves_no_verdict(server, judge, status, num_asked):
    server.answers = [(status, b"")]
    with pytest.raises(RuntimeError, match=f"gave no reply .HTTP {status}"):
        judge(num_attempts=3).verdict("Lima", GOLD)
    assert len(server.asked) == num_asked
    server.answers = [said("CORRECT")]
    assert judge().verdict("Lima", GOLD) == "CORRECT"


def test_an_interrupted_evaluation_asks_only_for_what_is_missing(server, judge, tmp_path):
    first = judge()
    for answer in ("a", "b"):
        first.verdict(answer, GOLD)
    file = tmp_path / "cache" / "verdicts.jsonl"
    file.write_bytes(file.read_bytes()[:-9])  # killed while it wrote the second
    second = judge()
    assert [second.verdict(answer, GOLD) for answer in ("a", "b", "c")] == ["CORRECT"] * 3
    assert len(server.asked) == 4
    third = judge()
    assert [third.verdict(answer, GOLD) for answer in ("a", "b", "c")] == ["CORRECT"] * 3
    assert len(server.asked) == 4


@pytest.mark.parametrize("other", [{"model": "another"}, {"prompt": "medical"}])
def test_another_model_or_prompt_is_asked_anew(server, judge, other):
    judge().verdict("Lima", GOLD)
    judge(**other).verdict("Lima", GOLD)
    assert len(server.asked) == 2


def test_the_key_is_sent_and_shown_nowhere(server, judge, monkeypatch, caplog, capfd, tmp_path):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    built = judge(api_key_variable="JUDGE_KEY", num_attempts=2)
    server.answers = [said("no verdict")]
    built.verdict("Lima", GOLD)
    server.answers = [(401, KEY.encode())]
    with pytest.raises(RuntimeError) as failure:
        built.verdict("Quito", GOLD)
    assert all(headers["Authorization"] == f"Bearer {KEY}" for _, headers, _ in server.asked)
    files = "".join(path.read_text() for path in tmp_path.rglob("*.jsonl"))
    shown = [str(failure.value), repr(built), repr(built._endpoint()), caplog.text, files]
    assert KEY not in "".join([*shown, *capfd.readouterr()])


def test_without_the_variable_no_key_is_sent(server, judge, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    judge().verdict("Lima", GOLD)
    assert "Authorization" not in server.asked[0][1]


def test_many_threads_may_ask_at_once(server, judge):
    built = judge()
    threads = [
        threading.Thread(target=built.verdict, args=(f"answer {index}", GOLD)) for index in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert judge().verdict("answer 3", GOLD) == "CORRECT"
    assert len(server.asked) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "localhost:8000"}, "judge.url is 'localhost:8000'"),
        ({"num_attempts": 0}, "judge.num_attempts is 0"),
        ({"timeout_s": 0}, "judge.timeout_s is 0"),
        ({"prompt": "nowhere"}, "neither a shipped prompt .knowledge, medical."),
    ],
)
def test_a_wrong_option_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Judge(**{"url": "http://x", "model": "m", **options})


@pytest.mark.parametrize("source", ["{{ question }}", "{{ question }", "{{ a }}{{ reference }}"])
def test_a_prompt_without_its_fields_is_refused(tmp_path, source):
    file = tmp_path / "own.jinja"
    file.write_text(source)
    with pytest.raises(ValueError, match=r"own\.jinja"):
        Judge("http://x", "m", str(file))


def test_a_judge_goes_with_a_judged_scorer_alone(judge, tmp_path):
    spec = write_task(tmp_path, "one")
    for scorer, given in (("judge_strict", None), ("contains", judge()), (None, judge())):
        with pytest.raises(ValueError, match="judge"):
            TaskSpec("one", path=spec.path, scorer=scorer, judge=given)
    task = load_task(TaskSpec("one", path=spec.path, scorer="judge_lenient", judge=judge()))
    assert task.scorer("a", task.train[0]) == 1


def test_prompts_are_shipped():
    assert shipped_prompts() == ["knowledge", "medical"]
