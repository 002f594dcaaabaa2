"""Imitation-enhanced reinforcement learning for recommendation, as Stable-Baselines3 algorithms."""

from ilrec_sb3.common.make_env import as_vec_env
from ilrec_sb3.common.vec_env import RecVecEnv
from ilrec_sb3.ilrec.discrete_sac import DiscreteSAC
from ilrec_sb3.ilrec.ilrec import ILRec
from ilrec_sb3.ilrec.policies import ILRecPolicy

__all__ = ["DiscreteSAC", "ILRec", "ILRecPolicy", "RecVecEnv", "as_vec_env"]
