"""*MAGE: Multi-scale Autoregressive Generation for Offline Reinforcement Learning*.

``mage.csv`` holds what the paper prints: each row is one cell of Tables 1-8 or 15-26. The numbers
were measured by the paper's authors (or copied by them from the baselines' papers) on D4RL's
original data, 5 training seeds each, and are not comparable one to one with what is measured here.
"""

from pathlib import Path

from benchmarks.papers.paper import Ablation, Changes, Paper, Table
from mage_agent import MAGEModel
from mage_agent.d4rl import TASKS

__all__ = ["PAPER"]

_AGENT = MAGEModel.name


def _of_domain(domain: str) -> tuple[str, ...]:
    return tuple(task.id for task in TASKS.values() if task.domain == domain)


_ADROIT = _of_domain("adroit")
_KITCHEN = ("kitchen-partial-v0", "kitchen-mixed-v0")
_MAZES = tuple(  # collected on demand by benchmarks/collect/recipes.py
    f"local/{task}/{maze}-v0"
    for task in ("maze2d", "multi2d")
    for maze in ("umaze", "medium", "large")
)
_OGBENCH = (
    "ogbench/pointmaze/giant-navigate-v0",
    "ogbench/antmaze/giant-navigate-v0",
    "ogbench/antmaze/teleport-navigate-v0",
    "ogbench/humanoidmaze/giant-navigate-v0",
)
_ABLATED = ("pen-expert-v1", "door-cloned-v1")
_SITES = ("autoencoder", "first_scale", "finer_scales", "condition_loss")


def _scales(*counts: int) -> dict[str, Changes]:
    """Return variants with other numbers of scales.

    The latent of 24 steps by a stride of 3 has room for 8 scales; more take a stride of 2.
    """
    return {
        f"K={count}": {"num_scales": count} | ({"temporal_stride": 2} if count > 8 else {})
        for count in counts
    }


def _without(site: str) -> Changes:
    return {"return_conditioning": [other for other in _SITES if other != site]}


def _ablation(variants: dict[str, Changes], *more: str, methods: tuple[str, ...] = ()) -> Table:
    return Table(datasets=_ABLATED + more, methods=(_AGENT, *methods), variants=variants)


_TABLES = {
    1: Table(datasets=_ADROIT, methods=(_AGENT, "iql", "dt")),
    2: Table(datasets=_KITCHEN, methods=(_AGENT, "iql", "dt")),
    3: Table(datasets=_of_domain("antmaze"), methods=(_AGENT, "bc", "cql", "iql", "dt")),
    4: Table(datasets=_MAZES, methods=(_AGENT, "cql", "iql", "dt")),
    5: _ablation(_scales(1, 2, 4, 6, 8, 10)),
    6: _ablation(
        {"": {}}
        | {f"({', '.join(x)})": {"trajectory": x} for x in ("S", "A", "RSA")}
        | {"(A) with CQL": {"trajectory": "A", "return_conditioning": [], "q_value_weight": 1.0}}
    ),
    7: _ablation(
        {
            "": {},
            "no return in D": _without("autoencoder"),
            "no return in finer scales": _without("finer_scales"),
            "no return in L_cond": _without("condition_loss"),
        }
    ),
    15: Table(datasets=_ADROIT, methods=(_AGENT, "bc", "cql")),
    16: Table(datasets=_KITCHEN, methods=(_AGENT, "bc", "cql")),
    17: Table(datasets=_MAZES, methods=(_AGENT,)),
    18: Table(datasets=_of_domain("locomotion"), methods=(_AGENT, "bc", "cql", "iql", "dt")),
    19: _ablation({"": {}, "explicit": {"inverse_dynamics": "explicit"}}),
    20: _ablation({f"V={size}": {"codebook_size": size} for size in (128, 256, 512, 1024)}),
    21: _ablation({f"depth={depth}": {"num_blocks": depth} for depth in (2, 4, 8, 16)}),
    22: _ablation({"": {}, "direct decoder": {"condition_guidance": "decoder"}}),
    23: _ablation(
        {
            "": {},
            "no condition": {"return_conditioning": []},
            "reweighting": {"return_conditioning": [], "return_reweighting": True},
        }
    ),
    24: Table(datasets=_OGBENCH, methods=(_AGENT,)),
    26: _ablation(
        {
            f"K={count} without L_cond": {"num_scales": count, "condition_guidance": "none"}
            for count in (8, 1)
        }
        | _scales(1, 2, 4, 8),
        "hammer-expert-v1",
        "relocate-expert-v1",
        methods=("dt",),
    ),
}

