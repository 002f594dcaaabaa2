"""Imitation-enhanced reinforcement learning for recommendation, as Stable-Baselines3 algorithms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recsim_env.lazy import lazy_names

if TYPE_CHECKING:
    from ilrec_sb3.common.make_env import as_vec_env
    from ilrec_sb3.common.vec_env import RecVecEnv
    from ilrec_sb3.ilrec.discrete_sac import DiscreteSAC
    from ilrec_sb3.ilrec.ilrec import ILRec
    from ilrec_sb3.ilrec.policies import ILRecPolicy

__all__ = ["DiscreteSAC", "ILRec", "ILRecPolicy", "RecVecEnv", "as_vec_env"]

lazy_names(
    __name__,
    {
        "common.make_env": ("as_vec_env",),
        "common.vec_env": ("RecVecEnv",),
        "ilrec.discrete_sac": ("DiscreteSAC",),
        "ilrec.ilrec": ("ILRec",),
        "ilrec.policies": ("ILRecPolicy",),
    },
)
