"""A model as ONNX, written by torch's exporter and checked in ONNX Runtime."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bert_pipeline.errors import UsageError
from bert_pipeline.predict.parity import (
    Parity,
    compare_outputs,
    compute_outputs,
    input_names,
    sample_batches,
)

FILE = "model.onnx"
ONNX_FILES = (FILE, f"{FILE}.data")
"""Weights of more than 1.5 GB are in a file of their own."""
TOLERANCE = 1e-4
PACKAGES = ("onnx", "onnxruntime", "onnxscript")


class _Tuples(nn.Module):
    """A stock model whose inputs and outputs are in order instead of by name."""

    def __init__(self, network: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self._network = network
        self._inputs = inputs
        self._outputs = outputs

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The outputs of the network."""
        found = self._network(**dict(zip(self._inputs, values, strict=True)), return_dict=True)
        return tuple(found[name] for name in self._outputs)


def write_onnx(network: Any, outputs: list[str], folder: Path) -> Parity:
    """Write `model.onnx` and the config; the number of rows and of tokens is free."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise UsageError(
            f"--to onnx: {', '.join(missing)} is not installed. Run: pip install 'bertpipe[onnx]'."
        )
    inputs = input_names(network)
    batches = sample_batches(network)
    size = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    with _quiet():
        program = torch.onnx.export(
            _Tuples(network, inputs, outputs).eval(),
            tuple(batches[1][name] for name in inputs),
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=(tuple(size for _ in inputs),),
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(folder / FILE)
    network.config.save_pretrained(folder)
    expected = compute_outputs(network, batches, outputs)
    parity = compare_outputs(batches, expected, _run(folder / FILE, batches, outputs))
    parity.check(TOLERANCE, FILE)
    return parity


def _run(
    path: Path, batches: Sequence[Mapping[str, Tensor]], outputs: Sequence[str]
) -> list[dict[str, Tensor]]:
    """What ONNX Runtime computes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = []
    for batch in batches:
        values = session.run(outputs, {name: value.numpy() for name, value in batch.items()})
        found.append(dict(zip(outputs, map(torch.from_numpy, values), strict=True)))
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter from writing about packages that are not installed, and its plans."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
