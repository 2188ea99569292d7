"""The precision of matrix products: what this machine does fastest, autocast and loss scale."""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from bert_pipeline.errors import BertpipeError

Name = Literal["fp32", "tf32", "bf16", "fp16"]
CPU_FEATURES = ("avx512_bf16", "amx_bf16", "avx10_2")
"""What a CPU needs to multiply bf16 without converting it first."""
CALIBRATED_SHAPE = (1024, 256, 1024)
CALIBRATION_ROUNDS = 5
MIN_SPEEDUP = 1.3
"""bf16 products must be faster by this factor than fp32: casts take some of it back."""


@dataclass(frozen=True, slots=True)
class Precision:
    """How a run multiplies matrices; weights, sums and optimizer state are always fp32."""

    name: Name

    @property
    def half_dtype(self) -> torch.dtype | None:
        """The 16-bit type of the products; None for fp32 and TF32."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.name)

    def autocast(self, device: torch.device) -> AbstractContextManager[None]:
        """The context in which forward passes run."""
        is_half = self.half_dtype is not None
        context: AbstractContextManager[None] = torch.autocast(
            device.type, dtype=self.half_dtype, enabled=is_half
        )
        return context


FP32 = Precision("fp32")


def resolve_precision(requested: str, device: torch.device) -> Precision:
    """The precision that `--precision` stands for on a device.

    `auto` is the fastest one: bf16, on GPUs without it fp16, and on CPUs that do not gain from
    either fp32. TF32 takes the place of fp32 on GPUs that have it. Raises `BertpipeError` for what
    a GPU does not support.
    """
    if device.type != "cuda":
        name = requested if requested != "auto" else _fastest_on_cpu()
        return Precision(name)  # type: ignore[arg-type]
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    capability = torch.cuda.get_device_capability(device)
    if requested == "bf16" and not has_bf16:
        raise BertpipeError("--precision bf16: this GPU does not support bf16; use fp16 or fp32.")
    if requested == "bf16" or (requested == "auto" and has_bf16):
        return Precision("bf16")
    # Tensor cores for fp16 came with compute capability 7.0, for TF32 with 8.0.
    if requested == "fp16" or (requested == "auto" and capability >= (7, 0)):
        return Precision("fp16")
    return Precision("tf32") if capability >= (8, 0) else FP32


def _fastest_on_cpu() -> Name:
    """bf16 if this CPU has instructions for it and a trial confirms the gain, else fp32."""
    # torch 2.11 and 2.12 do not tell.
    features: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    if not any(features.get(name) for name in CPU_FEATURES):
        return "fp32"
    return "bf16" if _measure_speedup() >= MIN_SPEEDUP else "fp32"


def _measure_speedup() -> float:
    """How many times as fast as fp32 bf16 products are, in turn, in some hundredths of a second."""
    rows, inner, columns = CALIBRATED_SHAPE
    best = dict.fromkeys((torch.float32, torch.bfloat16), float("inf"))
    operands = {
        dtype: (torch.ones(rows, inner, dtype=dtype), torch.ones(columns, inner, dtype=dtype))
        for dtype in best
    }
    for number in range(CALIBRATION_ROUNDS + 1):
        for dtype, (states, weight) in operands.items():
            started = time.perf_counter()
            F.linear(states, weight)
            seconds = time.perf_counter() - started
            if number:  # the first call of each builds its kernel
                best[dtype] = min(best[dtype], seconds)
    return best[torch.float32] / best[torch.bfloat16]


class LossScale:
    """The factor of fp16 losses that keeps small gradients from becoming 0, on the device.

    It is halved by each overflow and doubled after `GROWTH_STEPS` steps in a row without one
    (Micikevicius et al. 2018, section 3.2, https://arxiv.org/abs/1710.03740), as in
    `torch.amp.GradScaler`.
    """

    INITIAL = 2.0**16
    LOWEST = 1.0
    GROWTH_STEPS = 2000

    def __init__(self, device: torch.device) -> None:
        self.factor = torch.tensor(self.INITIAL, device=device)
        self._steps = torch.tensor(0.0, device=device)
        """Steps in a row without an overflow."""

    def update(self, overflow: torch.Tensor) -> None:
        """After a step: `overflow` is 1.0 if its gradients were not finite, else 0.0."""
        steps = (self._steps + 1) * (1 - overflow)
        grows = (steps >= self.GROWTH_STEPS).float()
        halved = (self.factor / 2).clamp(min=self.LOWEST)
        self.factor = torch.where(overflow > 0, halved, self.factor * (1 + grows))
        self._steps = steps * (1 - grows)

    def state(self) -> dict[str, torch.Tensor]:
        """For a checkpoint."""
        return {"factor": self.factor, "steps": self._steps}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore `state()`; without values, start again."""
        device = self.factor.device
        initial = LossScale(device).state()
        values = {name: state.get(name, value).to(device) for name, value in initial.items()}
        self.factor = values["factor"]
        self._steps = values["steps"]
