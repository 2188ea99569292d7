"""`bertpipe corpus`: converts sources to documents in parquet shards.

Three phases, each a pure function of the one before: tasks are read and cleaned into parts; with
the steps `exact` or `near`, all documents are compared and duplicates removed; parts become shards,
by renaming when no document was removed.
"""

import os
import shutil
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np

from bert_pipeline.corpus.cleaning.registry import steps_with_action
from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.dedup.duplicates import (
    DuplicateStatus,
    PartList,
    find_pairs,
    plan_comparisons,
)
from bert_pipeline.corpus.documents import Source, Task
from bert_pipeline.corpus.finalize import Finalizer, shard_path
from bert_pipeline.corpus.parts import Counts, PartsJob, Quota, read_parts
from bert_pipeline.corpus.selection import (
    EXACT_DUPLICATE,
    KEPT,
    NEAR_DUPLICATE,
    OVER_LIMIT,
    REASONS,
    WriteKeptJob,
    write_kept,
)
from bert_pipeline.corpus.source_commits import COMMITS, find_commits, resume_commits
from bert_pipeline.corpus.source_language import SourceLanguage, find_languages
from bert_pipeline.corpus.sources.load import open_sources
from bert_pipeline.corpus.stats import SAMPLES, CorpusStats
from bert_pipeline.corpus.summary import print_cleaning, print_summary
from bert_pipeline.engine.clusters import cancel_earlier_run
from bert_pipeline.engine.run import keep_processes, run_stage
from bert_pipeline.errors import BertpipeError, SourceUnreachable
from bert_pipeline.progress import bar, human_bytes, print_line
from bert_pipeline.storage.atomic import save_array, write_checked_json
from bert_pipeline.storage.manifest import Input, Manifest
from bert_pipeline.storage.workspace import (
    Working,
    finished_inputs,
    unfinished_folder,
    workspace,
)

STAGE = "corpus"
PARTS = ".parts"
"""Hidden folder of the parts."""
SKIPPED_ON_ERROR = (
    "skipped_broken_file",
    "skipped_broken_row",
    "skipped_no_text_field",
    "skipped_not_json",
    "skipped_not_text",
    "skipped_too_long",
    "skipped_unknown_language",
    "skipped_wrong_encoding",
)
"""Counts of what `--on-error skip` skips and `fail` does not allow."""


def build_corpus(config: CorpusConfig) -> Manifest:
    """Write `NNNNN.parquet` shards of documents to `config.out`; returns the manifest.

    Raises `BertpipeError` when a source is missing or broken, or no document remains.
    """
    sources = open_sources(config)
    if unfinished := unfinished_folder(config):
        resume_commits(unfinished / PARTS, sources)
    inputs = _describe_inputs(sources, config)
    with workspace(STAGE, config, inputs, Working((PARTS,), cancel_earlier_run)) as work:
        if work.finished:
            shutil.rmtree(config.out / PARTS, ignore_errors=True)
            _reject_skipped(work.finished.counts, config)
            print_line(f"corpus: already complete in {config.out}", quiet=config.quiet)
            if config.explain:
                print_cleaning(work.finished.counts, config.clean, explain=True, quiet=config.quiet)
            return work.finished
        (parts := work.folder / PARTS).mkdir(exist_ok=True)
        write_checked_json(parts / COMMITS, find_commits(sources))
        tasks = {spec: source.tasks(config) for spec, source in sources.items()}
        languages = find_languages(parts / "languages.json", tasks, config)
        jobs = _plan(parts, tasks, languages, config)
        with keep_processes():
            stats, shards = _write_shards(work.folder, jobs, config)
        counts = stats.to_json()
        if not counts["documents"]:
            shutil.rmtree(parts)  # the corrected command must not need --overwrite
            if config.explain:
                print_cleaning(counts, config.clean, explain=True, quiet=config.quiet)
            raise BertpipeError(f"{', '.join(sources)}: {_why_empty(counts, config)}")
        skipped = counts.pop("source")
        _reject_skipped(skipped, config)
        taken = {
            spec: source.describe() | languages[spec].describe() for spec, source in sources.items()
        }
        manifest = work.finish(
            counts | skipped | {"taken": taken}, [shard_path(work.folder, n) for n in range(shards)]
        )
        shutil.rmtree(config.out / PARTS, ignore_errors=True)
    print_summary(manifest, config)
    return manifest


