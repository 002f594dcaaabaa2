"""Chat models: from a short specification to a LangChain model and what a run has to know of it.

Nothing is fetched, and no key is read, before `make_chat_model` is called. Keys go from the
environment into the LangChain model and nowhere else: not into `ChatModel.spec`, not into
`ChatModel.settings`, which are what is logged, cached and written.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import importlib
import logging
import math
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote, urlsplit

from llm_expert.errors import AuthenticationError, ModelSpecError
from llm_expert.tokens import TokenCounter, encoding_for, make_counter
from recsim_env.errors import near_miss

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

    from recsim_env.prepare import Prepared

__all__ = ["ChatModel", "ModelFacts", "Price", "known_specs", "make_chat_model", "model_facts"]

_DEFAULT_WINDOW = 8192
_OFFLINE_WINDOW = 32_768
_ASK_TIMEOUT = 10.0
_REASONING_TOKENS = 2048
"""Fewer tokens than these a reasoning model may spend before it writes a word of its answer."""

# One connection a call. A pooled one belongs to the event loop that opened it and is broken in the
# next, and servers close idle ones under a client's feet.
_HEADERS = {"Connection": "close"}

_FIXED_TEMPERATURE = re.compile(r"o\d+(-|$)|gpt-5|claude-fable-5|claude-sonnet-5-5")
_OPENAI_HOST = "api.openai.com"
_DATED = r"-(\d{4}|\d{4}-\d{2}-\d{2}|\d{8}|latest)"

_KINDS = {
    "offline": "`offline`, `offline:invent=0.2,break=0.1,seed=1`",
    "openai": "`openai:NAME`",
    "anthropic": "`anthropic:NAME`",
    "ollama": "`ollama:NAME`",
    "http": "`http(s)://HOST:PORT/v1#NAME` (any OpenAI-compatible server)",
    "huggingface": "`huggingface:FOLDER_OR_NAME`",
}
_FORMS = "offline, openai:NAME, anthropic:NAME, ollama:NAME, huggingface:FOLDER_OR_NAME"
_NEEDS = {  # package that must be there, and how to get it
    "openai": ("langchain_openai", "pip install ilrec"),
    "anthropic": ("langchain_anthropic", "pip install 'ilrec[anthropic]'"),
    "ollama": ("langchain_ollama", "pip install 'ilrec[ollama]'"),
    "huggingface": ("transformers", "pip install 'ilrec[local]'"),
}
_KEYS = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}
_PROXIES = ("ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
_OFFLINE_OPTIONS = {"invent": "invent", "break": "break_format", "seed": "seed"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Price:
    """What tokens cost.

    Args:
        prompt: USD per million tokens of prompts.
        completion: USD per million tokens of answers.
    """

    prompt: float
    completion: float

    def __post_init__(self) -> None:
        """Checks the figures."""
        if not all(_is_number(value) for value in (self.prompt, self.completion)):
            raise ModelSpecError(
                f"Price got prompt={self.prompt!r} and completion={self.completion!r}, expected "
                "USD per million tokens: give two numbers."
            )
        if not (0 <= self.prompt < math.inf and 0 <= self.completion < math.inf):
            raise ModelSpecError(
                f"Price got prompt={self.prompt} and completion={self.completion}, expected USD "
                "per million tokens, at least 0."
            )


@dataclass(frozen=True)
class ChatModel:
    """A LangChain model and what a run has to know of it.

    Args:
        model: Asks the model; its own retries are off.
        spec: What it was made from, without secrets, for example "openai:gpt-4o-mini".
        settings: What else an answer depends on, JSON-able and without secrets; a temperature of
            None is one that is not sent.
        window: Tokens that prompt and answer have together.
        max_tokens: Tokens that an answer may have.
        counter: Counts tokens of prompts.
        price: None where it is not known.
        timeout: Seconds that one call may take.
        draw_argument: Name of the keyword of `ainvoke` that takes a seed, to draw another answer to
            the same prompt; None where the model takes none.
        limiter: Lets calls through at the rate that is wanted (`aacquire`); None lets all through.
    """

    model: BaseChatModel = field(repr=False)
    spec: str
    settings: Mapping[str, Any]
    window: int
    max_tokens: int
    counter: TokenCounter
    price: Price | None
    timeout: float = 60.0
    draw_argument: str | None = None
    limiter: Any = field(default=None, repr=False)


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model before it is made: enough to estimate what a run will cost.

    Args:
        spec: As it was given, without secrets.
        window: Tokens that prompt and answer have together.
        counter: Counts tokens of prompts.
        price: None where it is not known.
    """

    spec: str
    window: int
    counter: TokenCounter
    price: Price | None


