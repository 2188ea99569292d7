"""Finds files in a Hub repository: those of a config and split, of a language, or of a glob.

Layouts of OSCAR: `fa_meta/fa_meta_part_1.jsonl.zst` (23.01),
`compressed/fa_meta/fa_meta_part_1.jsonl.gz` (22.01) and
`data/2024-22/fa_meta/fa_meta_part-….jsonl.zst` (Community OSCAR, one folder per crawl). All of them
have the language in the name of a folder or file, which is what the search looks for.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fsspec.utils import glob_translate  # type: ignore[import-untyped]
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import DatasetInfo, RepoFile, RepoFolder

from bert_pipeline.corpus.sources.hub_rows import READERS, file_format
from bert_pipeline.errors import BertpipeError
from bert_pipeline.hub.client import PERMANENT_ERRORS, explain, with_retries
from bert_pipeline.hub.credentials import hide_password, shown_endpoint
from bert_pipeline.progress import err

MAX_LISTED_NAMES = 60
"""Names in an error message."""
METADATA_FILES = frozenset({"dataset_infos.json", "dataset_dict.json", "state.json"})
_LANGUAGE = re.compile(r"(?:^|/)(?P<language>[a-z]{2,5})_meta(?=[/._-]|$)")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file in a repository."""

    path: str
    size: int
    blob: str
    """The Hub's hash of the content."""


