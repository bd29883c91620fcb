import copy
import json
import random
import signal

import numpy as np
import pytest
import torch
import yaml

from callbacks import CapabilityTracker
from sdft.evaluation.capabilities.suites import SUITES, get_suite
from sdft.model.head import VocabularyHead
from sdft.rollout.in_place import sample
from sdft.rollout.request import RolloutRequest
from sdft.seeds import seeded
from sdft.tasks.rows import read_rows
from tests.child_runs import write_config
from tests.command_line.test_resume import final_state, fit, tensors
from tests.conftest import SHARED_DATA, write_rows

pytest.importorskip("lm_eval", reason="lm-eval is not installed: requirements-evaluation.txt")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from sdft.evaluation.capabilities.harness import load_tasks, measure
from sdft.evaluation.capabilities.in_memory_lm import InMemoryLM, Subject

CHOSEN = ("hellaswag", "truthfulqa_mc1", "mmlu", "winogrande", "arc_easy")


@pytest.fixture
def subject(tiny) -> Subject:
    head = VocabularyHead.of(tiny.model)
    decode = tiny.tokenizer.decode

    def generate(prompts, settings):
        return sample(tiny.model, RolloutRequest(prompts, settings, tiny.end_ids, decode=decode))

    return Subject(tiny.model, head, tiny.tokenizer, generate)


def choice_rows(count):
    return [
        {
            "id": f"{index}",
            "prompt": "unused",
            "answer": "A",
            "meta": {
                "context": f"Row {index} says",
                "choices": ["a", "bb", "a longer choice"][: 2 + index % 2],
                "gold": index % 2,
            },
        }
        for index in range(count)
    ]


def write_suite(folder, name, rows):
    write_rows(folder / f"suite_{name}" / "test.jsonl", rows)
    return folder


def naive_likelihood(tiny, context, text):
    """Summed log-probability of a text after its context, in one plain forward pass."""
    start, whole = (tiny.tokenizer(part)["input_ids"] for part in (context, context + text))
    with torch.no_grad():
        logits = tiny.model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return sum(float(logits[i - 1, whole[i]]) for i in range(len(start), len(whole)))


def test_likelihoods_are_those_of_a_plain_forward_pass(tiny, subject):
    pairs = [
        ("Q: 1", " A"),
        ("Q: 1", " B"),
        ("Q: 1", " both"),
        ("another question", " A"),
        ("", "B"),
    ]
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    scores = InMemoryLM(subject, batch_size=2).loglikelihood(requests)
    for (context, text), (score, greedy) in zip(pairs, scores, strict=True):
        # A text without context stands behind the end-of-sequence token.
        expected = naive_likelihood(tiny, context or tiny.tokenizer.eos_token, text)
        assert score == pytest.approx(expected, abs=1e-4)
        assert not greedy


def test_the_likeliest_continuation_is_called_greedy(tiny, subject):
    prompt = tiny.tokenizer("Say")["input_ids"]
    with torch.no_grad():
        token = tiny.model(torch.tensor([prompt])).logits[0, -1].argmax()
    scored = InMemoryLM(subject, 1)._loglikelihood_tokens([(("", ""), prompt, [int(token)])])
    assert scored[0][1]


