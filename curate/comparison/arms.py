"""What each arm selects, trains on, and how: settings out of the comparison's. Pure."""

from __future__ import annotations

from typing import Any

from curate.runfiles.files import RunFiles
from curate.settings import ArmSettings, ComparisonSettings, CoresetSettings, PretrainSettings

FOR_ALL = ("where", "dedup", "near", "drop", "add", "keep")  # which images there are to select
OPEN_DATA = {"x": ["target"], "os": ["open"], "x+os": ["target", "open"]}


def data_of(arm: ArmSettings, seed: int, files: RunFiles) -> list[str]:
    """As `pretrain.data` names it."""
    if arm.kind in OPEN_DATA:
        return OPEN_DATA[arm.kind]
    return ["target", files.selection(selection_name(arm, seed))]


def selection_name(arm: ArmSettings, seed: int) -> str:
    """A random sample is drawn anew for each seed: its luck is part of what is compared."""
    return f"{arm.title}-{seed}" if arm.kind == "random" else arm.title


def coreset_of(
    settings: ComparisonSettings, arm: ArmSettings, seed: int, labels: list[str]
) -> CoresetSettings | None:
    """The selection's settings; None for arms that select nothing."""
    common = settings.coreset
    bound: dict[str, Any] = {name: getattr(common, name) for name in FOR_ALL}
    p = settings.p if arm.p is None else arm.p
    clusters = arm.clusters or (1 if arm.kind == "simcore-k1" else common.clusters)
    if arm.kind == "random":
        return CoresetSettings(method="random", budget=p, seed=seed, **bound)
    if arm.kind == "oracle":
        return CoresetSettings(method="oracle", labels=labels, budget=arm.p, seed=seed, **bound)
    if arm.kind in ("simcore", "simcore-k1"):
        changes = {"method": "simcore", "clusters": clusters, "tau": arm.tau, "budget": p}
        return common.model_copy(update={**changes, "budget_times_target": None})
    if arm.kind in ("ratio", "gate", "resample"):
        changes = {"method": arm.kind, "clusters": clusters, "tau": arm.tau, "budget": p}
        changes |= {"ratio": arm.ratio or common.ratio, "gate": arm.gate or common.gate}
        return common.model_copy(update={**changes, "budget_times_target": None, "labels": None})
    if arm.kind == "simcore-stop":
        tau = common.tau if arm.tau is None else arm.tau
        limit = common.budget_times_target
        if arm.p is None and common.budget is None and limit is None:
            limit = 50.0  # the authors' cap
        budget = common.budget if arm.p is None else arm.p
        changes = {"method": "simcore", "clusters": clusters, "tau": tau, "budget": budget}
        return common.model_copy(update={**changes, "budget_times_target": limit})
    return None


def training_of(
    settings: ComparisonSettings, arm: ArmSettings, data: list[str], seed: int
) -> PretrainSettings:
    """Equal steps, and as much of them to warm up as the recipe takes of its own."""
    common = settings.pretrain or PretrainSettings()
    optimizer, resources = common.optimizer, common.resources
    if optimizer.warmup_steps is None:
        recipe = common.recipe
        warmup = round(settings.steps * recipe.optimizer.warmup_epochs / recipe.epochs)
        optimizer = optimizer.model_copy(update={"warmup_steps": warmup})
    shares = common.shares if arm.share is None else [arm.share, 1 - arm.share]
    return common.model_copy(
        update={
            "data": data,
            "shares": shares if len(data) == 2 else None,
            "init": arm.init or common.init,
            "steps": settings.steps,
            "optimizer": optimizer,
            "seed": common.seed + seed,
            "resources": resources.model_copy(update={"workers": resources.workers or 1}),
        }
    )
