"""The registry of cleaning steps: what `--clean` accepts, in the order in which the steps run.

To add a step, write its function (see `CleaningStep.function`), and add one line to
`CLEANING_STEPS` at the place where it should run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class CleaningStep:
    """One step of `--clean`."""

    name: str
    action: Literal["edit", "filter", "deduplicate"]
    """`edit` changes the text of a document, `filter` may remove a document (and may edit it),
    `deduplicate` removes documents after comparing all documents of the corpus."""
    function: str = ""
    """`MODULE:FUNCTION` in this package, imported when the step is used.

    For `edit`: a function from text to text. For `filter`: a function from a language to the
    filter, which is a function from text to the text, possibly edited, and the reason to remove the
    document or None.
    Deduplication is in `bert_pipeline.corpus.dedup`."""
    functions: Mapping[str, str] = field(default_factory=dict)
    """Functions for some languages, instead of `function`."""


CLEANING_STEPS = {
    step.name: step
    for step in (
        CleaningStep("mojibake", "edit", "mojibake:fix_mojibake"),
        CleaningStep("html", "edit", "html:strip_html"),
        CleaningStep(
            "unicode",
            "edit",
            "characters:normalize_nfc",
            dict.fromkeys(("ja", "ko", "yue", "zh"), "characters:normalize_nfkc"),
        ),
        CleaningStep("nfkc", "edit", "characters:normalize_nfkc"),
        CleaningStep("control", "edit", "characters:remove_controls"),
        CleaningStep("whitespace", "edit", "characters:normalize_whitespace"),
        CleaningStep("language", "filter", "language:make_language_filter"),
        CleaningStep("gopher-repetition", "filter", "quality:make_gopher_repetition_filter"),
        CleaningStep("gopher-quality", "filter", "quality:make_gopher_quality_filter"),
        CleaningStep("c4", "filter", "quality:make_c4_filter"),
        CleaningStep("fineweb", "filter", "quality:make_fineweb_filter"),
        CleaningStep("exact", "deduplicate"),
        CleaningStep("near", "deduplicate"),
    )
}
"""All cleaning steps by name, in the order in which they run."""

STEP_SETS: dict[str, tuple[str, ...]] = {
    "none": (),
    "basic": ("unicode", "control", "whitespace"),
    "web": tuple(name for name in CLEANING_STEPS if name not in ("nfkc", "c4", "fineweb")),
}
"""Names that `--clean` accepts for several steps."""


def steps_with_action(*actions: str) -> tuple[str, ...]:
    """The names of the steps with one of these actions, in order."""
    return tuple(name for name, step in CLEANING_STEPS.items() if step.action in actions)


def expand_step_sets(names: list[str]) -> tuple[str, ...]:
    """Step and set names, also comma-separated, as step names in the order in which they run.

    Raises `ValueError` for an unknown name.
    """
    parts = [part.strip() for name in names for part in name.split(",")]
    for part in parts:
        if part not in STEP_SETS and part not in CLEANING_STEPS:
            raise ValueError(
                f"{part} is unknown. Sets: {', '.join(STEP_SETS)}. "
                f"Steps: {', '.join(CLEANING_STEPS)}."
            )
    selected = {step for part in parts for step in STEP_SETS.get(part, (part,))}
    return tuple(name for name in CLEANING_STEPS if name in selected)
