"""What callbacks and methods measure beside the step is computed in the run's precision."""

import lightning as L
import pytest
import torch

from callbacks import DriftTracker, InContextCheck, OpeningRates
from datamodules import ContinualDataModule, fit_sequence
from lightning_modules import OfflineDistillationModule, SDFTModule, TeacherSFTModule
from tests.sample_tasks import write_task


@pytest.mark.parametrize("kind", [SDFTModule, OfflineDistillationModule, TeacherSFTModule])
def test_every_pass_of_a_bf16_mixed_run_is_under_autocast(kind, tmp_path):
    class Noting(kind):
        under_autocast = ()

        def generate(self, *args, **options):
            self.under_autocast = (*self.under_autocast, torch.is_autocast_enabled("cpu"))
            return super().generate(*args, **options)

        def hidden_states(self, *args, **options):
            self.under_autocast = (*self.under_autocast, torch.is_autocast_enabled("cpu"))
            return super().hidden_states(*args, **options)

    module = Noting(pretrained="tiny-random", max_new_tokens=4, warmup_steps=0)
    data = ContinualDataModule(
        [write_task(tmp_path, "one", num_train=2)], module.tokenizer, batch_size=2
    )
    trainer = L.Trainer(
        accelerator="cpu",
        precision="bf16-mixed",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[DriftTracker(1), InContextCheck(2), OpeningRates(1)],
    )
    fit_sequence(trainer, module, data)
    assert len(module.under_autocast) > 4
    assert all(module.under_autocast)
