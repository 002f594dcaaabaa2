"""Errors of language models and of what is done with their answers.

IlrecError (recsim_env.errors)
 x LLMError
   + ModelSpecError        (also a DataError)     a chat model cannot be made: unknown, extra, key
   + CallError             (also a RuntimeError)  a call has failed for good
     + AuthenticationError   the server refuses the key
     + RequestError          the server does not accept the request, whatever the wait
       + PromptTooLongError    not even the instructions fit the model's window
     + RateLimitError        too many requests, after all attempts
     + ServerError           the server failed (5xx), after all attempts
     + CallTimeoutError      no answer in time, after all attempts
     + ConnectionLostError   no connection, or one that broke off, after all attempts
     + BadResponseError      an answer that is no chat completion, after all attempts
   + FormatError           (also a ValueError)    an answer is not in the format that was asked for
   + ReplayMissError       (also a LookupError)   a replay lacks the answer to a prompt
   + StorageError          (also a RuntimeError)  the record of calls cannot be read or written
   + StopAsked                                    a call was not made: the run is to stop

`CallError`, `StorageError` and their kinds stop a run: calls that are not on their way yet end in
`StopAsked`. What was answered before is on disk, and the same command goes on from there.
"""

from __future__ import annotations

from recsim_env.errors import DataError, IlrecError

__all__ = [
    "AuthenticationError",
    "BadResponseError",
    "CallError",
    "CallTimeoutError",
    "ConnectionLostError",
    "FormatError",
    "LLMError",
    "ModelSpecError",
    "PromptTooLongError",
    "RateLimitError",
    "ReplayMissError",
    "RequestError",
    "ServerError",
    "StopAsked",
    "StorageError",
]


class LLMError(IlrecError):
    """Base class of what goes wrong with language models."""


class ModelSpecError(LLMError, DataError):
    """A chat model cannot be made of what was given."""


class CallError(LLMError, RuntimeError):
    """A call has failed for good."""


class AuthenticationError(CallError):
    """The server refuses the key."""


class RequestError(CallError):
    """The server does not accept the request, however long one waits."""


class PromptTooLongError(RequestError):
    """Not even the instructions fit the model's window."""


class RateLimitError(CallError):
    """The server kept on asking for fewer requests."""


class ServerError(CallError):
    """The server kept on failing."""


class CallTimeoutError(CallError):
    """The server kept on giving no answer in time."""


class ConnectionLostError(CallError):
    """There was no connection to the server, or it kept on breaking off."""


class BadResponseError(CallError):
    """The server kept on answering with something that is no chat completion, or an empty one."""


class FormatError(LLMError, ValueError):
    """An answer is not in the format that was asked for."""


class ReplayMissError(LLMError, LookupError):
    """A replay lacks the answer to a prompt."""


class StorageError(LLMError, RuntimeError):
    """The record of calls cannot be read or written."""


class StopAsked(LLMError):
    """A call was not made: the run was asked to stop, or another call failed for good.

    Where another call failed, its error is the `__cause__`.
    """
