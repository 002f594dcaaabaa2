"""What a failed call means: which error it is, whether to try again, and how long to wait.

Every provider's package has exceptions of its own, none of which need be installed. They are told
apart by their status code and by the names of their classes.
"""

from __future__ import annotations

import email.utils
import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from pydantic import BaseModel, SecretStr

from llm_expert.errors import (
    AuthenticationError,
    BadResponseError,
    CallError,
    CallTimeoutError,
    ConnectionLostError,
    PromptTooLongError,
    RateLimitError,
    RequestError,
    ServerError,
)

__all__ = ["Failure", "failure_of", "redact", "secrets_of", "wait_before"]

_LONGEST_TEXT = 200
_SHORTEST_SECRET = 8
"""Shorter values of the environment are words; shorter keys are looked for as whole words."""
_NO_SECRETS = ("", "none", "null", "empty")
_SECRET_PATTERNS = (
    re.compile(r"\b(?:sk|pk|rk|hf|gsk|xai|key|api)[-_][\w*.\-]{4,}"),
    re.compile(r"\bAIza[\w\-]{10,}"),
    re.compile(r"(?i)(?<=bearer )[^\s\"',]+"),
    re.compile(r"(?<=[Bb]asic )(?![Aa]uth(?:entication|orization)?\b|realm=)[^\s\"',]+"),
    re.compile(r"(?i)(?<=key=)[^\s&\"']+"),
    re.compile(r"(?<=://)[^\s/@]+(?=@)"),
)
_SECRET_NAMES = re.compile(r"(?i)(key|token|secret|password)$")
_REDACTED = "[redacted]"
_NEVER_BY_WAITING = ("insufficient_quota", "billing_hard_limit_reached")
_TOO_LONG = ("context_length_exceeded", "context window", "prompt is too long")
_TRY_AGAIN_STATUS = (409, 425)
_NO_CHAT_SERVER_STATUS = (405, 501, 505)
_PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")


@dataclass(frozen=True)
class Failure:
    """One attempt that failed.

    Args:
        kind: The error that it ends in.
        what: What happened, to follow "the call failed: "; without secrets.
        mend: What can be done about it.
        again: Whether another attempt may help.
        wait: Seconds that the server asked to wait, or None.
        cause: The exception, or None where it must not be shown or where there is none.
    """

    kind: type[CallError]
    what: str
    mend: str
    again: bool
    wait: float | None = None
    cause: Exception | None = None


def failure_of(error: Exception, secrets: Iterable[str] = ()) -> Failure:
    """Returns what an exception of a chat model means.

    Args:
        error: The exception.
        secrets: Texts that may not be shown.
    """
    kind, mend, again = _meaning(error)
    secrets = tuple(secrets)
    chain = _chain(error)
    raw = str(error)
    text = redact(raw, secrets)
    shown = " ".join(text.split())[:_LONGEST_TEXT]
    status = _status(error)
    what = f"status {status}" if status else type(error).__name__
    if kind is ConnectionLostError and len(chain) > 1:
        reason = " ".join(redact(str(chain[-1]), secrets).split())[:_LONGEST_TEXT]
        if reason != shown:
            cause = type(chain[-1]).__name__
            cause = f"{cause}: {reason}" if reason else cause
            shown = f"{shown.removesuffix('.')}; {cause}" if shown else cause
    what = f"{what} ({shown})" if shown else what
    if kind is ConnectionLostError:
        mend += _proxy_hint()
    return Failure(
        kind,
        f"the answer is no chat completion: {what}" if kind is BadResponseError else what,
        mend,
        again,
        _retry_after(error) if again else None,
        error if all(redact(str(each), secrets) == str(each) for each in chain) else None,
    )


def _chain(error: BaseException) -> list[BaseException]:
    """Returns an exception and what it came from, the innermost last; without secrets unchecked."""
    chain = [error]
    while chain[-1].__cause__ is not None and chain[-1].__cause__ not in chain:
        chain.append(chain[-1].__cause__)
    return chain


def _proxy_hint() -> str:
    """Returns what to add for a lost connection where a variable names a proxy, or ""."""
    names = (name for upper in _PROXIES for name in (upper, upper.lower()))
    found = next((name for name in names if os.environ.get(name)), None)
    return (
        f" (the environment variable {found} names a proxy: see that it is right)" if found else ""
    )


def _meaning(error: Exception) -> tuple[type[CallError], str, bool]:
    """Returns the kind of error, what can be done about it, and whether to try again."""
    names = {kind.__name__ for kind in type(error).__mro__}
    status = _status(error)
    if "ContextOverflowError" in names or (400 <= status < 500 and _says(error, _TOO_LONG)):
        return PromptTooLongError, "tell the model's true window (or a smaller one)", False
    if status:
        return _meaning_of_status(status, error)
    if isinstance(error, TimeoutError) or any("Timeout" in name for name in names):
        return CallTimeoutError, "see whether the server is overloaded, or allow more time", True
    if isinstance(error, ConnectionError) or names & {"APIConnectionError", "TransportError"}:
        return ConnectionLostError, "see that the server runs and that its address is right", True
    if isinstance(error, UnicodeEncodeError):
        return RequestError, "remove what cannot be encoded from the prompt", False
    if names & {"APIError", "ResponseError"}:
        return ServerError, "try later", True
    if isinstance(error, (ValueError, LookupError, TypeError, AttributeError)):
        return BadResponseError, "see that the address is that of a chat server", True
    return CallError, "see the exception that this one came from", False