def _describe_inputs(sources: dict[str, Source], config: CorpusConfig) -> dict[str, Input]:
    try:
        return {spec: Input(spec, source.fingerprint()) for spec, source in sources.items()}
    except SourceUnreachable:
        # A finished corpus must be usable without the network.
        if (inputs := finished_inputs(STAGE, config)) is None:
            raise
        print_line(
            f"corpus: {config.out} is complete; its sources do not respond, so it is not known "
            "whether they changed.",
            quiet=config.quiet,
        )
        return inputs


def _reject_skipped(counts: Counts, config: CorpusConfig) -> None:
    """Raise when an earlier run with `--on-error skip` skipped what `fail` does not allow."""
    skipped = [
        f"{name.replace('_', ' ')}: {counts[name]:,}"
        for name in SKIPPED_ON_ERROR
        if counts.get(name)
    ]
    if config.on_error == "fail" and skipped:
        raise BertpipeError(
            f"{config.out}: made with --on-error skip ({', '.join(skipped)}). Give --on-error skip "
            "again to accept it, or remove the folder."
        )


def _plan(
    folder: Path,
    tasks: dict[str, list[Task]],
    languages: dict[str, SourceLanguage],
    config: CorpusConfig,
) -> list[PartsJob]:
    planned = [(task, languages[spec].code) for spec, found in tasks.items() for task in found]
    if config.shuffle_buffer:
        Random(config.seed).shuffle(planned)
    quota = Quota(config.max_documents or float("inf"), config.max_bytes or float("inf"))
    return [
        PartsJob(folder, number, task, config, quota, language)
        for number, (task, language) in enumerate(planned)
    ]


def _write_shards(
    folder: Path, jobs: list[PartsJob], config: CorpusConfig
) -> tuple[CorpusStats, int]:
    """Returns the statistics and the number of shards."""
    if not jobs:
        return CorpusStats(), 0
    if set(steps_with_action("deduplicate")).isdisjoint(config.clean):
        return _read_and_finalize(folder, jobs, config)
    return _deduplicate(folder, jobs, config)


def _read_and_finalize(
    folder: Path, jobs: list[PartsJob], config: CorpusConfig
) -> tuple[CorpusStats, int]:
    """Read all tasks; the parts of a task become shards when all tasks before it are done."""
    finalizer = Finalizer(folder, jobs[0].quota)
    done = 0
    while done < len(jobs) and not finalizer.is_full and finalizer.resume(jobs[done]):
        done += 1
    if done < len(jobs) and not finalizer.is_full:
        with closing(_read(folder, jobs[done:], config)) as tasks:
            for job, parts in zip(jobs[done:], tasks, strict=False):
                finalizer.finalize(job, parts)
                if finalizer.is_full:
                    break
    return finalizer.stats, finalizer.shards


def _read(
    folder: Path, jobs: Sequence[PartsJob], config: CorpusConfig
) -> Generator[list[Counts], None, None]:
    """Read tasks; yields the counts of each task's parts, in the order of the tasks."""
    finished: dict[int, list[Counts]] = {}
    number = 0
    with bar(
        "reading", len(jobs), quiet=config.quiet, describe=lambda: _describe_written(jobs)
    ) as progress:
        for index, parts in run_stage(read_parts, jobs, config, folder):
            finished[index] = parts
            progress.advance()
            while number in finished:
                yield finished.pop(number)
                number += 1


def _describe_written(jobs: Sequence[PartsJob]) -> str:
    """The number and compressed size of the parts and shards so far, for the progress bar."""
    sizes = [
        entry.stat().st_size
        for folder in (jobs[0].folder, jobs[0].folder.parent)
        for entry in os.scandir(folder)
        if entry.name.endswith(".parquet")
    ]
    return f"{len(sizes):,} parts, {human_bytes(sum(sizes))}"


