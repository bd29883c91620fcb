"""Whether an export is the model in memory: both are asked for logits on a few tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sdft.model.limits import num_token_ids
from sdft.model.modes import evaluation_mode
from sdft.model.sharding import gathered_weights

NUM_ROWS, NUM_TOKENS = 3, 6
# Of logits, relative to the largest. In half precision the median over positions counts, because
# the export is read in float32 and rounding may send single tokens to other experts.
TOLERANCE = 5e-3
HALF_PRECISION_TOLERANCE = 0.1


@torch.no_grad()
def probe_logits(model: PreTrainedModel) -> Tensor:
    """Logits of fixed token ids, (3, 6, V) in float32 on the host, without autocast.

    A collective where the model is sharded.
    """
    size = NUM_ROWS * NUM_TOKENS
    ids = (1 + 7919 * torch.arange(size, device=model.device)) % num_token_ids(model)
    off = torch.autocast(model.device.type, enabled=False)
    with gathered_weights(model), evaluation_mode(model), off:
        logits: Tensor = model(input_ids=ids.view(NUM_ROWS, -1), use_cache=False).logits
    return logits.float().cpu()


def check_export(model: PreTrainedModel, expected: Tensor, directory: Path) -> None:
    """Read an export as its users will and compare its logits.

    Args:
        model: What was exported; its weights are not read.
        expected: Its :func:`probe_logits`.
        directory: The export.

    Raises:
        RuntimeError: They differ by more than rounding.
    """
    kind: Any = type(model)
    with torch.random.fork_rng():  # weights that the files lack would be drawn
        exported = kind.from_pretrained(directory, dtype=torch.float32)
    errors = (probe_logits(exported) - expected).abs().amax(-1) / expected.abs().max()
    precise = all(each.dtype.itemsize >= 4 for each in model.parameters())
    error = float(errors.max() if precise else errors.median())
    limit = TOLERANCE if precise else HALF_PRECISION_TOLERANCE
    if not error <= limit:
        raise RuntimeError(
            f"the export is not the trained model: its logits differ by {error:.2g} of the largest "
            f"on a few tokens, so nothing was written; resume with --export.enabled=false, and "
            f"take the weights of {kind.__name__} from the checkpoint"
        )
