import math
from itertools import combinations

import pytest
import torch
from matplotlib import pyplot
from matplotlib.text import Text

from sdft.evaluation.figures import accuracy_heatmap, forgetting_curves, png_bytes, retention_figure

NAN = math.nan
SHORT = ("routing", "tool_call", "new_facts")
LONG = tuple(f"task_{k}_{'with_a_very_long_name_' * (k % 3)}$x$" for k in range(8))
FIGURES = (forgetting_curves, accuracy_heatmap, retention_figure)


def matrix(num_tasks, num_rows, level=None):
    """A full or partial matrix; ``level`` gives every entry the same value."""
    values = torch.rand(num_tasks + 1, num_tasks, generator=torch.Generator().manual_seed(0))
    values = values.double() if level is None else torch.full_like(values, level).double()
    values[num_rows:] = NAN
    return values


CASES = {
    "one task": (SHORT[:1], matrix(1, 2)),
    "base row only": (SHORT, matrix(3, 1)),
    "three tasks under way": (SHORT, matrix(3, 2)),
    "three tasks": (SHORT, matrix(3, 4)),
    "all zero": (SHORT, matrix(3, 4, level=0.0)),
    "all right": (SHORT, matrix(3, 4, level=1.0)),
    "eight long names": (LONG, matrix(8, 9)),
    "eight long names at zero": (LONG, matrix(8, 9, level=0.0)),
}


def texts(figure):
    """Everything written in a figure, as it is laid out."""
    figure.draw_without_rendering()
    found = figure.findobj(lambda artist: isinstance(artist, Text) and artist.get_visible())
    return [text for text in found if text.get_text()]


@pytest.mark.parametrize("case", CASES)
def test_no_text_overlaps_another_or_leaves_the_figure(case):
    figure = retention_figure(*CASES[case], title="SDFT, " + "/long/way/to/a/model" * 8)
    written = texts(figure)
    boxes = [Text.get_window_extent(text) for text in written]  # without the line to a label
    whole = figure.bbox.padded(1)
    for text, box in zip(written, boxes, strict=True):
        assert whole.contains(*box.min), text
        assert whole.contains(*box.max), text
    # Boxes of slanted text overlap although the text does not.
    level = [i for i, text in enumerate(written) if text.get_rotation() == 0]
    for first, second in combinations(level, 2):
        shrunk = boxes[first].padded(-1.5)
        assert not shrunk.overlaps(boxes[second]), (written[first], written[second])


@pytest.mark.parametrize("draw", FIGURES)
def test_a_figure_is_a_png_and_leaves_no_global_state(draw):
    before = pyplot.get_fignums()
    assert png_bytes(draw(*CASES["three tasks under way"])).startswith(b"\x89PNG\r\n")
    assert pyplot.get_fignums() == before


def test_cells_hold_rounded_percentages_and_nothing_where_nothing_was_measured():
    values = torch.tensor([[0.0, 0.254], [1.0, NAN], [NAN, NAN]], dtype=torch.float64)
    figure = accuracy_heatmap(("a", "b"), values)
    numbers = [text.get_text() for text in figure.axes[0].texts]
    assert numbers == ["0", "25", "100"]
    hatched = [patch for patch in figure.axes[0].patches if patch.get_hatch()]
    assert len(hatched) == 3


def test_the_large_marker_stands_where_the_task_was_trained():
    values = CASES["three tasks"][1]
    lines = forgetting_curves(SHORT, values).axes[0].lines
    largest = max(line.get_markersize() for line in lines if line.get_marker() == "o")
    marked = [
        line for line in lines if line.get_markersize() == largest and line.get_marker() == "o"
    ]
    assert [tuple(line.get_xydata()[0]) for line in marked] == [
        (task + 1, values[task + 1, task].item()) for task in range(3)
    ]


def test_no_line_is_drawn_through_an_unmeasured_row():
    values = CASES["three tasks"][1].clone()
    values[1] = NAN
    for line in forgetting_curves(SHORT, values).axes[0].lines:
        assert all(math.isnan(y) for x, y in line.get_xydata() if x == 1)


def test_task_names_are_not_read_as_formulas():
    written = [
        text for text in texts(retention_figure(LONG, matrix(8, 9))) if "$" in text.get_text()
    ]
    assert written
    assert not any(text.get_parse_math() for text in written)
