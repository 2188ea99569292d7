"""HTTP client for the Hugging Face Hub: retries with exponential backoff, up to `--max-wait`.

`huggingface_hub` retries some requests, each with its own limit, some without a timeout, and sleeps
for as long as a `Retry-After` header asks; `datasets` retries reads above a decompressor that has
lost its buffer by then. Therefore their retries are switched off, and
`huggingface_hub.set_client_factory` gets a client that retries below the libraries, where a failed
request has had no effect yet, and that gives up after `max_wait` seconds.

Python handles signals only in the main thread. Arrow reads parquet in its own threads while the
main thread waits in C++, so a failure there is raised as `TransientHubError` and retried in the
main thread, where Ctrl-C works.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars, httpx  # type: ignore[attr-defined]
from huggingface_hub.utils import logging as hub_logging

from bert_pipeline.errors import BertpipeError, SourceUnreachable
from bert_pipeline.hub.credentials import check_token, hide_password, shown_endpoint
from bert_pipeline.hub.responses import (
    SlowBody,
    SteadyStream,
    find_problem,
    is_expired,
    retry_after_s,
)
from bert_pipeline.progress import err

INITIAL_BACKOFF_S = 0.25
"""Wait before the first retry; each further wait is twice as long."""
MAX_BACKOFF_S = 30.0
"""Longest wait between two retries."""
RATE_LIMIT_WINDOW_S = 300
"""The Hub counts requests in windows of this length, and asks to wait for the end of one."""
MAX_ASKED_WAIT_S = 3 * RATE_LIMIT_WINDOW_S
"""Total of such waits without success."""
MAX_RETRIES_IN_THREAD = 3
"""Retries in a thread that Ctrl-C cannot interrupt, 1.75 s in total, before it raises the error."""
BUFFERED_BODY_BYTES = 32_000_000
"""Smaller bodies are read completely, so that a connection that breaks is retried."""
NETWORK_ERRORS = (
    httpx.TimeoutException,
    httpx.NetworkError,
    httpx.RemoteProtocolError,
    httpx.ProxyError,
    httpx.DecodingError,
)
PERMANENT_ERRORS = (httpx.HTTPError, OfflineModeIsEnabled)
"""Errors that remain after the retries; `HfHubHTTPError` is one of them, and also an `OSError`."""

T = TypeVar("T")


class TransientHubError(Exception):
    """A temporary failure of the network or the Hub."""

    def __init__(
        self, url: str, reason: str, retry_after_s: float = 0, elapsed_s: float = 0
    ) -> None:
        super().__init__(url, reason, retry_after_s, elapsed_s)
        # The query of a redirected URL holds its signature.
        self.url = hide_password(url.partition("?")[0])
        self.reason = hide_password(reason)
        self.retry_after_s = retry_after_s
        """Seconds that the Hub asks to wait."""
        self.elapsed_s = elapsed_s
        """Seconds that the failed request took."""


class ExpiredUrl(TransientHubError):
    """A signed URL is no longer valid; a library must ask the Hub for another."""


TRANSIENT_ERRORS = (TransientHubError, *NETWORK_ERRORS, ConnectionError, TimeoutError)
"""Temporary failures, in the types that the libraries raise."""


class Backoff:
    """Exponential backoff: waits between retries, up to `max_wait` seconds without success."""

    def __init__(self, max_wait: float, quiet: bool) -> None:
        self.max_wait = max_wait
        self.quiet = quiet
        self.reset()

    def reset(self) -> None:
        """A request succeeded: start again with the shortest wait and the full time limit."""
        self.retries = 0
        self.elapsed_s = 0.0
        self.asked_s = 0.0

    def wait(self, error: TransientHubError) -> None:
        """Sleep before the next retry. Raises `SourceUnreachable` when `max_wait` is used up.

        A wait that the Hub asks for does not count, because the Hub does respond.
        """
        self.retries += 1
        self.elapsed_s += error.elapsed_s
        left = self.max_wait - self.elapsed_s
        where = f"{error.url}: {error.reason}"
        asked = error.retry_after_s
        is_allowed = 0 < asked <= RATE_LIMIT_WINDOW_S and self.asked_s < MAX_ASKED_WAIT_S
        self._give_up(where, 0 if is_allowed else asked, left)
        # Random jitter, so that workers that were rejected together do not retry together.
        pause = INITIAL_BACKOFF_S * 2 ** (self.retries - 1) * random.uniform(0.75, 1.25)
        pause = max(min(pause, MAX_BACKOFF_S, left), asked)
        if not self.quiet:
            err.print(
                f"{where}; retrying in {pause:.1f} s, giving up after {left:.0f} s.", markup=False
            )
        time.sleep(pause)
        if is_allowed:
            self.asked_s += pause
        else:
            self.elapsed_s += pause

    def _give_up(self, where: str, asked: float, left: float) -> None:
        """Raise `SourceUnreachable` when no time is left, or less than the Hub asks to wait."""
        advice = "Finished parts are kept: rerun the same command to resume"
        if asked > left > 0:
            raise SourceUnreachable(
                f"{where}. The Hub asks to wait {asked:.0f} s, longer than "
                f"--max-wait {self.max_wait:g} allows. {advice} (anonymous requests have the "
                "lowest rate limit: see `hf auth login`)."
            )
        if left <= 0:
            raise SourceUnreachable(
                f"{where}. No success within {self.elapsed_s:.0f} s "
                f"(--max-wait {self.max_wait:g}). {advice}, later or with a longer --max-wait."
            )


class RetryingClient(httpx.Client):
    """The HTTP client of `huggingface_hub`, which retries requests that only read."""

    def __init__(self, max_wait: float, quiet: bool) -> None:
        super().__init__(follow_redirects=True, event_hooks={"request": [_check_request]})
        self.max_wait = max_wait
        self.quiet = quiet

    def send(
        self, request: httpx.Request, *, stream: bool = False, **options: Any
    ) -> httpx.Response:
        """Send a request, with retries. Raises `SourceUnreachable` after `max_wait` seconds."""
        if request.method not in ("GET", "HEAD") and "/paths-info/" not in request.url.path:
            return super().send(request, stream=stream, **options)
        backoff = Backoff(self.max_wait, self.quiet)
        while True:
            try:
                return self._send_once(request, stream, options)
            except ExpiredUrl:
                raise
            except TransientHubError as error:
                if threading.current_thread() is threading.main_thread():
                    backoff.wait(error)
                elif error.retry_after_s or backoff.retries >= MAX_RETRIES_IN_THREAD:
                    raise
                else:
                    time.sleep(INITIAL_BACKOFF_S * 2 ** (backoff.retries - 1))
                    backoff.retries += 1

    def _send_once(
        self, request: httpx.Request, stream: bool, options: dict[str, Any]
    ) -> httpx.Response:
        # Requests to the API have no timeout. It is the longest time without any byte, so large
        # files need no longer one.
        timeout = min(constants.HF_HUB_DOWNLOAD_TIMEOUT, max(self.max_wait / 4, 1))
        request.extensions["timeout"] = httpx.Timeout(timeout).as_dict()
        url = str(request.url)
        start = time.monotonic()
        try:
            response = super().send(request, stream=True, **options)
            assert isinstance(response.stream, httpx.SyncByteStream)
            response.stream = SteadyStream(response.stream, timeout)
            length = int(response.headers.get("Content-Length", BUFFERED_BODY_BYTES))
            if not stream or length < BUFFERED_BODY_BYTES:
                response.read()
        except NETWORK_ERRORS as error:
            elapsed_s = time.monotonic() - start
            raise TransientHubError(url, _describe(error, timeout), 0, elapsed_s) from error
        if not (reason := find_problem(response)):
            return response
        response.close()
        kind = TransientHubError
        if is_expired(response) and not response.history:
            kind = ExpiredUrl
        elapsed_s = time.monotonic() - start
        raise kind(url, reason, retry_after_s(response.headers), elapsed_s)


def connect(max_wait: float, quiet: bool) -> None:
    """Configure the libraries in this process: our retries instead of theirs, and no output.

    Raises `UsageError` for a token that cannot be sent.
    """
    import datasets

    check_token()
    # Set here, because the environment variable is read at the library's first import.
    constants.HF_HUB_DISABLE_TELEMETRY = True
    huggingface_hub.set_client_factory(lambda: RetryingClient(max_wait, quiet))
    datasets.config.STREAMING_READ_MAX_RETRIES = 1
    datasets.config.STREAMING_OPEN_MAX_RETRIES = 1
    datasets.config.STREAMING_READ_RETRY_INTERVAL = 0
    datasets.config.STREAMING_OPEN_RETRY_INTERVAL = 0
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    datasets.config.TORCH_AVAILABLE = False  # streaming would import torch, which is not needed
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(logging.CRITICAL)
    disable_progress_bars()
    hub_logging.set_verbosity(logging.CRITICAL)


def with_retries(ask: Callable[[], T], max_wait: float, quiet: bool) -> T:
    """The result of `ask()`, retried with exponential backoff after transient errors.

    For libraries that use their own threads or connections, which `RetryingClient` does not see.
    Raises `SourceUnreachable` after `max_wait` seconds without success.
    """
    backoff = Backoff(max_wait, quiet)
    while True:
        try:
            return ask()
        except OfflineModeIsEnabled:  # a `ConnectionError`, but not a transient one
            raise
        except TRANSIENT_ERRORS as error:
            backoff.wait(as_transient_error(error, constants.ENDPOINT))


def as_transient_error(error: BaseException, url: str) -> TransientHubError:
    """One of `TRANSIENT_ERRORS` as a `TransientHubError` with the requested URL."""
    if isinstance(error, TransientHubError):
        return error
    return TransientHubError(url, _describe(error, constants.HF_HUB_DOWNLOAD_TIMEOUT))


def explain(error: Exception, repository: str, kind: str = "dataset") -> BertpipeError:
    """What an error of the Hub means, and what to do."""
    page = f"{shown_endpoint()}/{'datasets/' if kind == 'dataset' else ''}{repository}"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    give_token = "give a token with access: set HF_TOKEN, or run `hf auth login` once"
    if isinstance(error, OfflineModeIsEnabled):
        return SourceUnreachable(
            f"{page}: HF_HUB_OFFLINE is set, so the Hub cannot be reached. Unset it."
        )
    if status == 401 and huggingface_hub.get_token():
        return BertpipeError(
            f"{page}: the Hub rejects your token (401): it is mistyped, expired or revoked. Create "
            f"one at {shown_endpoint()}/settings/tokens and set HF_TOKEN, or run `hf auth login`."
        )
    if isinstance(error, GatedRepoError) and status == 401:
        return BertpipeError(f"{page} is gated: request access on that page, then {give_token}.")
    if isinstance(error, GatedRepoError):
        return BertpipeError(
            f"{page} is gated, and your token has no access (403): request access on that page "
            "while logged in; a fine-grained token also needs the permission to read gated "
            "repositories."
        )
    if isinstance(error, RepositoryNotFoundError):
        return BertpipeError(f"{page}: no such {kind}. If it is private, {give_token}.")
    if isinstance(error, RevisionNotFoundError):
        return BertpipeError(f"{page}: no such revision. Give another with --revision.")
    if isinstance(error, HfHubHTTPError):
        url = hide_password(str(error.response.request.url).partition("?")[0])
        return BertpipeError(
            f"{url}: {status} {error.response.reason_phrase}. {error.server_message or ''}".strip()
        )
    return BertpipeError(f"{page}: {hide_password(_first_line(error))}")


def _check_request(request: httpx.Request) -> None:
    """Called for each request, also for those of redirects."""
    if constants.is_offline_mode():
        raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set.")
    if request.url.scheme not in ("http", "https"):
        problem = f"a redirect to {request.url.scheme}:// is not followed"
        raise httpx.UnsupportedProtocol(problem, request=request)


def _describe(error: BaseException, timeout: float) -> str:
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, SlowBody):
        return f"timeout after {timeout:g} s without data"
    if isinstance(error, SlowBody):
        return str(error)
    return f"{type(error).__name__} ({_first_line(error)})"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
