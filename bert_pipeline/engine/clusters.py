"""Runs tasks on a cluster, yields their results as they arrive, and leaves nothing running.

This process, the driver and the nodes exchange files in a hidden folder of the artifact.
"""

import fcntl
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from bert_pipeline.config import ShardedConfig
from bert_pipeline.engine import timeouts
from bert_pipeline.engine.cluster_job import RESULTS, RUNNING, ClusterJob
from bert_pipeline.engine.ray_cluster import RayJob
from bert_pipeline.engine.slurm import SlurmJob, cancel_and_wait, missing_commands
from bert_pipeline.errors import BertpipeError
from bert_pipeline.storage.atomic import hash_json
from bert_pipeline.storage.locks import LockFile

T = TypeVar("T")

ENGINE_FOLDER = ".engine"
"""Hidden folder of an unfinished artifact, with a folder of results and logs per run."""
CLUSTER_JOBS: dict[str, type[ClusterJob]] = {"ray": RayJob, "slurm": SlurmJob}
"""Cluster engines by their `--engine` value."""


def run_on_cluster(
    function: Callable[[T], Any], tasks: Sequence[T], config: ShardedConfig, folder: Path
) -> Iterator[tuple[int, Any]]:
    """Yield `(index, function(task))` in the order in which the tasks finish.

    Results must be JSON values. Raises `BertpipeError` with the first error of a task, or when the
    job ends without the results of all tasks.
    """
    job_class = CLUSTER_JOBS[config.engine]
    job_class.check()
    cancel_earlier_run(folder)
    if not tasks:
        return
    place = folder.resolve() / ENGINE_FOLDER
    place.mkdir()
    job = job_class(Path(tempfile.mkdtemp(dir=place)), _job_name(folder), len(tasks))
    job.prepare(function, tasks, config)
    has_failed = True
    try:
        job.start()
        yield from _collect_results(job)
        job.wait()
        has_failed = False
    except GeneratorExit:  # the caller needs no more results
        has_failed = False
        raise
    finally:
        job.stop()
        if not has_failed:
            shutil.rmtree(place, ignore_errors=True)


def cancel_earlier_run(folder: Path) -> None:
    """Cancel tasks that a killed run may have left on a cluster, and remove their results.

    Raises `BertpipeError` when they do not end.
    """
    place = folder / ENGINE_FOLDER
    if place.exists() and not missing_commands():
        cancel_and_wait(_job_name(folder))
    for job in place.glob("*/"):
        _wait_for_tasks(job)
    shutil.rmtree(place, ignore_errors=True)


def _wait_for_tasks(job: Path) -> None:
    """Wait until no task of a job is running; tasks of Ray end soon after their driver."""
    shutil.rmtree(job / RESULTS, ignore_errors=True)  # without it no other task starts
    running = LockFile(job / RUNNING)
    end = time.monotonic() + timeouts.SHARED_FILES_S
    while not running.lock(fcntl.LOCK_EX | fcntl.LOCK_NB):
        if time.monotonic() >= end:
            raise BertpipeError(
                f"{job}: tasks of an earlier run are still running. Stop them on the cluster, and "
                "run the same command again."
            )
        time.sleep(timeouts.RESULTS_POLL_S)


def _collect_results(job: ClusterJob) -> Iterator[tuple[int, Any]]:
    done: set[int] = set()
    last_progress = time.monotonic()
    while True:
        # Before looking for results, so that all results written before the end are seen.
        has_ended = job.has_ended()
        fresh = sorted({int(path.stem) for path in job.results.glob("[0-9]*.json")} - done)
        for rank in fresh:
            yield rank, _read_result(job.results / f"{rank:05}.json")
        done.update(fresh)
        if len(done) == job.count:
            return
        if fresh or not has_ended:
            last_progress = time.monotonic()
        elif time.monotonic() - last_progress >= timeouts.SHARED_FILES_S:
            missing = sorted(set(range(job.count)) - done)
            raise BertpipeError(_explain_missing_results(job, missing))
        time.sleep(timeouts.RESULTS_POLL_S)


def _read_result(path: Path) -> Any:
    outcome = json.loads(path.read_text(encoding="utf-8"))
    if "error" not in outcome:
        return outcome["result"]
    traceback = "" if outcome["expected"] else f"\nTraceback: {path}"
    error = BertpipeError(outcome["error"] + traceback)
    error.exit_code = outcome["exit_code"]
    raise error


def _explain_missing_results(job: ClusterJob, missing: list[int]) -> str:
    return (
        f"{job.cluster} ended without the results of {len(missing)} of {job.count} task(s); the "
        f"first is task {missing[0]}. Usual causes: tasks ran out of memory or time, were "
        f"cancelled, or ran on a node that does not share {job.folder.parent.parent}. "
        f"Logs: {job.folder}. Rerun the same command to resume; finished shards are kept."
    )


def _job_name(folder: Path) -> str:
    # All jobs for a folder have the same name, known before the first job, so that none is lost.
    return f"bertpipe-{hash_json(str(folder.resolve()))[:16]}"
