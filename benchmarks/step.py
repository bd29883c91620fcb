"""Compares time and memory of a training step with TRL's SDFTTrainer and with SFT.

    python benchmarks/step.py [--quick] [--cases a,b,c] [--pairs N] [--trl_python PATH]

Both sides are processes that load once and then step in turn, ours under Lightning's Trainer with
the repository's callbacks and logger, TRL's under its own; a ratio is the median over the pairs of
steps. Both read the same rows in the same order, with the same text around the demonstration, in
float32, forward KL over the whole vocabulary, an EMA teacher, one completion per prompt, eight
prompts a step. After every pair the tokens of prompts, teacher's prompts and completions are
compared; unequal work ends the run. Cases:

a         random models of 4.7 and 30 million weights, completions of 128 tokens
b         SmolLM2-135M-Instruct on SNIPS and CLINC rows, completions of 32 tokens; then completions
          that end by themselves, whose lengths differ between the sides
c         prompts of 20 to 800 tokens, completions of 1 to 256, set for both sides by the weights
          of a counting model (benchmarks/stepping/random_models.py)
defaults  b on SNIPS with TRL's own defaults, on as many completions; only a line in the table
sft       a step of SDFT against one of SFT here, on the SNIPS rows of b, completions that end by
          themselves: of at most 32 tokens as in b, and of at most 64
decode    greedy decoding against transformers' `generate`, eight prompts, 64 tokens

In cases a and b no completion ends before its length: TRL's logit of the end token is masked,
and ours has no end token. Memory is the peak resident set of a process since its start.

The last line is JSON. Ratios of CPU and wall-clock seconds are theirs over ours, memory ours over
theirs; where a case has several models or data sets, the worst of each. `b_recommended` is b with
the settings we recommend for this CPU: bfloat16 rollouts if it computes in bfloat16, else
those of b. `decode_vs_generate` is in CPU-seconds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from stepping import works
from stepping.bench import Bench, Figures, header, worst
from stepping.decoding import decode_ratio
from stepping.sides import ours

from sdft.model.pretrained import load_model
from sdft.rollout.in_place import computes_in_bfloat16

SNIPS, CLINC = "snips_json", "clinc_domain"
QUICKSTART_DATA = {"teacher_template": "dialogue_again", "system_prompt": ""}
QUICK_PAIRS = 1
BFLOAT16 = Path(__file__).parent.parent / "configs" / "engines" / "bfloat16.yaml"
INSTALL = "python3.11 -m venv .venv-trl && .venv-trl/bin/pip install torch==2.13.0 trl==1.16.0 peft"


def main() -> None:
    """Measure the chosen cases; the last line is JSON."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    print(header())
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            Path(folder),
            arguments.trl_python,
            arguments.pairs,
            arguments.threads,
            arguments.quick,
        )
        found: dict[str, Any] = {}
        for case in arguments.cases:
            found |= MEASURES[case](bench)
    peer = {name: found.get(name) for name in ("a", "b", "b_recommended", "c")}
    other = {name: found.get(name) for name in ("sft_wall_ratio", "decode_vs_generate")}
    print(json.dumps({"trl": peer} | other))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny models, one pair of steps")
    parser.add_argument("--cases", type=lambda text: text.split(","), default=[*MEASURES])
    parser.add_argument("--pairs", type=int, default=5, help="measured pairs of steps")
    parser.add_argument("--threads", type=int, default=2, help="of each process")
    parser.add_argument("--trl_python", help="interpreter of an environment that holds TRL")
    arguments = parser.parse_args()
    if unknown := [case for case in arguments.cases if case not in MEASURES]:
        parser.error(f"--cases {','.join(unknown)}: choose from {','.join(MEASURES)}")
    if arguments.quick:
        arguments.pairs = QUICK_PAIRS
    if arguments.trl_python is None:
        print(f"no --trl_python is given: TRL is left out; make its environment with\n  {INSTALL}")
    elif not Path(arguments.trl_python).is_file():
        parser.error(
            f"--trl_python {arguments.trl_python} does not exist; make it with\n  {INSTALL}"
        )
    return arguments


def random_models(bench: Bench) -> dict[str, Figures]:
    """Case a."""
    shapes = bench.some(works.SMALL, works.MEDIUM)
    return {"a": worst([bench.versus_trl(bench.random(shape, 128)) for shape in shapes])}


def real_rows(bench: Bench) -> dict[str, Figures]:
    """Case b."""
    if not bench.has(SNIPS, CLINC):
        return {}
    names = bench.some(SNIPS, CLINC)
    figures = worst([bench.versus_trl(bench.real(name, 32)) for name in names])
    for name in names:
        bench.versus_trl(bench.real(name, 32, forced=False))
    if not computes_in_bfloat16():
        print("b_recommended: this CPU does not compute in bf16, so it is b")
        return {"b": figures, "b_recommended": figures}
    options = yaml.safe_load(BFLOAT16.read_text(encoding="utf-8"))["model"]["init_args"]
    recommended = [
        replace(work, title=f"{work.title}, bf16 rollouts", options={**work.options, **options})
        for work in (bench.real(name, 32) for name in names)
    ]
    return {"b": figures, "b_recommended": worst(list(map(bench.versus_trl, recommended)))}


def mixed_lengths(bench: Bench) -> dict[str, Figures]:
    """Case c."""
    return {"c": worst([bench.versus_trl(bench.mixed())])}


def trl_defaults(bench: Bench) -> dict[str, Figures]:
    """Case defaults."""
    if not bench.has(SNIPS) or bench.trl_python is None:
        return {}
    work = replace(bench.real(SNIPS, 32), equal_tokens=False)
    bench.versus_trl(replace(work, title=f"{work.title}, TRL's defaults"), peer_defaults=True)
    return {}


def against_sft(bench: Bench) -> dict[str, float]:
    """Case sft, whose ratio is that of completions as long as in case b."""
    if not bench.has(SNIPS):
        return {}
    lengths = bench.some(32, 64)
    ratios = [sdft_over_sft(bench, length) for length in lengths]
    return {"sft_wall_ratio": round(ratios[0], 3)}


def sdft_over_sft(bench: Bench, length: int) -> float:
    """Wall-clock seconds of SDFT over those of SFT."""
    work = bench.real(SNIPS, length, forced=False, data_options=QUICKSTART_DATA)
    sft = ours(method="SFTModule", module_options={})
    found = bench.compare(replace(work, title=f"{work.title}, against SFT"), [ours(), sft])
    return 1 / found.ratio("wall_s")


def decoding(bench: Bench) -> dict[str, float]:
    """Case decode."""
    if not bench.has(SNIPS):
        return {}
    work = bench.real(SNIPS, 64)
    loaded = load_model(str(work.model))
    prompts = [
        loaded.tokenizer.apply_chat_template(
            each["prompt"], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for each in work.rows[: works.BATCH_SIZE]
    ]
    ratios = decode_ratio(loaded, prompts, work.max_new_tokens, bench.num_pairs)
    print(f"greedy decoding, generate over ours: {ratios}")
    return {"decode_vs_generate": round(ratios["cpu_ratio"], 3)}


MEASURES = {
    "a": random_models,
    "b": real_rows,
    "c": mixed_lengths,
    "defaults": trl_defaults,
    "sft": against_sft,
    "decode": decoding,
}


if __name__ == "__main__":
    main()
