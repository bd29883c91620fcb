"""Count the bytes of tensors that are in memory at a time, also for tensors without data."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages that operations create within the block, until they are freed.

    Under ``FakeTensorMode`` nothing is computed, and the count equals that of a real run. Tensors
    created before the block do not count; views count once, as their storage.

    Attributes:
        now: Bytes currently in use.
        peak: Most bytes in use since the block began or since :meth:`restart_peak`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def restart_peak(self) -> None:
        """Reset the peak to the bytes currently in use."""
        self.peak = self.now

    def ignore(self, tensors: list[Tensor]) -> None:
        """Do not count the storages of these tensors, even if operations return them."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._known[storage._cdata] = weakref.ref(storage)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operation and count the tensors it returns."""
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor):
                self._note(each)
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known and self._known[key]() is not None:
            return

        def freed(_: Any) -> None:
            self.now -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)
