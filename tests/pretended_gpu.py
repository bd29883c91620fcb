"""A GPU that is not there: tensors that say they are on cuda:0 and keep data in host memory.

They refuse to meet tensors that say they are on the CPU. So it finds what a CPU hides: an operation
on tensors of two devices, and every place where the host waits for a result. It knows nothing of
speed, of kernels' rounding, or of autocast on CUDA.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from traceback import extract_stack
from typing import ClassVar
from unittest import mock

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

GPU = torch.device("cuda:0")
REPOSITORY = str(Path(__file__).resolve().parents[1])
# The host reads a value of these, or their result's size.
WAITED_FOR = {
    "aten._local_scalar_dense.default",
    "aten._unique2.default",
    "aten.equal.default",
    "aten.is_nonzero.default",
    "aten.masked_select.default",
    "aten.nonzero.default",
    "aten.repeat_interleave.Tensor",
    "aten.unique_consecutive.default",
}
INDEXING = ("aten.index.Tensor", "aten.index_put", "aten._index_put_impl_")


class OnGPU(torch.Tensor):
    """A tensor that says it is on the GPU; ``inner`` holds its data."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner, requires_grad=False):
        """Wrap a tensor in host memory."""
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="meta",
            requires_grad=requires_grad,
        )
        wrapper.inner = inner
        return wrapper

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = is_meta = property(lambda self: False)

    def __repr__(self):
        """What it holds."""
        return f"OnGPU({self.inner!r})"

    def __deepcopy__(self, memo):
        """A copy on the GPU."""
        return OnGPU(self.inner.clone(memory_format=torch.preserve_format), self.requires_grad)

    @property
    def data(self):
        """The tensor without its history."""
        return OnGPU(self.inner.detach())

    @data.setter
    def data(self, value):
        self.inner = value.inner

    def get_device(self):
        """The GPU's number."""
        return 0

    def data_ptr(self):
        """Where the data is."""
        return self.inner.data_ptr()

    def tolist(self):
        """The values; waits for them."""
        PretendedGPU.waits[f"tolist at {_line()}"] += 1
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        """Run an operation outside of a block, such as autograd's."""
        return _run(func, args, kwargs or {})


class PretendedGPU(TorchDispatchMode):
    """A block with a GPU.

    Attributes:
        waits: How often the host waited for the GPU, by operation and line.
    """

    waits: ClassVar[Counter[str]] = Counter()

    def __enter__(self):
        """Let tensors be made on the GPU."""
        PretendedGPU.waits.clear()
        self.patches = ExitStack()
        self.patches.enter_context(mock.patch.object(torch, "tensor", _tensor))
        self.patches.enter_context(mock.patch.object(torch.cuda, "synchronize"))
        self.patches.enter_context(mock.patch.object(torch.cuda, "set_device"))
        self.patches.enter_context(mock.patch.object(torch.cuda, "_lazy_init"))
        self.patches.enter_context(mock.patch.object(Thread, "run", _run_thread))
        return super().__enter__()

    def __exit__(self, *error):
        """As before."""
        self.patches.close()
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operation."""
        return _run(func, args, kwargs or {})


def to_gpu(module):
    """Move a module's parameters and buffers there; tied ones stay tied."""
    moved = {}
    for each in module.modules():
        for name, parameter in each._parameters.items():
            if parameter is not None:
                if id(parameter) not in moved:
                    moved[id(parameter)] = nn.Parameter(
                        OnGPU(parameter.data), requires_grad=parameter.requires_grad
                    )
                each._parameters[name] = moved[id(parameter)]
        for name, buffer in each._buffers.items():
            if buffer is not None:
                each._buffers[name] = OnGPU(buffer)
    return module


_in_host_memory = torch.tensor


def _tensor(data, *, dtype=None, device=None, **options):
    made = _in_host_memory(data, dtype=dtype, **options)
    return OnGPU(made) if _is_gpu(device) else made


def _is_gpu(device):
    return device is not None and torch.device(device).type in (GPU.type, "meta")


def _line():
    """Where in the project, or in transformers, an operation was asked for."""
    frames = [each for each in reversed(extract_stack()) if each.filename != __file__]
    own = [each for each in frames if each.filename.startswith(REPOSITORY)]
    for each in own or [each for each in frames if "transformers" in each.filename]:
        return f"{each.filename.removeprefix(REPOSITORY + '/')}:{each.lineno}"
    return "?"


def _inner(value):
    return value.inner if isinstance(value, OnGPU) else value


def _run(func, args, kwargs):
    name, device = str(func), kwargs.get("device")
    tensors = [each for each in tree_iter((args, kwargs)) if isinstance(each, torch.Tensor)]
    there = [each for each in tensors if isinstance(each, OnGPU)]
    if there and _is_composite(func) and not name.startswith("aten.copy_"):
        with _Dispatch():
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
    if name.startswith(("aten._to_copy", "aten.copy_")):
        return _copied(func, name, args, kwargs)
    if not there:
        made = func(*args, **({**kwargs, "device": "cpu"} if _is_gpu(device) else kwargs))
        return tree_map(_wrapped, made) if _is_gpu(device) else made
    _refuse_strangers(name, tensors)
    _note_waits(name, args)
    inner = tree_map(_inner, kwargs) | ({"device": "cpu"} if device is not None else {})
    known = {id(each.inner): each for each in there}  # in-place operations return their argument
    result = func(*tree_map(_inner, args), **inner)
    return tree_map(
        lambda each: known.get(id(each)) if id(each) in known else _wrapped(each), result
    )


class _Dispatch(TorchDispatchMode):
    """Decomposed operations are run like the others."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


_thread_without_a_gpu = Thread.run


def _run_thread(thread):
    """Modes are thread-local: enter one in a thread that is started within a block."""
    with _Dispatch():
        _thread_without_a_gpu(thread)


def _is_composite(func):
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def _wrapped(value):
    return OnGPU(value) if isinstance(value, torch.Tensor) else value


def _copied(func, name, args, kwargs):
    """The operations that may mix devices: copies."""
    if name.startswith("aten.copy_"):
        target, source = args[0], args[1]
        func(_inner(target), _inner(source), *args[2:], **kwargs)
        if isinstance(source, OnGPU) and not isinstance(target, OnGPU):
            PretendedGPU.waits[f"copy to the host at {_line()}"] += 1
        return target
    source, device = args[0], kwargs.get("device")
    options = {key: value for key, value in kwargs.items() if key != "device"}
    made = func(_inner(source), **options)
    if _is_gpu(device) or (device is None and isinstance(source, OnGPU)):
        return OnGPU(made)
    if isinstance(source, OnGPU):
        PretendedGPU.waits[f"copy to the host at {_line()}"] += 1
    return made


def _refuse_strangers(name, tensors):
    """Scalars may come from the host; so may indices, which are copied and waited for."""
    strangers = [each for each in tensors if not isinstance(each, OnGPU) and each.dim() > 0]
    if strangers and name.startswith(INDEXING):
        PretendedGPU.waits[f"index from the host at {_line()}"] += 1
    elif strangers:
        raise RuntimeError(f"{name} at {_line()} was given tensors on cuda:0 and on cpu")


def _note_waits(name, args):
    if name in WAITED_FOR:
        PretendedGPU.waits[f"{name} at {_line()}"] += 1
    flags = (torch.bool, torch.uint8)
    if name.startswith(INDEXING) and any(
        isinstance(each, torch.Tensor) and each.dtype in flags for each in args[1]
    ):
        PretendedGPU.waits[f"index by flags at {_line()}"] += 1
