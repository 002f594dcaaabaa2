"""Compares GRU4Rec and SASRec, trained on next items alone, with RecBole's on the same examples.

    python benchmarks/lea/recbole_comparison.py export industrial OUT --data DIR
    python benchmarks/lea/recbole_comparison.py ours industrial OUT --data DIR
    RECBOLE_PYTHON benchmarks/lea/recbole_comparison.py theirs industrial OUT
    python benchmarks/lea/recbole_comparison.py table industrial OUT

RecBole wants older packages than ours, so its part runs in an environment of its own (RecBole 1.2,
kmeans-pytorch, "numpy<2", "scipy<1.12", "pandas<2.2") and meets ours in files: each of our train,
validation and test examples is a row of a benchmark file, history and next item, so that nothing is
split or expanded anew. Both rank all items, those of the history among them, and both choose the
weights with the best NDCG@10 on the validation split. Sizes that a paper leaves open are each
implementation's own; width, length, batch size, learning rate and patience are the same.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

BACKBONES = ("GRU4Rec", "SASRec")
METRICS = ("HR@5", "HR@10", "HR@20", "NDCG@5", "NDCG@10", "NDCG@20")
SEEDS = (0, 1, 2, 3, 4)
LENGTH, DIM, BATCH, RATE, PATIENCE, EPOCHS = 10, 64, 100, 1e-3, 10, 200


def export(name: str, out: Path, data_root: str | None) -> None:
    """Writes the examples as RecBole's benchmark files."""
    from ilrec_sb3.lea.training import load_data

    options = {"form": "reviews"} if name == "steam" else {}
    data = load_data(name, data_root, options)
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for split in ("train", "valid", "test"):
        examples = data.examples(split, LENGTH)
        rows = ["user_id:token\titem_id_list:token_seq\titem_id:token"]
        for history, target in zip(examples.histories, examples.targets, strict=True):
            known = " ".join(f"i{item}" for item in history if item < data.n_items)
            rows.append(f"u{number}\t{known}\ti{target}")
            number += 1
        (folder / f"{name}.{split}.inter").write_text("\n".join(rows) + "\n")
        print(f"{split}: {len(examples):,} examples")


