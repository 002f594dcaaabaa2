"""Figures as text, alike in all tables and sentences of a report."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["NONE", "TOO_FEW", "between", "duration", "listing", "number", "percent", "signed"]

NONE = "–"
"""Stands where there is no figure."""

TOO_FEW = "too few seeds"
"""Stands where there is no verdict."""


def number(value: float, digits: int = 1) -> str:
    """Returns a figure, with a true minus sign; a dash for NaN."""
    if math.isnan(value):
        return NONE
    text = f"{value:,.{digits}f}"
    # what rounds to zero has no sign
    return text.replace("-", "−" if any(digit in text for digit in "123456789") else "")


def percent(value: float, digits: int = 0) -> str:
    """Returns a share in per cent; a dash for NaN."""
    return NONE if math.isnan(value) else f"{number(100 * value, digits)} %"


def between(low: float, high: float, digits: int = 1) -> str:
    """Returns an interval; a dash for NaN."""
    return NONE if math.isnan(low) else f"{number(low, digits)} to {number(high, digits)}"


def duration(seconds: float) -> str:
    """Returns a time in seconds, minutes or hours."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7_200 else f"{seconds / 3_600:.1f} h"


def listing(parts: Sequence[str]) -> str:
    """Returns "a", "a and b" or "a, b and c"; at least one part."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def signed(value: float) -> str:
    """Returns a figure with its sign."""
    return f"+{number(value)}" if value > 0 else number(value)
