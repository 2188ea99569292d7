"""`bertpipe corpus`: sources become documents in parquet shards.

Three phases, each a pure function of what came before: tasks are read and cleaned into parts; where asked for, parts
are compared for duplicates; parts become shards, which is a renaming where nothing was left out.
"""

import os
import shutil
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np

from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.dedup.duplicates import (
    BEYOND,
    BEYOND_LIMIT,
    EXACT,
    KEPT,
    NEAR,
    REASONS,
    KeepJob,
    Parts,
    Verdicts,
    find_pairs,
    plan_pairs,
    write_kept,
)
from bert_pipeline.corpus.documents import Source
from bert_pipeline.corpus.finalize import Finalizer, shard_path
from bert_pipeline.corpus.parts import WHOLE_CORPUS_STEPS, Counts, PartsJob, Quota, read_parts
from bert_pipeline.corpus.sources.registry import parse_sources
from bert_pipeline.corpus.stats import SAMPLES, CorpusStats, print_stats
from bert_pipeline.engine.run import keep_processes, run_stage
from bert_pipeline.errors import BertpipeError, SourceUnreachable
from bert_pipeline.progress import bar, human_bytes, print_line, print_table
from bert_pipeline.storage.atomic import save_array
from bert_pipeline.storage.manifest import Input, Manifest
from bert_pipeline.storage.workspace import Workspace, finished_inputs, workspace

STAGE = "corpus"
PARTS = ".parts"
SKIPPED_BY_POLICY = ("skipped_broken_file", "skipped_not_json", "skipped_no_text_field")


def build_corpus(config: CorpusConfig) -> Manifest:
    """Write `NNNNN.parquet` shards of documents to `config.out`.

    Raises `BertpipeError` when a source is missing or broken, or holds no text at all.
    """
    sources = parse_sources(config)
    inputs = _describe_inputs(sources, config)
    with workspace(STAGE, config, inputs) as work:
        if work.finished:
            shutil.rmtree(config.out / PARTS, ignore_errors=True)
            _refuse_skipped(work.finished.counts, config)
            print_line(f"corpus: already complete in {config.out}", quiet=config.quiet)
            if config.explain:
                print_stats(work.finished.counts, config.clean, explain=True, quiet=config.quiet)
            return work.finished
        jobs = _plan(work, sources, config)
        write = _deduplicate if _compares(config) else _publish
        with keep_processes():
            tally, shards = write(work.folder, jobs, config) if jobs else (CorpusStats(), 0)
        counts = tally.to_json()
        if not counts["documents"]:
            if config.explain:
                print_stats(counts, config.clean, explain=True, quiet=config.quiet)
            raise BertpipeError(f"{', '.join(sources)}: {_why_empty(counts, config)}")
        skipped = counts.pop("source")
        _refuse_skipped(skipped, config)
        taken = {spec: source.describe() for spec, source in sources.items()}
        manifest = work.finish(
            counts | skipped | {"taken": taken}, [shard_path(work.folder, n) for n in range(shards)]
        )
        shutil.rmtree(config.out / PARTS, ignore_errors=True)
    _summarise(manifest, config)
    return manifest


def _describe_inputs(sources: dict[str, Source], config: CorpusConfig) -> dict[str, Input]:
    try:
        return {spec: Input(spec, source.fingerprint()) for spec, source in sources.items()}
    except SourceUnreachable:
        # Whoever has the corpus already should not need the network to go on with it.
        if (inputs := finished_inputs(STAGE, config)) is None:
            raise
        print_line(
            f"corpus: {config.out} is complete; its sources give no answer, so whether they changed is not known.",
            quiet=config.quiet,
        )
        return inputs


def _refuse_skipped(counts: Counts, config: CorpusConfig) -> None:
    """Raise when an earlier run by `--on-error skip` left out what `fail` does not allow."""
    left_out = [
        f"{counts[name]:,} × {name.replace('_', ' ')}"
        for name in SKIPPED_BY_POLICY
        if counts.get(name)
    ]
    if config.on_error == "fail" and left_out:
        raise BertpipeError(
            f"{config.out}: read by --on-error skip, which left out: {', '.join(left_out)}. Give --on-error skip again "
            "to take it as it is, or remove the folder."
        )


def _plan(work: Workspace, sources: dict[str, Source], config: CorpusConfig) -> list[PartsJob]:
    folder = work.folder / PARTS
    folder.mkdir(exist_ok=True)
    tasks = [task for source in sources.values() for task in source.tasks(config)]
    if config.shuffle_buffer:
        Random(config.seed).shuffle(tasks)
    quota = Quota(config.max_documents or float("inf"), config.max_bytes or float("inf"))
    return [PartsJob(folder, number, task, config, quota) for number, task in enumerate(tasks)]


def _compares(config: CorpusConfig) -> bool:
    return not set(WHOLE_CORPUS_STEPS).isdisjoint(config.clean)


def _publish(folder: Path, jobs: list[PartsJob], config: CorpusConfig) -> tuple[CorpusStats, int]:
    """Read all tasks, and give parts their names as soon as those of earlier tasks have theirs."""
    publisher = Finalizer(folder, jobs[0].quota)
    done = 0
    while done < len(jobs) and not publisher.is_full and publisher.resume(jobs[done]):
        done += 1
    if done < len(jobs) and not publisher.is_full:
        with closing(_read(folder, jobs[done:], config)) as tasks:
            for job, parts in zip(jobs[done:], tasks, strict=False):
                publisher.publish(job, parts)
                if publisher.is_full:
                    break
    return publisher.tally, publisher.shards


