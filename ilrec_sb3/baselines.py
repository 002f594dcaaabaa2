"""The algorithms that can be trained, by name, and how each is set up for recommender environments.

``NAME[+items][@reward]``, where NAME is one of

==================  ================================================================================
ILRec               The whole of it.
DiscreteSAC         ILRec without demonstrations.
DQN, A2C            Stable-Baselines3's own, unmasked; the same as ``sb3:DQN`` and ``sb3:A2C``.
MaskablePPO         sb3-contrib's, masked as ILRec is; the same as ``contrib:MaskablePPO``.
DoubleDQN           DQN with the target of double Q-learning.
sb3:CLASS           Any algorithm of Stable-Baselines3 for discrete actions.
contrib:CLASS       Any of sb3-contrib.
offline:NAME        BC, SQN, CRR, BCQ or CQL on the logged interactions (`ilrec_sb3.offline`); their
                    steps are gradient steps.
==================  ================================================================================

``+items`` gives an algorithm what ILRec has: action masks, in rollouts, updates and targets, and
heads that score items by their features and cross features (`ilrec_sb3.common.item_algorithms`).
``@mbpo``, ``@mopo``, ``@dorl``, ``@roler`` and ``@counts`` train it on the reward model of that
name (`ilrec_sb3.model_based`).

Settings differ from a class's own defaults where those learn less here; all of them are in this
file. Defaults of DQN and QR-DQN are made for millions of frames; those of A2C, PPO and TRPO for
small action sets. What is set was chosen on train world models, never on the test ones.

Steps count alike: one step is one item shown in one session, however many sessions run side by
side. Models are evaluated in the manner that suits them: value-based and masked ones take their
best action; actors without masks draw from their policy, since their single best item is shown
twice and ends the session at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import sb3_contrib
import stable_baselines3
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3.common.base_class import BaseAlgorithm

from ilrec_sb3.arguments import arguments_of, check_arguments
from ilrec_sb3.common.item_algorithms import with_items
from ilrec_sb3.common.vec_env import RecVecEnv
from ilrec_sb3.double_dqn import DoubleDQN
from ilrec_sb3.ilrec.discrete_sac import DiscreteSAC, LinearDecay
from ilrec_sb3.ilrec.ilrec import ILRec
from recsim_env.dynamics import Dynamics
from recsim_env.errors import DataError, near_miss
from recsim_env.trajectories import Trajectory
from recsim_env.vector_env import RecVectorEnv

__all__ = [
    "ALGORITHMS",
    "OFFLINE",
    "REWARDS",
    "Algorithm",
    "check_settings",
    "find_algorithm",
    "load_model",
    "make_model",
    "save_model",
]

OFFLINE = {"BC": "BC", "SQN": "SQN", "CRR": "CRR", "BCQ": "DiscreteBCQ", "CQL": "DiscreteCQL"}
"""Names after ``offline:``, and their classes in `ilrec_sb3.offline`."""
REWARDS = ("mbpo", "mopo", "dorl", "roler", "counts")
"""Names after ``@``."""

_CONTINUOUS = {"DDPG", "SAC", "TD3", "TQC", "CrossQ"}
_OF_MAKE_MODEL = ("policy", "env", "seed", "device")
"""Arguments of an algorithm that are no settings."""
_OF_ALGORITHM = ("observation_space", "action_space", "lr_schedule")
"""Arguments of a policy that its algorithm gives it."""


@dataclass(frozen=True)
class Algorithm:
    """How an algorithm is set up.

    Attributes:
        name: As in tables and on the command line.
        kind: The class.
        n_sessions: Sessions that it trains on side by side.
        settings: Constructor arguments that differ from the class's own defaults.
        deterministic: Whether it is evaluated by its best action instead of a draw.
        demonstrated: Whether it takes demonstrations.
        device: Where it runs where none is asked for.
        offline: Whether it learns from logged interactions; its steps are then gradient steps.
        reward: Name of the reward model that it trains on; None: the rewards themselves.
    """

    name: str
    kind: type[BaseAlgorithm]
    n_sessions: int = 16
    settings: Mapping[str, Any] = field(default_factory=dict)
    deterministic: bool = True
    demonstrated: bool = False
    device: str = "auto"
    offline: bool = False
    reward: str | None = None


_PLAIN_DQN = {
    "buffer_size": 100_000,
    "exploration_fraction": 0.3,
    "learning_rate": 1e-3,
    "learning_starts": 1_000,
    "target_update_interval": 500,
    "train_freq": 1,
}
_ITEM_DQN = {
    **_PLAIN_DQN,
    "batch_size": 128,
    "exploration_fraction": 0.2,
    "exploration_final_eps": 0.02,
    "learning_rate": LinearDecay(1e-3, 0.1),
}
_ITEM_PPO = {
    "batch_size": 256,
    "learning_rate": LinearDecay(1e-3, 0.1),
    "n_epochs": 4,
    "n_steps": 64,
}

# (class, whether it has items) -> what differs from `Algorithm` and from the class's defaults
_SET_UPS: dict[tuple[str, bool], dict[str, Any]] = {
    ("DQN", False): {"n_sessions": 4, "settings": _PLAIN_DQN},
    ("DoubleDQN", False): {"n_sessions": 4, "settings": _PLAIN_DQN},
    ("QRDQN", False): {
        "n_sessions": 4,
        "settings": {**_PLAIN_DQN, "policy_kwargs": {"n_quantiles": 25}},
    },
    ("A2C", False): {"deterministic": False},
    ("PPO", False): {"deterministic": False, "settings": {"n_steps": 128}},
    ("TRPO", False): {"deterministic": False, "settings": {"n_steps": 128}},
    ("MaskablePPO", False): {"settings": {"n_steps": 128}},
    ("DQN", True): {"n_sessions": 8, "settings": _ITEM_DQN},
    ("DoubleDQN", True): {"n_sessions": 8, "settings": _ITEM_DQN},
    ("QRDQN", True): {"n_sessions": 8, "settings": _ITEM_DQN},
    ("A2C", True): {"settings": {"learning_rate": LinearDecay(7e-4, 0.1)}},
    ("PPO", True): {"settings": {**_ITEM_PPO, "ent_coef": 0.01}},
    ("TRPO", True): {
        "settings": {
            "batch_size": 256,
            "cg_max_steps": 8,
            "n_steps": 64,
            "sub_sampling_factor": 4,  # without it a step takes several times as long
        }
    },
    ("MaskablePPO", True): {"settings": _ITEM_PPO},
}


def _set_up(name: str, kind: type[BaseAlgorithm], items: bool) -> Algorithm:
    chosen = kind
    if items:
        with_heads = with_items(kind)
        if with_heads is None:
            raise DataError(
                f"The algorithm {name!r} came, and {kind.__name__} has no policy with item heads: "
                "leave out '+items'."
            )
        chosen = with_heads
    values = {"device": "cpu", **_SET_UPS.get((kind.__name__, items), {})}
    return Algorithm(name, chosen, **values)


ALGORITHMS: dict[str, Algorithm] = {
    item.name: item
    for item in (
        _set_up("DQN", stable_baselines3.DQN, False),
        _set_up("A2C", stable_baselines3.A2C, False),
        _set_up("MaskablePPO", MaskablePPO, False),
        _set_up("DoubleDQN", DoubleDQN, False),
        Algorithm("DiscreteSAC", DiscreteSAC),
        Algorithm("ILRec", ILRec, demonstrated=True),
    )
}
"""Those with names of their own; `find_algorithm` knows more."""


def find_algorithm(name: str) -> Algorithm:
    """Returns the set-up of an algorithm.

    Args:
        name: ``NAME[+items][@reward]``, see the head of this file.

    Raises:
        DataError: There is none of that name, or it cannot have what was added to it.
    """
    base, _, reward = name.partition("@")
    base, plus, addition = base.partition("+")
    if plus and addition != "items":
        raise DataError(f"The algorithm {name!r} came; after '+' only 'items' can stand.")
    if "@" in name and reward not in REWARDS:
        raise DataError(
            f"The algorithm {name!r} came; {reward!r} is no reward model, "
            f"{near_miss(reward, REWARDS)}."
        )
    found = _base(base, name, bool(plus))
    if found.offline and reward:
        raise DataError(
            f"The algorithm {name!r} came; it learns from the rewards of the log: leave out "
            f"'@{reward}'."
        )
    return replace(found, name=name, reward=reward or None)


def _base(base: str, name: str, items: bool) -> Algorithm:
    library, colon, wanted = base.partition(":")
    own = ALGORITHMS.get(base)
    if items and (library == "offline" or (own and issubclass(own.kind, DiscreteSAC))):
        raise DataError(
            f"The algorithm {name!r} came; {base} has masks and item heads anyway: leave out "
            "'+items'."
        )
    if own is not None:
        return own if not items else _set_up(name, own.kind, items=True)
    if not colon:
        raise DataError(
            f"The algorithm {base!r} is not known; {near_miss(base, ALGORITHMS)}, or say where it "
            "comes from: sb3:CLASS, contrib:CLASS or offline:NAME."
        )
    if library == "offline":
        return _offline(name, wanted)
    return _set_up(name, _library_class(library, wanted, name), items)


def _library_class(library: str, wanted: str, name: str) -> type[BaseAlgorithm]:
    modules = {"sb3": stable_baselines3, "contrib": sb3_contrib}
    if library not in modules:
        raise DataError(
            f"The algorithm {name!r} came; {library!r} is no library of algorithms, "
            f"{near_miss(library, [*modules, 'offline'])}."
        )
    kinds = {
        key: kind
        for key, kind in vars(modules[library]).items()
        if isinstance(kind, type) and issubclass(kind, BaseAlgorithm)
    }
    if wanted in kinds and wanted in _CONTINUOUS:
        raise DataError(
            f"The algorithm {name!r} came; {wanted} is for continuous actions, and items are "
            "discrete: take sb3:DQN, or DiscreteSAC."
        )
    if wanted in kinds and issubclass(kinds[wanted], RecurrentPPO):
        raise DataError(
            f"The algorithm {name!r} came; it keeps a memory from step to step, which evaluation "
            "does not carry along: take sb3:PPO, whose observations hold the session already."
        )
    discrete = sorted(set(kinds) - _CONTINUOUS - {"RecurrentPPO"})
    if wanted not in discrete:
        raise DataError(
            f"The algorithm {name!r} came; {wanted!r} is not in {modules[library].__name__}, "
            f"{near_miss(wanted, discrete)}."
        )
    return kinds[wanted]


def _offline(name: str, wanted: str) -> Algorithm:
    if wanted not in OFFLINE:
        raise DataError(
            f"The algorithm {name!r} came; {wanted!r} is no offline algorithm, "
            f"{near_miss(wanted, OFFLINE)}."
        )
    module = importlib.import_module("ilrec_sb3.offline")
    return Algorithm(name, getattr(module, OFFLINE[wanted]), 1, device="cpu", offline=True)


def _sessions(chosen: Algorithm, dynamics: Dynamics) -> RecVecEnv:
    return RecVecEnv(RecVectorEnv(chosen.n_sessions, dynamics=dynamics))


def _model_based() -> Any:
    return importlib.import_module("ilrec_sb3.model_based")


def _reward_settings(reward: str) -> type:
    kind: type = _model_based().REWARD_MODELS[reward]
    return kind


def _with_reward(
    chosen: Algorithm, dynamics: Dynamics, settings: Mapping[str, Any] | None = None
) -> Dynamics:
    if chosen.reward is None:
        return dynamics
    model = _model_based().reward_model(chosen.reward, dynamics, **(settings or {}))
    return dynamics.with_reward_model(model)


def check_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Refuses settings that an algorithm does not have, or that are not of their type.

    What is out of its range is for the constructors to say.

    Args:
        name: See `find_algorithm`.
        settings: As in `make_model`.

    Raises:
        DataError: The algorithm or one of the settings is not known, or has a value of another
            type.
    """
    chosen = find_algorithm(name)
    known = {**_without(arguments_of(chosen.kind), _OF_MAKE_MODEL), "n_sessions": int}
    parts = {"policy_kwargs": chosen.kind.policy_aliases["MlpPolicy"]}
    if chosen.reward is not None:
        known["reward_model"] = Mapping[str, Any]
        parts["reward_model"] = _reward_settings(chosen.reward)
    elif "reward_model" in settings:
        raise DataError(
            f"The setting 'reward_model' came, which {name} does not have: leave it out, or write "
            f"{name}@dorl, say."
        )
    check_arguments(name, settings, known)
    for part, kind in parts.items():
        inner = _without(arguments_of(kind), _OF_ALGORITHM)
        check_arguments(f"{name}, {part}", settings.get(part) or {}, inner)


