"""`--profile`: a trace and a table of operators and kernels of a few early steps."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from bert_pipeline.storage.atomic import atomic

FOLDER = "profile"
TRACE = "trace.json"
OPERATORS = "operators.txt"
SKIPPED_STEPS = 5
WARMUP_STEPS = 2
"""Steps in which the profiler runs but does not record."""
RECORDED_STEPS = 3
FIRST = SKIPPED_STEPS + WARMUP_STEPS + 1
LAST = SKIPPED_STEPS + WARMUP_STEPS + RECORDED_STEPS
OPERATORS_SHOWN = 30
KERNELS_SHOWN = 10
GPU_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
"""Categories of what runs on a GPU, in the profiler's traces."""


class Profiler:
    """Writes `profile/trace.json` (for Perfetto, chrome://tracing) and `profile/operators.txt`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER
        self.written = False
        activities = [
            ProfilerActivity.CPU,
            *([ProfilerActivity.CUDA] if torch.cuda.is_available() else []),
        ]
        plan = schedule(
            skip_first=SKIPPED_STEPS, wait=0, warmup=WARMUP_STEPS, active=RECORDED_STEPS, repeat=1
        )
        # There is only one cycle; without `acc_events` torch 2.11 warns that others are dropped.
        self._profile = profile(
            activities=activities,
            schedule=plan,
            on_trace_ready=self._write,
            record_shapes=True,
            acc_events=True,
        )
        self._profile.start()

    def step(self) -> None:
        """Called after each step."""
        if not self.written:
            self._profile.step()

    def _write(self, finished: profile) -> None:
        if finished.step_num < LAST:  # the run ended before the last of them
            return
        self._folder.mkdir(exist_ok=True)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        table = finished.key_averages().table(
            sort_by=f"self_{device}_time_total", row_limit=OPERATORS_SHOWN
        )
        with atomic(self._folder / TRACE) as temporary:
            finished.export_chrome_trace(str(temporary))
            events = json.loads(temporary.read_bytes())["traceEvents"]
        with atomic(self._folder / OPERATORS) as temporary:
            kernels = describe_kernels(events)
            temporary.write_text(f"Steps {FIRST} to {LAST}\n{kernels}{table}\n")
        self.written = True

    def finish(self) -> str:
        """Stop, and return a line that says what was written."""
        if self.written:
            return f"profiled: steps {FIRST} to {LAST} → {self._folder}"
        self._profile.stop()
        return (
            f"nothing profiled: the run ended before step {LAST}; --profile records steps {FIRST} "
            f"to {LAST}"
        )


def describe_kernels(events: Iterable[Mapping[str, Any]]) -> str:
    """The kernels of a trace that take most of the GPU's time, one per line; empty without a GPU.

    Times of trace events are in microseconds.
    """
    work = [event for event in events if event.get("cat") in GPU_WORK]
    if not work:
        return ""
    durations: dict[str, list[float]] = defaultdict(list)
    for event in work:
        durations[event["name"]].append(event["dur"])
    busy = sum(map(sum, durations.values()))
    span = max(event["ts"] + event["dur"] for event in work) - min(event["ts"] for event in work)
    lines = [
        f"GPU: {busy / 1000:,.2f} ms of work in {span / 1000:,.2f} ms, {len(work):,} launches. "
        "Largest kernels: share of the work, ms, launches",
    ]
    largest = sorted(durations.items(), key=lambda item: -sum(item[1]))[:KERNELS_SHOWN]
    for name, times in largest:
        total = sum(times)
        lines.append(f"{total / busy:6.1%} {total / 1000:9.3f} {len(times):6,}  {name[:120]}")
    return "\n".join([*lines, ""])
