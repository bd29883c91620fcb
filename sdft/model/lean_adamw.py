"""AdamW for bfloat16 weights: stochastic rounding and 8-bit moments, 4 bytes per parameter.

Rounding to the nearest bfloat16 loses every update smaller than half a unit in the last place,
which is most of them at the learning rates of fine-tuning. Here each value is rounded up or down
at random, with probabilities that make the expected value exact: rounding adds noise but no bias.
The moments are rounded in the same way, because their changes from one update to the next are far
smaller than the spacing of 8-bit codes.

Moments are stored in blocks of 256 values: a float32 scale, which is the largest magnitude, and one
code per value (Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization"). Codes are
spaced logarithmically. Tensors with fewer than 4,096 values keep their moments in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sdft.seeds import Stream, mix_seed

BLOCK = 256  # values that share a scale
SMALLEST_QUANTIZED = 4096  # values; smaller tensors are not quantized
CHUNK = 1 << 24  # values updated at a time: bounds the float32 intermediates; whole blocks
DECADES = {True: 5, False: 6}  # range of the codes above zero, of signed and unsigned values


def stochastically_rounded(values: Tensor, generator: torch.Generator) -> Tensor:
    """Round values to bfloat16, up or down at random, so that the expected value is exact.

    Args:
        values: float32, of any shape.
        generator: On the values' device.

    Returns:
        bfloat16, of the same shape. Infinities are unchanged.
    """
    noise = torch.randint(
        1 << 16, values.shape, dtype=torch.int32, device=values.device, generator=generator
    )
    # bfloat16 is the upper half of a float32: a carry out of the lower half rounds away from zero.
    bits = noise.add_(values.view(torch.int32)).bitwise_and_(-(1 << 16))
    return bits.view(torch.float32).to(torch.bfloat16)


@torch.no_grad()
def round_into(target: Tensor, values: Tensor, generator: torch.Generator) -> None:
    """Write float32 values into a tensor, stochastically rounded if it is bfloat16."""
    narrow = target.dtype == torch.bfloat16
    target.copy_(stochastically_rounded(values, generator) if narrow else values)


@torch.no_grad()
def lerp_with_rounding(
    targets: Sequence[Tensor], sources: Sequence[Tensor], rate: float, seed: int
) -> None:
    """Targets ← rate · sources + (1 - rate) · targets in float32, then stochastically rounded.

    Args:
        targets: Contiguous tensors, bfloat16 or float32.
        sources: Of the same shapes.
        rate: In (0, 1].
        seed: Seed of the rounding.
    """
    generator = torch.Generator(targets[0].device).manual_seed(seed)
    for target, source in zip(targets, sources, strict=True):
        flat, other = target.view(-1), source.reshape(-1)
        for part, _ in _chunks(flat.numel(), quantized=False):
            moved = flat[part].float().lerp_(other[part].float(), rate)
            round_into(flat[part], moved, generator)


@lru_cache(maxsize=8)
def code_values(signed: bool, device: torch.device) -> Tensor:
    """The values of the codes, ascending: (255,) in [-1, 1] if signed, else (256,) in [0, 1]."""
    num_above_zero = 127 if signed else 255
    above = torch.logspace(-DECADES[signed], 0, num_above_zero, dtype=torch.float64)
    below = -above.flip(0) if signed else above[:0]
    return torch.cat([below, above.new_zeros(1), above]).float().to(device)


class EightBit:
    """The values of a tensor stored as one byte each, and a scale per block.

    Args:
        codes: (n,) uint8, n a multiple of 256.
        scales: (n / 256,) float32.
        signed: Whether values may be negative.
    """

    def __init__(self, codes: Tensor, scales: Tensor, signed: bool) -> None:
        self.codes, self.scales, self.signed = codes, scales, signed

    def read(self, part: slice) -> Tensor:
        """The float32 values of a part that consists of whole blocks."""
        values = code_values(self.signed, self.codes.device)[self.codes[part].int()]
        return (values.view(-1, BLOCK) * self.scales[_blocks(part)][:, None]).view(-1)

    def write(self, part: slice, values: Tensor, generator: torch.Generator) -> None:
        """Replace a part with values, stochastically rounded to codes.

        Unsigned values above zero are never rounded to zero, because updates are divided by them.
        """
        codes = code_values(self.signed, values.device)
        blocks = values.view(-1, BLOCK)
        scales = blocks.abs().amax(1)
        scaled = blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        upper = torch.bucketize(scaled, codes).clamp_(1, len(codes) - 1)
        below, above = codes[upper - 1], codes[upper]
        chance = (scaled - below) / (above - below)
        noise = torch.rand(chance.shape, device=chance.device, generator=generator)
        down = noise >= chance
        if not self.signed:
            down &= (upper > 1) | (scaled == 0)
        self.codes[part] = (upper - down.long()).to(torch.uint8).view(-1)
        self.scales[_blocks(part)] = scales


def _blocks(part: slice) -> slice:
    return slice(part.start // BLOCK, -(-part.stop // BLOCK))


class LeanAdamW(torch.optim.Optimizer):
    """AdamW for bfloat16 weights, with moments that take two bytes per parameter.

    Updates are computed in float32, one chunk of values at a time. The rounding noise depends only
    on the seed and the number of steps taken, so that a resumed run equals an uninterrupted one.

    Args:
        parameters: Parameters to optimize; contiguous. Those that are not bfloat16 are not rounded.
        lr: Learning rate.
        weight_decay: Decoupled weight decay.
        seed: Seed of the rounding.
        betas: Decay of the two moments.
        eps: Added to the denominator.
    """

    def __init__(
        self,
        parameters: Any,
        *,
        lr: float,
        weight_decay: float = 0.0,
        seed: int = 0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps}
        super().__init__(parameters, {**defaults, "seed": seed, "num_steps": 0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one optimizer step; the closure, if given, is called first for the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for index, group in enumerate(self.param_groups):
            trained = [each for each in group["params"] if each.grad is not None]
            if not trained:
                continue
            group["num_steps"] += 1
            generator = torch.Generator(trained[0].device)
            counters = group["num_steps"], index
            generator.manual_seed(mix_seed(Stream.WEIGHT_ROUNDING, group["seed"], *counters))
            for parameter in trained:
                self._update(parameter, group, generator)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a saved state; the base class alone would cast codes to the weights' type."""
        super().load_state_dict(state_dict)
        parameters = [each for group in self.param_groups for each in group["params"]]
        for index, saved in state_dict["state"].items():
            parameter = parameters[index]
            self.state[parameter] = {
                name: copy.deepcopy(each).to(parameter.device) for name, each in saved.items()
            }

    def _update(self, parameter: Tensor, group: dict[str, Any], generator: torch.Generator) -> None:
        state = self.state[parameter]
        if not state:
            state.update(_fresh_state(parameter))
        weights, gradients = parameter.view(-1), parameter.grad.reshape(-1)  # type: ignore[union-attr]
        for part, padding in _chunks(weights.numel(), quantized="exp_avg_scales" in state):
            gradient = F.pad(gradients[part].float(), (0, padding))
            moments = slice(part.start, part.stop + padding)
            first = _read(state, "exp_avg", moments).lerp_(gradient, 1 - group["betas"][0])
            second = _read(state, "exp_avg_sq", moments)
            second.lerp_(gradient.square_(), 1 - group["betas"][1])
            _write(state, "exp_avg", moments, first, generator)
            _write(state, "exp_avg_sq", moments, second, generator)
            change = _change(first, second, group)[: part.stop - part.start]
            decayed = weights[part].float().mul_(1 - group["lr"] * group["weight_decay"])
            round_into(weights[part], decayed.sub_(change), generator)


