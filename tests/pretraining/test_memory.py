"""A run that needs more memory than there is fails before its first step."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

LIMIT = 8_000_000_000


@pytest.mark.integration
def test_longer_examples_that_do_not_fit_are_found_before_the_first_step(
    make_examples: Callable[..., Path], wordpiece_folder: Path, tmp_path: Path
) -> None:
    """They would begin at 90% of the run. Their hidden states alone take over 10 GB."""
    model = {
        "num_hidden_layers": 1,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 8192,
        "max_position_embeddings": 100,
    }
    (tmp_path / "model.json").write_text(json.dumps(model))
    command = [
        *(sys.executable, "-m", "bert_pipeline", "pretrain", "--max-steps", "100"),
        *("--examples", make_examples("examples"), "--tokenizer", wordpiece_folder),
        *("--long-examples", make_examples("longer-96", max_seq_length=96)),
        *("--model", tmp_path / "model.json", "--out", tmp_path / "out"),
        *("--batch-size", "4", "--long-batch-size", "8192", "--threads", "1"),
    ]
    done = subprocess.run(
        list(map(str, command)),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "This machine ran out of memory. Run the same command with --accumulate 2" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "metrics.jsonl").read_text()