def _deduplicate(
    folder: Path, jobs: list[PartsJob], config: CorpusConfig
) -> tuple[CorpusStats, int]:
    """Read tasks, compare all documents, and write those that are kept.

    With a limit, reads twice as much whenever too few documents are kept.
    """
    limit = jobs[0].quota
    quota = limit
    while True:
        parts, has_all = _read_until(quota, folder, jobs, config)
        pairs = plan_comparisons(folder / PARTS, parts, config.clean, config.near_threshold)
        with bar("comparing", len(pairs), quiet=config.quiet) as progress:
            for _ in run_stage(find_pairs, pairs, config, folder):
                progress.advance()
        duplicates = DuplicateStatus(parts, pairs)
        if duplicates.limit(limit.documents, limit.bytes) or has_all:
            return _write_kept(folder, duplicates, config)
        quota = Quota(2 * quota.documents, 2 * quota.bytes)


def _read_until(
    quota: Quota, folder: Path, jobs: list[PartsJob], config: CorpusConfig
) -> tuple[PartList, bool]:
    """Read tasks until the quota is met; returns the parts and whether they are all there are."""
    paths: list[Path] = []
    documents: list[int] = []
    size = 0
    has_all = False
    with closing(_read(folder, [replace(job, quota=quota) for job in jobs], config)) as tasks:
        for job, counts in zip(jobs, tasks, strict=False):
            paths += [job.path(number) for number in range(len(counts))]
            documents += [part["documents"] for part in counts]
            size += sum(part["bytes"] for part in counts)
            has_all = counts[-1]["ended"] and job is jobs[-1]
            if quota.is_met(sum(documents), size):
                break
    return PartList(tuple(paths), tuple(documents)), has_all


def _write_kept(
    folder: Path, duplicates: DuplicateStatus, config: CorpusConfig
) -> tuple[CorpusStats, int]:
    """Write the kept documents to shards; returns the statistics and the number of shards."""
    path = folder / PARTS / "status.npy"
    save_array(path, duplicates.status)
    jobs = _plan_shards(folder, duplicates, path)
    counts: dict[int, Counts] = {}
    with bar("writing", len(jobs), quiet=config.quiet) as progress:
        for index, written in run_stage(write_kept, jobs, config, folder):
            counts[index] = written
            progress.advance()
    stats = CorpusStats()
    for index in range(len(jobs)):
        stats.add(counts[index])
    for status in (EXACT_DUPLICATE, NEAR_DUPLICATE):
        if line := stats.removed.get(REASONS[status]):
            line["samples"] = duplicates.samples(status, SAMPLES)
    return stats, sum(job.target is not None for job in jobs)


def _plan_shards(
    folder: Path, duplicates: DuplicateStatus, status_path: Path
) -> list[WriteKeptJob]:
    """One shard per part that has a kept document, up to the part in which the limit is reached."""
    status = duplicates.status
    starts = duplicates.parts.starts.tolist()
    is_over = status == OVER_LIMIT
    end_of_kept = int(np.argmax(is_over)) if is_over.any() else len(status) + 1
    jobs: list[WriteKeptJob] = []
    shards = 0
    for part, start, end in zip(duplicates.parts.paths, starts[:-1], starts[1:], strict=True):
        if start >= max(end_of_kept, 1):
            break
        has_kept = bool((status[start:end] == KEPT).any())
        target = shard_path(folder, shards) if has_kept else None
        jobs.append(WriteKeptJob(part, target, status_path, start))
        shards += has_kept
    return jobs


def _why_empty(counts: Counts, config: CorpusConfig) -> str:
    if line := counts["removed"].get(REASONS[OVER_LIMIT]):
        return (
            f"the first document has {line['bytes']:,} bytes or more, which exceeds "
            f"--max-bytes {config.max_bytes}."
        )
    reasons = [f"{name.replace('_', ' ')}: {n:,}" for name, n in sorted(counts["source"].items())]
    reasons += [f"{reason}: {line['documents']:,}" for reason, line in counts["removed"].items()]
    message = "no document with text was found."
    if reasons:
        message += f" Removed, skipped or replaced: {'; '.join(reasons)}."
    if counts["removed"]:
        message += " Use fewer steps with --clean, or print samples with --explain."
    elif not counts["removed"] and not counts["source"]:
        message += " Check the files and --text-field."
    return message
