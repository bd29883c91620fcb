"""Trackio as one of the run's loggers: a dashboard on the machine that trains."""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.figure import Figure

from sdft.evaluation.figures import png_bytes


class TrackioLogger(Logger):
    """Logs scalars, figures and texts to Trackio, which keeps its files in ``$TRACKIO_DIR``.

    ``trackio show`` opens the dashboard. Needs ``pip install trackio``.

    Args:
        project: The dashboard's project.
        run_name: The run's name there, which a resumed run must keep; null makes one.

    Raises:
        ValueError: Trackio is not installed.
    """

    def __init__(self, project: str = "sdft", run_name: str | None = None) -> None:
        super().__init__()
        try:
            import trackio  # not a requirement
        except ModuleNotFoundError as error:
            raise ValueError(f"TrackioLogger: {error}; pip install trackio") from error
        self._trackio = trackio
        self._project, self._run_name = project, run_name
        self._run: Any = None

    @property
    def name(self) -> str:
        """The project."""
        return self._project

    @property
    def version(self) -> str | None:
        """The run's name."""
        return self._run_name

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Trackio's run, started at first use; a run of the same name is resumed."""
        if self._run is None:
            self._run = self._trackio.init(
                project=self._project, name=self._run_name, resume="allow", embed=False
            )
        return self._run

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars at an optimizer step."""
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | argparse.Namespace) -> None:
        """Log the options of model and data."""
        values = vars(params) if isinstance(params, argparse.Namespace) else params
        self.experiment.config.update(values)

    @rank_zero_only
    def log_image(self, key: str, images: Sequence[Figure], step: int | None = None) -> None:
        """Log figures at an optimizer step."""
        from PIL import Image  # comes with matplotlib

        for figure in images:
            pixels = Image.open(io.BytesIO(png_bytes(figure)))
            self.experiment.log({key: self._trackio.Image(pixels)}, step=step)

    @rank_zero_only
    def log_text(self, key: str, columns: Sequence[str], data: Sequence[Sequence[str]]) -> None:
        """Log rows of text."""
        table = self._trackio.Table(columns=list(columns), data=[list(row) for row in data])
        self.experiment.log({key: table})
