"""A model's limits: number of token ids, number of positions, and independence of batch rows.

Training pads the rows of a batch on the right and reads them without a mask. That is correct for a
causal model that treats each row independently; both properties are checked when the model is
loaded. Some rotary embeddings (dynamic scaling, LongRoPE) choose their frequencies by the longest
row of a batch once it exceeds a certain length, so the output for a row can depend on the others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sdft.model.head import final_hidden_states
from sdft.model.modes import evaluation_mode

NUM_TOKENS = 8  # of the row that is read alone and beside another
TOLERANCE = 1e-4  # allowed error of hidden states, relative to the largest
HALF_PRECISION_TOLERANCE = 0.1


def num_token_ids(model: PreTrainedModel) -> int:
    """Number of rows of the input embedding: token ids must be below it."""
    embedding: Any = model.get_input_embeddings()
    return int(embedding.weight.shape[0])


def num_positions(model: PreTrainedModel) -> int | None:
    """The longest sequence that the model's configuration allows; None if it sets no limit."""
    config = model.config.get_text_config()
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


@torch.no_grad()
def check_reads_rows_alone(model: PreTrainedModel) -> None:
    """Check that hidden states do not depend on later tokens or on other rows of the batch.

    A row is read alone, then with more tokens after it and another row beside it.

    Raises:
        ValueError: The hidden states of the row's first tokens differ.
    """
    count = num_token_ids(model)
    ids = [(1 + 7919 * index) % count for index in range(4 * NUM_TOKENS)]
    rows = torch.tensor([ids[: 2 * NUM_TOKENS], ids[2 * NUM_TOKENS :]], device=model.device)
    with evaluation_mode(model):
        together = final_hidden_states(model, input_ids=rows)[:1, :NUM_TOKENS]
        alone = final_hidden_states(model, input_ids=rows[:1, :NUM_TOKENS])
    if _differ(together, alone):
        raise ValueError(
            f"{type(model).__name__} is no causal language model here: its output for a token "
            "depends on later tokens or on other rows of the batch; use another model, or set "
            "is_decoder in its config.json if it has such a setting"
        )


@torch.no_grad()
def longest_independent(model: PreTrainedModel, length: int) -> int:
    """The longest row, up to ``length`` tokens, that does not change the output for a short row.

    Found by bisection, with short passes that use the positions of a long row.
    """
    if not _depends_on_neighbours(model, length):
        return length
    independent, dependent = NUM_TOKENS, length
    while dependent - independent > 1:
        middle = (independent + dependent) // 2
        if _depends_on_neighbours(model, middle):
            dependent = middle
        else:
            independent = middle
    return independent


def _depends_on_neighbours(model: PreTrainedModel, length: int) -> bool:
    """Whether the last positions of a ``length``-token row change the output for a short row."""
    first = torch.arange(NUM_TOKENS, device=model.device)[None]
    last = first + max(length - NUM_TOKENS, 0)
    ids = (1 + first) % num_token_ids(model)
    with evaluation_mode(model):
        try:
            together = final_hidden_states(
                model, input_ids=ids.repeat(2, 1), position_ids=torch.cat([first, last])
            )
            alone = final_hidden_states(model, input_ids=ids, position_ids=first)
        except TypeError:  # the model takes no positions, so it cannot scale them
            return False
    return _differ(together[:1], alone)


def _differ(found: Tensor, expected: Tensor) -> bool:
    precise = expected.dtype.itemsize >= 4
    limit = TOLERANCE if precise else HALF_PRECISION_TOLERANCE
    error = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
    return not float(error) <= limit
