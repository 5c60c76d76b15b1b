"""What a run and a training come to: summary.json, typed, and the tables that end them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from curate.runfiles.accounts import Counts, SourceCounts
from curate.runfiles.files import RunFiles
from curate.settings import CoresetSettings
from curate.storage import Document

ROUNDS_SHOWN = 10


@dataclass(frozen=True)
class Outcome:
    """What a selection came to, without anything that differs between equal runs."""

    coreset: CoresetSettings
    selected: int
    rounds: int
    first_objective: float | None
    last_objective: float | None
    stopping_objective: float | None  # f(S_t) of the round under the threshold
    stopped_because: str
    left_out: dict[str, int] = field(default_factory=dict)  # of the open set, by reason

    def to_json(self) -> Document:
        return {**vars(self), "coreset": self.coreset.model_dump(mode="json")}


@dataclass(frozen=True)
class TrainingSummary:
    """A training that is done."""

    method: str
    backbone: str
    image_px: int
    images: int
    open_images: int  # of them
    rejected: int  # that could not be copied
    unreadable: int  # that could not be decoded
    epochs: int
    steps: int
    batch_size: int
    workers: int
    loss: float
    embedding_std: float
    knn: float | None
    images_per_s: float
    seconds: float
    encoder: str  # its folder
    seen: dict[str, float] = field(default_factory=dict)  # how often an image of each set was
    reduced: int = 0  # images that were larger than training looks at them
    init: str | None = None  # what it began from, if not from random weights

    def table(self) -> str:
        sets = f"{self.images:,} images"
        if self.open_images:
            sets += f", {self.open_images:,} of them from the open set"
        knn = "" if self.knn is None else f", kNN accuracy {self.knn:.1%}"
        return "\n".join(
            [
                f"{self.method} on {self.backbone} at {self.image_px} px: {sets}",
                f"{self.epochs:,} epochs, {self.steps:,} steps, batches of "
                f"{self.batch_size:,} over {self.workers} workers",
                *self._seen(),
                f"loss {self.loss:.4f}, embedding deviation {self.embedding_std:.2f}{knn}",
                f"{self.seconds:,.0f} s, {self.images_per_s:,.0f} images/s; "
                f"unreadable: {self.rejected} when copied, {self.unreadable} when decoded",
                f"encoder: {self.encoder}",
            ]
        )

    def _seen(self) -> list[str]:
        """Of sets with shares of their own."""
        each = [f"those of {name} {times:,.1f}" for name, times in self.seen.items()]
        return [f"how often images were seen: {', '.join(each)}"] if len(each) > 1 else []


@dataclass(frozen=True)
class Summary:
    """A run that is done."""

    sources: Counts
    outcome: Outcome
    seconds: dict[str, float]  # of each stage
    embedded_now: int = 0  # images, by the last call
    images_per_s: float | None = None  # of these
    feed: dict[str, float] | None = None  # seconds that readers and actors spent on these
    figures: dict[str, float | None] | None = None  # of the selection: coreset.figures
    pretrain: TrainingSummary | None = None

    def to_json(self) -> Document:
        document = {
            "sources": self.sources.to_json(),
            **self.outcome.to_json(),
            "seconds": {stage: round(value, 3) for stage, value in self.seconds.items()},
            "embedded_now": self.embedded_now,
            "images_per_s": self.images_per_s,
            "feed": self.feed,
            "figures": self.figures,
        }
        if self.pretrain is not None:
            document["pretrain"] = asdict(self.pretrain)
        return document

    @staticmethod
    def from_json(document: Document) -> Summary:
        """Raises KeyError, TypeError or ValueError for what `to_json` does not make."""
        rest = dict(document)
        own = {name: rest.pop(name) for name in Outcome.__dataclass_fields__ if name in rest}
        own["coreset"] = CoresetSettings.model_validate(own["coreset"])
        training = rest.pop("pretrain", None)
        return Summary(
            Counts.from_json(rest.pop("sources")),
            Outcome(**own),
            **rest,
            pretrain=None if training is None else TrainingSummary(**training),
        )

    def table(self, files: RunFiles) -> str:
        lines = [f"{'source':<24}{'seen':>12}{'embedded':>12}{'rejected':>12}{'selected':>12}"]
        for name, row in self.sources.target.items():
            lines.append(_row(f"{name} (target)", row, "–"))
        for name, row in self.sources.open.items():
            lines.append(_row(name, row, f"{row.selected:,}"))
        for name, row in self.sources.exclude.items():
            lines.append(_row(f"{name} (excluded)", row, "–"))
        lines.append(self._ending())
        if self.outcome.left_out:
            reasons = ", ".join(f"{n:,} {why}" for why, n in self.outcome.left_out.items())
            lines.append(f"left out: {reasons}")
        lines += figure_lines(self.figures or {})
        stages = ", ".join(f"{name} {value:.1f}" for name, value in self.seconds.items())
        lines.append(f"seconds: {stages}")
        if self.images_per_s:
            lines.append(
                f"embedded {self.embedded_now:,} images at {self.images_per_s:,.0f} "
                "images/s, start of the workers included"
            )
        lines.append(f"manifest: {files.manifest} ({self.outcome.selected:,} images)")
        if self.pretrain is not None:
            lines += ["", self.pretrain.table()]
        return "\n".join(lines)

    def _ending(self) -> str:
        one = self.outcome
        if not one.rounds:
            return f"\nmethod {one.coreset.method}, stopped by: {one.stopped_because}"
        stopped = one.stopped_because
        if one.stopping_objective is not None:
            stopped += f" (the next round's is {one.stopping_objective:.4f})"
        return (
            f"\n{one.rounds:,} rounds, f(S_1) = {one.first_objective:.4f}, "
            f"f(S_last) = {one.last_objective:.4f}, stopped by: {stopped}"
        )


def figure_lines(figures: dict[str, float | None]) -> list[str]:
    """What is known of a selection's relevance and variety, beside random images'."""
    said = {
        "relevance": ("as much like the target as half of its own images", "{:.1%}"),
        "clusters": ("effective clusters of the open set", "{:.1f}"),
        "nearest": ("cosine to the nearest other image", "{:.3f}"),
    }
    return [
        f"{text}: {form.format(figures[name])} (random {form.format(figures[f'{name}_random'])})"
        for name, (text, form) in said.items()
        if figures.get(name) is not None and figures.get(f"{name}_random") is not None
    ]


def _row(name: str, row: SourceCounts, selected: str) -> str:
    return f"{name:<24}{row.seen:>12,}{row.embedded:>12,}{row.rejected:>12,}{selected:>12}"


def evaluation_table(results: list[Document]) -> str:
    """Rows of evaluate/results.json as text, each figure in its unit."""
    width = max([30, *(len(row["metric"]) for row in results)]) + 2
    lines = [
        f"{'metric':<{width}}{'value':>10}{'± std':>10}{'seeds':>7}{'images':>9}{'seconds':>9}"
    ]
    for row in results:
        value, std = (_figure(row[name], row["unit"]) for name in ("value", "std"))
        lines.append(
            f"{row['metric']:<{width}}{value:>10}{std if row['seeds'] > 1 else '–':>10}"
            f"{row['seeds']:>7}{row['n']:>9,}{row['seconds']:>9.1f}"
        )
    for row in results:
        lines += _rounds(row["config"].get("by_round", []))
        lines += _classes(row["config"].get("top_classes", []))
    return "\n".join(lines)


def _figure(value: float, unit: str) -> str:
    shown = {"share": f"{value:.1%}", "ratio": f"{value:.2f} ×", "bits": f"{value:.2f} bits"}
    return shown.get(unit, f"{value:.3f}")


def _rounds(by_round: list[tuple[int, int, float]]) -> list[str]:
    """Of many rounds a few, the last one among them."""
    if len(by_round) < 2:
        return []
    step = -(-len(by_round) // ROUNDS_SHOWN)
    shown = by_round[::-step][::-1]
    return ["", f"{'round':<8}{'images so far':>14}{'oracle share':>14}"] + [
        f"{number:<8}{images:>14,}{share:>14.1%}" for number, images, share in shown
    ]


def _classes(top_classes: list[tuple[str, int, float]]) -> list[str]:
    if not top_classes:
        return []
    width = max(len("class selected most"), *(len(name) for name, _, _ in top_classes)) + 2
    return ["", f"{'class selected most':<{width}}{'images':>8}{'of its images':>15}"] + [
        f"{name:<{width}}{images:>8,}{share:>15.1%}" for name, images, share in top_classes
    ]
