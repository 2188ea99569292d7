"""How an encoder layer is called: as it is, compiled, or keeping only its input for the gradients."""

import importlib.util
import os
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import checkpoint

from bert_pipeline.errors import UsageError

Call = Callable[..., Any]
# On a GPU, compiling takes a minute or so and saves some percent of every step: longer runs earn it.
LONG_STEPS, LONG_MINUTES = 2000, 5.0


def wrap_call(call: Call, *, checkpoint_activations: bool, compiled: bool) -> Call:
    """The forward pass of one layer, compiled and checkpointed as asked.

    Compilation is a layer's and for any lengths, so that its warm-up does not grow with the model.
    """
    if compiled:
        # Under DDP the compiler would cut each layer where a bucket of gradients is full, which layer-wise compilation
        # has no use for.
        torch._dynamo.config.optimize_ddp = False
        call = torch.compile(call, dynamic=True)
    return partial(checkpoint, call, use_reentrant=False) if checkpoint_activations else call


def decide_compile(
    choice: Literal["auto", "on", "off"],
    device: torch.device,
    steps: int | None,
    minutes: float | None,
) -> bool:
    """Whether a run of so many steps or minutes compiles its layers.

    `auto` does on GPUs where the run is long enough to earn the warm-up; on CPUs there is next to nothing to gain.
    Raises `UsageError` where `on` has no compiler.
    """
    if choice == "on" and not has_compiler(device):
        raise UsageError(
            f"--compile on: no compiler for {device.type} (a C++ compiler, and triton for GPUs)."
        )
    is_long = (steps or 0) >= LONG_STEPS or (minutes or 0.0) >= LONG_MINUTES
    return choice == "on" or (
        choice == "auto" and device.type == "cuda" and is_long and has_compiler(device)
    )


def has_compiler(device: torch.device) -> bool:
    """Whether there is what compiling for a device needs."""
    has_triton = device.type != "cuda" or importlib.util.find_spec("triton") is not None
    return has_triton and any(
        shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++") if name
    )
