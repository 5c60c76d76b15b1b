"""Where everything lies under an output or a store: no other module knows a name. No I/O."""

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
    init = Name("init.safetensors")  # what it begins from, for all workers
    teacher = Name("teacher.safetensors")  # that it learns from, for all workers
    best = Name("best")  # the encoder that was best so far, by a figure
    checkpoints = Name("checkpoints")
    metrics = Name("metrics.jsonl")
    events = Name("tensorboard")
    summary = Name("summary.json")
    result = Name("result.json")  # of an arm: what its encoder was found to be worth
    scratch = Name(".ray")

    def best_at(self, step: int) -> str:
        return join(self.best, f"step-{step:08d}.safetensors")

    def probe(self, name: str) -> str:
        """A labelled set, `train` or `test`, that is measured on while training."""
        return join(self.folder, "probe", name)


class TrainingSetFiles(Folder):
    """A copy of images that are trained or measured on."""

    index = Name("index.json")
    rejected = Name("rejected.parquet")
    making = Name("making")  # while it is being made
    request = Name("making/request.json")
    list = Name("making/list.arrow")

    def part(self, name: str) -> str:
        return join(self.folder, name)

    def part_of(self, piece: int, number: int) -> str:
        return self.part(f"part-{piece:06d}-{number:03d}.arrow")

    def planned(self, number: int, source: str) -> str:
        """How the names of files begin that say what a source's units are made of."""
        return join(self.making, f"{number}-{source}")

    def done(self, piece: int) -> str:
        return join(self.making, f"done-{piece:06d}.json")

    def rejects_of(self, piece: int) -> str:
        return join(self.making, f"rejected-{piece:06d}.parquet")


class EvaluationFiles(Folder):
    """What an encoder was measured on, and what came of it."""

    results = Name("results.json")

    def labelled(self, name: str) -> str:
        """The set `train` or `test`."""
        return join(self.folder, name)


class PlanFiles(Folder):
    """The list of units, and of the single files that make some of them up."""

    units = Name("units.parquet")  # written last

    def single_files(self, source: str) -> str:
        """How the names of these files begin. source: its set and name."""
        return join(self.folder, source)


class EmbeddingFiles(Folder):
    """What one encoder made of images: shards by what is in them, whichever runs want them."""

    made_from = Name("made_from.json")
    ledger = Name("ledger")
    shards = Name("shards")
    metadata = Name("metadata")  # what sources know of the images beside them

    def group(self, name: str) -> str:
        """The folder of all shards whose units' digests begin with these two digits."""
        return join(self.shards, name)

    def shard(self, unit: str, part: int) -> str:
        """unit: its digest."""
        return join(self.group(unit[:2]), f"{unit}-{part:04d}.arrow")

    def metadata_group(self, name: str) -> str:
        return join(self.metadata, name)

    def metadata_of(self, unit: str, columns: str) -> str:
        """Some columns of all images of a unit. columns: their digest."""
        return join(self.metadata_group(unit[:2]), f"{unit}-{columns}.arrow")


class StoreFiles(Folder):
    """Embeddings of any number of runs and encoders."""

    users = Name("users")

    def user(self, name: str) -> str:
        """Says which run is one of the store's."""
        return join(self.users, f"{name}.json")

    def embeddings(self, encoder: str) -> EmbeddingFiles:
        """encoder: digest of all that decides what becomes of an image."""
        return EmbeddingFiles(join(self.folder, encoder))


class CandidateFiles(Folder):
    """Lists of candidates that a selection has found, for another that needs the same."""

    shards = Name("shards.arrow")
    lists = Name("lists.arrow")  # written last

    def piece(self, name: str) -> str:
        return join(self.folder, name)

    def pieces(self, of: str) -> str:
        """With a place for their number."""
        return self.piece(of + "-{:04d}.npy")


class ExportFiles(Folder):
    """A coreset in another format."""

    memo = Name("export.json")
    making = Name("exporting")  # while it is being made
    rejected = Name("rejected.parquet")
    csv = Name("coreset.csv")
    card = Name("README.md")  # on the Hub
    atlas = Name("atlas.parquet")
    samples = Name("samples.json")  # FiftyOne's
    metadata = Name("metadata.json")

    def done(self, piece: int) -> str:
        """What of a piece could not be read; written last."""
        return join(self.making, f"done-{piece:06d}.parquet")

    def piece(self, piece: int, kind: str) -> str:
        """Of a file that is put together of pieces."""
        return join(self.making, f"piece-{piece:06d}.{kind}")


class RunFiles(Folder):
    """One run, with all that may be made from it later; its folder is the config's `output`."""

    memo = Name("config.yaml")  # settings, versions, and what decides the embeddings
    lock = Name("run.lock")  # of the driver that is at work
    status = Name("status.json")  # for `curate watch`
    plans = Name("plan")
    weights = WEIGHTS  # of the encoder, which every worker loads
    own_store = Name("embeddings")  # where the config names no other
    rejected = Name("rejected")
    whitened = Name("whitened")
    whitened_memo = Name("whitened/made.json")
    centroids = Name("centroids.npy")
    direction = Name("ratio.npy")  # of a linear density ratio
    manifest = Name("coreset.parquet")
    rounds = Name("rounds.parquet")
    summary = Name("summary.json")
    recuts = Name("recut")
    report = Name("report")
    selections = Name("selections")  # of a comparison's arms

    def plan(self, number: int) -> PlanFiles:
        """The newest is in force; another is made beside it."""
        return PlanFiles(join(self.plans, f"{number:06d}"))

    def rejects(self, part: int) -> str:
        return join(self.rejected, f"part-{part:06d}.parquet")

    def whitened_shard(self, shard: str) -> str:
        """The copy of a shard."""
        return join(self.whitened, shard.rpartition("/")[2])

    def recut(self, name: str) -> str:
        """name: of what differs from the run."""
        return join(self.recuts, f"{name}.parquet")

    @property
    def candidates(self) -> CandidateFiles:
        return CandidateFiles(join(self.folder, "candidates"))

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
            *(self.status, self.rejected, self.whitened, self.own_store, self.summary, self.rounds),
            *(self.report, self.recuts, self.candidates.folder),
            *(self.evaluation.folder, self.pretrain.folder),
            *(self.target_encoder.folder, self.manifest, self.centroids, self.direction),
            self.weights,
            *(self.plans, self.memo),
        ]


class ComparisonFiles(Folder):
    """A comparison of arms, and the run of each target in it."""

    table = Name("comparison.json")
    store = Name("embeddings")  # where the config names no other
    text = Name("comparison.md")

    def target(self, name: str) -> RunFiles:
        return RunFiles(join(self.folder, name))
