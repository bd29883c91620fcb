"""CPT: continual pre-training on raw documents (section 4, baseline for knowledge)."""

from __future__ import annotations

from lightning_modules.sft import SFTModule


class CPTModule(SFTModule):
    """Continual pre-training: next-token cross-entropy on every token of raw documents.

    The documents are the contexts of a task's training rows, each once, without prompt or chat
    template; the task is evaluated by its questions as ever.

    Args:
        base: Options of SFTModule and those every method has.
    """

    method_name = "CPT"
    train_on = "documents"
