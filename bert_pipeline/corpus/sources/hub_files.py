"""Which files of a hub repository are read: those of a config and split, of a language, or of a glob.

Layouts of OSCAR: `fa_meta/fa_meta_part_1.jsonl.zst` (23.01), `compressed/fa_meta/fa_meta_part_1.jsonl.gz` (22.01) and
`data/2024-22/fa_meta/fa_meta_part-….jsonl.zst` (Community OSCAR, a folder a crawl). All of them name the language in a
folder or file, and that is what is looked for.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fsspec.utils import glob_translate  # type: ignore[import-untyped]
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import DatasetInfo, RepoFile, RepoFolder

from bert_pipeline.corpus.sources.hub_rows import file_format
from bert_pipeline.errors import BertpipeError
from bert_pipeline.hub.client import REFUSALS, explain, with_retries
from bert_pipeline.progress import err

SHOWN = 60
NO_DATA = frozenset({"dataset_infos.json", "dataset_dict.json", "state.json"})
_LANGUAGE = re.compile(r"(?:^|/)(?P<language>[a-z]{2,5})_meta(?=[/._-]|$)")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file, and the hash by which the hub knows its content."""

    path: str
    size: int
    blob: str


class Repository:
    """A data set's repository at one commit; a branch that moves on the hub moves nothing here."""

    def __init__(self, name: str, revision: str | None, max_wait: float, quiet: bool) -> None:
        self.name, self.max_wait, self.quiet = name, max_wait, quiet
        self.page = f"{constants.ENDPOINT}/datasets/{name}"
        self._api = HfApi()
        info = self._ask(lambda: self._find(revision))
        self.commit = info.sha or ""
        self.names = [sibling.rfilename for sibling in info.siblings or []]
        """Its files; of a very large repository, some of them."""
        if info.gated:  # what it is may be known to everybody, what it holds may not
            self._ask(lambda: self._api.auth_check(name, repo_type="dataset"))

    def declared(self, config: str | None, split: str) -> tuple[str | None, list[HubFile]]:
        """The config's name, and the files of its split, as the repository's card or its file names declare them."""
        if f"{self.name.rpartition('/')[2]}.py" in self.names:
            raise BertpipeError(
                f"{self.page} is read by a script, and scripts are no longer run. {self._suggest()}"
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

    def matching(self, glob: str) -> list[HubFile]:
        """The files that match a glob."""
        if found := self.find(glob):
            return found
        raise BertpipeError(f"{self.page}: --files {glob} matches no file. {self._suggest()}")

    def find(self, glob: str) -> list[HubFile]:
        """The files that match a glob, if any."""
        pattern = re.compile(glob_translate(glob))
        folder = re.split(r"[*?\[]", glob, maxsplit=1)[0].rpartition("/")[0]
        listed = self._list(folder, recursive=True)
        return [_to_file(e) for e in listed if isinstance(e, RepoFile) and pattern.match(e.path)]

    def of_language(self, language: str) -> list[HubFile]:
        """The files of a language; of the newest crawl, where there are several."""
        seen: set[str] = set()
        crawls: dict[str, list[HubFile]] = {}
        for file, crawl in self._walk("", language, seen):
            crawls.setdefault(crawl, []).append(file)
        if not crawls:
            known = f"There are: {_some(sorted(seen))}." if seen else self._suggest()
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
        # Folder by folder: a listing of everything would be a hundred thousand files of other languages.
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

        return self._ask(ask)

    def _describe(self, paths: list[str]) -> list[HubFile]:
        folders = dict.fromkeys(path.rpartition("/")[0] for path in paths)
        entries = {entry.path: entry for folder in folders for entry in self._list(folder)}
        return [_to_file(entry) for path in paths if isinstance(entry := entries[path], RepoFile)]

    def _find(self, revision: str | None) -> DatasetInfo:
        try:
            return self._api.dataset_info(self.name, revision=revision)
        except RevisionNotFoundError:
            raise BertpipeError(
                f"{self.page}: no revision {revision}. {self._suggest_revision()}"
            ) from None

    def _suggest_revision(self) -> str:
        try:
            refs = self._api.list_repo_refs(self.name, repo_type="dataset")
        except (*REFUSALS, KeyError):  # a hub that serves files alone
            return "Give a branch, tag or commit id that is there."
        return f"There are: {_some([ref.name for ref in [*refs.branches, *refs.tags]])}, and commit ids."

    def _builder(self, config: str | None) -> Any:
        import datasets

        def resolve() -> Any:
            # With an empty cache: what it finds in its cache, `datasets` takes in place of a hub that refuses.
            with tempfile.TemporaryDirectory() as cache:
                return datasets.load_dataset_builder(
                    self.name, config, revision=self.commit, cache_dir=cache
                )

        try:
            return self._ask(resolve)
        except BertpipeError:
            raise
        except Exception as error:  # there is no end to what a card may declare
            names = self._configs() if isinstance(error, ValueError) else []
            if names and config not in names:
                problem = f"no config {config}" if config else "it has several configs"
                choice = f"Choose one with --source hub:{self.name}:CONFIG from: {_some(names)}."
                raise BertpipeError(f"{self.page}: {problem}. {choice}") from None
            detail = " ".join(str(error).split())
            raise BertpipeError(
                f"{self.page}: its data files were not made out ({detail}). {self._suggest()}"
            ) from error

    def _configs(self) -> list[str]:
        import datasets

        try:
            names: list[str] = self._ask(
                lambda: datasets.get_dataset_config_names(self.name, revision=self.commit)
            )
        except ValueError:
            return []
        return names

    def _ask(self, ask: Callable[[], T]) -> T:
        try:
            return with_retries(ask, self.max_wait, self.quiet)
        except REFUSALS as error:
            raise explain(error, self.name) from None

    def _suggest(self) -> str:
        """A way to read the files that are there."""
        if any(_LANGUAGE.search(name) for name in self.names):
            return f"Read it by language with: --source oscar:LANG --repository {self.name}"
        data = [
            name
            for name in self.names
            if file_format(name) and name.rpartition("/")[2] not in NO_DATA
        ]
        if not data:
            return (
                "It holds no files that can be read (parquet, jsonl, json, txt, csv, tsv, arrow)."
            )
        suffixes = Counter(re.sub(r"^[^.]*", "", name.rpartition("/")[2]) for name in data)
        suffix = max(suffixes, key=lambda suffix: suffixes[suffix])
        folders = {name.rpartition("/")[0] for name in data if name.endswith(suffix)}
        glob = f"{folders.pop()}/*{suffix}".lstrip("/") if len(folders) == 1 else f"**/*{suffix}"
        return f"Read its files with: --source hub:{self.name} --files '{glob}'"


def _to_file(entry: RepoFile) -> HubFile:
    return HubFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id)


def _some(names: Sequence[str] | dict[str, Any]) -> str:
    """Names, as many as a person reads."""
    shown = ", ".join(list(names)[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown}, … ({len(names)} in all)"