def _without(known: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: hint for name, hint in known.items() if name not in names}


def make_model(
    name: str,
    dynamics: Dynamics,
    *,
    seed: int = 0,
    demonstrations: Sequence[Trajectory] | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str | None = None,
) -> BaseAlgorithm:
    """Makes an untrained model on parallel sessions of ``dynamics``.

    Args:
        name: See `find_algorithm`.
        dynamics: Where it will train.
        seed: Of networks, sessions and exploration.
        demonstrations: For algorithms that take them.
        settings: Constructor arguments that take precedence; "n_sessions" sets how many sessions
            run side by side, "reward_model" is a mapping of settings of the reward model after
            ``@``, and "policy_kwargs" add to those that are set.
        device: "cpu", "cuda" or "auto"; None: the algorithm's usual one.

    Raises:
        DataError: The algorithm or one of the settings is not known.
    """
    chosen = find_algorithm(name)
    given = dict(settings or {})
    check_settings(name, given)
    options: dict[str, Any] = {**chosen.settings, **given}
    if "policy_kwargs" in chosen.settings:
        added = options["policy_kwargs"] or {}
        options["policy_kwargs"] = {**chosen.settings["policy_kwargs"], **added}
    chosen = replace(chosen, n_sessions=int(options.pop("n_sessions", chosen.n_sessions)))
    env = _sessions(chosen, _with_reward(chosen, dynamics, options.pop("reward_model", None)))
    if chosen.demonstrated:
        options.setdefault("demonstrations", demonstrations)
    try:
        return chosen.kind(
            policy="MlpPolicy", env=env, seed=seed, device=device or chosen.device, **options
        )
    except (TypeError, ValueError, AssertionError) as error:
        if not given or isinstance(error, DataError):
            raise
        said = ", ".join(f"{key}={value!r}" for key, value in given.items())
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{name} cannot be made with {said} ({reason.rstrip('.')}): change these settings, or "
            "leave them out."
        ) from error


