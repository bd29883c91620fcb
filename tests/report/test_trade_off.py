"""The section on what learning costs, on made-up runs whose prices are known."""

import json

import pytest

from sdft.report import compare, read_run, write_report
from sdft.report.prior_change import prior_tables
from sdft.report.trade_off import trade_offs
from sdft.report.trade_off_section import matched_table, pair_table
from tests.report_runs import write_run

STEPS = 6


def trajectory(price, reach=1.0, lost=0.0, start=1):
    """Both tasks' stages; learning rises to ``reach`` and costs ``price`` times as much.

    After the stage's start, the first measurement is at step ``start``.
    """
    rows = []
    for task in ("one", "two"):
        for step in (0, *range(start, STEPS)):
            learned = reach * step / (STEPS - 1)
            one = learned if task == "one" else 0.8 - lost * learned
            rows.append(
                {
                    "task": task,
                    "step": step,
                    "accuracy": {"one": one, "two": learned if task == "two" else 0.0},
                    "general_drift": price * learned,
                    "demonstration_nll": {"one": 2.0 + lost * learned, task: 3.0 - 2.0 * learned},
                }
            )
    return rows


@pytest.fixture
def runs(tmp_path):
    def add(method, seed, price, rate=1e-4, run=None, **shape):
        folder = tmp_path / "runs" / f"{method}-{rate:g}-{seed}-{len(run or {})}"
        rows = trajectory(price, **shape)
        return write_run(folder, method, seed, learning_rate=rate, trajectory=rows, **(run or {}))

    return add


def texts(table):
    return {name: [cell.text for cell in cells] for name, cells in table.rows}


def found(folders):
    [comparison] = compare(map(read_run, folders))
    return trade_offs(comparison)


def test_methods_are_compared_at_equal_learning_by_seed(runs):
    prices = {"SDFT": (1.0, 1.2, 1.1), "SFT": (2.0, 2.4, 2.4)}
    folders = [
        runs(method, seed, price, lost=0.25)
        for method, of in prices.items()
        for seed, price in enumerate(of)
    ]
    drift_one, by_likelihood, drift_two, _, forgetting_two, _, nll_two, _ = found(folders)
    assert [each.task for each in (drift_one, drift_two, forgetting_two)] == ["one", "two", "two"]
    assert drift_one.best == 1.0
    rows = texts(pair_table(drift_one))
    half = rows["SDFT minus SFT at 50 % (50 % of the best)"]
    assert half[0] == "-0.58"  # half of the mean of -1, -1.2 and -1.3
    assert half[2:] == ["0.25", "3 of 3"]  # 2 of 8 sign patterns
    low, high = map(float, half[1].split(" to "))
    assert -0.65 <= low < -0.58 < high <= -0.5
    same = texts(pair_table(by_likelihood))[
        "SDFT minus SFT at 1.00 nats a token (50 % of the best)"
    ]
    assert same == half  # two nats are gained where everything is learned
    matched = texts(matched_table(drift_one))
    assert matched["SDFT"][3].startswith("0.55 ±")
    assert matched["SFT"][5].startswith("2.04 ±")
    lost = texts(matched_table(forgetting_two))
    assert lost["SDFT"][3].startswith("12.50")  # points, half of 25
    assert texts(matched_table(nll_two))["SFT"][3].startswith("0.12")  # nats, half of 0.25


def test_a_target_that_a_method_never_reached_has_no_price_and_no_difference(runs):
    folders = [runs("SDFT", seed, 1.0, reach=0.6) for seed in (1, 2)]
    folders += [runs("SFT", seed, 2.0) for seed in (1, 2)]
    [drift, *_] = found(folders)
    matched, pairs = texts(matched_table(drift)), texts(pair_table(drift))
    assert matched["SDFT"][5] == "not reached (0 of 2 seeds)"
    assert pairs["SDFT minus SFT at 90 % (90 % of the best)"][0] == "not reached"
    assert pairs["SDFT minus SFT at 60 % (most that all runs reached)"][0] == "-0.60"


def test_a_target_passed_before_the_next_measurement_is_said_to_be_on_the_line_from_the_start(runs):
    folders = [runs("SDFT", 1, 1.0), runs("SDFT", 2, 1.0, start=4), runs("SFT", 1, 1.0)]
    [drift, *_] = found(folders)
    matched = texts(matched_table(drift))
    assert matched["SDFT"][3] == "0.50 (2 of 2 seeds, 1 on the line from the start)"
    assert matched["SFT"][3] == "0.50 (1 of 1 seeds)"


