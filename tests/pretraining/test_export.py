"""The saved model is compared with the trained one."""

from pathlib import Path

import pytest
import torch
from transformers import BertForMaskedLM

from bert_pipeline.errors import BertpipeError
from bert_pipeline.pretraining.export import check_written
from tests.helpers.model_rows import flatten, make_rows
from tests.helpers.random_models import save_random_model


def test_saved_model_that_is_not_the_trained_one_is_an_error(
    wordpiece_folder: Path, tmp_path: Path
) -> None:
    folder = save_random_model(tmp_path / "model", wordpiece_folder)
    network = BertForMaskedLM.from_pretrained(folder)
    batch = flatten(make_rows([12, 30], seed=0), with_pairs=False)
    check_written(folder, network, batch)
    with torch.no_grad():
        network.bert.encoder.layer[1].output.dense.bias[3] += 1e-6
    with pytest.raises(BertpipeError, match=r"layer\.1\.output\.dense\.bias of the saved model"):
        check_written(folder, network, batch)


def test_config_that_changes_the_outputs_is_an_error(
    wordpiece_folder: Path, tmp_path: Path
) -> None:
    folder = save_random_model(tmp_path / "model", wordpiece_folder)
    network = BertForMaskedLM.from_pretrained(folder)
    batch = flatten(make_rows([12, 30], seed=0), with_pairs=False)
    network.config.hidden_act = "relu"
    network.config.save_pretrained(folder)
    with pytest.raises(BertpipeError, match="predicts something else"):
        check_written(folder, network, batch)
