import itertools
import json

import pytest

from callbacks import PassAtK
from sdft.evaluation.metrics import mean_pass_at_k, powers_of_two
from tests.lightning_modules.test_modules import sdft, train


def test_attempts_go_up_in_powers_of_two():
    assert powers_of_two(128) == [1, 2, 4, 8, 16, 32, 64, 128]
    assert powers_of_two(6) == [1, 2, 4, 6]
    assert powers_of_two(1) == [1]


def test_the_mean_is_that_over_all_attempts_of_all_rows():
    num_correct, num_samples, k = [0, 1, 3], 5, 2
    hits = [
        any(index < count for index in attempt)
        for count in num_correct
        for attempt in itertools.combinations(range(num_samples), k)
    ]
    expected = sum(hits) / len(hits)
    assert mean_pass_at_k(num_correct, num_samples, k) == pytest.approx(expected)


def measured(folder, **options):
    module = sdft(max_new_tokens=2)
    train(module, folder, PassAtK(**{"num_samples": 6, "batch_size": 4, **options}))
    return json.loads((folder / "pass_at_k.json").read_text())


def test_every_row_is_sampled_and_a_seed_repeats_it(tmp_path):
    record = measured(tmp_path / "first")
    assert set(record["num_correct"]) == set(record["pass_at_k"]) == {"one", "two"}
    for task, values in record["pass_at_k"].items():
        counts = list(record["num_correct"][task].values())
        assert values == {str(k): mean_pass_at_k(counts, 6, k) for k in (1, 2, 4, 6)}
        assert list(values.values()) == sorted(values.values())
    assert measured(tmp_path / "second") == record


@pytest.mark.parametrize(
    "options", [{"num_samples": 0}, {"temperature": 0.0}, {"top_p": 1.5}, {"num_rows": 0}]
)
def test_a_wrong_option_is_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is"):
        PassAtK(**options)