@dataclass(frozen=True)
class _Wanted:
    """The arguments of `make_chat_model`, checked."""

    name: str
    temperature: float | None
    max_tokens: int
    timeout: float
    window: int | None
    price: Price | None
    seed: int
    prepared: Prepared | None
    encoding: str | None
    replay: bool

    @property
    def common(self) -> dict[str, Any]:
        """Returns what every LangChain model is told."""
        return {"cache": False, "disable_streaming": True}

    def settings(self, **others: Any) -> dict[str, Any]:
        """Returns the settings of an ordinary model."""
        return {
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            **others,
        }


def make_chat_model(
    spec: str,
    *,
    temperature: float | None = 0.5,
    max_tokens: int = 256,
    timeout: float = 60.0,
    window: int | None = None,
    price: Price | None = None,
    seed: int = 0,
    prepared: Prepared | None = None,
    encoding: str | None = "auto",
    requests_per_second: float | None = None,
    replay: bool = False,
) -> ChatModel:
    """Makes a chat model; a missing package or key is said here, before any work.

    Args:
        spec: One of the forms of `known_specs`. An `http(s)` server gets OPENAI_API_KEY if that is
            set; without ``#NAME`` it is asked for its only model.
        temperature: Raising it makes answers more varied; 0 to 1, the paper's expert has 0.5. None
            leaves it to the server, as do models that refuse one.
        max_tokens: Of an answer; 128 to 512, thousands for models that reason before they answer.
        timeout: Seconds that one call may take.
        window: Tokens of prompt and answer together; None takes the known one.
        price: None takes the known one.
        seed: Of models that take one; part of the settings in any case.
        prepared: The dataset that the `offline` model knows.
        encoding: tiktoken encoding to count with; "auto" takes the model's own, None or "bytes"
            counts bytes.
        requests_per_second: At most so many calls a second, retries among them.
        replay: The record will answer: no key, package of a provider, server or weights are needed,
            and the model cannot be asked. A server has to be named with its ``#NAME``.

    Returns:
        The model.

    Raises:
        ModelSpecError: It cannot be made of this.
        AuthenticationError: A server that was asked for its models refuses the key.
    """
    _check(temperature, max_tokens, timeout, window, requests_per_second)
    if price is not None and not isinstance(price, Price):
        raise ModelSpecError(
            f"make_chat_model got price={price!r}, expected USD per million tokens: give "
            "Price(prompt, completion)."
        )
    kind, name = _split(spec)
    wanted = _Wanted(
        name,
        temperature,
        max_tokens,
        timeout,
        window,
        price,
        seed,
        prepared,
        encoding,
        replay,
    )
    made = replace(_MAKERS[kind](wanted), limiter=_limiter(requests_per_second))
    if made.window <= max_tokens:
        raise ModelSpecError(
            f"{made.spec} has a window of {made.window} tokens and max_tokens is {max_tokens}, "
            "expected room for a prompt: lower max_tokens or give the right window."
        )
    return made


def model_facts(
    spec: str,
    *,
    window: int | None = None,
    price: Price | None = None,
    encoding: str | None = "auto",
) -> ModelFacts:
    """Returns what is known of a model; needs no key, no package of a provider and no server.

    Args:
        spec: As for `make_chat_model`.
        window: As there; None takes the known one, or 8192.
        price: As there.
        encoding: As there.

    Raises:
        ModelSpecError: There is no such kind of model.
    """
    kind, name = _split(spec)
    known, listed, own = None, None, None
    if kind in _KEYS:
        known, listed = _known(kind, name)
        own = encoding_for(name) if kind == "openai" else None
    elif kind != "http":
        listed = Price(0.0, 0.0)
        known = _OFFLINE_WINDOW if kind == "offline" else _family_window(name)
    return ModelFacts(
        spec=_redacted(spec),
        window=window or known or _DEFAULT_WINDOW,
        counter=make_counter(own if encoding == "auto" else encoding),
        price=price or listed,
    )


