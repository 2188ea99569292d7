"""Shared by the benchmarks: synthetic documents, and the time and memory of a `bertpipe` run."""

import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil


@dataclass(frozen=True, slots=True)
class Watched:
    """Time and peak memory (bytes, proportional set size) of a finished run."""

    seconds: float
    peak_of_all: float
    peak_of_one: float
    exit_code: int


def run_and_watch(arguments: list[str]) -> Watched:
    """Run `bertpipe` and sample the memory of all its processes five times per second."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "bert_pipeline", *arguments])
    peak_of_all = peak_of_one = 0.0
    while process.poll() is None:
        sizes = _memory(process.pid)
        peak_of_all = max(peak_of_all, sum(sizes))
        peak_of_one = max(peak_of_one, *sizes, 0.0)
        time.sleep(0.2)
    return Watched(time.perf_counter() - start, peak_of_all, peak_of_one, process.returncode)


def _memory(pid: int) -> list[float]:
    """Memory of a process and each of its children in bytes (proportional set size)."""
    try:
        parent = psutil.Process(pid)
        return [
            float(process.memory_full_info().pss)
            for process in [parent, *parent.children(recursive=True)]
        ]
    except psutil.Error:
        return []  # one has just ended


def generate_documents(folder: Path, size: float, file_size: float = 64e6) -> None:
    """Write `raw-NNNNN.jsonl`: documents of about 3 kB with the word frequencies of Python docs."""
    from pydoc_data.topics import topics

    counted = Counter(" ".join(topics.values()).split())
    words = np.array(list(counted), dtype=object)
    share = np.array(list(counted.values())) / counted.total()
    random = np.random.default_rng(0)
    recent: list[str] = []
    for number in range(max(1, round(size / file_size))):
        drawn = random.choice(words, size=int(file_size / 6), p=share)
        written = start = 0
        with (folder / f"raw-{number:05}.jsonl").open("w", encoding="utf-8") as file:
            while written < file_size:
                kind = random.random()
                if recent and kind < 0.1:
                    text = recent[random.integers(len(recent))]
                elif recent and kind < 0.2:
                    some = recent[random.integers(len(recent))].split(" ")
                    some[random.integers(len(some))] = "another"
                    text = " ".join(some)
                else:
                    length = int(random.integers(200, 800))
                    text = " ".join(drawn[start % len(drawn) : start % len(drawn) + length])
                    start += length
                    recent = [*recent[-200:], text]
                written += file.write(json.dumps({"text": text}) + "\n")
