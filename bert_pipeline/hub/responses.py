"""What is wrong with a response of the Hub, or of a proxy in between: each is retried.

`huggingface_hub` checks neither which bytes it received nor their hash.
"""

import hashlib
import json
import re
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

from huggingface_hub import constants
from huggingface_hub.utils import httpx, parse_ratelimit_headers  # type: ignore[attr-defined]

TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504, *range(520, 525)})
"""520 to 524 are those of Cloudflare for a server that does not respond."""
EXPIRED_STATUS = frozenset({400, 401, 403, 410})
"""What storage hosts answer to a signed URL that has expired."""
MIN_BYTES_PER_S = 1000
"""A body that arrives more slowly counts as a broken connection."""
REPOSITORY_INFO = re.compile(r"/api/(datasets|models)/[^/]+/[^/]+(/revision/[^/]+|/refs)?")
"""Paths that answer with a repository or its branches; also those of a name without owner."""

PORTAL = "A login page of the network, or a proxy, may answer for the Hub"


class SlowBody(httpx.ReadTimeout):
    """A body arrives more slowly than `MIN_BYTES_PER_S`."""


class SteadyStream(httpx.SyncByteStream):
    """A body that must arrive at `MIN_BYTES_PER_S` or more, measured each `period` seconds.

    The timeouts of httpx start again with each byte.
    """

    def __init__(self, stream: httpx.SyncByteStream, period: float) -> None:
        self._stream = stream
        self._period = period

    def __iter__(self) -> Iterator[bytes]:
        chunks = iter(self._stream)
        size = 0
        waited = 0.0  # without the time that the reader takes
        while True:
            start = time.monotonic()
            if (chunk := next(chunks, None)) is None:
                return
            waited += time.monotonic() - start
            size += len(chunk)
            if waited > self._period:
                if size < MIN_BYTES_PER_S * waited:
                    raise SlowBody(f"received only {size} bytes in {waited:.0f} s")
                size = 0
                waited = 0.0
            yield chunk

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()


def find_problem(response: httpx.Response) -> str:
    """What is wrong with a response; empty when it is right, or an error that is no use to retry.

    The content is checked if it has been read.
    """
    if response.status_code in TRANSIENT_STATUS or is_expired(response):
        return f"{response.status_code} {response.reason_phrase}"
    if response.status_code not in (200, 206):
        return ""
    return _find_page(response) or _find_wrong_range(response) or _find_wrong_content(response)


def is_expired(response: httpx.Response) -> bool:
    """Whether a signed URL, to which the Hub redirects downloads, is no longer valid."""
    host = httpx.URL(constants.ENDPOINT).netloc
    is_hub = response.url.netloc == host or "X-Error-Code" in response.headers
    return response.status_code in EXPIRED_STATUS and not is_hub


def retry_after_s(headers: httpx.Headers) -> float:
    """Seconds to wait, from `Retry-After` (a number or a date) or the Hub's `RateLimit` header."""
    value = headers.get("Retry-After", "").strip()
    if value.isdigit():
        return float(value)
    if (limit := parse_ratelimit_headers(headers)) and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0)
    except ValueError:
        return 0


def _find_page(response: httpx.Response) -> str:
    """Whether another server answered for the Hub, such as a captive portal."""
    if response.headers.get("Content-Type", "").startswith("text/html"):
        return f"received an HTML page instead of data. {PORTAL}"
    path = (*response.history, response)[0].request.url.path
    if not _is_complete(response) or _is_answer(path, response.content):
        return ""
    return f"received {len(response.content)} bytes that are not JSON of the Hub. {PORTAL}"


def _is_answer(path: str, content: bytes) -> bool:
    """Whether this can be the Hub's answer, with the fields that `huggingface_hub` relies on."""
    # The body of `/auth-check` is not read.
    if not re.match(r"/api/(datasets|models)/", path) or path.endswith("/auth-check"):
        return True
    try:
        answer = json.loads(content)
    except ValueError:
        return False
    if "/tree/" in path:
        return isinstance(answer, list) and all(
            isinstance(entry, dict) and entry.keys() >= {"type", "path", "oid"} for entry in answer
        )
    if REPOSITORY_INFO.fullmatch(path):
        return isinstance(answer, dict) and not answer.keys().isdisjoint({"id", "branches"})
    return True


def _find_wrong_range(response: httpx.Response) -> str:
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", response.request.headers.get("Range", ""))
    if not asked or (response.status_code == 200 and asked[0] == "bytes=0-"):
        return ""
    total = _linked(response, "X-Linked-Size")
    received = "the complete file"
    if response.status_code == 206:
        received = response.headers.get("Content-Range", "an unknown range")
        total = total or received.rpartition("/")[2]
    first, last = asked[1], asked[2] or str(int(total) - 1 if total.isdigit() else "")
    expected = f"bytes {first}-{last}"
    if response.status_code == 200 and first != "0":
        return f"wrong range: received {received} instead of {expected}"
    if response.status_code == 206 and received not in (f"{expected}/{total}", f"{expected}/*"):
        return f"wrong range: received {received} instead of {expected}/{total or '*'}"
    size = int(last) - int(first) + 1
    if response.is_stream_consumed and len(response.content) != size:
        return f"wrong range: received {len(response.content)} bytes instead of {expected}"
    return ""


def _find_wrong_content(response: httpx.Response) -> str:
    """Whether a complete file differs from the hash that the Hub gives for it."""
    path = (*response.history, response)[0].request.url.path
    if "/resolve/" not in path or not _is_complete(response):
        return ""
    known = _linked(response, "X-Linked-ETag") or _linked(response, "ETag")
    if not known:
        return f"received {len(response.content)} bytes without an ETag. {PORTAL}"
    known = known.removeprefix("W/").strip('"')
    digests = [start_digest(known, len(response.content))]
    if len(known) == 40:  # mirrors may give the SHA-1 itself
        digests.append(hashlib.sha1(usedforsecurity=False))
    for digest in filter(None, digests):
        digest.update(response.content)
        if digest.hexdigest() == known:
            return ""
    if digests[0] is None:
        return ""
    return f"received {len(response.content)} bytes that differ from the hash of the file"


def start_digest(known: str, size: int) -> "hashlib._Hash | None":
    """The digest whose value for a file of `size` bytes the Hub gives; None for another kind.

    It is the SHA-256 for files in LFS, and else that of a git blob.
    """
    if re.fullmatch("[0-9a-f]{64}", known):
        return hashlib.sha256()
    if re.fullmatch("[0-9a-f]{40}", known):
        return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    return None


def _is_complete(response: httpx.Response) -> bool:
    """Whether the content is there, and is that of the complete file."""
    if response.request.method != "GET" or not response.is_stream_consumed:
        return False
    whole = f"bytes 0-{len(response.content) - 1}/{len(response.content)}"
    return response.status_code == 200 or response.headers.get("Content-Range") == whole


def _linked(response: httpx.Response, header: str) -> str:
    """A header of the Hub's own response, which may be a redirect to a storage host."""
    answers = [*response.history, response]
    if len(answers) > 1 and answers[-1].url.netloc != answers[0].url.netloc:
        answers.pop()
    return next((str(a.headers[header]) for a in answers if header in a.headers), "")