def _change(first: Tensor, second: Tensor, group: dict[str, Any]) -> Tensor:
    """Adam's step, computed in place from its moments."""
    betas, num_steps = group["betas"], group["num_steps"]
    denominator = second.div_(1 - betas[1] ** num_steps).sqrt_().add_(group["eps"])
    return first.div_(denominator).mul_(group["lr"] / (1 - betas[0] ** num_steps))


def _fresh_state(parameter: Tensor) -> dict[str, Tensor]:
    size = parameter.numel()
    if size < SMALLEST_QUANTIZED:
        zeros = parameter.new_zeros(size, dtype=torch.float32)
        return {"exp_avg": zeros, "exp_avg_sq": zeros.clone()}
    num_blocks = -(-size // BLOCK)
    state = {}
    for name, signed in (("exp_avg", True), ("exp_avg_sq", False)):
        zero = 127 if signed else 0
        state[name] = parameter.new_full((num_blocks * BLOCK,), zero, dtype=torch.uint8)
        state[f"{name}_scales"] = parameter.new_zeros(num_blocks, dtype=torch.float32)
    return state


def _chunks(size: int, quantized: bool) -> Iterator[tuple[slice, int]]:
    """Parts of a tensor, each with the number of values that pad it to whole blocks."""
    for start in range(0, size, CHUNK):
        stop = min(start + CHUNK, size)
        yield slice(start, stop), -(stop - start) % BLOCK if quantized else 0


def _read(state: dict[str, Tensor], name: str, part: slice) -> Tensor:
    if f"{name}_scales" not in state:
        return state[name][part].clone()
    return EightBit(state[name], state[f"{name}_scales"], name == "exp_avg").read(part)


def _write(
    state: dict[str, Tensor], name: str, part: slice, values: Tensor, generator: torch.Generator
) -> None:
    if f"{name}_scales" not in state:
        state[name][part] = values
        return
    EightBit(state[name], state[f"{name}_scales"], name == "exp_avg").write(part, values, generator)


def moment_bytes(parameter: Tensor) -> int:
    """Bytes that the moments of a parameter take."""
    size = parameter.numel()
    if size < SMALLEST_QUANTIZED:
        return 2 * 4 * size
    num_blocks = -(-size // BLOCK)
    return 2 * num_blocks * (BLOCK + 4)
