"""Where everything lies under an output: the one place that knows these names. No I/O."""

from __future__ import annotations

from dataclasses import dataclass

from curate.storage import join


@dataclass(frozen=True)
class Folder:
    folder: str


@dataclass(frozen=True)
class Name:
    """A file or a folder by its name in the one that its owner stands for."""

    name: str

    def __get__(self, owner: Folder, kind: type) -> str:
        return join(owner.folder, self.name)


WEIGHTS = Name("encoder.safetensors")


class EncoderFiles(Folder):
    """An encoder that was trained here."""

    weights = WEIGHTS
    card = Name("encoder.json")  # says what the weights are; written last


class TrainingFiles(EncoderFiles):
    """One training."""

    memo = Name("config.yaml")
    images = Name("data")  # the copy that is trained on, where the training has one of its own
    checkpoints = Name("checkpoints")
    metrics = Name("metrics.jsonl")
    events = Name("tensorboard")
    summary = Name("summary.json")
    result = Name("result.json")  # of an arm: what its encoder was found to be worth
    scratch = Name(".ray")

    def probe(self, name: str) -> str:
        """A labelled set, `train` or `test`, that is measured on while training."""
        return join(self.folder, "probe", name)


class TrainingSetFiles(Folder):
    """A copy of images that are trained or measured on."""

    index = Name("index.json")
    rejected = Name("rejected.parquet")

    def part(self, name: str) -> str:
        return join(self.folder, name)


class EvaluationFiles(Folder):
    """What an encoder was measured on, and what came of it."""

    results = Name("results.json")

    def labelled(self, name: str) -> str:
        """The set `train` or `test`."""
        return join(self.folder, name)


class RunFiles(Folder):
    """One run, with all that may be made from it later; its folder is the config's `output`."""

    memo = Name("config.yaml")  # settings, versions, and what decides the embeddings
    lock = Name("run.lock")  # of the driver that is at work
    plan = Name("plan.parquet")
    ledger = Name("ledger")
    weights = WEIGHTS  # of the encoder, which every worker loads
    embeddings = Name("embeddings")
    rejected = Name("rejected")
    whitened = Name("whitened")
    whitened_memo = Name("whitened/made.json")
    centroids = Name("centroids.npy")
    manifest = Name("coreset.parquet")
    rounds = Name("rounds.parquet")
    summary = Name("summary.json")
    recuts = Name("recut")
    report = Name("report")
    selections = Name("selections")  # of a comparison's arms

    def shards(self, set_name: str) -> str:
        return join(self.embeddings, set_name)

    def shard(self, set_name: str, unit: int, part: int) -> str:
        return join(self.shards(set_name), f"part-{unit:06d}-{part:04d}.arrow")

    def rejects(self, unit: int, part: int) -> str:
        return join(self.rejected, f"part-{unit:06d}-{part:04d}.parquet")

    def whitened_shard(self, shard: str) -> str:
        """The copy of a shard; units are numbered over both sets."""
        return join(self.whitened, shard.rpartition("/")[2])

    def recut(self, tau: float) -> str:
        return join(self.recuts, f"tau-{tau:g}.parquet")

    @property
    def target_encoder(self) -> TrainingFiles:
        return TrainingFiles(join(self.folder, "target_encoder"))

    @property
    def pretrain(self) -> TrainingFiles:
        return TrainingFiles(join(self.folder, "pretrain"))

    @property
    def evaluation(self) -> EvaluationFiles:
        return EvaluationFiles(join(self.folder, "evaluate"))

    def selection(self, name: str) -> str:
        """The manifest of an arm."""
        return join(self.selections, f"{name}.parquet")

    def selection_memo(self, name: str) -> str:
        return join(self.selections, f"{name}.json")

    def arm_images(self, name: str) -> str:
        """What an arm's trainings share."""
        return join(self.folder, "images", name)

    def arm(self, title: str, seed: int) -> TrainingFiles:
        return TrainingFiles(join(self.folder, "arms", title, f"seed-{seed}"))

    @property
    def own(self) -> list[str]:
        """All that a run writes: the folder may hold other things. The memo is last, so that a
        removal that is cut short leaves a run that still says what it was."""
        return [
            *(self.rejected, self.whitened, self.embeddings, self.summary, self.rounds),
            *(self.report, self.recuts, self.evaluation.folder, self.pretrain.folder),
            *(self.target_encoder.folder, self.manifest, self.centroids, self.weights),
            *(self.ledger, self.plan, self.memo),
        ]


class ComparisonFiles(Folder):
    """A comparison of arms, and the run of each target in it."""

    table = Name("comparison.json")
    text = Name("comparison.md")

    def target(self, name: str) -> RunFiles:
        return RunFiles(join(self.folder, name))
