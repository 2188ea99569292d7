"""Export of the trained weights as a plain Hugging Face model folder."""

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from bert_pipeline.errors import BertpipeError
from bert_pipeline.model.architectures import count_positions
from bert_pipeline.model.pretraining_model import PretrainingModel, make_network
from bert_pipeline.model.unpadded_batch import PretrainingBatch
from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.pretraining.evaluation import load_pretrained
from bert_pipeline.pretraining.model_card import write_model_card
from bert_pipeline.pretraining.preflight import Inputs
from bert_pipeline.storage.atomic import atomic_folder
from bert_pipeline.tokenizer.save import save_pretrained, use_examples_layout
from bert_pipeline.training.position import Position

BACKBONE = "backbone"
"""Folder in the model folder of the encoder without its heads."""
TOLERANCE = 1e-5
"""Of the scores of the saved model, as a share of the largest."""


def export_model(
    folder: Path,
    weights: Mapping[str, torch.Tensor],
    inputs: Inputs,
    config: PretrainConfig,
    position: Position,
    metrics: Mapping[str, Any],
    batch: PretrainingBatch,
) -> list[Path]:
    """Write weights, config, tokenizer and model card to `folder`; return the files.

    Raises `BertpipeError` if the saved model does not predict in `batch` what the trained one does.
    """
    with atomic_folder(folder) as temporary:
        network = make_network(inputs.model_config, with_pairs=inputs.has_pairs)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.copy_(weights[name])
        network.save_pretrained(temporary)
        _save_tokenizer(temporary, network, inputs)
        if config.save_backbone:
            backbone = temporary / BACKBONE
            network.base_model.save_pretrained(backbone)
            _save_tokenizer(backbone, network, inputs)
        write_model_card(temporary, config, inputs.examples, position, metrics)
        check_written(temporary, network, batch)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def check_written(folder: Path, network: Any, batch: PretrainingBatch) -> None:
    """Raise `BertpipeError` if the model in `folder` is not the network, or predicts otherwise.

    A class that renames or ties weights when it is loaded would lose what was learnt.
    """
    reloaded = load_pretrained(folder)
    written = reloaded.state_dict()
    changed = [
        name
        for name, value in network.state_dict().items()
        if name not in written or not torch.equal(value, written[name])
    ]
    if changed:
        raise BertpipeError(
            f"{changed[0]} of the saved model is not as it was trained: an error of bertpipe or "
            "transformers. The trained weights are in the newest checkpoint."
        )
    # Not bit by bit: how products are rounded depends on where in memory the weights are.
    with torch.no_grad():
        expected, found = (
            PretrainingModel(each).eval().score(batch)[0] for each in (network, reloaded)
        )
    # A run that diverged predicts NaN, after all reloads too.
    finite = expected.nan_to_num(0.0, 0.0, 0.0)
    largest = float(torch.cat([finite.abs().flatten(), finite.new_ones(1)]).amax())
    if not torch.allclose(found, expected, rtol=0, atol=TOLERANCE * largest, equal_nan=True):
        raise BertpipeError(
            "The saved model predicts something else than the trained one: an error of bertpipe or "
            "transformers. The trained weights are in the newest checkpoint."
        )


def _save_tokenizer(folder: Path, network: Any, inputs: Inputs) -> None:
    has_segments = (
        "token_type_ids" in signature(network.forward).parameters
        and getattr(network.config, "type_vocab_size", 0) > 1
    )
    save_pretrained(
        *use_examples_layout(inputs.tokenizer),
        folder,
        count_positions(inputs.model_config),
        has_segments=has_segments,
    )
