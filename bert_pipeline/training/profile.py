"""`--profile`: where a few early steps spend their time."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from bert_pipeline.storage.atomic import atomic

FOLDER, TRACE, OPERATORS = "profile", "trace.json", "operators.txt"
SKIPPED, WARMUP, ACTIVE = 5, 2, 3
"""Steps passed over, steps in which the profiler warms up, steps written down."""
FIRST, LAST = SKIPPED + WARMUP + 1, SKIPPED + WARMUP + ACTIVE
OPERATORS_SHOWN = 30


class Profiler:
    """Writes `profile/trace.json` (for Perfetto or chrome://tracing) and `profile/operators.txt`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER
        self.written = False
        activities = [
            ProfilerActivity.CPU,
            *([ProfilerActivity.CUDA] if torch.cuda.is_available() else []),
        ]
        plan = schedule(skip_first=SKIPPED, wait=0, warmup=WARMUP, active=ACTIVE, repeat=1)
        # There is one cycle only; without `acc_events` torch 2.11 warns that others would be forgotten.
        self._profile = profile(
            activities=activities,
            schedule=plan,
            on_trace_ready=self._write,
            record_shapes=True,
            acc_events=True,
        )
        self._profile.start()

    def tick(self) -> None:
        """A step has ended."""
        if not self.written:
            self._profile.step()

    def _write(self, finished: profile) -> None:
        if finished.step_num < LAST:  # the run ended in their midst
            return
        self._folder.mkdir(exist_ok=True)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        table = finished.key_averages().table(
            sort_by=f"self_{device}_time_total", row_limit=OPERATORS_SHOWN
        )
        with atomic(self._folder / OPERATORS) as temporary:
            temporary.write_text(f"Steps {FIRST} to {LAST}\n{table}\n")
        with atomic(self._folder / TRACE) as temporary:
            finished.export_chrome_trace(str(temporary))
        self.written = True

    def finish(self) -> str:
        """What came of it, for people; ends it where the run was shorter than what it waits for."""
        if self.written:
            return f"profiled: steps {FIRST} to {LAST} → {self._folder}"
        self._profile.stop()
        return f"nothing profiled: the run was too short for --profile, which looks at steps {FIRST} to {LAST}"
