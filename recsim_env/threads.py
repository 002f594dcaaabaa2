"""One thread for small models: more only wait for each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["one_thread"]


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs torch with one thread inside and with as many as before outside.

    The models here take microseconds an operation. On busy cores the threads of an operation wait
    for the slowest; a fit was measured to take up to a hundred times longer with two.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
