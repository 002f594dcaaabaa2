"""Ctrl-C that waits for what is paid, and coroutines that also run from within a notebook."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Coroutine, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from llm_expert.errors import CallError, StopAsked

if TYPE_CHECKING:
    from llm_expert.calls import Caller

__all__ = ["Stopped", "run_coroutine", "stopping_on_interrupt"]

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Stopped(KeyboardInterrupt):
    """The user asked to stop; the answers that were on their way have been kept."""


@contextlib.contextmanager
def stopping_on_interrupt(caller: Caller) -> Iterator[None]:
    """Takes a first Ctrl-C for a wish to stop and the second one for an order.

    After the first one no call is started or tried again; those on their way come to their end and
    are recorded. Outside the main thread, where no signal arrives, nothing changes, nor where
    Ctrl-C is ignored, as in a shell's background.

    Args:
        caller: Who makes the calls.

    Raises:
        Stopped: The user asked to stop.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    asked = False

    def on_interrupt(number: int, frame: Any) -> None:
        nonlocal asked
        del number, frame
        if asked:
            raise KeyboardInterrupt
        asked = True
        caller.stop()
        logger.warning("Waiting for the answers that are on their way; Ctrl-C again stops at once.")

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    except (StopAsked, CallError) as error:
        if asked:
            raise Stopped from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)


def run_coroutine(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end, in a thread of its own where an event loop is running already.

    Args:
        coroutine: What to run.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    results: list[T] = []
    errors: list[BaseException] = []
    loop = asyncio.new_event_loop()
    task = loop.create_task(coroutine)

    def run() -> None:
        try:
            results.append(loop.run_until_complete(task))
        except BaseException as error:  # noqa: BLE001 (raised again by the caller's thread)
            errors.append(error)
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    thread = threading.Thread(target=run, name="agents")
    thread.start()
    try:
        thread.join()
    except BaseException:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        raise
    if errors:
        raise errors[0]
    return results[0]