def test_both_accuracies_follow_from_the_likelihoods(tiny, subject, tmp_path):
    rows = choice_rows(6)
    suites = [get_suite("hellaswag")]
    tasks = load_tasks(suites, write_suite(tmp_path, "hellaswag", rows))
    found = measure(tasks, suites, subject, batch_size=4).metrics["hellaswag"]
    acc = acc_norm = 0
    for row in rows:
        meta = row["meta"]
        sums = [naive_likelihood(tiny, meta["context"], f" {text}") for text in meta["choices"]]
        norms = [total / len(text) for total, text in zip(sums, meta["choices"], strict=True)]
        acc += int(np.argmax(sums)) == meta["gold"]
        acc_norm += int(np.argmax(norms)) == meta["gold"]
    assert found == {
        "acc": pytest.approx(acc / 6, abs=1e-6),
        "acc_norm": pytest.approx(acc_norm / 6, abs=1e-6),
    }


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the shared data sets are not here")
def test_real_rows_are_measured_as_by_the_harness_on_its_own_model(tiny, subject):
    suites = [get_suite(name) for name in CHOSEN]
    tasks = load_tasks(suites, SHARED_DATA, num_rows=3)
    found = measure(tasks, suites, subject, batch_size=8).metrics
    assert {suite.score in found[suite.name] for suite in suites} == {True}
    theirs = HFLM(pretrained=copy.deepcopy(tiny.model), tokenizer=tiny.tokenizer, batch_size=4)
    ours = InMemoryLM(subject, batch_size=4)
    for name in CHOSEN:
        requests = tasks["tasks"][name].instances
        pairs = zip(ours.loglikelihood(requests), theirs.loglikelihood(requests), strict=True)
        for own, expected in pairs:
            assert own[0] == pytest.approx(expected[0], rel=1e-4)
            assert own[1] == expected[1]


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the shared data sets are not here")
def test_rows_become_what_their_readme_says_is_scored():
    mmlu = get_suite("mmlu").read(SHARED_DATA, 5)
    assert all(doc["context"].endswith("\nAnswer:") for doc in mmlu)
    assert all(doc["choices"] == ["A", "B", "C", "D"] for doc in mmlu)
    (blank, *_) = get_suite("winogrande").read(SHARED_DATA, 1)
    assert len(blank["contexts"]) == 2
    assert all(blank["continuation"] not in context for context in blank["contexts"])
    assert {len(SUITES[name].read(SHARED_DATA)) for name in ("hellaswag", "arc_easy")} == {500}


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the shared data sets are not here")
def test_instructions_are_checked_on_the_answer(subject):
    suites = [get_suite("ifeval")]
    tasks = load_tasks(suites, SHARED_DATA, num_rows=3)
    task = tasks["tasks"]["ifeval"]
    docs = [doc for doc in task.test_docs() if "punctuation:no_comma" in doc["instruction_id_list"]]
    place = docs[0]["instruction_id_list"].index("punctuation:no_comma")
    for text, followed in (("no comma here", True), ("here, one", False)):
        assert task.process_results(docs[0], [text])["inst_level_strict_acc"][place] is followed
    found = measure(tasks, suites, subject, batch_size=2, max_generated_tokens=4).metrics
    assert 0 <= found["ifeval"]["prompt_level_strict_acc"] <= 1


def test_answers_end_before_a_stop_string(subject):
    def answer(**options):
        request = Instance("generate_until", {}, ("Go", {"max_gen_toks": 9, **options}), 0)
        return InMemoryLM(subject, 1).generate_until([request])[0]

    whole = answer()
    assert answer(until=[whole[3]]) == whole.partition(whole[3])[0]


def test_a_limit_on_generation_is_kept(subject):
    model = InMemoryLM(subject, 1, max_generated_tokens=2)
    assert model._settings({"max_gen_toks": 1280}).max_new_tokens == 2
    with pytest.raises(ValueError, match="greedily"):
        model._settings({"max_gen_toks": 8, "do_sample": True})


def random_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def test_measuring_leaves_random_states_and_modes(subject, tmp_path):
    suites = [get_suite("arc_easy")]
    tasks = load_tasks(suites, write_suite(tmp_path, "arc_easy", choice_rows(2)))
    subject.model.train()
    subject.model.lm_head.eval()
    before = random_states(), [module.training for module in subject.model.modules()]
    measure(tasks, suites, subject, batch_size=2)
    assert (random_states(), [module.training for module in subject.model.modules()]) == before


