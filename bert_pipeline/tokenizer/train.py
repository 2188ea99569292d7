"""`bertpipe tokenize`: a new tokenizer or an existing one, saved as `AutoTokenizer.from_pretrained` loads it."""

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
from bert_pipeline.tokenizer.learn import learn_vocabulary
from bert_pipeline.tokenizer.load import (
    STAGE,
    LoadedTokenizer,
    find_special_ids,
    find_tokenizer,
    load_tokenizer,
)
from bert_pipeline.tokenizer.quality import SAMPLE_MB, MeasuredText, Quality, print_qualities
from bert_pipeline.tokenizer.sample import Sample
from bert_pipeline.tokenizer.save import lay_out_as_examples, save_pretrained
from bert_pipeline.tokenizer.special_tokens import SPECIALS


def train_tokenizer(config: TokenizeConfig) -> Manifest:
    """Write a Hugging Face tokenizer folder to `config.out`; the same corpus gives the same bytes.

    Raises `BertpipeError` when the corpus cannot fill the vocabulary, or there is no such tokenizer to take.
    """
    corpus = read_manifest(config.corpus, "corpus")
    # A wrong name is told now, not after an hour of training.
    others = {name: load_tokenizer(_find(name, None, config), needed=()) for name in config.compare}
    inputs = {"corpus": describe_input(config.out, config.corpus, corpus)}
    existing = None
    if config.tokenizer is not None:
        inputs["tokenizer"], existing = _describe_existing(config, config.tokenizer)
    text = None
    with workspace(STAGE, config, inputs) as work:
        if work.finished:
            manifest = work.finished
            print_line(f"tokenizer: already complete in {config.out}", quiet=config.quiet)
        else:
            text = _draw_text(config, corpus)
            if existing:
                tokenizer, specials, counts = _take(config, *existing)
            else:
                tokenizer, counts = learn_vocabulary(config, corpus, text.paragraphs)
                specials = SPECIALS[config.specials]
            quality = text.measure(
                tokenizer, find_special_ids(tokenizer, specials, config.out), str(config.out)
            )
            with explain_full_disk(work.folder):
                files = save_pretrained(tokenizer, specials, work.folder)
            counts |= {"measured_on": text.to_json(), "quality": asdict(quality)}
            manifest = work.finish(counts | {"vocab_size": quality.vocab_size}, files)
            _summarise(manifest, config, corpus)
    columns = {str(config.out): Quality(**manifest.counts["quality"])}
    if others:
        text = text or _draw_text(config, corpus)
        words = [word for word, _ in columns[str(config.out)].long_words]
        columns |= {
            name: text.measure(o.tokenizer, o.special, name, words) for name, o in others.items()
        }
    print_qualities(manifest.counts["measured_on"], columns, quiet=config.quiet)
    return manifest


def _take(
    config: TokenizeConfig, folder: Path, loaded: LoadedTokenizer
) -> tuple[Tokenizer, dict[str, str], dict[str, Any]]:
    """An existing tokenizer, its special tokens, and where it is from."""
    taken = (
        {}
        if _is_here(config.tokenizer)
        else {"repository": config.tokenizer, "commit": folder.name}
    )
    return *lay_out_as_examples(loaded), {"taken": taken}


def _describe_existing(
    config: TokenizeConfig, name: str
) -> tuple[Input, tuple[Path, LoadedTokenizer] | None]:
    """The tokenizer that is taken, for the manifest and in memory."""
    try:
        folder = _find(name, config.revision, config)
        loaded = load_tokenizer(folder)
    except SourceUnreachable:
        # Whoever has the tokenizer already should not need the network to go on with it.
        if (inputs := finished_inputs(STAGE, config)) is None:
            raise
        print_line(
            f"tokenizer: {name} gives no answer, so whether it changed is not known.",
            quiet=config.quiet,
        )
        return inputs["tokenizer"], None
    here = describe_input(config.out, folder, loaded.manifest)
    return here if _is_here(name) else Input(name, here.fingerprint), (folder, loaded)


def _find(name: str, revision: str | None, config: TokenizeConfig) -> Path:
    return find_tokenizer(name, revision, max_wait=config.max_wait, quiet=config.quiet)


def _is_here(name: str | None) -> bool:
    return name is not None and Path(name).expanduser().is_dir()


def _draw_text(config: TokenizeConfig, corpus: Manifest) -> MeasuredText:
    return MeasuredText(Sample(config.corpus, corpus, SAMPLE_MB, config.seed, config.quiet))


def _summarise(manifest: Manifest, config: TokenizeConfig, corpus: Manifest) -> None:
    counts = manifest.counts
    if config.tokenizer is not None:
        commit = counts["taken"].get("commit")
        made = config.tokenizer + (f" at {commit[:8]}" if commit else "")
        print_line(
            f"tokenizer: {made}, {counts['vocab_size']:,} entries → {config.out}",
            quiet=config.quiet,
        )
        return
    drawn = f"{human_bytes(counts['bytes'])} of {human_bytes(corpus.counts['bytes'])}"
    if counts["bytes"] < corpus.counts["bytes"]:
        drawn += f", {counts['share_of_corpus']:.1%}: --sample-mb {counts['sample_mb']:g}"
    print_line(
        f"tokenizer: {config.kind}, {counts['vocab_size']:,} entries, learnt from {counts['documents']:,} documents "
        f"({drawn}) → {config.out}",
        quiet=config.quiet,
    )
