"""What `bertpipe corpus` prints when it is done."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from bert_pipeline.corpus.cleaning.registry import steps_with_action
from bert_pipeline.corpus.config import CorpusConfig
from bert_pipeline.corpus.languages import UNDETERMINED
from bert_pipeline.corpus.stats import most_first
from bert_pipeline.progress import human_bytes, print_line, print_table
from bert_pipeline.storage.manifest import Manifest

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def print_summary(manifest: Manifest, config: CorpusConfig) -> None:
    """Documents, bytes and folder; the cleaning table when documents were removed or skipped."""
    counts = manifest.counts
    documents = counts["documents"]
    shards = len(manifest.files)
    print_line(
        f"corpus: {documents:,} document{'s' * (documents != 1)}, {human_bytes(counts['bytes'])} "
        f"of text in {shards} shard{'s' * (shards != 1)} → {config.out}",
        quiet=config.quiet,
    )
    _print_languages(counts, quiet=config.quiet)
    skipped = [
        f"{name.replace('_', ' ')}: {counts[name]:,}"
        for name in sorted(counts)
        if name.startswith("skipped") or name == "invalid_bytes_replaced"
    ]
    if skipped:
        print_line("  " + "; ".join(skipped), quiet=config.quiet)
    if config.clean and (config.verbose or config.explain or counts["removed"] or skipped):
        print_cleaning(counts, config.clean, explain=config.explain, quiet=config.quiet)
    elif config.clean:
        steps = ", ".join(config.clean)
        print_line(f"  cleaning ({steps}): no documents removed", quiet=config.quiet)
    if config.verbose:
        _print_packages(counts["taken"], quiet=config.quiet)


def _print_languages(counts: dict[str, Any], *, quiet: bool) -> None:
    """The languages that were guessed, and how many documents each of several has."""
    for spec, source in counts["taken"].items():
        if code := source.get("guessed_language"):
            how = "too little text to guess it" if code == UNDETERMINED else "guessed"
            of_source = f" of {spec}" if len(counts["taken"]) > 1 else ""
            line = f"  language{of_source}: {code} ({how}; set --language to change it)"
            print_line(line, quiet=quiet)
    languages = most_first(counts.get("languages", {}))
    if len(languages) > 1:
        shown = [f"{code} {documents:,}" for code, documents in languages.items()]
        print_line(f"  documents by language: {', '.join(shown)}", quiet=quiet)


def _print_packages(taken: dict[str, Any], *, quiet: bool) -> None:
    for source in taken.values():
        if packages := source.get("packages"):
            rows = [
                [name, p["version"], f"{p['documents']:,}", human_bytes(p["bytes"])]
                for name, p in packages.items()
            ]
            print_table("Packages", ["package", "version", "documents", "text"], rows, quiet=quiet)


def print_cleaning(
    counts: dict[str, Any], steps: Sequence[str], *, explain: bool, quiet: bool
) -> None:
    """A table of the documents read, changed, removed and written; `explain` adds samples."""
    read = counts["read"]
    changed = counts["changed"]
    removed = counts["removed"]
    rows = [["read", f"{read['documents']:,}", human_bytes(read["bytes"])]]
    editing_steps = steps_with_action("edit")
    for name, line in _in_order(changed, removed, steps):
        documents = f"{line['documents']:,}"
        if name in changed or (name in editing_steps and name not in removed):
            rows.append([f"changed by {name}", documents, ""])
        else:
            rows.append([f"removed: {name}", documents, human_bytes(line["bytes"])])
    rows.append(["written", f"{counts['documents']:,}", human_bytes(counts["bytes"])])
    print_table("Cleaning", ["", "documents", "text"], rows, quiet=quiet)
    for name, line in _in_order(changed, removed, steps) if explain else ():
        for sample in line["samples"]:
            print_line(_describe(name, sample, name in removed), quiet=quiet)


def _in_order(
    changed: dict[str, Any], removed: dict[str, Any], steps: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of the table in the order of the steps; a step without effect has a row of zeros."""
    left = dict(changed) | dict(removed)
    for step in [*(name for name in changed if name not in steps), *steps]:
        names = [
            name
            for name in left
            if name == step or name.startswith((f"{step}:", f"{step} duplicate"))
        ]
        for name in names:
            yield name, left.pop(name)
        if not names:
            yield step, {"documents": 0, "bytes": 0, "samples": []}
    yield from left.items()


def _describe(name: str, sample: str | list[str], is_removed: bool) -> str:
    # Control characters in a document must not reach the terminal.
    shown = [
        _CONTROL.sub("·", text.replace("\n", " ⏎ "))
        for text in ([sample] if isinstance(sample, str) else sample)
    ]
    if len(shown) == 1:
        return f"removed: {name}\n  {shown[0]}"
    first, second = shown
    if is_removed:
        return f"removed: {name}\n  {first}\n  duplicates  {second}"
    return f"changed by {name}\n  before  {first}\n  after   {second}"