def test_a_rate_is_chosen_on_pilot_seeds_and_judged_on_others(runs):
    folders = [runs("SFT", 1, 3.0, rate=1e-4), runs("SFT", 1, 2.0, rate=5e-5)]
    folders += [runs("SFT", seed, 7.0, rate=5e-5) for seed in (2, 3)]
    [drift, *_] = found(folders)
    [method] = drift.chosen
    assert method.choice.rate == 5e-5
    assert set(method.trajectories) == {2, 3}
    rule = "least drift at 70% of the best accuracy, of 2 rates on seed 1"
    assert texts(matched_table(drift))["SFT"][:2] == ["5e-05", rule]
    assert len(drift.points["SFT"]) == 4


def test_a_rate_without_fresh_seeds_says_that_it_is_judged_where_it_was_chosen(runs):
    folders = [runs("SFT", 1, 3.0, rate=1e-4), runs("SFT", 1, 2.0, rate=5e-5)]
    folders += [runs("SDFT", 1, 1.0)]
    [drift, *_] = found(folders)
    assert drift.chosen[0].choice.how.endswith("on seed 1, and shown on it too")
    assert all(
        cells[0] == "only seeds that chose a rate" for cells in texts(pair_table(drift)).values()
    )


def test_a_rate_is_the_same_for_every_price_and_chosen_by_drift(runs):
    """The rate that drifts least forgets most here; forgetting does not choose."""
    folders = [runs("SFT", 1, 1.0, rate=1e-5, lost=0.5), runs("SFT", 1, 2.0, rate=1e-4, lost=0.1)]
    folders += [runs("SFT", seed, 1.0, rate=rate) for seed in (2, 3) for rate in (1e-5,)]
    chosen = [method.choice.rate for each in found(folders) for method in each.chosen]
    assert len(chosen) == 8
    assert set(chosen) == {1e-5}


def test_a_method_that_never_reaches_the_share_says_by_what_its_rate_was_chosen(runs):
    folders = [runs("SDFT", 1, 1.0, rate=1e-5, reach=0.2), runs("SDFT", 1, 9.0, reach=0.5)]
    folders += [runs("SDFT", 2, 9.0, reach=0.5), runs("SFT", 2, 1.0)]
    [drift, *_] = found(folders)
    cells = texts(matched_table(drift))["SDFT"]
    assert cells[0] == "0.0001"
    assert cells[1] == ("most learned: none reached 70% of the best accuracy, of 2 rates on seed 1")
    assert cells[4] == "not reached (0 of 1 seeds)"