class Repository:
    """A dataset repository at one commit, which stays the same when the branch moves."""

    def __init__(self, name: str, revision: str | None, max_wait: float, quiet: bool) -> None:
        self.name = name
        self.max_wait = max_wait
        self.quiet = quiet
        self.page = f"{shown_endpoint()}/datasets/{name}"
        self._api = HfApi()
        info = self._with_retries(lambda: self._fetch_info(revision))
        self.commit = info.sha or ""
        self.names = [sibling.rfilename for sibling in info.siblings or []]
        """Paths of its files; incomplete for a very large repository."""
        if info.gated:  # the metadata of a gated repository is public, its files are not
            self._with_retries(lambda: self._api.auth_check(name, repo_type="dataset"))

    def find_declared(self, config: str | None, split: str) -> tuple[str | None, list[HubFile]]:
        """The config's name and the files of a split, as the dataset card or file names declare.

        Raises `BertpipeError` when there is no such config or split, or a script is needed.
        """
        if f"{self.name.rpartition('/')[2]}.py" in self.names:
            raise BertpipeError(
                f"{self.page} needs a loading script, which is not supported. {self._suggest()}"
            )
        builder = self._builder(config)
        by_split = {
            str(name): list(urls) for name, urls in (builder.config.data_files or {}).items()
        }
        if split not in by_split:
            raise BertpipeError(
                f"{self.page}: no split {split}. Choose one with --split from: {_some(by_split)}."
            )
        root = f"hf://datasets/{self.name}@{self.commit}/"
        if others := [url for url in by_split[split] if not url.startswith(root)]:
            raise BertpipeError(
                f"{self.page} declares files elsewhere, such as {others[0]}. {self._suggest()}"
            )
        return builder.config.name, self._describe(
            [url.removeprefix(root) for url in by_split[split]]
        )

    def find_matching(self, glob: str) -> list[HubFile]:
        """The files that match a glob. Raises `BertpipeError` when there are none."""
        if found := self.find(glob):
            return found
        raise BertpipeError(f"{self.page}: --files {glob} matches no file. {self._suggest()}")

    def find(self, glob: str) -> list[HubFile]:
        """The files that match a glob, if any."""
        pattern = re.compile(glob_translate(glob))
        folder = re.split(r"[*?\[]", glob, maxsplit=1)[0].rpartition("/")[0]
        listed = self._list(folder, recursive=True)
        return [_to_file(e) for e in listed if isinstance(e, RepoFile) and pattern.match(e.path)]

    def find_language(self, language: str) -> list[HubFile]:
        """The files of a language, of the newest crawl when there are several.

        Raises `BertpipeError` when there are none.
        """
        seen: set[str] = set()
        crawls: dict[str, list[HubFile]] = {}
        for file, crawl in self._walk("", language, seen):
            crawls.setdefault(crawl, []).append(file)
        if not crawls:
            known = f"Languages: {_some(sorted(seen))}." if seen else self._suggest()
            raise BertpipeError(f"{self.page}: no files of language {language!r}. {known}")
        newest = max(crawls)
        if len(crawls) > 1 and not self.quiet:
            choice = f"others with --files '{min(crawls)}/{language}_meta/*'"
            err.print(
                f"{self.page}: {language} is in {len(crawls)} crawls; reading {newest}, {choice}.",
                markup=False,
            )
        return crawls[newest]

    def _walk(self, folder: str, language: str, seen: set[str]) -> Iterator[tuple[HubFile, str]]:
        # Folder by folder: a recursive listing has 100,000 files of other languages.
        for entry in self._list(folder):
            match = _LANGUAGE.search(entry.path)
            if match:
                seen.add(match["language"])
            if isinstance(entry, RepoFolder):
                if match is None or match["language"] == language:
                    yield from self._walk(entry.path, language, seen)
            elif match and match["language"] == language and file_format(entry.path):
                yield _to_file(entry), entry.path[: match.start()]

    def _list(self, folder: str, recursive: bool = False) -> list[RepoFile | RepoFolder]:
        def ask() -> list[RepoFile | RepoFolder]:
            where: dict[str, Any] = {
                "revision": self.commit,
                "repo_type": "dataset",
                "recursive": recursive,
            }
            try:
                return sorted(
                    self._api.list_repo_tree(self.name, folder or None, **where),
                    key=lambda e: e.path,
                )
            except EntryNotFoundError:
                return []

        return self._with_retries(ask)

    def _describe(self, paths: list[str]) -> list[HubFile]:
        folders = dict.fromkeys(path.rpartition("/")[0] for path in paths)
        entries = {entry.path: entry for folder in folders for entry in self._list(folder)}
        return [_to_file(entry) for path in paths if isinstance(entry := entries[path], RepoFile)]

    def _fetch_info(self, revision: str | None) -> DatasetInfo:
        try:
            return self._api.dataset_info(self.name, revision=revision)
        except RevisionNotFoundError:
            raise BertpipeError(
                f"{self.page}: no revision {revision}. {self._suggest_revision()}"
            ) from None

    def _suggest_revision(self) -> str:
        try:
            refs = self._api.list_repo_refs(self.name, repo_type="dataset")
        except (*PERMANENT_ERRORS, KeyError):  # a mirror may serve files only
            return "Give an existing branch, tag or commit hash."
        names = [ref.name for ref in [*refs.branches, *refs.tags]]
        return f"Branches and tags: {_some(names)}; or give a commit hash."

    def _builder(self, config: str | None) -> Any:
        import datasets

        def resolve() -> Any:
            # With an empty cache, because `datasets` falls back to its cache on errors of the Hub.
            with tempfile.TemporaryDirectory() as cache:
                return datasets.load_dataset_builder(
                    self.name, config, revision=self.commit, cache_dir=cache
                )

        try:
            return self._with_retries(resolve)
        except BertpipeError:
            raise
        except Exception as error:  # a dataset card can be wrong in any way
            names = self._configs() if isinstance(error, ValueError) else []
            if names and config not in names:
                problem = f"no config {config}" if config else "the dataset has several configs"
                choice = f"Choose one with --source hub:{self.name}:CONFIG from: {_some(names)}."
                raise BertpipeError(f"{self.page}: {problem}. {choice}") from None
            detail = hide_password(" ".join(str(error).split()))
            raise BertpipeError(
                f"{self.page}: the data files were not found ({detail}). {self._suggest()}"
            ) from error

    def _configs(self) -> list[str]:
        import datasets

        try:
            names: list[str] = self._with_retries(
                lambda: datasets.get_dataset_config_names(self.name, revision=self.commit)
            )
        except ValueError:
            return []
        return names

    def _with_retries(self, ask: Callable[[], T]) -> T:
        try:
            return with_retries(ask, self.max_wait, self.quiet)
        except PERMANENT_ERRORS as error:
            raise explain(error, self.name) from None

    def _suggest(self) -> str:
        """Advice on how to read the files that exist."""
        if any(_LANGUAGE.search(name) for name in self.names):
            return f"Read it by language with: --source oscar:LANG --repository {self.name}"
        data = [
            name
            for name in self.names
            if file_format(name) and name.rpartition("/")[2] not in METADATA_FILES
        ]
        if not data:
            return f"It has no files in a supported format ({', '.join(READERS)})."
        suffixes = Counter(re.sub(r"^[^.]*", "", name.rpartition("/")[2]) for name in data)
        suffix = max(suffixes, key=lambda suffix: suffixes[suffix])
        folders = {name.rpartition("/")[0] for name in data if name.endswith(suffix)}
        glob = f"{folders.pop()}/*{suffix}".lstrip("/") if len(folders) == 1 else f"**/*{suffix}"
        return f"Read its files with: --source hub:{self.name} --files '{glob}'"


def _to_file(entry: RepoFile) -> HubFile:
    return HubFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id)


def _some(names: Sequence[str] | dict[str, Any]) -> str:
    """The first names, separated by commas."""
    shown = ", ".join(list(names)[:MAX_LISTED_NAMES])
    return shown if len(names) <= MAX_LISTED_NAMES else f"{shown}, … ({len(names)} in total)"