_ABLATIONS = {
    5: Ablation("number of temporal scales", "K=8"),
    6: Ablation("what a trajectory holds", ""),
    7: Ablation("where the return conditions", ""),
    19: Ablation("explicit or latent inverse dynamics", ""),
    20: Ablation("size of the codebook", "V=512"),
    21: Ablation("depth of the transformer", "depth=8"),
    22: Ablation("where the condition loss acts", ""),
    23: Ablation("reweighting by return instead of conditioning", ""),
    26: Ablation("scales and condition loss together", "K=8"),
}

_REMADE = (
    "Datasets whose ids begin with local/ are not D4RL's files. They were collected anew in "
    "today's Gymnasium environments, from published policies and demonstrations or by D4RL's "
    "recipes, and hold fewer steps, of another quality."
)
_EVERYWHERE = (
    "Simulators differ: D4RL ran on mujoco-py, today's environments run on MuJoCo 3.",
    "Scores use D4RL's reference returns, so that 100 is D4RL's expert and not the best of the "
    "data.",
    "The paper trains 5 seeds on GPUs, with settings tuned for each dataset (its Table 25); what "
    "was trained here, and for how long, is under Protocol.",
)
_PALM = (
    "Adroit: today's reward adds the term for the distance of palm and object that D4RL "
    "subtracts, worth a few points of return."
)
_POINT = (
    "Point mazes: MAGE departs further from its paper than elsewhere: values and learned distances "
    "choose among sampled plans, and the action is read off where the plan moves."
)
_ENVIRONMENTS = {  # what today's environments change
    "pen": (
        _PALM,
        "Pen: an episode no longer ends when the pen drops, so that a bad policy can score below "
        "zero. Returns spread so widely (50 to 60 points) that the mean of 20 episodes is "
        "uncertain by about 13.",
    ),
    "door": (_PALM,),
    "hammer": (_PALM,),
    "relocate": (_PALM,),
    "antmaze": (
        "AntMaze: the goal's radius is 0.45 (D4RL: 0.5), start and goal move by up to 1 m, and "
        "the goal is part of the observation.",
        "AntMaze: MAGE's plans hold the achieved goal, not the whole state, and its action is read "
        "off the plan's direction.",
    ),
    "pointmaze": (
        "PointMaze is OGBench's: the percentage of episodes, spread over its five pairs of start "
        "and goal, that reach the goal; `benchmarks.collect` makes the data by its recipe.",
        _POINT,
    ),
}
_DATA = {  # what data that were collected anew change
    "door": (
        "Door: of the 25 human demonstrations, 8 succeed in today's simulator; the cloned data "
        "are 250 rollouts of a clone and 185 human episodes. Human episodes last 223 to 300 steps, "
        "an evaluation episode 200, within which human and cloned data score 7.9 on average.",
    ),
    "halfcheetah": (
        "HalfCheetah: the environment is v5 (D4RL: v2); PPO and TQC agents made half of the data "
        "each.",
    ),
    "hopper": (
        "Hopper: the environment is v5 (D4RL: v2); a SAC agent that scores 35 made the data, a "
        "fifth of D4RL's steps.",
    ),
    "antmaze": (
        "AntMaze: a noisy follower of waypoints made the data; in medium mazes from random starts "
        "to random goals, while evaluation goes from corner to corner.",
    ),
    "maze2d": (
        "Maze2D: data by D4RL's recipe, from a waypoint controller that does not slow down at its "
        "waypoints and so scores above D4RL's reference controller (about 157, 173 and 229); a "
        "quarter of D4RL's steps.",
        _POINT,
    ),
    "multi2d": (
        "Multi2D: Maze2D's run in episodes that have a goal each and see it; scored by Maze2D's "
        "reference returns.",
        _POINT,
    ),
}

PAPER = Paper(
    agent=_AGENT,
    title="MAGE",
    published_path=Path(__file__).with_suffix(".csv"),
    tables=_TABLES,
    score_tables=(1, 2, 3, 4, 15, 16, 17, 18, 24),
    ablations=_ABLATIONS,
    rising=5,
    latency=(
        "The paper's Table 8 names 27.3 ms per action for MAGE and 6.5 ms for DT, on Adroit, on "
        "its authors' hardware."
    ),
    everywhere=_EVERYWHERE,
    remade=_REMADE,
    environments=_ENVIRONMENTS,
    data=_DATA,
)
