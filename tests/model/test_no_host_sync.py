"""A step without data: where nothing has a value, whatever would wait for one fails."""

from typing import Any

import pytest
from accelerate import Accelerator
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from transformers import BertConfig, BertForPreTraining

from bert_pipeline.model.pretraining_model import PretrainingModel
from bert_pipeline.pretraining.config import PretrainConfig
from bert_pipeline.training.checkpoint import Position
from bert_pipeline.training.distributed import Ranks
from bert_pipeline.training.optimizers import Optimizers
from bert_pipeline.training.step import Step, Trainer
from tests.helpers.model_rows import flatten, make_rows
from tests.helpers.training_runs import SHAPE


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "muon"])
@pytest.mark.parametrize(("dropout", "kernel"), [(0.0, "grid"), (0.1, "grid"), (0.0, "varlen")])
def test_no_step_reads_a_value_back(
    optimizer: str, dropout: float, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two parts, forward and backward, norm and update; with the attention of GPUs, too, as far as shapes go."""
    monkeypatch.setattr(
        "bert_pipeline.model.attention.has_varlen_kernel", lambda hidden, size: kernel == "varlen"
    )
    given: dict[str, Any] = {
        "examples": "e",
        "tokenizer": "t",
        "out": "o",
        "max_steps": 10,
        "optimizer": optimizer,
    }
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    batches = [flatten(make_rows(lengths, 0), True) for lengths in ([12, 25, 7], [30, 9])]
    with FakeTensorMode() as mode:
        model = PretrainingModel(BertForPreTraining(BertConfig(vocab_size=97, **SHAPE, **rates)))
        updates = Optimizers(model.network, PretrainConfig(**given))
        trainer = Trainer(
            Ranks.of(Accelerator(cpu=True)),
            model,
            updates,
            {"mlm_loss": 1.0, "nsp_loss": 1.0},
            seed=0,
        )
        parts = [batch._map(mode.from_tensor) for batch in batches]
        step = Step(parts, (9, 5), tokens=83, examples=5, epoch=0, flops=None, next=Position())
        taken = trainer.take(step, 3, (9.0, 5.0), None, 0.3)
        assert any(updates.state_tensors())
        with pytest.raises(DataDependentOutputException):
            taken.read()