def ours(name: str, out: Path, data_root: str | None) -> None:
    """Trains ours, "Normal" as in the paper's tables and with one table of item vectors.

    GRU4Rec is also trained from item vectors as small as RecBole's are at first.
    """
    import torch as th

    from ilrec_sb3.lea.training import load_data, make_recommender, train_recommender

    th.set_num_threads(1)
    options = {"form": "reviews"} if name == "steam" else {}
    data = load_data(name, data_root, options)
    epoch = -(-len(data.examples("train", LENGTH)) // BATCH)
    sizes = {"dim": DIM, "length": LENGTH}
    common = {
        "batch_size": BATCH,
        "learning_rate": RATE,
        "evaluate_every": epoch,
        "patience": PATIENCE,
        **sizes,
    }
    kinds: dict[str, dict[str, Any]] = {
        "ours": {},
        "ours, tied": {"tied": True},
        "ours, tied, dropout 0.5": {"tied": True, "dropout": 0.5},
    }
    small = {"ours, tied, dropout 0.3, small first vectors": {"tied": True, "dropout": 0.3}}
    for backbone in BACKBONES:
        for kind, settings in {**kinds, **(small if backbone == "GRU4Rec" else {})}.items():
            for seed in _missing(out, name, kind, backbone):
                model = make_recommender(
                    backbone, data, "Normal", seed=seed, settings={**common, **settings}
                )
                if kind in small:
                    th.manual_seed(seed)
                    with th.no_grad():  # Glorot's spread for a table of (items and padding, width)
                        spread = (2.0 / (data.n_items + 1 + DIM)) ** 0.5
                        model.network.encoder.embedding.weight[: data.n_items].normal_(0.0, spread)
                made = train_recommender(model, EPOCHS * epoch)
                _keep(out, name, kind, backbone, seed, dict(made.test), made.seconds)


def theirs(name: str, out: Path) -> None:
    """Trains RecBole's."""
    import torch as th
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    th.set_num_threads(1)
    # its checkpoints are pickles of its own
    load = th.load
    th.load = lambda *a, **k: load(*a, **{**k, "weights_only": False})
    for backbone in BACKBONES:
        sizes: dict[str, Any] = {"hidden_size": DIM}
        if backbone == "GRU4Rec":
            sizes = {"embedding_size": DIM, "hidden_size": DIM, "num_layers": 1}
        for seed in _missing(out, name, "RecBole", backbone):
            settings = {
                "data_path": str(out),
                "checkpoint_dir": str(out / "recbole"),
                "benchmark_filename": ["train", "valid", "test"],
                "load_col": {"inter": ["user_id", "item_id_list", "item_id"]},
                "alias_of_item_id": ["item_id_list"],
                "MAX_ITEM_LIST_LENGTH": LENGTH,
                "train_neg_sample_args": None,
                "loss_type": "CE",
                "repeatable": True,
                "eval_args": {"mode": "full", "order": "TO", "group_by": "user"},
                "metrics": ["Hit", "NDCG"],
                "topk": [5, 10, 20],
                "valid_metric": "NDCG@10",
                "train_batch_size": BATCH,
                "eval_batch_size": 512,
                "learning_rate": RATE,
                "epochs": EPOCHS,
                "stopping_step": PATIENCE,
                "seed": seed,
                "reproducibility": True,
                "show_progress": False,
                "state": "WARNING",
                "metric_decimal_place": 6,
                "use_gpu": False,
                **sizes,
            }
            config = Config(model=backbone, dataset=name, config_dict=settings)
            init_seed(seed, True)
            train, valid, test = data_preparation(config, create_dataset(config))
            started = time.perf_counter()
            model = get_model(backbone)(config, train.dataset)
            trainer = get_trainer(config["MODEL_TYPE"], backbone)(config, model)
            trainer.fit(train, valid, saved=True, show_progress=False)
            found = trainer.evaluate(test, load_best_model=True, show_progress=False)
            seconds = time.perf_counter() - started
            values = {m: float(found[m.lower().replace("hr@", "hit@")]) for m in METRICS}
            _keep(out, name, "RecBole", backbone, seed, values, seconds)


def _entries(out: Path, name: str) -> list[dict[str, Any]]:
    path = out / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _missing(out: Path, name: str, kind: str, backbone: str) -> list[int]:
    """Returns the seeds that are not there yet: the same command goes on where it was stopped."""
    made = {(e["kind"], e["backbone"], e["seed"]) for e in _entries(out, name)}
    return [seed for seed in SEEDS if (kind, backbone, seed) not in made]


def _keep(
    out: Path, name: str, kind: str, backbone: str, seed: int, found: dict[str, float], took: float
) -> None:
    path = out / f"{name}.jsonl"
    entry = {"kind": kind, "backbone": backbone, "seed": seed, "seconds": took, **found}
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")
    shown = " ".join(f"{m} {found[m]:.4f}" for m in ("HR@10", "NDCG@10"))
    print(f"{backbone} {kind}, seed {seed}: {shown}, {took:.0f} s", flush=True)


def table(name: str, out: Path) -> None:
    """Prints the medians over seeds, and writes them to the results."""
    entries = _entries(out, name)
    lines = [
        f"# RecBole's recommenders and ours on {name}",
        "",
        "`benchmarks/lea/recbole_comparison.py` (its docstring says how); medians over "
        f"{len(SEEDS)} seeds, least to most in brackets. All train on next items alone, {DIM} "
        f"numbers an item, the last {LENGTH} items, batches of {BATCH}, Adam at {RATE:g}, at most "
        f"{EPOCHS} passes, {PATIENCE} without a better validation NDCG@10 end it. One thread, "
        f"Python {platform.python_version()}.",
        "",
        "| backbone | implementation | " + " | ".join(METRICS) + " |",
        "|---|---|" + "---:|" * len(METRICS),
    ]
    for backbone in BACKBONES:
        kinds = dict.fromkeys(e["kind"] for e in entries if e["backbone"] == backbone)
        for kind in kinds:
            rows = [e for e in entries if (e["backbone"], e["kind"]) == (backbone, kind)]
            cells = [_cell([e[m] for e in rows]) for m in METRICS]
            lines.append(f"| {backbone} | {kind} | " + " | ".join(cells) + " |")
    text = "\n".join(lines) + "\n"
    target = Path(__file__).parents[1] / "results" / "lea" / f"recbole_{name}.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    print(text)


def _cell(values: list[float]) -> str:
    return f"{statistics.median(values):.4f} ({min(values):.4f} to {max(values):.4f})"


def main() -> None:
    """Runs one of the parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["export", "ours", "theirs", "table"])
    parser.add_argument("name", help="sequences: industrial, steam or movielens")
    parser.add_argument("out", type=Path, help="folder for files and figures")
    parser.add_argument("--data", default=None, help="folder with the raw data")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    where = (arguments.name, arguments.out)
    if arguments.part in ("export", "ours"):
        {"export": export, "ours": ours}[arguments.part](*where, arguments.data)
    else:
        {"theirs": theirs, "table": table}[arguments.part](*where)


if __name__ == "__main__":
    main()
