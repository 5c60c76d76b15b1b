"""Several arms at equal steps, on one target or more."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from curate.settings.base import BelowOne, Budget, Settings, SourceName
from curate.settings.evaluation import EvaluateSettings
from curate.settings.run import CommonSettings
from curate.settings.selection import Ratio
from curate.settings.sources import TargetSource
from curate.settings.training import Init, PretrainSettings

ArmKind = Literal[
    "x",
    "os",
    "x+os",
    "random",
    "simcore-k1",
    "simcore",
    "simcore-stop",
    "ratio",
    "gate",
    "resample",
    "oracle",
    "untrained",
]


def _arm(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


class ArmSettings(Settings):
    """One way to choose what is trained on. In a config, its kind alone will do."""

    kind: ArmKind
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+%-]*$")] | None = None
    p: Budget | None = None  # the comparison's where unset; of oracle, all its images
    clusters: int | None = Field(None, ge=1)  # coreset.clusters where unset, and so on
    tau: float | None = Field(None, ge=0, le=1)
    ratio: Ratio | None = None  # of ratio, gate and resample
    gate: float | None = Field(None, ge=1)
    seeds: int | None = Field(None, ge=1)  # the comparison's where unset
    share: BelowOne | None = Field(None, gt=0)  # of X in what is seen; pretrain.shares where unset
    init: Init = None  # what its trainings begin from; pretrain.init where unset

    @model_validator(mode="after")
    def _of_two_sets(self) -> ArmSettings:
        if self.share is not None and self.kind in ("x", "os", "untrained"):
            raise ValueError(f"share: of X and another set, and arm {self.kind} has no two")
        return self

    @property
    def title(self) -> str:
        return self.name or self.kind


def _without_null(value: Any) -> Any:
    """`targets.pets=null` on the command line leaves a config's target out."""
    if isinstance(value, dict):
        return {name: target for name, target in value.items() if target is not None}
    return value


class TargetSettings(Settings):
    """A target set, and how what was trained for it is measured."""

    target: TargetSource
    evaluate: EvaluateSettings  # its `oracle` is arm oracle's too

    @model_validator(mode="after")
    def _of_arms(self) -> TargetSettings:
        if self.evaluate.encoder is not None:
            raise ValueError("evaluate.encoder: each arm has its own; leave it out")
        if "selection" in self.evaluate.protocols:
            raise ValueError(
                "evaluate.protocols: every arm's selection is measured where oracle is set; "
                "leave out selection"
            )
        return self


class ComparisonSettings(CommonSettings):
    """A comparison of arms. `pretrain` says how every arm is trained, its data apart."""

    targets: Annotated[
        dict[SourceName, TargetSettings], BeforeValidator(_without_null), Field(min_length=1)
    ]
    arms: list[Annotated[ArmSettings, BeforeValidator(_arm)]] = Field(min_length=1)
    steps: int = Field(ge=1)  # of every arm's training
    p: Budget = 0.05  # of the open set: what an arm of a fixed size selects
    seeds: int = Field(3, ge=0)  # trainings of each arm; 0: what they select is compared alone
    parallel: int | None = Field(None, ge=1)  # as many arms at once as fit, where unset

    @model_validator(mode="after")
    def _equal_steps(self) -> ComparisonSettings:
        instead = {
            "data": "each arm has its own",
            "epochs": "every arm trains for `steps` steps",
            "steps": "set `steps` beside `arms`",
            "optimizer.warmup_epochs": (
                "epochs of the arms differ in length; set pretrain.optimizer.warmup_steps"
            ),
        }
        training = self.pretrain or PretrainSettings()
        optimizer = {f"optimizer.{key}" for key in training.optimizer.model_fields_set}
        given = training.model_fields_set | optimizer
        for key, why in instead.items():
            if key in given:
                raise ValueError(f"pretrain.{key}: {why}")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> ComparisonSettings:
        titles = [arm.title for arm in self.arms]
        for title in titles:
            if titles.count(title) > 1:
                raise ValueError(f"arms: two are named {title}; give each its own name")
        if any(arm.kind == "oracle" for arm in self.arms):
            for name, target in self.targets.items():
                if not target.evaluate.oracle:
                    raise ValueError(
                        f"targets.{name}.evaluate.oracle: missing; arm oracle needs labels"
                    )
        return self
