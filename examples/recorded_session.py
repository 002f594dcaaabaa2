"""A recorded session of a language model: what it thought, said, and was understood as.

    python examples/recorded_session.py DATA

DATA is the folder with the recorded sessions of BiLLP's agents and the Steam tables. The sessions
are told in the items of the dataset `steam`.
"""

import sys
from collections.abc import Sequence

from llm_expert import steam_sessions
from recsim_env.datasets import load
from recsim_env.prepare import Session
from recsim_env.text import TextEmbedder, item_documents

WIDTH = 260


def tell(session: Session, titles: Sequence[str]) -> str:
    """Returns a session as markdown."""
    user = f"user {session.extras['recorded_user']} of the {session.extras['split']} users"
    known = ", ".join(f"*{plain(titles[item])}*" for item in session.history) or "nothing"
    lines = [f"{session.source}, {user}. Known before: {known}.", ""]
    names = ("thought", "raw_action", "grounded_by", "grounding", "recorded_reward")
    columns = [session.extras[name] for name in names]
    for number, (item, thought, said, by, how, reward) in enumerate(
        zip(session.actions, *columns, strict=True), 1
    ):
        rated = "the user left" if reward is None else f"rated {reward:g}"
        way = "by its title" if by == "named" else "shown in its place"
        if how == "similar":
            way = "nearest to what was shown in its place"
        lines += [
            f"{number}. *Thought.* {plain(thought)}",
            f"   *Said* {plain(said)}, *understood as* {plain(titles[item])} ({way}), {rated}.",
        ]
    return "\n".join(lines)


def plain(text: str) -> str:
    """Returns a text on one line, without signs that markdown reads as its own."""
    line = " ".join(text.split())
    line = line if len(line) <= WIDTH else line[: WIDTH - 1].rstrip() + "…"
    return "".join("\\" + c if c in "*_`[]<>{}#$|\\" else c for c in line)


def recorded_session(data: str) -> str:
    """Returns the first session of 6 to 8 steps in which the user left, as markdown."""
    dataset = load("steam", data)
    embedder = TextEmbedder().fit(item_documents(dataset.catalogue))
    sessions, _ = steam_sessions(dataset, data, embedder)
    chosen = next(
        session
        for session in sessions
        if 6 <= len(session.actions) <= 8 and session.history and session.extras["left"]
    )
    return tell(chosen, dataset.catalogue.titles)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Give the data folder: python examples/recorded_session.py DATA")
    print(recorded_session(sys.argv[1]))
