"""The list "Follow one step" of CONTRIBUTING.md is what one SDFT step executes."""

import re
import sys
from pathlib import Path

from lightning_modules import SDFTModule
from tests.conftest import REPOSITORY
from tests.lightning_modules.test_modules import Recorder, sdft, train


class Traced(SDFTModule):
    """Notes which of the project's files the second training step calls into, in order."""

    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == 1:
            self.executed = []
            sys.setprofile(self._note)
        return super().training_step(batch, batch_idx)

    def _note(self, frame, event, _):
        file = Path(frame.f_code.co_filename)
        ours = file.is_relative_to(REPOSITORY) and not file.is_relative_to(sys.prefix)
        if event == "call" and ours:  # the environment may lie inside the repository
            name = file.relative_to(REPOSITORY).as_posix()
            if not name.startswith("tests/") and name not in self.executed:
                self.executed.append(name)


def listed():
    """The numbered files, and the helpers."""
    text = (REPOSITORY / "CONTRIBUTING.md").read_text("utf-8")
    section = text.partition("## Follow one step")[2].partition("\n## ")[0]
    steps = re.findall(r"^\d+\. `([^`]+)`", section, flags=re.MULTILINE)
    helpers = []
    for name in re.findall(r"`([\w/{},]+)`", section.partition("small helpers")[2]):
        folder, _, files = name.partition("{")
        helpers += [f"sdft/{folder}{file}.py" for file in files.rstrip("}").split(",")]
    return steps, helpers


def test_the_listed_files_run_in_the_listed_order_and_there_are_no_others(tmp_path):
    module = sdft(Traced)
    stop = Recorder("on_train_batch_end", lambda *_: sys.setprofile(None))
    try:
        train(module, tmp_path, stop)
    finally:
        sys.setprofile(None)
    steps, helpers = listed()
    assert len(steps) == 12
    assert [file for file in module.executed if file in steps] == steps
    assert set(module.executed) - set(steps) == set(helpers)
