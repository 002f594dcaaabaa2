"""LEA: sequential recommenders that learn from a language-model environment's feedback."""

from __future__ import annotations

from ilrec_sb3.lea.candidates import top_items
from ilrec_sb3.lea.metrics import hit_ratio, ndcg, ranking_metrics, ranks
from ilrec_sb3.lea.networks import NetworkConfig
from ilrec_sb3.lea.recommender import LEA
from ilrec_sb3.lea.variants import VARIANTS, Variant

__all__ = [
    "LEA",
    "VARIANTS",
    "NetworkConfig",
    "Variant",
    "hit_ratio",
    "ndcg",
    "ranking_metrics",
    "ranks",
    "top_items",
]
