"""The one configuration of MAGE: every default, its unit and its source."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal, get_args

__all__ = ["GOALS", "PRESETS", "ConditionSite", "MAGEConfig", "Trajectory"]

GOALS = ("achieved_goal", "desired_goal")
"""Entries of a goal-conditioned observation, last in ``observation_keys``."""

Trajectory = Literal["S", "A", "RS", "RSA", "RG"]
ConditionSite = Literal["autoencoder", "first_scale", "finer_scales", "condition_loss"]

LARGEST = 1e30
"""Of any weight, rate or temperature: what float32 can still compute with."""
LONGEST_HORIZON = 10**6
_CONDITION_SITES: tuple[ConditionSite, ...] = get_args(ConditionSite)


@dataclass(frozen=True, kw_only=True)
class MAGEConfig:
    """Everything that defines a MAGE model and its training.

    Sources are tables, equations and algorithms of the paper; "measured" marks a choice the paper
    leaves open, made by score on real datasets.

    Attributes:
        observation_keys: observation entries, concatenated in this order into one vector; empty
            stands for all that the dataset has, in alphabetical order, but nested ones.
        horizon: window length T, in environment steps (Tables 10-14).
        temporal_stride: environment steps per latent step, so that L_K = horizon / temporal_stride
            (measured; the paper gives no scale lengths, TAP, on which it builds, pools by 3).
        num_scales: number of scales K (Table 5).
        scale_lengths: tokens per scale, strictly increasing up to L_K; None spaces num_scales
            lengths geometrically from 1 to L_K.
        codebook_size: number of codes V (Tables 10-14).
        code_dim: code width C.
        width: width D of every network (Tables 10-14, "embed dim").
        num_blocks: blocks of the multi-scale transformer (Tables 10-14).
        num_heads: attention heads (Tables 10-14).
        num_autoencoder_blocks: blocks of the encoder and of the decoder.
        dropout: dropout rate of the multi-scale transformer (Tables 10-14).
        trajectory: what a window holds: returns R, states S, actions A (Table 6), or of the states
            the achieved goal G alone (measured).
        return_conditioning: where the return-to-go conditions the model (Table 7); an empty tuple
            is the model without condition of Table 23.
        return_reweighting: weight the reconstruction loss of a window by its return-to-go, scaled
            to [0, 1] (Table 23).
        inverse_dynamics: read the action off the latent (Eq. 6), off the decoded trajectory
            (Table 19), or off the direction in which the decoded trajectory leads, which takes
            trajectory="RG" (measured).
        inverse_dynamics_condition: what I receives besides the plan: nothing (the paper), s_0,
            (s_0, R_0), or "body", of s_0 all but the goals (measured).
        inverse_dynamics_layers: hidden layers of I (measured: a gait takes three).
        plan_scale: factor on the plan that I reads; below 1 it keeps the plan's many entries from
            drowning those of a condition beside it (measured).
        plan_dropout: rate at which entries of the plan are dropped when I is trained; keeps an I
            that also receives s_0 from following an implausible plan blindly (measured).
        condition_guidance: where the condition loss acts: in adapters between the frozen decoder's
            layers, in the decoder itself, or nowhere (Tables 22 and 26).
        adapter_dim: width of the adapters' bottleneck.
        context: context of the multi-scale transformer in training: true tokens in one pass, or its
            own straight-through samples as in Algorithm 5 (measured).
        code_temperature: a deterministic policy acts on the mean of the codes, weighted by their
            probabilities at this temperature: at 0 the likeliest code (the paper), at 1 the mean
            over the token's distribution (measured).
        state_dropout: rate at which s_0 (and R_0) is hidden from I in training (measured).
        return_dropout: rate at which the return-to-go is hidden from the transformer in training,
            which makes guidance possible (measured).
        guidance_scale: weight w of classifier-free guidance on the token logits,
            l = l_none + w (l_R - l_none); 1 switches it off (measured).
        return_expectile: expectile of the return-to-go given the state that bounds what is asked
            for, so that no return is asked that the data never reached from there; None bounds by
            the whole dataset only (measured).
        gumbel_temperature: temperature of the straight-through samples of Algorithm 5.
        commitment_weight: weight of the commitment loss (Eq. A.2, beta).
        q_value_weight: weight of the error of the token logits, read as Q values, to the
            return-to-go; the cross-entropy beside it is what CQL adds to such an error to make it
            conservative. It takes a transformer that is not told the return (Table 6, "A+CQL",
            which the paper does not define).
        inverse_dynamics_weight: weight of L_inv (Eq. 6).
        condition_weight: weight of L_cond (Algorithm 5, lambda_cond).
        codebook_decay: decay of the codebook's moving average, per step.
        discount: discount factor gamma per environment step (Tables 10-14).
        target_return: quantile of the returns-to-go at episode starts that is asked for when the
            user names no target; 1 is the best episode.
        temperature: temperature of the token samples of a stochastic policy.
        learning_rate: peak learning rate (Tables 10-14).
        inverse_dynamics_learning_rate: peak learning rate of the third stage (measured).
        warmup_steps: steps of linear warm-up; the rate then falls to a tenth of learning_rate along
            a cosine.
        weight_decay: decoupled weight decay; 0 is the paper's Adam.
        gradient_clip: largest gradient norm.
        batch_size: windows per step (Tables 10-14).
        tokenizer_steps: gradient steps of stage 1.
        generator_steps: gradient steps of stage 2.
        inverse_dynamics_steps: gradient steps of I alone on the trained model's plans; 0 leaves
            this stage out (measured: it is worth it where I sees s_0).
        followed_scales: how many of the coarse scales of these plans are those of the way that the
            data went; the finer ones are generated. 0 generates all: a plan may then lead another
            way than the action that I learns from it. Worth it where plans can be trusted
            (measured).
    """

    observation_keys: tuple[str, ...] = ()
    # Scales and tokens.
    horizon: int = 24
    temporal_stride: int = 3
    num_scales: int = 8
    scale_lengths: tuple[int, ...] | None = None
    codebook_size: int = 512
    code_dim: int = 32
    # Networks.
    width: int = 512
    num_blocks: int = 8
    num_heads: int = 4
    num_autoencoder_blocks: int = 2
    dropout: float = 0.1
    # What is modelled, and where the return conditions it.
    trajectory: Trajectory = "RS"
    return_conditioning: tuple[ConditionSite, ...] = _CONDITION_SITES
    return_reweighting: bool = False
    inverse_dynamics: Literal["latent", "explicit", "direction"] = "latent"
    inverse_dynamics_condition: Literal["none", "state", "state_and_return", "body"] = "none"
    inverse_dynamics_layers: int = 2
    plan_scale: float = 1.0
    plan_dropout: float = 0.0
    condition_guidance: Literal["adapter", "decoder", "none"] = "adapter"
    adapter_dim: int = 32
    # Training of the generator.
    context: Literal["teacher", "own"] = "teacher"
    code_temperature: float = 0.0
    state_dropout: float = 0.0
    return_dropout: float = 0.0
    guidance_scale: float = 1.0
    return_expectile: float | None = None
    gumbel_temperature: float = 1.0
    commitment_weight: float = 0.25
    q_value_weight: float = 0.0
    inverse_dynamics_weight: float = 1.0
    condition_weight: float = 0.1
    codebook_decay: float = 0.99
    # Acting.
    discount: float = 0.99
    target_return: float = 1.0
    temperature: float = 1.0
    # Optimisation.
    learning_rate: float = 2e-4
    inverse_dynamics_learning_rate: float = 1e-3
    warmup_steps: int = 200
    weight_decay: float = 0.0
    gradient_clip: float = 1.0
    batch_size: int = 512
    tokenizer_steps: int = 50_000
    generator_steps: int = 100_000
    inverse_dynamics_steps: int = 0
    followed_scales: int = 0

    def __post_init__(self) -> None:
        """Check every field; raise before anything is built."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):  # JSON has no tuples
                object.__setattr__(self, field.name, tuple(value))
        self._check_choices()
        self._check_ranges()
        self._check_scales()

    def _check_choices(self) -> None:
        choices: dict[str, tuple[str, ...]] = {
            "trajectory": get_args(Trajectory),
            "inverse_dynamics": ("latent", "explicit", "direction"),
            "inverse_dynamics_condition": ("none", "state", "state_and_return", "body"),
            "condition_guidance": ("adapter", "decoder", "none"),
            "context": ("teacher", "own"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {allowed}.")
        sites: object = self.return_conditioning
        if not isinstance(sites, tuple) or any(site not in _CONDITION_SITES for site in sites):
            raise ValueError(
                f"return_conditioning is {sites!r}; it must be a tuple of some of "
                f"{_CONDITION_SITES}."
            )
        if not isinstance(self.return_reweighting, bool):
            raise ValueError(
                f"return_reweighting is {self.return_reweighting!r}; it must be True or False."
            )
        keys = self.observation_keys
        if not isinstance(keys, tuple) or not all(isinstance(key, str) for key in keys):
            raise ValueError(
                f"observation_keys is {keys!r}; it must be a tuple of names, such as "
                "('observation',)."
            )
        told = [site for site in ("first_scale", "finer_scales") if site in sites]
        if self.q_value_weight and told:
            raise ValueError(
                f"q_value_weight is {self.q_value_weight}, but return_conditioning holds {told}: Q "
                "values of a transformer that is told the return would be that return. Leave them "
                "out."
            )
        if self.inverse_dynamics == "explicit" and "S" not in self.trajectory:
            raise ValueError(
                "inverse_dynamics='explicit' reads actions off decoded states, but trajectory="
                f"{self.trajectory!r} holds none; use 'S', 'RS' or 'RSA'."
            )
        if self.inverse_dynamics == "direction" and "G" not in self.trajectory:
            raise ValueError(
                "inverse_dynamics='direction' reads actions off the way to decoded goals, but "
                f"trajectory={self.trajectory!r} holds none; use 'RG'."
            )
        if self.needs_goals and keys[-2:] != GOALS:
            raise ValueError(
                f"trajectory={self.trajectory!r} with inverse_dynamics_condition="
                f"{self.inverse_dynamics_condition!r} needs goals, but observation_keys is {keys}; "
                f"it must end with {GOALS}."
            )

    def _check_ranges(self) -> None:
        positive_integers = (
            *("horizon", "temporal_stride", "num_scales", "codebook_size", "code_dim"),
            *("width", "num_blocks", "num_heads", "num_autoencoder_blocks", "adapter_dim"),
            "inverse_dynamics_layers",
            *("batch_size", "tokenizer_steps", "generator_steps"),
        )
        for name in positive_integers:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be an integer of at least 1.")
        for name in ("warmup_steps", "inverse_dynamics_steps", "followed_scales"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"{name} is {value!r}; it must be an integer of at least 0.")
        if self.horizon > LONGEST_HORIZON:
            raise ValueError(f"horizon is {self.horizon}; it must be at most {LONGEST_HORIZON}.")
        ranges = {
            "dropout": (0.0, 0.99),
            "plan_scale": (0.0, LARGEST),
            "plan_dropout": (0.0, 0.99),
            "state_dropout": (0.0, 1.0),
            "return_dropout": (0.0, 1.0),
            "codebook_decay": (0.0, 0.99999),
            "discount": (1e-6, 1.0),
            "target_return": (0.0, 1.0),
            "return_expectile": (1e-6, 1 - 1e-6),
            "code_temperature": (0.0, LARGEST),
            "gumbel_temperature": (1e-6, LARGEST),
            "temperature": (0.0, LARGEST),
            "learning_rate": (1e-12, LARGEST),
            "inverse_dynamics_learning_rate": (1e-12, LARGEST),
            "gradient_clip": (1e-12, LARGEST),
            "weight_decay": (0.0, LARGEST),
            "commitment_weight": (0.0, LARGEST),
            "q_value_weight": (0.0, LARGEST),
            "inverse_dynamics_weight": (0.0, LARGEST),
            "condition_weight": (0.0, LARGEST),
            "guidance_scale": (0.0, LARGEST),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is None and name == "return_expectile":
                continue
            if not isinstance(value, int | float) or not low <= value <= high:
                raise ValueError(f"{name} is {value!r}; it must lie in [{low}, {high}].")
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}.")
        if self.guidance_scale != 1 and self.return_dropout == 0:
            raise ValueError(
                f"guidance_scale is {self.guidance_scale}, but return_dropout is 0, so the model "
                "never learns to do without the return; set return_dropout to about 0.1."
            )

        if self.context == "own" and self.return_dropout > 0:
            raise ValueError(
                f"return_dropout is {self.return_dropout}, which context='own' does not know; use "
                "context='teacher', or return_dropout 0."
            )

    def _check_scales(self) -> None:
        if self.horizon % self.temporal_stride:
            raise ValueError(
                f"horizon {self.horizon} is not a multiple of temporal_stride "
                f"{self.temporal_stride}."
            )
        lengths = self.scales
        if not isinstance(lengths, tuple) or not lengths:
            raise ValueError(f"scale_lengths is {lengths!r}; it must be a tuple of integers.")
        if len(lengths) != self.num_scales:
            raise ValueError(
                f"num_scales is {self.num_scales}, but scale_lengths {lengths} has {len(lengths)}."
            )
        if not all(isinstance(length, int) for length in lengths):  # before they are compared
            raise ValueError(f"scale_lengths {lengths} must be integers.")
        if lengths[0] < 1 or list(lengths) != sorted(set(lengths)):
            raise ValueError(f"scale_lengths {lengths} must be strictly increasing from 1 or more.")
        if self.followed_scales > self.num_scales:
            raise ValueError(
                f"followed_scales is {self.followed_scales}; of {self.num_scales} scales, at most "
                "all can be the data's."
            )
        if lengths[-1] != self.latent_length:
            raise ValueError(
                f"the last of scale_lengths {lengths} must be horizon / temporal_stride = "
                f"{self.latent_length}."
            )

    @property
    def latent_length(self) -> int:
        """Latent steps of a window, L_K."""
        return self.horizon // self.temporal_stride

    @property
    def scales(self) -> tuple[int, ...]:
        """Tokens per scale, L_1 < ... < L_K."""
        if self.scale_lengths is not None:
            return self.scale_lengths
        longest, count = self.latent_length, self.num_scales
        if count > longest:
            raise ValueError(
                f"num_scales is {count}, but a latent of horizon {self.horizon} / temporal_stride "
                f"{self.temporal_stride} = {longest} steps has room for at most {longest}; lower "
                "num_scales or temporal_stride."
            )
        if count == 1:
            return (longest,)
        # Geometric spacing, nudged upwards until the lengths are distinct.
        lengths: list[int] = []
        for k in range(count):
            ideal = round(longest ** (k / (count - 1)))
            smallest = lengths[-1] + 1 if lengths else 1
            largest = longest - (count - 1 - k)
            lengths.append(min(max(ideal, smallest), largest))
        return tuple(lengths)

    @property
    def needs_goals(self) -> bool:
        """Whether the model must know which part of an observation is the goals."""
        return "G" in self.trajectory or self.inverse_dynamics_condition == "body"

    def replace(self, **changes: Any) -> MAGEConfig:
        """Return a copy with other values; unknown names raise ``ValueError``."""
        return MAGEConfig.from_dict({**self.to_dict(), **changes})

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MAGEConfig:
        """Build a configuration from ``to_dict``'s output.

        Raises:
            ValueError: a name is unknown, or a value is not allowed.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(values, dict):
            raise ValueError(f"a configuration is a dictionary with the keys {known}: {values!r}.")
        unknown = sorted(set(values) - set(known))
        if unknown:
            close = [name for key in unknown for name in difflib.get_close_matches(key, known, n=1)]
            hint = f" Did you mean {' and '.join(close)}?" if close else ""
            raise ValueError(f"unknown configuration keys {unknown}; known keys: {known}.{hint}")
        return cls(**values)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> MAGEConfig:
        """Return a named configuration, with changes.

        Args:
            name: one of ``PRESETS``: the paper's domains (Tables 10-14), or, with ``-small``
                appended, the same at a size that trains in minutes on two CPU cores; ``small``
                alone is for data of no particular domain.
            **changes: fields to set differently.

        Raises:
            ValueError: the name is unknown.
        """
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; known presets: {sorted(PRESETS)}.")
        return cls.from_dict({**PRESETS[name], **changes})

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that identify this configuration in records."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


_GOAL_KEYS = ("observation", *GOALS)
# How the action is read off the plan, by domain (measured). On Adroit, I that sees s_0 leans on it
# and forgets the plan; a gait (mazes, locomotion) cannot be kept without s_0.
_BY_PLAN: dict[str, Any] = {"code_temperature": 1.0}
_BY_PLAN_AND_STATE: dict[str, Any] = {
    "code_temperature": 1.0,
    "inverse_dynamics_condition": "state_and_return",
    "inverse_dynamics_layers": 3,
    "inverse_dynamics_learning_rate": 3e-3,
}
_MAZE: dict[str, Any] = {
    **_BY_PLAN_AND_STATE,
    "observation_keys": _GOAL_KEYS,
    "inverse_dynamics_steps": 20_000,
}
_SMALL: dict[str, Any] = {
    "num_scales": 4,
    "codebook_size": 256,
    "width": 128,
    "num_blocks": 3,
    "num_autoencoder_blocks": 1,
    "batch_size": 128,
    "learning_rate": 7e-4,
    "tokenizer_steps": 1_500,
    "generator_steps": 2_500,
}
_DOMAINS: dict[str, dict[str, Any]] = {
    "adroit": _BY_PLAN,  # Table 10
    "kitchen": {**_BY_PLAN, "codebook_size": 2048},  # Table 11
    "antmaze": {  # Table 12
        **_MAZE,
        "codebook_size": 1024,
        "discount": 0.998,
        "trajectory": "RG",
        "inverse_dynamics": "direction",
        "inverse_dynamics_condition": "body",
        "return_expectile": 0.9,
    },
    "maze2d": {  # Table 13
        **_MAZE,
        "codebook_size": 256,
        "width": 256,
        "num_blocks": 4,
        "plan_scale": 0.3,
    },
    "locomotion": {  # Table 14
        **_BY_PLAN_AND_STATE,
        "inverse_dynamics_steps": 40_000,
        "plan_scale": 0.07,
        "plan_dropout": 0.5,
    },
}
PRESETS: dict[str, dict[str, Any]] = {
    **_DOMAINS,
    **{f"{name}-small": {**domain, **_SMALL} for name, domain in _DOMAINS.items()},
    "small": {**_BY_PLAN, **_SMALL},
}
"""The paper's domains at the paper's size, the same at a size for two CPU cores, and ``small``."""
