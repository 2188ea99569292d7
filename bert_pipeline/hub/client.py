"""How the hub is asked: with_retries, within a limit, and saying so.

`huggingface_hub` retries some requests, each with limits of its own, some without any time-out, and sleeps as long as a
`Retry-After` header says; `datasets` retries reads through a decompressor, which has forgotten by then what it held in
its buffer. So all of that is left aside: `huggingface_hub.set_client_factory` is given a client that tries again below
the libraries, where a failed request has done nothing yet, and that gives up once and for all after `max_wait` seconds.

Python answers signals in the main thread alone. Arrow reads parquet in threads of its own while the main one waits for
it in C++, so a failure there is handed up as `TransientHubError` and waited out where Ctrl-C is heard.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
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
from huggingface_hub.utils import disable_progress_bars, httpx, parse_ratelimit_headers  # type: ignore[attr-defined]
from huggingface_hub.utils import logging as hub_logging

from bert_pipeline.errors import BertpipeError, SourceUnreachable
from bert_pipeline.progress import err

FIRST_PAUSE = 0.25
LONGEST_PAUSE = 30.0
PAUSES_OF_A_THREAD = 3
"""A thread that cannot be interrupted waits this often, 1.75 s at most, before it hands its trouble up."""
WHOLE_BODY = 32_000_000
"""Bodies up to this size are read at once, so that one which breaks off is a request to repeat."""
PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
PASSING_ERRORS = (
    httpx.TimeoutException,
    httpx.NetworkError,
    httpx.RemoteProtocolError,
    httpx.ProxyError,
)
REFUSALS = (httpx.HTTPError, OfflineModeIsEnabled)
"""What the hub's answers arrive as, once passing troubles are over; `HfHubHTTPError` is one, and an `OSError` too."""

T = TypeVar("T")


class TransientHubError(Exception):
    """A failure that may pass: of the network, or of a hub that is busy."""

    def __init__(self, url: str, reason: str, asked: float = 0, lost: float = 0) -> None:
        super().__init__(url, reason, asked, lost)
        self.url, self.reason = (
            url.partition("?")[0],
            reason,
        )  # the query of a redirected URL is its signature
        self.asked, self.lost = asked, lost
        """Seconds that the hub asks to wait; seconds that the failed try took."""


PASSING = (TransientHubError, *PASSING_ERRORS, ConnectionError, TimeoutError)
"""What may pass, as it arrives from the libraries."""


class Backoff:
    """Waits between tries, longer each time, until `max_wait` seconds have gone by with no success."""

    def __init__(self, max_wait: float, quiet: bool) -> None:
        self.max_wait, self.quiet = max_wait, quiet
        self.reset()

    def reset(self) -> None:
        """Something was reached: begin anew."""
        self.tries, self.spent = 0, 0.0

    def wait(self, trouble: TransientHubError) -> None:
        """Sleep before the next try, or raise `BertpipeError` when there should be none."""
        self.tries += 1
        self.spent += trouble.lost
        left = self.max_wait - self.spent
        where = f"{trouble.url}: {trouble.reason}"
        end = "Finished parts are kept: run the same command again to go on"
        if trouble.asked > left > 0:
            raise SourceUnreachable(
                f"{where}. The hub asks to wait {trouble.asked:.0f} s, longer than --max-wait {self.max_wait:g} allows."
                f" {end} (anonymous requests are limited most: see `hf auth login`)."
            )
        if left <= 0:
            raise SourceUnreachable(
                f"{where}. No success in {self.spent:.0f} s (--max-wait {self.max_wait:g}). {end}, later or with "
                "a longer --max-wait."
            )
        # Workers that were turned away together should not come back together.
        pause = FIRST_PAUSE * 2 ** (self.tries - 1) * random.uniform(0.75, 1.25)
        pause = min(max(min(pause, LONGEST_PAUSE), trouble.asked), left)
        if not self.quiet:
            err.print(
                f"{where}; trying again in {pause:.1f} s, for at most {left:.0f} s.", markup=False
            )
        time.sleep(pause)
        self.spent += pause


class RetryingClient(httpx.Client):
    """The client of `huggingface_hub`, which repeats what only reads."""

    def __init__(self, max_wait: float, quiet: bool) -> None:
        super().__init__(follow_redirects=True, event_hooks={"request": [_refuse_when_offline]})
        self.max_wait, self.quiet = max_wait, quiet

    def send(
        self, request: httpx.Request, *, stream: bool = False, **options: Any
    ) -> httpx.Response:
        """Send a request, again where that may help; `BertpipeError` when it did not for too long."""
        if request.method not in ("GET", "HEAD") and "/paths-info/" not in request.url.path:
            return super().send(request, stream=stream, **options)
        patience = Backoff(self.max_wait, self.quiet)
        while True:
            try:
                return self._try(request, stream, options)
            except TransientHubError as trouble:
                if threading.current_thread() is threading.main_thread():
                    patience.wait(trouble)
                elif trouble.asked or patience.tries >= PAUSES_OF_A_THREAD:
                    raise
                else:
                    time.sleep(FIRST_PAUSE * 2 ** (patience.tries - 1))
                    patience.tries += 1

    def _try(self, request: httpx.Request, stream: bool, options: dict[str, Any]) -> httpx.Response:
        # API requests come without any; a byte every so often is enough, so large files need no more.
        limit = min(constants.HF_HUB_DOWNLOAD_TIMEOUT, max(self.max_wait / 4, 1))
        request.extensions["timeout"] = httpx.Timeout(limit).as_dict()
        url, began = str(request.url), time.monotonic()
        try:
            response = super().send(request, stream=True, **options)
            if not stream or int(response.headers.get("Content-Length", WHOLE_BODY)) < WHOLE_BODY:
                response.read()
        except PASSING_ERRORS as error:
            raise TransientHubError(
                url, _describe(error, limit), lost=time.monotonic() - began
            ) from error
        if response.status_code in PASSING_STATUS:
            reason = f"{response.status_code} {response.reason_phrase}"
        else:
            reason = "" if stream else _wrong_range(response)
        if not reason:
            return response
        response.close()
        raise TransientHubError(
            url, reason, _asked_to_wait(response.headers), time.monotonic() - began
        )