def test_runs_from_the_starts_of_their_seeds_are_compared(runs, tmp_path):
    """Runs of the second stage alone, each from a model whose path names its seed."""
    folders = []
    for method, price, lost in (("SDFT", 1.0, 0.1), ("SFT", 2.0, 0.5)):
        for seed in (1, 2, 11):
            model = f"runs/start_seed{seed}/exports/stage-1-one"
            folder = runs(method, seed, price, run={"model": model, "first_stage": 1}, lost=lost)
            lines = (folder / "trajectory.jsonl").read_text().splitlines()
            (folder / "trajectory.jsonl").write_text("\n".join(lines[STEPS:]) + "\n")
            folders.append(folder)
    [comparison] = compare(map(read_run, folders))
    assert comparison.model == "runs/start_seed*/exports/stage-1-one"
    assert [len(group.runs) for group in comparison.groups] == [3, 3]
    drift, _, forgetting, *_ = trade_offs(comparison)
    name = "SDFT minus SFT at 100 % (most that all runs reached)"
    assert texts(pair_table(drift))[name][0] == "-1.00"
    assert texts(pair_table(forgetting))[name] == ["-40.00", "-40.00 to -40.00", "0.25", "3 of 3"]
    write_report([comparison], tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text()
    assert "forgetting of earlier tasks since the stage's start, points" in page


def with_margins(folder, start, end):
    """Margins of two suites before training and after the first task."""
    halves = [
        {"stage": stage, "scores": {}, "margins": {"mmlu": rows[:2], "hellaswag": rows[2:]}}
        for stage, rows in enumerate((start, end))
    ]
    (folder / "capabilities.json").write_text(json.dumps({"rows": halves}))
    return folder


def test_prior_capabilities_are_compared_at_equal_learning_row_by_row(runs, tmp_path):
    folders = []
    for seed, base in ((1, 0.0), (2, 5.0)):  # what a row begins with does not matter
        start = [base, base + 1.0, base - 1.0]
        for method, losses, reach in (
            ("SDFT", (0.0, 0.2, 0.1), 0.5),
            ("SFT", (1.0, 2.0, 3.0), 1.0),
        ):
            end = [margin - lost for margin, lost in zip(start, losses, strict=True)]
            folders.append(with_margins(runs(method, seed, 1.0, reach=reach), start, end))
    [comparison] = compare(map(read_run, folders))
    [table] = prior_tables(comparison, trade_offs(comparison))
    rows = texts(table)
    half, most = "50 % (50 % of the best)", "90 % (90 % of the best)"
    assert rows[f"SDFT at {half}"][0] == "-0.100"  # all that was lost where all was learned
    assert rows[f"SFT at {half}"][0] == "-1.000"  # half of the mean of 1, 2 and 3
    assert rows[f"SFT at {most}"][0] == "-1.800"
    assert rows[f"SDFT at {most}"] == ["not reached at the end", "", "", "", "", "0 of 2"]
    difference, interval, p, *apart, seeds = rows[f"SDFT minus SFT at {half}"]
    assert (difference, p, seeds) == ("+0.900", "0.5", "2 of 2")
    # Right before: the second row of seed 1 and all of seed 2, which differ by 0.8; 0.5, 0.8, 1.4.
    assert apart == ["+0.875", "+0.950"]
    low, high = map(float, interval.split(" to "))
    assert 0.5 <= low < 0.9 < high <= 1.4  # of the rows' 0.5, 0.8 and 1.4
    write_report([comparison], tmp_path / "report")
    assert "margin on prior capabilities" in (tmp_path / "report" / "report.md").read_text()


def test_a_model_that_only_grows_less_sure_is_seen_in_rows_right_and_wrong_before(runs):
    folders = [with_margins(runs("SFT", seed, 1.0), [2.0, -4.0], [1.0, -2.0]) for seed in (1, 2)]
    [comparison] = compare(map(read_run, folders))
    [table] = prior_tables(comparison, trade_offs(comparison))
    change, _, _, right, wrong, _ = texts(table)["SFT at 100 % (most that all runs reached)"]
    assert (change, right, wrong) == ("+0.500", "-1.000", "+2.000")


def test_runs_without_capabilities_do_not_stand_in_the_way_of_those_with_them(runs):
    folders = [with_margins(runs("SFT", seed, 1.0), [2.0, -4.0], [1.0, -2.0]) for seed in (1, 2)]
    folders += [runs("TeacherSFT", seed, 1.0) for seed in (1, 2)]
    [comparison] = compare(map(read_run, folders))
    [table] = prior_tables(comparison, trade_offs(comparison))
    rows = texts(table)
    most = "100 % (most that all runs reached)"
    assert rows[f"SFT at {most}"][3:] == ["-1.000", "+2.000", "2 of 2"]
    assert rows[f"TeacherSFT at {most}"][-1] == "0 of 2"


def test_margins_that_are_not_numbers_are_named(runs):
    folder = with_margins(runs("SFT", 1, 1.0), [1.0, "2", 3.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"capabilities\.json: row 0: 'margins' of 'mmlu' is '2'"):
        read_run(folder)


def test_methods_that_one_option_does_not_tell_apart_are_named_by_several(runs):
    anchored = {"anchor": {"weight": 1.0}}
    variants = [
        {"on_policy_fraction": 0.0},
        {"on_policy_fraction": 1.0},
        {"on_policy_fraction": 0.0, **anchored},
        {"on_policy_fraction": 1.0, **anchored},
    ]
    folders = []
    for options in variants:
        options = {"anchor": None, **options}
        run = {"options": options, "teacher": f"{len(folders)}" * 30}
        folder = runs("SDFT", 1, 1.0, rate=1e-4 * (1 + len(folders)), run=run)
        folders.append(folder)
    [drift, *_] = found(folders)
    assert list(drift.points) == [
        "SDFT (on_policy_fraction 0.0, no anchor.weight)",
        "SDFT (on_policy_fraction 1.0, no anchor.weight)",
        "SDFT (on_policy_fraction 0.0, anchor.weight 1.0)",
        "SDFT (on_policy_fraction 1.0, anchor.weight 1.0)",
    ]


def test_the_page_has_the_figure_and_the_tables_or_says_what_is_missing(runs, tmp_path):
    folders = [runs(method, 1, price) for method, price in (("SDFT", 1.0), ("SFT", 2.0))]
    write_report(compare(map(read_run, folders)), tmp_path / "with")
    page = (tmp_path / "with" / "report.html").read_text()
    assert (tmp_path / "with" / "trade_off.svg").exists()
    assert "SDFT minus SFT at 90 % (90 % of the best)" in page
    for folder in folders:
        (folder / "trajectory.jsonl").unlink()
    write_report(compare(map(read_run, folders)), tmp_path / "without")
    page = (tmp_path / "without" / "report.md").read_text()
    assert not (tmp_path / "without" / "trade_off.svg").exists()
    assert "trajectory.jsonl" in page.replace("\\", "")


def test_a_broken_row_is_named(runs):
    folder = runs("SFT", 1, 1.0)
    (folder / "trajectory.jsonl").write_text('{"task": "one", "step": 1, "accuracy": {"one": 2}}\n')
    with pytest.raises(ValueError, match=r"trajectory\.jsonl:1"):
        read_run(folder)
