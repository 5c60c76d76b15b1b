"""Where everything lies under an output: the one place that knows these names. No I/O."""

from __future__ import annotations

from dataclasses import dataclass

from curate.storage import join

WHITENED = "whitened"


@dataclass(frozen=True)
class EncoderFiles:
    """An encoder that was trained here: weights, and the card that says what they are."""

    folder: str

    @property
    def weights(self) -> str:
        return join(self.folder, "encoder.safetensors")

    @property
    def card(self) -> str:
        return join(self.folder, "encoder.json")


@dataclass(frozen=True)
class TrainingFiles(EncoderFiles):
    """One training: what it was made from, its checkpoints and figures, and its encoder."""

    @property
    def memo(self) -> str:
        return join(self.folder, "config.yaml")

    @property
    def images(self) -> str:
        """Folder of the copy that is trained on, where the training has one of its own."""
        return join(self.folder, "data")

    @property
    def checkpoints(self) -> str:
        return join(self.folder, "checkpoints")

    @property
    def metrics(self) -> str:
        return join(self.folder, "metrics.jsonl")

    @property
    def events(self) -> str:
        return join(self.folder, "tensorboard")

    @property
    def summary(self) -> str:
        return join(self.folder, "summary.json")

    @property
    def result(self) -> str:
        """Of an arm of a comparison: what its encoder was found to be worth."""
        return join(self.folder, "result.json")

    @property
    def scratch(self) -> str:
        return join(self.folder, ".ray")

    def probe(self, name: str) -> str:
        """Folder of a labelled set, `train` or `test`, that is measured on while training."""
        return join(self.folder, "probe", name)


@dataclass(frozen=True)
class TrainingSetFiles:
    """A copy of images that are trained or measured on."""

    folder: str

    @property
    def index(self) -> str:
        return join(self.folder, "index.json")

    @property
    def rejected(self) -> str:
        return join(self.folder, "rejected.parquet")

    def part(self, name: str) -> str:
        return join(self.folder, name)


@dataclass(frozen=True)
class EvaluationFiles:
    """What an encoder was measured on, and what came of it."""

    folder: str

    @property
    def results(self) -> str:
        return join(self.folder, "results.json")

    def labelled(self, name: str) -> str:
        """Folder of the set `train` or `test`."""
        return join(self.folder, name)


@dataclass(frozen=True)
class RunFiles:
    """One run, with all that may be made from it later."""

    output: str

    @property
    def memo(self) -> str:
        """Settings, versions, and the fingerprint of what decides the embeddings."""
        return join(self.output, "config.yaml")

    @property
    def plan(self) -> str:
        return join(self.output, "plan.parquet")

    @property
    def ledger(self) -> str:
        return join(self.output, "ledger")

    @property
    def weights(self) -> str:
        """Of the encoder, which every worker loads."""
        return EncoderFiles(self.output).weights

    def shards(self, set_name: str) -> str:
        return join(self.output, "embeddings", set_name)

    def shard(self, set_name: str, unit: int, part: int) -> str:
        return join(self.shards(set_name), f"{_part(unit, part)}.arrow")

    @property
    def rejected(self) -> str:
        return join(self.output, "rejected")

    def rejects(self, unit: int, part: int) -> str:
        return join(self.rejected, f"{_part(unit, part)}.parquet")

    @property
    def whitened(self) -> str:
        return join(self.output, WHITENED)

    @property
    def whitened_memo(self) -> str:
        return join(self.whitened, "made.json")

    def whitened_shard(self, shard: str) -> str:
        """The copy of a shard; units are numbered over both sets."""
        return join(self.whitened, shard.rpartition("/")[2])

    @property
    def centroids(self) -> str:
        return join(self.output, "centroids.npy")

    @property
    def manifest(self) -> str:
        return join(self.output, "coreset.parquet")

    @property
    def rounds(self) -> str:
        return join(self.output, "rounds.parquet")

    @property
    def summary(self) -> str:
        return join(self.output, "summary.json")

    def recut(self, tau: float) -> str:
        return join(self.output, "recut", f"tau-{tau:g}.parquet")

    @property
    def target_encoder(self) -> TrainingFiles:
        return TrainingFiles(join(self.output, "target_encoder"))

    @property
    def pretrain(self) -> TrainingFiles:
        return TrainingFiles(join(self.output, "pretrain"))

    @property
    def evaluation(self) -> EvaluationFiles:
        return EvaluationFiles(join(self.output, "evaluate"))

    @property
    def report(self) -> str:
        return join(self.output, "report")

    # Of a target in a comparison

    @property
    def selections(self) -> str:
        return join(self.output, "selections")

    def selection(self, name: str) -> str:
        """The manifest of an arm."""
        return join(self.selections, f"{name}.parquet")

    def selection_memo(self, name: str) -> str:
        return join(self.selections, f"{name}.json")

    def arm_images(self, name: str) -> str:
        """Folder of what an arm's trainings share."""
        return join(self.output, "images", name)

    def arm(self, title: str, seed: int) -> TrainingFiles:
        return TrainingFiles(join(self.output, "arms", title, f"seed-{seed}"))

    @property
    def own(self) -> list[str]:
        """All that a run writes: the folder may hold other things. The memo is last, so that a
        removal that is cut short leaves a run that still says what it was."""
        return [
            *(self.rejected, self.whitened, join(self.output, "embeddings"), self.summary),
            *(self.rounds, self.report, join(self.output, "recut"), self.evaluation.folder),
            *(self.pretrain.folder, self.target_encoder.folder, self.manifest, self.centroids),
            *(self.weights, self.ledger, self.plan, self.memo),
        ]


@dataclass(frozen=True)
class ComparisonFiles:
    """A comparison of arms, and the run of each target in it."""

    output: str

    @property
    def table(self) -> str:
        return join(self.output, "comparison.json")

    @property
    def text(self) -> str:
        return join(self.output, "comparison.md")

    def target(self, name: str) -> RunFiles:
        return RunFiles(join(self.output, name))


def _part(unit: int, part: int) -> str:
    return f"part-{unit:06d}-{part:04d}"