def save_model(model: BaseAlgorithm, path: Path, *, training_state: bool = True) -> None:
    """Saves a model so that a reader sees the old file or the new one, never a part.

    Args:
        model: Any of the algorithms.
        path: Ends in ".zip".
        training_state: Whether the project's own algorithms save what they need to go on training.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(model, DiscreteSAC):
        model.save(path, training_state=training_state)
        return
    beside = path.with_name(f".{path.name}")
    model.save(beside)
    written = beside if beside.exists() else beside.with_name(f"{beside.name}.zip")
    written.replace(path)


def load_model(
    name: str, path: Path, dynamics: Dynamics | None = None, device: str | None = None
) -> BaseAlgorithm:
    """Loads a saved model.

    Args:
        name: See `find_algorithm`.
        path: The file.
        dynamics: Where training is to go on; None where the model only predicts.
        device: As in `make_model`.

    Raises:
        DataError: The file holds no such model.
    """
    chosen = find_algorithm(name)
    env = None if dynamics is None else _sessions(chosen, _with_reward(chosen, dynamics))
    try:
        return chosen.kind.load(path, env=env, device=device or chosen.device)
    except (ValueError, KeyError, AttributeError, TypeError, AssertionError) as error:
        raise DataError(
            f"{path} cannot be read as a model of {name} ({error}): name the algorithm that it was "
            "trained with, or train it again."
        ) from error
