"""SIGINT and SIGTERM as a request that the training loop answers between two steps."""

import signal
from types import FrameType

from bert_pipeline.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """Within the block, records the first signal instead of ending the process.

    `number` is 0 until then. A second Ctrl-C ends the process at once.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopSignal":
        self._before = {number: signal.signal(number, self._record) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self.number == signal.SIGINT == number:
            raise Stopped("Stopped at once; steps since the last checkpoint are lost.", number)
        self.number = self.number or number