def _read(
    folder: Path, jobs: Sequence[PartsJob], config: CorpusConfig
) -> Generator[list[Counts], None, None]:
    """Read tasks; yield the counts of their parts in the order of the tasks, for as long as more is wanted."""
    finished: dict[int, list[Counts]] = {}
    number = 0
    with bar("reading", len(jobs), quiet=config.quiet, describe=lambda: _written(jobs)) as progress:
        for index, parts in run_stage(read_parts, jobs, config, folder):
            finished[index] = parts
            progress.advance()
            while number in finished:
                yield finished.pop(number)
                number += 1


def _written(jobs: Sequence[PartsJob]) -> str:
    """What lies in the parts and shards so far, compressed."""
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
    """Read as many tasks as it takes, compare all documents, write those that stay."""
    limit = wanted = jobs[0].quota
    while True:
        paths: list[Path] = []
        documents: list[int] = []
        total, size, has_all = 0, 0, False
        with closing(_read(folder, [replace(job, quota=wanted) for job in jobs], config)) as tasks:
            for job, counts in zip(jobs, tasks, strict=False):
                paths += [job.path(number) for number in range(len(counts))]
                documents += [part["documents"] for part in counts]
                total += sum(part["documents"] for part in counts)
                size += sum(part["bytes"] for part in counts)
                has_all = counts[-1]["ended"] and job is jobs[-1]
                if wanted.is_met(total, size):
                    break
        parts = Parts(tuple(paths), tuple(documents))
        pairs = plan_pairs(folder / PARTS, parts, config.clean, config.near_threshold)
        with bar("comparing", len(pairs), quiet=config.quiet) as progress:
            for _ in run_stage(find_pairs, pairs, config, folder):
                progress.advance()
        verdicts = Verdicts(parts, pairs)
        is_enough = verdicts.limit(limit.documents, limit.bytes)
        if is_enough or has_all:
            break
        wanted = Quota(2 * wanted.documents, 2 * wanted.bytes)
    return _write_kept(folder, verdicts, config)


def _write_kept(folder: Path, verdicts: Verdicts, config: CorpusConfig) -> tuple[CorpusStats, int]:
    fates = folder / PARTS / "fates.npy"
    save_array(fates, verdicts.fates)
    jobs: list[KeepJob] = []
    shards = 0
    fate, starts = verdicts.fates, verdicts.parts.starts
    reached = int(np.argmax(fate == BEYOND)) if (fate == BEYOND).any() else len(fate) + 1
    for path, start, end in zip(
        verdicts.parts.paths, starts[:-1].tolist(), starts[1:].tolist(), strict=True
    ):
        if start >= max(reached, 1):
            break
        keeps = bool((fate[start:end] == KEPT).any())
        jobs.append(KeepJob(path, shard_path(folder, shards) if keeps else None, fates, start))
        shards += keeps
    tally = CorpusStats()
    counts: dict[int, Counts] = {}
    with bar("writing", len(jobs), quiet=config.quiet) as progress:
        for index, written in run_stage(write_kept, jobs, config, folder):
            counts[index] = written
            progress.advance()
    for index in range(len(jobs)):
        tally.add(counts[index])
    for reason in (EXACT, NEAR):
        if line := tally.removed.get(REASONS[reason]):
            line["samples"] = verdicts.samples(reason, SAMPLES)
    return tally, shards


def _why_empty(counts: Counts, config: CorpusConfig) -> str:
    if BEYOND_LIMIT in counts["removed"]:
        size = counts["removed"][BEYOND_LIMIT]["bytes"]
        return f"the first document is of {size:,} bytes or more, for which --max-bytes {config.max_bytes} has no room."
    reasons = [
        f"{name.replace('_', ' ')}: {count:,}" for name, count in sorted(counts["source"].items())
    ]
    reasons += [f"{reason}: {line['documents']:,}" for reason, line in counts["removed"].items()]
    left_out = f" Left out: {'; '.join(reasons)}." if reasons else ""
    hint = (
        " Choose fewer steps with --clean, or look at samples with --explain (with --overwrite)."
        if counts["removed"]
        else ""
    )
    return f"no document with any text was found.{left_out}{hint}"


def _summarise(manifest: Manifest, config: CorpusConfig) -> None:
    counts, quiet = manifest.counts, config.quiet
    print_line(
        f"corpus: {counts['documents']:,} documents, {human_bytes(counts['bytes'])} of text "
        f"in {len(manifest.files)} shard{'s' * (len(manifest.files) != 1)} → {config.out}",
        quiet=quiet,
    )
    skipped = [
        name
        for name in sorted(counts)
        if name.startswith("skipped") or name == "invalid_bytes_replaced"
    ]
    if skipped:
        print_line(
            "  " + "; ".join(f"{name.replace('_', ' ')}: {counts[name]:,}" for name in skipped),
            quiet=quiet,
        )
    if config.clean:
        print_stats(counts, config.clean, explain=config.explain, quiet=quiet)
    for taken in counts["taken"].values():
        if packages := taken.get("packages"):
            rows = [
                [name, p["version"], f"{p['documents']:,}", human_bytes(p["bytes"])]
                for name, p in packages.items()
            ]
            print_table("Read from", ["package", "version", "documents", "text"], rows, quiet=quiet)
