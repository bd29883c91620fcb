import json
import math

import pytest
import torch

from sdft.evaluation.general_prompts import general_prompts, token_mean


def test_the_shipped_prompts_are_many_and_all_different():
    rows = general_prompts(None, 100)
    texts = [row.prompt[0]["content"] for row in rows]
    assert len(set(texts)) == len(texts) == 100
    assert all(row.demonstration == "" for row in rows)


def test_a_file_of_ones_own_is_read_in_its_order(tmp_path):
    file = tmp_path / "prompts.jsonl"
    rows = [{"id": str(number), "prompt": f"Say {number}."} for number in range(3)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert [row.prompt[0]["content"] for row in general_prompts(str(file), 2)] == [
        "Say 0.",
        "Say 1.",
    ]
    with pytest.raises(ValueError, match="has 3 prompts, and 4 are asked for"):
        general_prompts(str(file), 4)
    with pytest.raises(FileNotFoundError):
        general_prompts(str(tmp_path / "none.jsonl"), 1)


def test_token_mean_is_over_tokens_and_its_error_over_sequences():
    """By the jackknife, which the ratio estimator's variance approximates."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(5, 40, (60,), generator=generator)
    values = [torch.rand(n, generator=generator, dtype=torch.float64) + n / 50 for n in counts]
    sums = [each.sum().item() for each in values]
    found = token_mean(sums, counts.tolist())
    assert found.mean == pytest.approx(torch.cat(values).mean().item())
    left_out = torch.tensor(
        [
            (sum(sums) - each) / (int(counts.sum()) - int(count))
            for each, count in zip(sums, counts, strict=True)
        ]
    )
    n = len(counts)
    jackknife = math.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum().item())
    assert found.standard_error == pytest.approx(jackknife, rel=0.05)


def test_one_sequence_has_no_error():
    assert token_mean([3.0], [6]) == (0.5, None)
