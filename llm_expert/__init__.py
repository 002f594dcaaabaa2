"""Demonstrations by language models, and how their words become items of a catalogue."""

from __future__ import annotations

from llm_expert.grounding import Grounded, Grounder, ground
from llm_expert.recorded import amazon_sessions, steam_sessions

__all__ = ["Grounded", "Grounder", "amazon_sessions", "ground", "steam_sessions"]
