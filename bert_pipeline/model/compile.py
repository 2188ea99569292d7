"""How an encoder layer is called: as it is, compiled, or with activation checkpointing."""

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
# On a GPU, compilation takes about a minute and saves some percent of every step: runs of this
# length amortise it.
LONG_STEPS = 2000
LONG_MINUTES = 5.0


def wrap_layer(call: Call, *, checkpoint_activations: bool, compiled: bool) -> Call:
    """The forward function of one layer, compiled and checkpointed as requested.

    Each layer is compiled by itself and for dynamic lengths, so that the warm-up does not grow with
    the depth of the model.
    """
    if compiled:
        # Under DDP the compiler would split each layer at the boundaries of gradient buckets, which
        # layer-wise compilation does not need.
        torch._dynamo.config.optimize_ddp = False
        call = torch.compile(call, dynamic=True)
    return partial(checkpoint, call, use_reentrant=False) if checkpoint_activations else call


def should_compile(
    choice: Literal["auto", "on", "off"],
    device: torch.device,
    steps: int | None,
    minutes: float | None,
) -> bool:
    """Whether a run of this many steps or minutes compiles its layers.

    `auto` compiles on GPUs when the run is long enough to amortise compilation; on CPUs it gains
    almost nothing. Raises `UsageError` for `on` without a compiler.
    """
    if choice == "on" and not has_compiler(device):
        needs = "a C++ compiler, and triton for GPUs"
        raise UsageError(f"--compile on: no compiler for {device.type} was found ({needs}).")
    if choice == "on":
        return True
    is_long = (steps or 0) >= LONG_STEPS or (minutes or 0.0) >= LONG_MINUTES
    return choice == "auto" and device.type == "cuda" and is_long and has_compiler(device)


def has_compiler(device: torch.device) -> bool:
    """Whether the tools that compilation for a device needs are installed."""
    has_triton = device.type != "cuda" or importlib.util.find_spec("triton") is not None
    compilers = (os.environ.get("CXX", ""), "g++", "clang++")
    return has_triton and any(shutil.which(name) for name in compilers if name)
