"""The most frequent labels of a selection, and of others over the same embeddings."""

from __future__ import annotations

from collections import Counter
from itertools import islice

from curate.report.collect import files, sampling
from curate.report.collect.sampling import Labels
from curate.report.collect.subject import Subject
from curate.report.content import Classes

SELECTIONS = 8
TOP = 20  # classes
COUNTED_IMAGES = 2_000_000  # of an open set whose labels are counted in full


def classes(subject: Subject) -> list[Classes]:
    """Empty where no image that was selected has a label."""
    coreset = subject.run.settings.coreset
    title = f"this run: {coreset.method}"
    if coreset.method == "simcore":
        title += f", k = {coreset.clusters}"
    labels = {title: subject.manifest.labels()}
    others = files.other_manifests(subject.run.files)
    for name, uri in islice(others.items(), SELECTIONS - 1):
        labels[name] = files.read_manifest(uri).labels()
    if not any(set(one) - {None} for one in labels.values()):
        return []
    in_open: Labels = Counter()
    if subject.embedded.open_images <= COUNTED_IMAGES:
        in_open = sampling.label_counts(subject.embedded.open)
    return [_top(title, one, in_open) for title, one in labels.items()]


def _top(title: str, labels: Labels, in_open: Labels) -> Classes:
    of_open = sum(in_open.values())
    known = {label: n for label, n in labels.items() if label is not None}
    top = [
        (label, n, in_open[label] / of_open if of_open else None)
        for label, n in sorted(known.items(), key=lambda pair: (-pair[1], pair[0]))[:TOP]
    ]
    return Classes(title, sum(labels.values()), sum(known.values()), len(known), top)
