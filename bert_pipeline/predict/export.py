"""`bertpipe export`: a model in the format of another runtime, checked against the original."""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.models.auto import modeling_auto

from bert_pipeline.errors import BertpipeError, UsageError
from bert_pipeline.predict.load import (
    find_model,
    load_model,
    load_with_new_heads,
    read_architectures,
)
from bert_pipeline.predict.onnx_model import ONNX_FILES, write_onnx
from bert_pipeline.predict.parity import Parity, compare_outputs, compute_outputs, sample_batches
from bert_pipeline.storage.atomic import atomic_folder, write_json
from bert_pipeline.tokenizer.load import TOKENIZER_FILES, list_tokenizer_files

FP16_TOLERANCE = 0.02
"""Of the largest output: fp16 has 11 bits, of which the layers lose some."""
HEADS = {
    "BertForPreTraining": AutoModelForMaskedLM,
    **dict.fromkeys(modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.values(), AutoModelForMaskedLM),
    **dict.fromkeys(
        modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values(),
        AutoModelForSequenceClassification,
    ),
    **dict.fromkeys(
        modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES.values(),
        AutoModelForTokenClassification,
    ),
    **dict.fromkeys(
        modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES.values(),
        AutoModelForQuestionAnswering,
    ),
}
"""How models are loaded, by the names of their classes; all others are plain encoders."""
RECORD = "export.json"
"""What was exported, and how far its outputs are from the model's; marks a folder as an export."""
WRITTEN = frozenset({RECORD, "config.json", "model.safetensors", *ONNX_FILES, *TOKENIZER_FILES})
"""What an export may write, and replace."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote."""

    folder: Path
    model: str
    """The class that was exported."""
    parity: Parity

    def describe(self) -> str:
        """A line for people."""
        return (
            f"exported: {self.model} → {self.folder} (checked: outputs differ by at most "
            f"{self.parity.worst:.1g} of {self.parity.largest:.3g}, the highest is the same in "
            f"{self.parity.same_best:.1%})"
        )


def export_model(model: Path, to: str, out: Path, *, overwrite: bool = False) -> Exported:
    """Write a model to the folder `out` in the format `to`, after checking its outputs.

    A pretraining model is exported as a masked LM, without the head for sentence pairs. Raises
    `UsageError` if the folder has other content, and `BertpipeError` if the outputs differ.
    """
    out = out.expanduser().resolve()
    _check_folder(out, overwrite=overwrite)
    folder = find_model(model)
    network, outputs = _load(folder)
    with atomic_folder(out) as temporary:
        parity = FORMATS[to](network.eval(), outputs, temporary)
        for file in list_tokenizer_files(folder):
            shutil.copyfile(file, temporary / file.name)
        name = type(network).__name__
        write_json(temporary / RECORD, {"format": to, "model": name, "parity": asdict(parity)})
    return Exported(out, name, parity)


def _check_folder(out: Path, *, overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"{out}: is a file. Give a folder.")
    present = sorted(path.name for path in out.iterdir())
    if present and not overwrite:
        raise UsageError(f"{out}: is not empty. Give another folder, or --overwrite.")
    if present and RECORD not in present:
        raise UsageError(f"{out}: is no export (it has no {RECORD}). Give another folder.")
    if others := [name for name in present if name not in WRITTEN]:
        raise UsageError(f"{out}: has {others[0]}, which no export writes. Give another folder.")


def _load(folder: Path) -> tuple[Any, list[str]]:
    """The network in fp32, and the names of its outputs."""
    name = next(iter(read_architectures(folder)), "")
    auto_class = HEADS.get(name)
    if auto_class is AutoModelForQuestionAnswering:
        return load_model(folder, auto_class).float(), ["start_logits", "end_logits"]
    if auto_class is not None:
        return load_model(folder, auto_class).float(), ["logits"]
    network, missing = load_with_new_heads(folder, AutoModel)
    if missing:  # a model that was saved without its pooler
        network.pooler = None
    return network, ["last_hidden_state"]


def _write_fp16(network: Any, outputs: list[str], folder: Path) -> Parity:
    batches = sample_batches(network)
    expected = compute_outputs(network, batches, outputs)
    half = network.half()
    for name, weight in half.named_parameters():
        if not weight.isfinite().all():
            raise BertpipeError(f"{name} has weights that are too large for fp16. Use --to onnx.")
    half.save_pretrained(folder)
    parity = compare_outputs(batches, expected, compute_outputs(half, batches, outputs))
    parity.check(FP16_TOLERANCE, "safetensors-fp16")
    return parity


FORMATS: dict[str, Callable[[Any, list[str], Path], Parity]] = {
    "onnx": write_onnx,
    "safetensors-fp16": _write_fp16,
}
"""What writes each format, and returns how far its outputs are from the model's."""