def _meaning_of_status(status: int, error: Exception) -> tuple[type[CallError], str, bool]:
    """Returns what `_meaning` does, for an answer with an HTTP status of 400 and above."""
    if status in (401, 403):
        return AuthenticationError, "give a key that is valid for this model", False
    if status == 429 and _says(error, _NEVER_BY_WAITING):
        return RateLimitError, "the quota of the key is used up, so raise it", False
    if status == 429:
        return RateLimitError, "ask for fewer calls at once or a second, or try later", True
    if status == 408:
        return CallTimeoutError, "see whether the server is overloaded, or allow more time", True
    if status in _NO_CHAT_SERVER_STATUS:
        return RequestError, "see that the address is that of a chat server", False
    if status >= 500 or status in _TRY_AGAIN_STATUS:
        return ServerError, "try later", True
    if status == 404:
        return RequestError, "see that the name of the model and the address are right", False
    return RequestError, "see that the model takes these settings", False


def _status(error: Exception) -> int:
    """Returns the HTTP status of a refused request, or 0 where there is none."""
    for holder in (error, getattr(error, "response", None)):
        status = getattr(holder, "status_code", None)
        # An answer that cannot be read may carry the 200 that it came with.
        if isinstance(status, int) and status >= 400:
            return status
    return 0


def _says(error: Exception, phrases: Iterable[str]) -> bool:
    """Tells whether an error's code or text contains one of `phrases`."""
    text = f"{getattr(error, 'code', '')} {error}"
    return any(phrase in text for phrase in phrases)


def _retry_after(error: Exception) -> float | None:
    """Returns the seconds that the server asked to wait, or None where it did not."""
    headers = getattr(getattr(error, "response", None), "headers", None)
    if not isinstance(headers, Mapping):
        return None
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name)
        seconds = _seconds(value) if isinstance(value, str) else None
        if seconds is not None:
            return max(0.0, seconds * unit)
    return None


def _seconds(value: str) -> float | None:
    """Returns a number of seconds, of a number or of an HTTP date; None of anything else."""
    if re.fullmatch(r"\d+(\.\d+)?", value.strip()):
        return float(value)
    try:
        return email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None


def wait_before(
    key: str, failures: int, asked: float | None, first_wait: float, longest_wait: float
) -> float:
    """Returns the seconds to wait before the next attempt; the same for the same arguments.

    It is `first_wait` times 2 for every further failure, times a number in [0.5, 1) drawn from
    the key so that calls do not come back all at once, and no shorter than what the server asked.

    Args:
        key: Of the call.
        failures: How many attempts have failed, from 1.
        asked: Seconds that the server asked for, or None.
        first_wait: Seconds.
        longest_wait: Seconds; the bound of all this.
    """
    digest = hashlib.sha256(f"{key} {failures}".encode()).digest()
    jitter = 0.5 + int.from_bytes(digest[:4], "big") / 2**33
    own = min(longest_wait, first_wait * 2.0 ** min(failures - 1, 60)) * jitter
    return min(longest_wait, max(own, asked or 0.0))


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Returns `text` without what is, or looks like, a key.

    Args:
        text: For example what a server said.
        secrets: Texts that may not be shown.
    """
    held = {form for secret in (*secrets, *_of_environment()) for form in _forms(secret)} - {""}
    if held:
        # In one pass, so that no secret is looked for in what stands for another.
        ordered = sorted(held, key=lambda form: (-len(form), form))
        text = re.sub("|".join(map(_pattern, ordered)), _REDACTED, text)
    for pattern in _SECRET_PATTERNS:
        text = pattern.sub(_REDACTED, text)
    return text


def _forms(secret: str) -> set[str]:
    """Returns a secret as it is, and as it is in JSON, in a repr and in a URL."""
    url = quote(secret, safe="", errors="replace")
    return {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], url}


def _pattern(secret: str) -> str:
    """Returns the regular expression of a secret; a short one is no part of a longer word."""
    found = re.escape(secret)
    return found if len(secret) >= _SHORTEST_SECRET else rf"(?<!\w){found}(?!\w)"


def _of_environment() -> list[str]:
    """Returns the values of environment variables that hold secrets by their name."""
    held = (value for name, value in os.environ.items() if _SECRET_NAMES.search(name))
    return [value for value in held if len(value) >= _SHORTEST_SECRET]


def secrets_of(model: BaseModel) -> tuple[str, ...]:
    """Returns the secrets that a chat model holds, to keep them out of what is shown.

    Args:
        model: A LangChain model: its fields that are `SecretStr`, and the `secrets` of the `auth`
            of its HTTP clients.
    """
    found: list[str] = []
    for value in vars(model).values():
        if isinstance(value, SecretStr):
            found.append(value.get_secret_value())
        found += getattr(getattr(value, "auth", None), "secrets", ())
    return tuple(dict.fromkeys(x for x in found if x.lower() not in _NO_SECRETS))
