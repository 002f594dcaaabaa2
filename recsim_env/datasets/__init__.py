"""Datasets: real ones by name, a user's own tables, and a made-up one that needs no file."""

from recsim_env.datasets.custom import from_tables
from recsim_env.datasets.dataset import RATING_RANGE, Catalogue, Dataset, Interactions
from recsim_env.datasets.ratings import quantile_ratings
from recsim_env.datasets.registry import load, names, source
from recsim_env.datasets.sources import Source, find_root
from recsim_env.datasets.splits import Split, k_core, split_interactions
from recsim_env.datasets.store import custom_names, load_custom, save_custom
from recsim_env.datasets.synthetic import synthetic, true_ratings
from recsim_env.datasets.titles import normalise_title

__all__ = [
    "RATING_RANGE",
    "Catalogue",
    "Dataset",
    "Interactions",
    "Source",
    "Split",
    "custom_names",
    "find_root",
    "from_tables",
    "k_core",
    "load",
    "load_custom",
    "names",
    "normalise_title",
    "quantile_ratings",
    "save_custom",
    "source",
    "split_interactions",
    "synthetic",
    "true_ratings",
]
