"""The next steps, prepared on a thread while the current one runs."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from bert_pipeline.training.checkpoint import Position
from bert_pipeline.training.schedule import Length
from bert_pipeline.training.step import Step

STEPS_AHEAD = 2


class StepsAhead:
    """Steps in order from a position on."""

    def __init__(
        self, make_step: Callable[[Position, float], Step], length: Length, start: Position
    ) -> None:
        self._make_step, self._length, self._position = make_step, length, start
        # Torch would start a whole team of threads for this one too, and the step's own team would wait for cores.
        self._pool = ThreadPoolExecutor(
            1, "bertpipe-steps", initializer=torch.set_num_threads, initargs=(1,)
        )
        self._pending: deque[Future[Step]] = deque()
        self.prepare(start.elapsed_s)

    def __enter__(self) -> "StepsAhead":
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def next(self) -> Step:
        """The next step, as soon as it is ready."""
        return self._pending.popleft().result()

    def prepare(self, elapsed: float) -> None:
        """Begin with those that are wanted next; `elapsed` is the time that all ranks agree on."""
        while len(self._pending) < STEPS_AHEAD:
            self._pending.append(self._pool.submit(self._make, elapsed))

    def _make(self, elapsed: float) -> Step:
        # By steps or tokens this is the exact share; by the clock it is some steps old, on all ranks alike.
        position = self._position
        progress = self._length.progress(position.step, position.tokens, elapsed)
        step = self._make_step(position, progress)
        self._position = step.next
        return step
