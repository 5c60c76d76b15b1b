"""The whole config of a run."""

from __future__ import annotations

from pydantic import Field, model_validator

from curate.settings.base import AbsolutePath, Settings, SourceName
from curate.settings.evaluation import EvaluateSettings
from curate.settings.selection import CoresetSettings, EmbedSettings, EncoderSettings
from curate.settings.sources import (
    UNNAMED_TARGET,
    USUAL_PIXELS,
    ImageSettings,
    Source,
    TargetSource,
)
from curate.settings.training import PretrainSettings


class CommonSettings(Settings):
    """What a run and a comparison of arms have in common."""

    open: list[Source] = Field(min_length=1)
    exclude: list[Source] | None = None  # no copy, or near copy, of these images is selected
    encoder: EncoderSettings = EncoderSettings()
    images: ImageSettings = ImageSettings()
    embed: EmbedSettings = EmbedSettings()
    coreset: CoresetSettings = CoresetSettings()
    pretrain: PretrainSettings | None = None
    store: AbsolutePath | None = None  # of embeddings, for any number of runs; the output's own
    output: AbsolutePath

    @model_validator(mode="after")
    def _encoder_of_the_images(self) -> CommonSettings:
        told, encoder = self.images, self.encoder
        for name, usual in USUAL_PIXELS.items():
            its, given = getattr(told, name), getattr(encoder, name)
            if given not in (None, its):
                raise ValueError(f"encoder.{name}={given}: set images.{name}")
            if its != usual and given is None:
                encoder = encoder.model_copy(update={name: its})
        for name in ("mean", "std"):
            figures = getattr(encoder, name)
            if figures is not None and len(figures) != told.channels:
                raise ValueError(
                    f"encoder.{name}: of {len(figures)}, and images.channels={told.channels}; set "
                    "a figure for each"
                )
        self.__dict__["encoder"] = encoder  # of a frozen model, which this is the making of
        return self

    @model_validator(mode="after")
    def _distinct_names(self) -> CommonSettings:
        for key, sources in (("open", self.open), ("exclude", self.exclude or [])):
            names = [source.name for source in sources]
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(
                        f"{key}: two sources are named {name!r}; give each its own name"
                    )
        return self


class RunSettings(CommonSettings):
    """One curation run."""

    target: TargetSource
    evaluate: EvaluateSettings | None = None


class ManyRunsSettings(CommonSettings):
    """A run for each of several targets, under `output`, with one store."""

    targets: dict[SourceName, TargetSource] = Field(min_length=1)

    def runs(self) -> list[RunSettings]:
        shared = {name: getattr(self, name) for name in CommonSettings.model_fields}
        shared["store"] = self.store or f"{self.output.rstrip('/')}/embeddings"
        runs = []
        for name, target in self.targets.items():
            if target.name == UNNAMED_TARGET:
                target = target.model_copy(update={"name": name})  # errors and tables speak of it
            output = f"{self.output.rstrip('/')}/{name}"
            runs.append(RunSettings(**shared | {"target": target, "output": output}))
        return runs

    @model_validator(mode="after")
    def _not_the_store(self) -> ManyRunsSettings:
        if "embeddings" in self.targets:
            raise ValueError("targets.embeddings: the store has that name; give it another")
        return self
