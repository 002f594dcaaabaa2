"""What agents remember before their first session."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm_expert.agents import Agent
from llm_expert.grounding import Embedder
from llm_expert.recorded import recorded_memories
from recsim_env.artefacts import MANIFEST
from recsim_env.errors import DataError
from recsim_env.prepare import Prepared

__all__ = ["StartingMemories", "starting_memories"]

_KINDS = ("reflections", "experiences", "values")
_RECORDED = "recorded"


@dataclass(frozen=True)
class StartingMemories:
    """Memories to begin with, for any agent.

    Attributes:
        digest: Sha256 (hex) of what is remembered; "" for nothing.
        embedder: Of the keys.
        folder: Where an earlier run kept its memories; None: not from there.
        entries: Recorded memories by kind; None: not from there.
    """

    digest: str
    embedder: Embedder
    folder: Path | None = None
    entries: Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]] | None = None

    def given_to(self, agent: Agent) -> Agent:
        """Returns an agent that remembers them, as far as it has memories.

        Args:
            agent: With empty memories.
        """
        memories = agent.memories
        if self.folder is not None:
            memories = memories.with_contents_of(self.folder, self.embedder)
        if self.entries is not None:
            memories = memories.with_entries(self.entries)
        return replace(agent, memories=memories)


def starting_memories(
    name: str | None,
    prepared: Prepared,
    embedder: Embedder,
    *,
    data: str | Path | None = None,
    gamma: float = 0.5,
) -> StartingMemories:
    """Returns the memories that a name stands for.

    Args:
        name: A folder that a run wrote (its ``memories``); "recorded", what BiLLP's agents
            remembered of their training users; None for none.
        prepared: Whose items.
        embedder: Of the keys.
        data: Folder with the raw data, for recorded memories; None: where `ILREC_DATA` says.
        gamma: Discount of the critic, for recorded values.

    Raises:
        DataError: There are no such memories.
    """
    if name is None:
        return StartingMemories("", embedder)
    if name == _RECORDED:
        found, _ = recorded_memories(
            prepared.dataset.name,
            prepared.dataset,
            data,
            embedder,
            splits=("train",),
            gamma=gamma,
        )
        if not any(found.values()):
            raise DataError(
                "The data folder holds no recorded memories, expected the files of llm_demos: "
                "name the folder that has them (--data), or start without memories."
            )
        text = json.dumps(found, sort_keys=True)
        return StartingMemories(_sha256(text.encode()), embedder, entries=found)
    folder = Path(name)
    manifests = [folder / kind / MANIFEST for kind in _KINDS]
    contents = [file.read_bytes() for file in manifests if file.is_file()]
    if not contents:
        raise DataError(
            f"{folder} holds no memories, expected one of the folders {', '.join(_KINDS)} that a "
            "run wrote: name DIR/memories of a run of reflexion or billp."
        )
    return StartingMemories(_sha256(b"\0".join(contents)), embedder, folder=folder)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
