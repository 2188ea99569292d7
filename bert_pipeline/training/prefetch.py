"""The next steps' batches, prepared on a thread while the current step runs."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from bert_pipeline.training.position import Position
from bert_pipeline.training.schedule import RunLength
from bert_pipeline.training.task import StepInputs, TrainingTask

PREFETCHED_STEPS = 2


class StepPrefetcher:
    """The inputs of consecutive steps from a position on."""

    def __init__(self, task: TrainingTask, length: RunLength, start: Position) -> None:
        self._task = task
        self._length = length
        self._position = start
        # Torch would start a team of threads for this one too, which would compete with the step's.
        self._pool = ThreadPoolExecutor(
            1, "bertpipe-batches", initializer=torch.set_num_threads, initargs=(1,)
        )
        self._pending: deque[Future[StepInputs]] = deque()
        self.prepare(start.elapsed_s)

    def __enter__(self) -> "StepPrefetcher":
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def next(self) -> StepInputs:
        """The next step's inputs, as soon as they are ready."""
        return self._pending.popleft().result()

    def prepare(self, elapsed_s: float) -> None:
        """Start to prepare the steps after; `elapsed_s` is the time that all ranks agree on."""
        while len(self._pending) < PREFETCHED_STEPS:
            self._pending.append(self._pool.submit(self._make, elapsed_s))

    def _make(self, elapsed_s: float) -> StepInputs:
        # By steps, tokens or epochs this is the exact share; by time it is some steps old, but
        # equal on all ranks.
        progress = self._length.progress(self._position, elapsed_s)
        inputs = self._task.make_step(self._position, progress)
        self._position = inputs.advance(self._position)
        return inputs
