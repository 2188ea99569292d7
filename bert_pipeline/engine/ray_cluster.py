"""`--engine ray`: tasks on a Ray cluster."""

import importlib.util
import os
from typing import Any

from bert_pipeline.config import ShardedConfig
from bert_pipeline.engine.cluster_job import ClusterJob
from bert_pipeline.errors import UsageError


class RayJob(ClusterJob):
    """Tasks on Ray, which end with the driver."""

    cluster = "Ray"

    @staticmethod
    def check() -> None:
        """Raise `UsageError` when Ray is not installed, or would log a password."""
        if importlib.util.find_spec("ray") is None:
            raise UsageError(
                "--engine ray needs Ray, here and on every node: pip install 'bertpipe[ray]'"
            )
        if "@" in os.environ.get("HF_ENDPOINT", ""):
            raise UsageError(
                "--engine ray: HF_ENDPOINT has a user name or password, which Ray would write to "
                "its logs. Remove it from HF_ENDPOINT, and use HF_TOKEN."
            )

    def make_executor(self, function: Any, config: ShardedConfig) -> Any:
        """The executor that submits tasks to Ray."""
        from bert_pipeline.engine.executors import RayExecutor

        return RayExecutor(function, config.workers, self.folder, config.read_engine_options())
