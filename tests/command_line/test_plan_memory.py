"""``sdft plan``, and that the recipes for GPUs carry what it says of them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from command_line.plan_memory import parsed_bytes, plan_main

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = sorted((REPOSITORY / "configs" / "gpu").glob("*.yaml"))

NUMBER = r"\b[\d.]+"


def shape_of(recipe):
    size = re.search(r"Qwen2\.5-([\d.]+)B-Instruct", recipe.read_text())[1]
    return REPOSITORY / "configs" / "gpu" / "shapes" / f"qwen2.5-{size}b.json"


def header(recipe):
    lines = [line for line in recipe.read_text().splitlines() if line.startswith("#")]
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_carries_its_plan_and_fits(recipe):
    gpu = re.search(r"fits (\w+):", header(recipe))[1]
    command = ["train.py", "plan", f"--config={recipe}", f"--shape={shape_of(recipe)}"]
    done = subprocess.run(
        [sys.executable, *command, f"--gpu={gpu}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    carried = header(recipe).splitlines()[-len(done.stdout.splitlines()) :]
    for line, said in zip(done.stdout.splitlines(), carried, strict=True):
        words, said_words = re.sub(NUMBER, "", line), re.sub(NUMBER, "", said)
        assert words.split() == said_words.split()
        numbers = [float(each) for each in re.findall(NUMBER, line)]
        said_numbers = [float(each) for each in re.findall(NUMBER, said)]
        assert numbers == pytest.approx(said_numbers, rel=0.1, abs=0.1)


@pytest.mark.slow
def test_what_does_not_fit_ends_with_code_1(capsys):
    recipe = REPOSITORY / "configs" / "gpu" / "qwen2.5-7b_one_h200.yaml"
    with pytest.raises(SystemExit) as ended:
        plan_main(
            [
                f"--config={recipe}",
                f"--shape={shape_of(recipe)}",
                "--gpu=139GiB",
                "--model.memory=full",
            ]
        )
    assert ended.value.code == 1
    assert "does not fit 139GiB" in capsys.readouterr().out


def test_sizes_have_units():
    assert parsed_bytes("139GiB") == 139 * 2**30
    assert parsed_bytes("24 GB") == 24 * 10**9
    with pytest.raises(ValueError, match="--gpu is '80'; it must be a number and GiB or GB"):
        parsed_bytes("80")


def test_a_hub_out_of_reach_points_to_shape():
    with pytest.raises(SystemExit, match=r"'no/such': .*give a config\.json with --shape$"):
        plan_main(["--config=smoke", "--model.pretrained=no/such"])


def test_an_unknown_shape_is_refused_in_one_line():
    with pytest.raises(SystemExit, match="error: --gpu is 'much'"):
        plan_main(["--gpu=much"])
