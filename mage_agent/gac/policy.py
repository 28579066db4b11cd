"""GAC as a Stable-Baselines3 policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from mage_agent.agent import Agent
from mage_agent.gac.config import GACConfig, QueryKind, ReplanMode
from mage_agent.gac.model import GACModel
from mage_agent.gac.queries import Query
from mage_agent.memory import from_arrays, to_arrays
from mage_agent.policy import AgentPolicy, State

__all__ = ["GACPolicy"]


class GACPolicy(AgentPolicy):
    """``AgentPolicy`` for GAC: asks for a plan when an episode begins, and follows it.

    The plan and the last steps are the ``state`` that ``predict`` returns; pass it back, with
    ``episode_start``. Deterministic, it takes the mean of the plans that answer the query;
    stochastic, a sample.

    Examples:
        >>> policy = GACPolicy.from_dataset(dataset, "small")
        >>> policy.learn()
        >>> policy.query = "best"
        >>> action, state = policy.predict(env.reset()[0], deterministic=True)
    """

    agent_class: ClassVar[type[Agent]] = GACModel
    model: GACModel

    @property
    def config(self) -> GACConfig:
        """The model's configuration."""
        return self.model.config

    @property
    def query(self) -> Query:
        """What plans are asked for; set it to a ``Query``, or to the name of a kind."""
        return self.model.query

    @query.setter
    def query(self, value: Query | QueryKind) -> None:
        self.model.query = value if isinstance(value, Query) else Query.of(self.config, value)

    def replan(
        self,
        state: State,
        rows: Sequence[int] | None = None,
        *,
        mode: ReplanMode | None = None,
    ) -> State:
        """Make new plans in the middle of episodes (Eq. 3), by hand; deterministic.

        Args:
            state: what ``predict`` returned.
            rows: numbers of the environments whose plans are made; None is all.
            mode: "posterior", for which ``model.remembers_episodes`` must have been True since the
                episode began, or "restart"; None is ``config.replan``.

        Returns:
            The state for the next ``predict``.

        Raises:
            TypeError: there is no state, or the rows are a word.
            ValueError: see ``GACModel.replan``.
        """
        if state is None or isinstance(rows, str):
            raise TypeError(
                f"state is {state!r} and rows is {rows!r}; give the state that predict returned, "
                'the numbers of environments, and the mode by its name: mode="restart".'
            )
        memory = from_arrays(self.model.initial_state(len(state[0])), state)
        assert memory is not None
        return to_arrays(self.model.replan(memory, rows, mode=mode))


GACModel.policy_class = GACPolicy