def test_a_seeded_block_repeats_itself_and_leaves_no_trace():
    before = random_states()
    drawn = []
    for _ in range(2):
        with seeded(3):
            drawn.append((random.random(), np.random.rand(), float(torch.rand(()))))
    assert drawn[0] == drawn[1]
    assert random_states() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suites": ["hella"]}, "unknown suite 'hella'; use some of hellaswag"),
        ({"num_rows": 0}, "num_rows is 0; it must be at least 1"),
        ({"suites": ["mmlu"], "folder": "nowhere"}, "suite_mmlu"),
    ],
)
def test_a_wrong_option_is_refused_at_construction(options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        CapabilityTracker(**options)


@pytest.mark.parametrize("broken", [{"gold": 7}, {"gold": "A"}, {"choices": None}])
def test_a_row_that_a_suite_cannot_read_is_named(tmp_path, broken):
    rows = choice_rows(2)
    rows[1]["meta"] |= broken
    write_suite(tmp_path, "hellaswag", rows)
    with pytest.raises(ValueError, match=r"test.jsonl, row '1': not a row of the suite hellaswag"):
        CapabilityTracker(["hellaswag"], str(tmp_path))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A run with the tracker: its folder, and the configuration behind it."""
    folder = tmp_path_factory.mktemp("measured")
    config = write_config(folder)
    tracked = folder / "tracked.yaml"
    options = {
        "suites": ["hellaswag"],
        "folder": str(write_suite(folder, "hellaswag", choice_rows(4))),
    }
    callback = {"class_path": "callbacks.CapabilityTracker", "init_args": options}
    tracked.write_text(yaml.safe_dump({"trainer": {"callbacks+": [callback]}}))
    assert fit(folder, config, "run", f"--config={tracked}") == 0, (folder / "run.log").read_text()
    return config, tracked, folder / "run"


@pytest.mark.slow
def test_training_is_the_same_with_and_without_measuring(measured, tmp_path):
    config, _, folder = measured
    assert fit(tmp_path, config, "plain") == 0, (tmp_path / "plain.log").read_text()
    plain = tensors(final_state(tmp_path / "plain"))
    watched = tensors(final_state(folder))
    assert plain.keys() == watched.keys()
    assert all(torch.equal(watched[path], tensor) for path, tensor in plain.items())


@pytest.mark.slow
def test_every_stage_has_a_row_and_a_resumed_run_has_the_same_ones(measured, tmp_path):
    config, tracked, folder = measured
    record = json.loads((folder / "capabilities.json").read_text())
    assert [row["stage"] for row in record["rows"]] == [0, 1, 2]
    assert [row["after"] for row in record["rows"]] == [None, "one", "two"]
    assert all(row["average"] == row["scores"]["hellaswag"] for row in record["rows"])
    kill = {
        "class_path": "tests.child_runs.KillAt",
        "init_args": {"hook": "on_train_batch_end", "step": 4, "marker": str(tmp_path / "dead")},
    }
    content = yaml.safe_load(tracked.read_text())
    content["trainer"]["callbacks+"].append(kill)
    killed = tmp_path / "killed.yaml"
    killed.write_text(yaml.safe_dump(content))
    assert fit(tmp_path, config, "again", f"--config={killed}") == -signal.SIGKILL
    resumed = fit(tmp_path, config, "again", f"--config={killed}", "--ckpt_path=last")
    assert resumed == 0, (tmp_path / "again.log").read_text()
    assert json.loads((tmp_path / "again" / "capabilities.json").read_text()) == record


@pytest.mark.slow
def test_stages_between_may_be_left_out(measured, tmp_path):
    config, tracked, folder = measured
    content = yaml.safe_load(tracked.read_text())
    content["trainer"]["callbacks+"][0]["init_args"]["every_stage"] = False
    sparse = tmp_path / "sparse.yaml"
    sparse.write_text(yaml.safe_dump(content))
    assert fit(tmp_path, config, "run", f"--config={sparse}") == 0, (
        tmp_path / "run.log"
    ).read_text()
    rows = json.loads((tmp_path / "run" / "capabilities.json").read_text())["rows"]
    every = json.loads((folder / "capabilities.json").read_text())["rows"]
    assert rows == [every[0], every[-1]]


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the shared data sets are not here")
def test_a_written_function_must_pass_its_tests():
    task = load_tasks([get_suite("humaneval")], SHARED_DATA, 3)["tasks"]["humaneval"]
    rows = read_rows(SHARED_DATA / "suite_humaneval" / "test.jsonl", "x", needs_demonstration=False)
    for doc, row in zip(task.test_docs(), rows, strict=False):
        assert doc["entry_point"] in task.doc_to_text(doc)
        solution = row.meta["code_prompt"] + row.answer["canonical_solution"]
        _, define, body = solution.rpartition(f"def {doc['entry_point']}(")
        answers = {
            f"Here it is:\n```python\n{solution}\n```\nDone.": 1.0,
            define + body: 1.0,  # the imports are the problem's
            f"```python\n{row.meta['code_prompt']}\n    return None\n```": 0.0,
            "I cannot.": 0.0,
            "": 0.0,
        }
        for answer, expected in answers.items():
            assert task.process_results(doc, [answer]) == {"pass@1": expected}


def test_code_is_run_only_when_switched_on(tmp_path):
    with pytest.raises(ValueError, match="run_code: true"):
        CapabilityTracker(["humaneval"], str(tmp_path))
