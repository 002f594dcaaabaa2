"""How good a language model's feedback is, beside what popularity and texts alone would say.

    python benchmarks/lea/feedback_quality.py benchmarks/lea/table2.toml RUN --data DIR

RUN is the folder of `ilrec lea benchmark`. The figures of the language models are those that the
tuning left in its stages; texts are compared here: of the item that was chosen and four sampled
ones, the one whose text is nearest to one of the history, by the cosine of TF-IDF vectors.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from ilrec_sb3.lea.grid import GridDataset, load_recommender_grid
from ilrec_sb3.lea.training import load_data
from recsim_env.environment_feedback import sample_negatives
from recsim_env.sequences import SequenceData

RESULTS = Path(__file__).parents[1] / "results" / "lea"
MOST = 2_000
FIGURES = (
    ("pairs_right", "pairs right"),
    ("pairs_right_by_popularity", "by popularity"),
    ("choices_right", "choices right"),
    ("choices_right_by_popularity", "by popularity"),
    ("state_hr_at_10", "HR@10 of states"),
)


def choices_right_by_text(data: SequenceData, length: int = 10, seed: int = 0) -> float:
    """Returns how often the text nearest to the history is the chosen item's, of five.

    Args:
        data: The sequences; at most 2,000 validation examples are used.
        length: Items of a history.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    examples = data.examples("valid", length)
    if len(examples) > MOST:
        examples = examples.take(np.sort(rng.choice(len(examples), MOST, replace=False)))
    lists = np.column_stack([examples.targets, sample_negatives(examples, 4, seed)])
    texts = TfidfVectorizer(sublinear_tf=True, stop_words="english").fit_transform(data.texts)
    right = []
    for history, five in zip(examples.histories, lists, strict=True):
        known = history[history < data.n_items]
        nearest = (texts[five] @ texts[known].T).toarray().max(axis=1)
        best = nearest == nearest.max()
        right.append(best[0] / best.sum())
    return float(np.mean(right))


def rows_of(name: str, spec: GridDataset, run: Path, data_root: str | None) -> list[str]:
    """Returns a row of the table for each tuned language model of a dataset."""
    data = load_data(spec.dataset, data_root, dict(spec.options))
    by_text = choices_right_by_text(data)
    found: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for file in (run / "feedback" / name / "stages").glob("environment-*/environment.json"):
        about = json.loads(file.read_text(encoding="utf-8"))
        found.append((about["config"], about["report"]))
    rows = []
    for config, report in sorted(found, key=lambda pair: json.dumps(pair[0], sort_keys=True)):
        besides = [
            said
            for key, said in (
                ("item_tokens", "titles"),
                ("choice_loss", "no choice loss"),
                ("state_loss", "no state loss"),
            )
            if not config[key]
        ]
        if config["item_tokens"] and config["token_start"] == "text":
            besides.append("item tokens from the text")
        if config["exercises"]:
            besides.append(f"after {config['exercises']:,} exercises")
        figures = [f"{report[key]:.3f}" for key, _ in FIGURES]
        kind = ", ".join([f"{config['share']:.0%} of the users", *besides])
        counts = [f"{report[key]:,}" for key in ("examples", "held_out")]
        cells = [spec.title or name, kind, *counts, *figures, f"{by_text:.3f}"]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def main() -> None:
    """Writes and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("grid", type=Path, help="file of the grid, for its datasets")
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--data", default=None, help="folder with the raw data")
    arguments = parser.parse_args()
    grid = load_recommender_grid(arguments.grid)
    heads = ["dataset", "tuned on", "examples", "measured on"]
    heads += [*(head for _, head in FIGURES), "choices by text"]
    lines = [
        "# How good the language models' feedback is",
        "",
        "`benchmarks/lea/feedback_quality.py` (its docstring says how), on validation examples "
        "drawn anew for each language model: of 500, a share varies by 0.02 (standard error). A "
        "pair is the item that was chosen and a sampled one, and right where the chosen one has "
        "the higher reward (0.5 by chance); a choice is among it and four sampled ones (0.2 by "
        "chance). Popularity counts in the examples tuned on. "
        f"Python {platform.python_version()}.",
        "",
        "| " + " | ".join(heads) + " |",
        "|---|---|" + "---:|" * (len(heads) - 2),
    ]
    for name, spec in grid.datasets.items():
        lines += rows_of(name, spec, arguments.run, arguments.data)
    if lines[-1].startswith("|---"):
        parser.error(f"{arguments.run} has no tuned language model of the grid's datasets")
    text = "\n".join(lines) + "\n"
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "feedback_quality.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