def known_specs() -> str:
    """Returns a Markdown table of the forms of a specification, their extras and keys."""
    rows = ["| LLM | install | key |", "|---|---|---|"]
    for kind, form in _KINDS.items():
        install = _NEEDS.get("openai" if kind == "http" else kind, ("", ""))[1]
        extra = f"`{install}`" if "[" in install else ""
        key = f"`{_KEYS[kind]}`" if kind in _KEYS else ""
        key = f"`{_KEYS['openai']}`, if the server wants one" if kind == "http" else key
        rows.append(f"| {form} | {extra} | {key} |")
    return "\n".join(rows)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _check(
    temperature: float | None,
    max_tokens: int,
    timeout: float,
    window: int | None,
    requests_per_second: float | None,
) -> None:
    checks: tuple[tuple[str, Any, str, float, float, bool], ...] = (
        ("temperature", temperature, "from 0 to 2", 0, 2, True),
        ("max_tokens", max_tokens, "at least 1", 1, math.inf, False),
        ("timeout", timeout, "seconds, more than 0", 1e-9, math.inf, False),
        ("window", window, "at least 1", 1, math.inf, False),
        ("requests_per_second", requests_per_second, "more than 0", 1e-9, math.inf, False),
    )
    for name, value, expected, low, high, closed in checks:
        if value is None and name not in ("max_tokens", "timeout"):
            continue
        whole = name in ("max_tokens", "window")
        if value is None or not _is_number(value) or (whole and not isinstance(value, Integral)):
            raise ModelSpecError(
                f"make_chat_model got {name}={value!r}, expected {'a whole' if whole else 'a'} "
                f"number, {expected}."
            )
        if not (low <= value < high or (closed and value == high)):
            raise ModelSpecError(f"make_chat_model got {name}={value}, expected {expected}.")


def _split(spec: str) -> tuple[str, str]:
    """Returns the kind of a specification and the rest of it (all of it for a URL)."""
    if not isinstance(spec, str):
        raise ModelSpecError(
            f"The LLM came as {type(spec).__name__}, expected a text: give one of {_FORMS}, "
            "http(s)://HOST:PORT/v1#NAME."
        )
    spec = spec.strip()
    if re.match(r"https?://", spec, re.IGNORECASE):
        return "http", spec
    kind, _, name = spec.partition(":")
    kind, name = kind.strip().lower(), name.strip()
    if kind in _MAKERS and kind != "http":
        if not name and kind != "offline":
            raise ModelSpecError(
                f"The LLM {_redacted(spec)!r} names no model, expected {kind}:NAME."
            )
        return kind, name
    owner = next((owner for owner in _KEYS if _known(owner, spec)[0]), None)
    hint = f"did you mean '{owner}:{spec}'? " if owner else ""
    near = near_miss(kind, _KINDS).partition("Known: ")[0]
    raise ModelSpecError(
        f"There is no LLM {_redacted(spec)!r}; {hint or near}Known: {_FORMS}, "
        "http(s)://HOST:PORT/v1#NAME."
    )


def _redacted(text: str) -> str:
    """Returns the text without the user, password and query of a URL."""
    text = re.sub(r"^(\w+://)?.*@", r"\1", text)
    return re.sub(r"\?[^#]*", "", text)


def _limiter(requests_per_second: float | None) -> Any:
    if requests_per_second is None:
        return None
    from langchain_core.rate_limiters import InMemoryRateLimiter

    return InMemoryRateLimiter(
        requests_per_second=requests_per_second,
        check_every_n_seconds=min(0.1, 0.5 / requests_per_second),
        max_bucket_size=1,
    )


def _require(kind: str, spec: str) -> None:
    """Raises unless the package of a kind can be imported."""
    package, install = _NEEDS[kind]
    try:
        with _connecting(spec):  # a package may make its clients when it is imported
            importlib.import_module(package)
    except ImportError as error:
        raise ModelSpecError(
            f"The LLM {spec} needs the package {package}, which cannot be imported: {install}"
        ) from error


def _key(kind: str, spec: str) -> str:
    """Returns the key of a provider."""
    variable = _KEYS[kind]
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ModelSpecError(
            f"The LLM {spec} needs a key, and the environment variable {variable} is not set: "
            f"export {variable}=..."
        )
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ModelSpecError(
            f"The environment variable {variable} does not hold a key (there are characters in it "
            "that no key has): set it again."
        )
    return key