def connect(max_wait: float, quiet: bool) -> None:
    """Prepare the libraries in this process: our patience instead of theirs, and nothing said but what we say."""
    import datasets

    constants.HF_HUB_DISABLE_TELEMETRY = (
        True  # here: the variable of that name is read at the library's first import
    )
    huggingface_hub.set_client_factory(lambda: RetryingClient(max_wait, quiet))
    datasets.config.STREAMING_READ_MAX_RETRIES = datasets.config.STREAMING_OPEN_MAX_RETRIES = 1
    datasets.config.STREAMING_READ_RETRY_INTERVAL = (
        datasets.config.STREAMING_OPEN_RETRY_INTERVAL
    ) = 0
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    datasets.config.TORCH_AVAILABLE = False  # a stream would load it, for nothing that is used here
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(logging.CRITICAL)
    disable_progress_bars()
    hub_logging.set_verbosity(logging.CRITICAL)


def with_retries(ask: Callable[[], T], max_wait: float, quiet: bool) -> T:
    """The answer to something that asks the hub in threads of its own, or in ways that the client does not see."""
    patience = Backoff(max_wait, quiet)
    while True:
        try:
            return ask()
        except OfflineModeIsEnabled:  # a `ConnectionError` that does not pass
            raise
        except PASSING as error:
            patience.wait(as_transient_error(error, constants.ENDPOINT))


def as_transient_error(error: BaseException, url: str) -> TransientHubError:
    """An error of `PASSING`, of whatever kind, with the URL that was wanted."""
    if isinstance(error, TransientHubError):
        return error
    return TransientHubError(url, _describe(error, constants.HF_HUB_DOWNLOAD_TIMEOUT))


def explain(error: Exception, repository: str, kind: str = "data set") -> BertpipeError:
    """What a refusal of the hub means, and what to do."""
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'data set' else ''}{repository}"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    give_token = "pass a token with access to it: set HF_TOKEN, or `hf auth login` once"
    if isinstance(error, OfflineModeIsEnabled):
        return SourceUnreachable(
            f"{page}: HF_HUB_OFFLINE is set, and nothing can be read from the hub. Unset it."
        )
    if status == 401 and huggingface_hub.get_token():
        return BertpipeError(
            f"{page}: the hub refuses your token (401): it is mistyped, expired or revoked. Take a new one from "
            f"{constants.ENDPOINT}/settings/tokens and set HF_TOKEN, or `hf auth login`."
        )
    if isinstance(error, GatedRepoError) and status == 401:
        return BertpipeError(f"{page} is gated: ask for access on that page, then {give_token}.")
    if isinstance(error, GatedRepoError):
        return BertpipeError(
            f"{page} is gated, and your token has no access (403): ask for it on that page while logged in; a "
            "fine-grained token also needs the permission to read gated repositories."
        )
    if isinstance(error, RepositoryNotFoundError):
        return BertpipeError(f"{page}: there is no such {kind}. If it is private, {give_token}.")
    if isinstance(error, RevisionNotFoundError):
        return BertpipeError(f"{page}: the revision is gone. Give another with --revision.")
    if isinstance(error, HfHubHTTPError):
        url = str(error.response.request.url).partition("?")[0]
        return BertpipeError(
            f"{url}: {status} {error.response.reason_phrase}. {error.server_message or ''}".strip()
        )
    return BertpipeError(f"{page}: {_first_line(error)}")


def _refuse_when_offline(request: httpx.Request) -> None:
    if constants.is_offline_mode():
        raise OfflineModeIsEnabled(f"Cannot reach {request.url}: HF_HUB_OFFLINE is set.")


def _wrong_range(response: httpx.Response) -> str:
    """What is wrong with the answer to a request for bytes (huggingface_hub takes whatever comes for those bytes)."""
    first, _, last = response.request.headers.get("Range", "").removeprefix("bytes=").partition("-")
    if not last or response.status_code not in (200, 206):
        return ""
    right = response.status_code == 206 or first == "0"
    got = len(response.content)
    if right and got == int(last) - int(first) + 1:
        return ""
    return f"{got} bytes came where bytes {first} to {last} were asked for"


def _asked_to_wait(headers: httpx.Headers) -> float:
    """Seconds, by the header `Retry-After` (a number or a date) or the hub's `RateLimit`."""
    given = headers.get("Retry-After", "").strip()
    if given.isdigit():
        return float(given)
    if (limit := parse_ratelimit_headers(headers)) and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    try:
        return max(parsedate_to_datetime(given).timestamp() - time.time(), 0)
    except ValueError:
        return 0


def _describe(error: BaseException, limit: float) -> str:
    if isinstance(error, httpx.TimeoutException):
        return f"nothing came for {limit:g} s"
    return f"{type(error).__name__} ({_first_line(error)})"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
