"""An entry for processes that `training.launch` starts."""

import os
import sys

from bert_pipeline.training.config import TrainConfig


def record_fork_server(config: TrainConfig) -> None:
    """Write whether the fork server of this process has loaded `training.server`."""
    is_loaded = "bert_pipeline.training.server" in sys.modules
    (config.out / os.environ["RANK"]).write_text(str(is_loaded))
