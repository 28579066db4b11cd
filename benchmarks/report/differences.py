"""What tells today's datasets and environments from those of the published numbers."""

from collections.abc import Mapping

from benchmarks.report.results import Task

__all__ = ["differences"]

_REMADE = (
    "Datasets whose ids begin with local/ are not D4RL's files. They were collected anew in "
    "today's Gymnasium environments, from published policies and demonstrations or by D4RL's "
    "recipes, and hold fewer steps, of another quality."
)
_EVERYWHERE = (
    "Simulators differ: D4RL ran on mujoco-py, today's environments run on MuJoCo 3.",
    "Scores use D4RL's reference returns, so that 100 is D4RL's expert and not the best of the "
    "data; mazes collected here bring references of their own.",
    "The paper trains 5 seeds on GPUs, with settings tuned for each dataset (its Table 25); what "
    "was trained here, and for how long, is under Protocol.",
)
_PALM = (
    "Adroit: today's reward adds the term for the distance of palm and object that D4RL "
    "subtracts, worth a few points of return."
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
        "AntMaze: MAGE departs further from its paper than elsewhere: its plans are the way of "
        "the achieved goal, not of the whole state, and its action is read off their direction.",
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
    "antmaze": (
        "AntMaze: a noisy follower of waypoints made the data; in medium mazes from random starts "
        "to random goals, while evaluation goes from corner to corner.",
    ),
    "maze2d": (
        "Maze2D: the start is fixed and the goal random, as the paper says (D4RL fixes the goal); "
        "100 is the controller that made the data, without its noise and detours.",
    ),
    "multi2d": (
        "Multi2D: 100 is the controller that made the data, without its noise and detours.",
    ),
}


def differences(names: Mapping[Task, str]) -> list[str]:
    """Facts on datasets that tell them from D4RL's, each once.

    Args:
        names: the paper's names of the datasets.
    """
    facts = list(_EVERYWHERE)
    for name in names.values():
        facts += _ENVIRONMENTS.get(name.partition("/")[0], ())
    remade = [name for task, name in names.items() if task.dataset.startswith("local/")]
    for name in remade:
        facts += _DATA.get(name.partition("/")[0], ())
    return list(dict.fromkeys([_REMADE, *facts] if remade else facts))
