"""Export of the fine-tuned weights as a plain Hugging Face model folder."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bert_pipeline.finetuning.config import FinetuneConfig
from bert_pipeline.finetuning.inputs import Inputs
from bert_pipeline.finetuning.network import make_network
from bert_pipeline.storage.atomic import atomic_folder
from bert_pipeline.tokenizer.load import list_tokenizer_files

PIPELINES = {
    "classification": "text-classification",
    "token-classification": "token-classification",
    "question-answering": "question-answering",
    "multiple-choice": "multiple-choice",
}
"""The names of the tasks on the Hub."""


def export_model(
    folder: Path,
    weights: Mapping[str, torch.Tensor],
    inputs: Inputs,
    config: FinetuneConfig,
    metrics: Mapping[str, Any],
) -> list[Path]:
    """Write weights, config, tokenizer and model card to `folder`; return the files."""
    with atomic_folder(folder) as temporary:
        network, _ = make_network(config, inputs.folder, inputs.task)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.copy_(weights[name])
        network.save_pretrained(temporary)
        for file in list_tokenizer_files(inputs.folder):
            shutil.copyfile(file, temporary / file.name)
        _write_card(temporary, config, metrics)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _write_card(folder: Path, config: FinetuneConfig, metrics: Mapping[str, Any]) -> None:
    import yaml

    header = {"library_name": "transformers", "pipeline_tag": PIPELINES[config.task]}
    rows = [
        f"| {name.replace('_', ' ', 1)} | {value:.4f} |"
        for name, value in metrics.items()
        if isinstance(value, float)
    ]
    lines = [
        *("---", yaml.safe_dump(header, sort_keys=False).rstrip(), "---", ""),
        *(f"# A model for {config.task}, fine-tuned with bertpipe", ""),
        f"Learning rate {config.find_learning_rate():g}, batch size {config.batch_size}, "
        f"{config.find_length()}, optimizer {config.optimizer}, seed {config.seed}. The epoch with "
        "the best validation metric was kept.",
        *("", "| metric | |", "|---|---|", *rows),
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
