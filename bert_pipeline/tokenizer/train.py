"""`bertpipe tokenize`: a new or existing tokenizer, saved for `AutoTokenizer.from_pretrained`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bert_pipeline.errors import SourceUnreachable
from bert_pipeline.progress import human_bytes, print_line
from bert_pipeline.storage.atomic import explain_full_disk
from bert_pipeline.storage.manifest import Input, Manifest, describe_input, read_manifest
from bert_pipeline.storage.workspace import finished_inputs, workspace
from bert_pipeline.tokenizer.config import TokenizeConfig
from bert_pipeline.tokenizer.extend import extend_tokenizer, print_new_entries
from bert_pipeline.tokenizer.learn import learn_vocabulary
from bert_pipeline.tokenizer.load import (
    STAGE,
    LoadedTokenizer,
    find_tokenizer,
    load_tokenizer,
    resolve_special_ids,
)
from bert_pipeline.tokenizer.merged_words import print_merged_words
from bert_pipeline.tokenizer.quality import (
    SAMPLE_MB,
    MeasuredText,
    Quality,
    print_comparison,
    print_quality,
)
from bert_pipeline.tokenizer.sample import Sample
from bert_pipeline.tokenizer.save import save_pretrained, use_examples_layout
from bert_pipeline.tokenizer.special_tokens import SPECIALS


def train_tokenizer(config: TokenizeConfig) -> Manifest:
    """Write a Hugging Face tokenizer folder to `config.out`; returns its manifest.

    The same corpus gives the same bytes. Raises `BertpipeError` when the vocabulary is too small
    for the corpus, or the existing tokenizer is not found.
    """
    corpus = read_manifest(config.corpus, "corpus")
    # Loaded first, so that a wrong name fails before an hour of training.
    others = {name: load_tokenizer(_find(name, None, config), needed=()) for name in config.compare}
    inputs = {"corpus": describe_input(config.out, config.corpus, corpus)}
    existing = None
    if config.existing is not None:
        inputs["tokenizer"], existing = _describe_existing(config, config.existing)
    text = None
    with workspace(STAGE, config, inputs) as work:
        if work.finished:
            manifest = work.finished
            print_line(f"tokenizer: already complete in {config.out}", quiet=config.quiet)
        else:
            text = _sample_text(config, corpus)
            tokenizer, specials, counts = _make(config, corpus, text, existing)
            special_ids = resolve_special_ids(tokenizer, specials, config.out)
            before = counts.get("before", {"frequent_words": []})
            words = [word for word, _ in before["frequent_words"]]
            quality = text.measure(tokenizer, special_ids, str(config.out), words or None)
            with explain_full_disk(work.folder):
                files = save_pretrained(tokenizer, specials, work.folder)
            counts |= {"measured_on": text.to_json(), "quality": asdict(quality)}
            manifest = work.finish(counts | {"vocab_size": quality.vocab_size}, files)
            _print_summary(manifest, config, corpus)
            if config.extend is None:
                print_quality(quality, quiet=config.quiet)
            print_merged_words(tokenizer, text, config)
    if others or config.verbose or config.extend is not None:
        _compare(config, manifest, others, text or _sample_text(config, corpus))
    return manifest


def _make(
    config: TokenizeConfig,
    corpus: Manifest,
    text: MeasuredText,
    existing: tuple[Path, LoadedTokenizer] | None,
) -> tuple[Tokenizer, dict[str, str], dict[str, Any]]:
    """The tokenizer, its special tokens by role, and the manifest's counts."""
    if existing is None:
        tokenizer, counts = learn_vocabulary(config, corpus, text.paragraphs)
        return tokenizer, SPECIALS[config.specials], counts
    folder, loaded = existing
    source = {}
    if not _is_local(config.existing):
        source = {"repository": config.existing, "commit": folder.name}
    if config.extend is not None:
        tokenizer, specials, counts = extend_tokenizer(config, corpus, text, loaded)
        return tokenizer, specials, counts | {"taken": source}
    tokenizer, specials = use_examples_layout(loaded)
    return tokenizer, specials, {"taken": source}


def _compare(
    config: TokenizeConfig,
    manifest: Manifest,
    others: dict[str, LoadedTokenizer],
    text: MeasuredText,
) -> None:
    """Measure the other tokenizers on the same text and print all figures side by side."""
    quality = Quality(**manifest.counts["quality"])
    words = [word for word, _ in quality.frequent_words]
    columns = {str(config.out): quality}
    if config.extend is not None:
        columns = {config.extend: Quality(**manifest.counts["before"])} | columns
    columns |= {
        name: text.measure(other.tokenizer, other.special, name, words)
        for name, other in others.items()
    }
    print_comparison(manifest.counts["measured_on"], columns, quiet=config.quiet)
    if config.extend is not None:
        print_new_entries(manifest.counts, quiet=config.quiet)


def _describe_existing(
    config: TokenizeConfig, name: str
) -> tuple[Input, tuple[Path, LoadedTokenizer] | None]:
    """The existing tokenizer as an input of the manifest, and its folder and content."""
    try:
        folder = _find(name, config.revision, config)
        loaded = load_tokenizer(folder)
    except SourceUnreachable:
        # A finished folder can be used without the network.
        if (inputs := finished_inputs(STAGE, config)) is None:
            raise
        print_line(
            f"tokenizer: {name} does not respond, so it was not checked for changes.",
            quiet=config.quiet,
        )
        return inputs["tokenizer"], None
    described = describe_input(config.out, folder, loaded.manifest)
    if not _is_local(name):
        described = Input(name, described.fingerprint)
    return described, (folder, loaded)


def _find(name: str, revision: str | None, config: TokenizeConfig) -> Path:
    return find_tokenizer(name, revision, max_wait=config.max_wait, quiet=config.quiet)


def _is_local(name: str | None) -> bool:
    return name is not None and Path(name).expanduser().is_dir()


def _sample_text(config: TokenizeConfig, corpus: Manifest) -> MeasuredText:
    return MeasuredText(Sample(config.corpus, corpus, SAMPLE_MB, config.seed, config.quiet))


def _print_summary(manifest: Manifest, config: TokenizeConfig, corpus: Manifest) -> None:
    counts = manifest.counts
    name = config.kind
    if config.existing is not None:
        commit = counts["taken"].get("commit")
        name = config.existing + (f" at {commit[:8]}" if commit else "")
    if config.extend is not None:
        name += f" with {counts['new_entries']:,} new entries"
    print_line(
        f"tokenizer: {name}, {counts['vocab_size']:,} entries → {config.out}", quiet=config.quiet
    )
    if config.tokenizer is None and counts["bytes"] < corpus.counts["bytes"]:
        print_line(
            f"  trained on {counts['documents']:,} documents: {human_bytes(counts['bytes'])} of "
            f"{human_bytes(corpus.counts['bytes'])} (--sample-mb {counts['sample_mb']:g})",
            quiet=config.quiet,
        )
