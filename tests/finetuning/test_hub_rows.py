"""Rows of a dataset of the Hub, from a local one over HTTP."""

import json
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.local_hub import LocalHub
from tests.helpers.task_models import make_model, sentences

CARD = """---
configs:
- config_name: tiny
  data_files:
  - {split: train, path: tiny/train.parquet}
  - {split: validation, path: tiny/validation.parquet}
dataset_info:
- config_name: tiny
  features:
  - {name: sentence, dtype: string}
  - name: label
    dtype: {class_label: {names: {'0': bad, '1': good}}}
  splits:
  - {name: train, num_bytes: 1, num_examples: 40}
  - {name: validation, num_bytes: 1, num_examples: 12}
---
"""


def as_parquet(count: int, seed: int) -> bytes:
    rows = [
        {"sentence": text, "label": int(label == "good")} for text, label in sentences(count, seed)
    ]
    file = BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


@pytest.mark.integration
def test_splits_and_names_of_classes_of_a_dataset_are_used(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    files = {
        "README.md": CARD,
        "tiny/train.parquet": as_parquet(40, 0),
        "tiny/validation.parquet": as_parquet(12, 1),
    }
    with LocalHub(tmp_path / "hub") as server:
        server.add("someone/reviews", files)
        environment = os.environ | {
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
        }
        command = [
            *(sys.executable, "-m", "bert_pipeline", "finetune", str(model)),
            *("--train", "hub:someone/reviews:tiny", "--out", str(tmp_path / "run")),
            *("--max-steps", "2", "--threads", "1", "--precision", "fp32"),
        ]
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        missing = [part.replace("reviews", "nothing") for part in command]
        refused = subprocess.run(
            missing, env=environment, capture_output=True, text=True, check=False
        )
    assert "40 training, 12 validation examples; bad:" in result.stdout
    config = json.loads((tmp_path / "run/model/config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"}
    assert refused.returncode == 1
    assert "hub:someone/nothing:tiny" in refused.stderr.splitlines()[-1]