@functools.cache
def _table() -> dict[str, Any]:
    text = resources.files("llm_expert").joinpath("models.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def _known(provider: str, name: str) -> tuple[int | None, Price | None]:
    """Returns window and price of a model, its own or those of which it is a dated version."""
    rows: dict[str, dict[str, Any]] = _table()[provider]
    dated = (row for base, row in rows.items() if re.fullmatch(re.escape(base) + _DATED, name))
    row = rows.get(name) or next(dated, None)
    if row is None:
        return None, None
    return int(row["window"]), Price(row["prompt"], row["completion"])


def _family_window(name: str) -> int | None:
    """Returns the window that an open model was trained for."""
    base = name.rsplit("/", 1)[-1].lower()
    for family in _table()["family"]:
        if re.match(family["pattern"], base):
            return int(family["window"])
    return None


def _counter(wanted: _Wanted, own: str | None) -> TokenCounter:
    """Returns the counter that was asked for, or that of the model's own encoding."""
    return make_counter(own if wanted.encoding == "auto" else wanted.encoding)


def _window(wanted: _Wanted, spec: str, known: int | None) -> int:
    if wanted.window is not None:
        return wanted.window
    if known is None:
        _log.warning(
            "The window of %s is not known: prompts are cut as for %d tokens; the window argument "
            "changes it.",
            spec,
            _DEFAULT_WINDOW,
        )
        return _DEFAULT_WINDOW
    return known


def _is_fixed(name: str) -> bool:
    """Tells whether a model takes neither a temperature nor a seed."""
    return _FIXED_TEMPERATURE.match(name.rsplit("/", 1)[-1]) is not None


def _without_temperature(wanted: _Wanted, spec: str) -> _Wanted:
    """Returns the arguments as a model can have them that takes no temperature."""
    if not _is_fixed(wanted.name):
        return wanted
    _log.info("%s takes no temperature: none is sent.", spec)
    if wanted.max_tokens < _REASONING_TOKENS:
        _log.warning(
            "%s reasons before it answers, and its reasoning counts: max_tokens=%d may leave "
            "nothing for the answer; %d and more is usual.",
            spec,
            wanted.max_tokens,
            _REASONING_TOKENS,
        )
    return replace(wanted, temperature=None)


def _init(provider: str, name: str, **arguments: Any) -> BaseChatModel:
    """Makes a LangChain model; arguments that are None are left to it."""
    from langchain.chat_models import init_chat_model

    given = {key: value for key, value in arguments.items() if value is not None}
    model: BaseChatModel = init_chat_model(name, model_provider=provider, **given)
    return model


def _make(provider: str, wanted: _Wanted, spec: str, **arguments: Any) -> BaseChatModel:
    """Makes a LangChain model, or what stands for it in a replay."""
    if wanted.replay:
        return _recorded(spec)
    _require(provider, spec)
    with _connecting(spec):
        if provider == "ollama":
            given = {key: value for key, value in arguments.items() if value is not None}
            ollama: BaseChatModel = _seeded_ollama()(model=wanted.name, **given, **wanted.common)
            return ollama
        model = _init(provider, wanted.name, **arguments, **wanted.common)
        # They would be made with the first call.
        for client in ("_client", "_async_client") if provider == "anthropic" else ():
            getattr(model, client)
        return model


@contextlib.contextmanager
def _connecting(spec: str) -> Iterator[None]:
    """Says in a sentence what the environment tells HTTP clients and they cannot do."""
    try:
        yield
    except ImportError as error:
        if "socksio" not in str(error):
            raise
        raise ModelSpecError(
            f"The LLM {spec} is to be reached through a SOCKS proxy ({_set_of(_PROXIES)}), and the "
            "package socksio is not there: pip install 'httpx[socks]', or unset the proxy."
        ) from None
    except ValueError as error:
        if "proxy" not in str(error).lower() or not _set_of(_PROXIES):
            raise
        raise ModelSpecError(
            f"A proxy of the environment ({_set_of(_PROXIES)}) cannot be used, expected "
            "http(s)://HOST:PORT or socks5://HOST:PORT: correct or unset it."
        ) from None  # its message may quote a password
    except OSError as error:
        names = _set_of(_CERTIFICATES)
        if not names:
            raise
        raise ModelSpecError(
            f"The certificates that {names} names cannot be read ({error.strerror or error}), "
            "expected a file or folder of certificates: correct or unset it."
        ) from error


def _set_of(variables: tuple[str, ...]) -> str:
    """Returns the names of those environment variables that are set."""
    return " or ".join(name for name in variables if os.environ.get(name))


def _recorded(spec: str) -> BaseChatModel:
    from llm_expert.offline import RecordedChatModel

    return RecordedChatModel(spec=spec)


def _elsewhere(*variables: str) -> dict[str, str]:
    """Returns the server that an environment variable names in place of the provider's own."""
    for variable in variables:
        if os.environ.get(variable):
            url = urlsplit(os.environ[variable])
            return {"server": f"{url.hostname}{url.path}"}
    return {}


def _offline(wanted: _Wanted) -> ChatModel:
    options: dict[str, float] = {}
    for part in filter(None, wanted.name.split(",")):
        key, _, value = (text.strip() for text in part.partition("="))
        if key not in _OFFLINE_OPTIONS:
            raise ModelSpecError(
                f"The LLM offline has no option {key!r}; {near_miss(key, _OFFLINE_OPTIONS)}."
            )
        try:
            number = int(value) if key == "seed" else float(value)
        except ValueError as error:
            raise ModelSpecError(
                f"The LLM offline got {key}={value!r}, expected a number, as in "
                "offline:invent=0.2,break=0.1,seed=1."
            ) from error
        if key != "seed" and not 0 <= number <= 1:
            raise ModelSpecError(f"The LLM offline got {key}={value}, expected a rate from 0 to 1.")
        options[key] = number
    if wanted.prepared is None:
        raise ModelSpecError(
            "The LLM offline answers from a catalogue and got none: give the prepared dataset "
            "(prepared=prepare(...))."
        )
    from llm_expert.offline import Knowledge, OfflineChatModel

    spec = ",".join(f"{key}={value:g}" for key, value in sorted(options.items()))
    seed = int(options.pop("seed", wanted.seed))
    rates: dict[str, Any] = {_OFFLINE_OPTIONS[key]: value for key, value in options.items()}
    knowledge = Knowledge.of(wanted.prepared)
    model = OfflineChatModel(knowledge=knowledge, seed=seed, **rates, **wanted.common)
    return ChatModel(
        model=model,
        spec=f"offline:{spec}" if spec else "offline",
        settings={
            "invent": model.invent,
            "break_format": model.break_format,
            "seed": seed,
            "catalogue": knowledge.fingerprint,
        },
        window=wanted.window or _OFFLINE_WINDOW,
        max_tokens=wanted.max_tokens,
        counter=_counter(wanted, None),
        price=wanted.price or Price(0.0, 0.0),
        timeout=wanted.timeout,
        draw_argument="seed",
    )


def _openai(wanted: _Wanted) -> ChatModel:
    spec = f"openai:{wanted.name}"
    key = "" if wanted.replay else _key("openai", spec)
    wanted = _without_temperature(wanted, spec)
    fixed = _is_fixed(wanted.name)
    model = _make(
        "openai",
        wanted,
        spec,
        api_key=key,
        temperature=wanted.temperature,
        seed=None if fixed else wanted.seed,
        max_tokens=wanted.max_tokens,
        timeout=wanted.timeout,
        max_retries=0,
        streaming=False,
        default_headers=_HEADERS,
    )
    known, price = _known("openai", wanted.name)
    return ChatModel(
        model=model,
        spec=spec,
        settings=wanted.settings(**_elsewhere("OPENAI_API_BASE", "OPENAI_BASE_URL")),
        window=_window(wanted, spec, known),
        max_tokens=wanted.max_tokens,
        counter=_counter(wanted, encoding_for(wanted.name)),
        price=wanted.price or price,
        timeout=wanted.timeout,
        draw_argument=None if fixed else "seed",
    )


def _anthropic(wanted: _Wanted) -> ChatModel:
    spec = f"anthropic:{wanted.name}"
    key = "" if wanted.replay else _key("anthropic", spec)
    wanted = _without_temperature(wanted, spec)
    model = _make(
        "anthropic",
        wanted,
        spec,
        api_key=key,
        temperature=wanted.temperature,
        max_tokens=wanted.max_tokens,
        timeout=wanted.timeout,
        max_retries=0,
        streaming=False,
        default_headers=_HEADERS,
    )
    known, price = _known("anthropic", wanted.name)
    return ChatModel(
        model=model,
        spec=spec,
        settings=wanted.settings(**_elsewhere("ANTHROPIC_API_URL", "ANTHROPIC_BASE_URL")),
        window=_window(wanted, spec, known),
        max_tokens=wanted.max_tokens,
        counter=_counter(wanted, None),
        price=wanted.price or price,
        timeout=wanted.timeout,
    )


def _ollama(wanted: _Wanted) -> ChatModel:
    spec = f"ollama:{wanted.name}"
    # The server sets memory aside for the whole window, so that a model's full one is not asked for
    # unless it is wanted; without a number it would silently cut prompts at 2048 or 4096 tokens.
    trained = _family_window(wanted.name) or _DEFAULT_WINDOW
    window = wanted.window or min(trained, _DEFAULT_WINDOW)
    model = _make(
        "ollama",
        wanted,
        spec,
        temperature=wanted.temperature,
        seed=wanted.seed,
        num_predict=wanted.max_tokens,
        num_ctx=window,
        client_kwargs={"timeout": wanted.timeout, "headers": dict(_HEADERS)},
    )
    return ChatModel(
        model=model,
        spec=spec,
        settings=wanted.settings(num_ctx=window),
        window=window,
        max_tokens=wanted.max_tokens,
        counter=_counter(wanted, None),
        price=wanted.price or Price(0.0, 0.0),
        timeout=wanted.timeout,
        draw_argument="seed",
    )


def _seeded_ollama() -> type[Any]:
    """Returns LangChain's class for Ollama, made to take a seed with a call.

    Its own takes one with a call only inside a full set of options, in place of all its fields.
    """
    from langchain_ollama import ChatOllama

    class SeededOllama(ChatOllama):
        async def _agenerate(self, *arguments: Any, **others: Any) -> Any:
            seed = others.pop("seed", self.seed)
            model = self if seed == self.seed else self.model_copy(update={"seed": seed})
            return await ChatOllama._agenerate(model, *arguments, **others)

    return SeededOllama


def _huggingface(wanted: _Wanted) -> ChatModel:
    from llm_expert import local

    spec = f"huggingface:{wanted.name}"
    model: BaseChatModel
    window: int | None
    count: Callable[[str], int] | None
    if wanted.replay:
        model = _recorded(spec)
        window, count = local.what_is_here(wanted.name)
    else:
        _require("huggingface", spec)
        own = local.LocalChatModel.from_pretrained(
            wanted.name,
            temperature=wanted.temperature,
            max_tokens=wanted.max_tokens,
            seed=wanted.seed,
            **wanted.common,
        )
        model, window, count = own, own.window, own.token_counter()
    counter = (
        TokenCounter("tokenizer", exact=True, count_anew=count)
        if wanted.encoding == "auto" and count is not None
        else _counter(wanted, None)
    )
    return ChatModel(
        model=model,
        spec=spec,
        settings=wanted.settings(),
        window=_window(wanted, spec, window),
        max_tokens=wanted.max_tokens,
        counter=counter,
        price=wanted.price or Price(0.0, 0.0),
        timeout=wanted.timeout,
        draw_argument="seed",
    )


@dataclass(frozen=True)
class _Server:
    """An OpenAI-compatible server; its repr shows no secrets."""

    url: str
    host: str
    auth: tuple[str, str] | None = field(repr=False)
    key: str = field(repr=False)


def _server(url: str, *, replay: bool) -> tuple[_Server, str]:
    """Returns the server of a URL and the model that it names, or ""; no key is for a replay."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _bad_url(url) from None  # its message may quote a password
    if not parts.hostname or parts.query or "@" in parts.path:
        raise _bad_url(url)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    place = f"{host}:{port}" if port is not None else host
    path = parts.path.rstrip("/") or "/v1"
    clean = f"{parts.scheme.lower()}://{place}{path}"
    key = "none"
    if not replay and os.environ.get(_KEYS["openai"], "").strip():
        key = _key("openai", clean)
    return _Server(clean, parts.hostname, _auth(parts), key), unquote(parts.fragment).strip()


def _auth(parts: SplitResult) -> tuple[str, str] | None:
    if parts.username is None:
        return None
    return unquote(parts.username), unquote(parts.password or "")


def _bad_url(url: str) -> ModelSpecError:
    return ModelSpecError(
        f"The LLM {_redacted(url)!r} is no address of a server, expected "
        "http(s)://HOST:PORT/v1#NAME without a query."
    )


def _only_model(server: _Server, timeout: float) -> tuple[str, int | None]:
    """Asks a server for its only model and for that one's window."""
    import httpx

    headers = {} if server.auth else {"Authorization": f"Bearer {server.key}"}
    try:
        with _connecting(server.url):
            answer = httpx.get(
                f"{server.url}/models",
                headers=headers,
                auth=server.auth,
                timeout=min(timeout, _ASK_TIMEOUT),
            )
        if answer.status_code in (401, 403):
            raise AuthenticationError(
                f"The server {server.url} refuses the key (status {answer.status_code}): set "
                f"{_KEYS['openai']} to one that it accepts."
            )
        answer.raise_for_status()
        models = {str(row["id"]): row.get("max_model_len") for row in answer.json()["data"]}
    except ModelSpecError:
        raise
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        raise ModelSpecError(
            f"The server {server.url} does not say which models it has ({type(error).__name__}): "
            f"start it, correct the address, or name the model, {server.url}#NAME."
        ) from error
    if len(models) != 1:
        raise ModelSpecError(
            f"The server {server.url} has {len(models)} models, expected the name of one: "
            f"{server.url}#NAME with NAME among {', '.join(sorted(models)) or 'none'}."
        )
    ((name, window),) = models.items()
    return name, window if isinstance(window, int) and window > 0 else None


def _http(wanted: _Wanted) -> ChatModel:
    server, name = _server(wanted.name, replay=wanted.replay)
    window: int | None = None
    if not name:
        if wanted.replay:
            raise ModelSpecError(
                f"The LLM {server.url} names no model, and a replay asks no server for it: give "
                f"{server.url}#NAME with the model that was recorded (and its window, if it is not "
                "the one that the name tells)."
            )
        _require("openai", server.url)
        name, window = _only_model(server, wanted.timeout)
    spec = f"{server.url}#{name}"
    local = server.host == "localhost" or server.host.startswith("127.") or server.host == "::1"
    secret = not wanted.replay and (server.auth or server.key != "none")
    if server.url.startswith("http:") and not local and secret:
        _log.warning("A key goes to %s over a connection that is not encrypted.", server.url)
    own = server.host == _OPENAI_HOST
    wanted = _without_temperature(replace(wanted, name=name), spec)
    known, price = _known("openai", name) if own else (None, None)
    model = _make(
        "openai",
        wanted,
        server.url,
        base_url=server.url,
        api_key=server.key,
        temperature=wanted.temperature,
        use_responses_api=False,
        timeout=wanted.timeout,
        max_retries=0,
        streaming=False,
        default_headers=_HEADERS,
        **_limits(wanted, own),
        **({} if wanted.replay else _clients(server)),
    )
    return ChatModel(
        model=model,
        spec=spec,
        settings=wanted.settings(),
        window=_window(wanted, spec, window or known or _family_window(name)),
        max_tokens=wanted.max_tokens,
        counter=_counter(wanted, encoding_for(name)),
        price=wanted.price or price,
        timeout=wanted.timeout,
        draw_argument=None if _is_fixed(name) else "seed",
    )


def _limits(wanted: _Wanted, own: bool) -> dict[str, Any]:
    """Returns how a server is told the longest answer and the seed."""
    if _is_fixed(wanted.name):
        return {"max_tokens": wanted.max_tokens}
    if own:
        return {"max_tokens": wanted.max_tokens, "seed": wanted.seed}
    # LangChain sends `max_completion_tokens`, which older servers pass over in silence.
    return {"extra_body": {"max_tokens": wanted.max_tokens}, "seed": wanted.seed}


def _clients(server: _Server) -> dict[str, Any]:
    """Returns HTTP clients that know user and password, so that no field of the model does."""
    if server.auth is None:
        return {}
    import openai

    with _connecting(server.url):
        clients: dict[str, Any] = {
            "http_client": openai.DefaultHttpxClient(auth=server.auth),
            "http_async_client": openai.DefaultAsyncHttpxClient(auth=server.auth),
        }
    code = base64.b64encode(":".join(server.auth).encode()).decode()
    for client in clients.values():
        # `secrets_of` takes them from here, to keep them out of what is shown.
        client.auth.secrets = (*server.auth, code)
    return clients


_MAKERS: dict[str, Callable[[_Wanted], ChatModel]] = {
    "offline": _offline,
    "openai": _openai,
    "anthropic": _anthropic,
    "ollama": _ollama,
    "http": _http,
    "huggingface": _huggingface,
}
