"""What an encoder is worth on labelled sets, and a coreset by the labels of the open set: each
protocol on its own, the heavy ones as Ray tasks, a seed each.

encoder, labelled train and test ──> protocols ──> evaluate/results.json
"""

from __future__ import annotations

from dataclasses import asdict

from curate import storage
from curate.dataset import materialise
from curate.embedding import encoders
from curate.errors import CurateError
from curate.evaluate import (
    attributes,
    detection,
    finetune,
    knn,
    linear,
    segmentation,
    selection,
    sgd,
)
from curate.evaluate.subject import Evaluator, Result, Subject
from curate.runfiles.files import EvaluationFiles, RunFiles
from curate.settings import EvaluateSettings, RunSettings
from curate.settings.base import absolute

# Which of them measure on evaluate.train and test, and which on data of their own, the settings say
EVALUATORS: dict[str, Evaluator] = {
    "linear": linear,
    "knn": knn,
    "sgd": sgd,
    "finetune": finetune,
    "attributes": attributes,
    "detection": detection,
    "segmentation": segmentation,
    "selection": selection,
}


def evaluate(settings: RunSettings) -> list[Result]:
    """`curate evaluate`: what each of evaluate.protocols says of the encoder; also results.json.

    Raises CurateError for an encoder that is not there, or labels that do not fit.
    """
    evaluation = settings.evaluate
    if evaluation is None:
        raise CurateError("evaluate: missing; name labelled train and test sources in the config")
    files = RunFiles(settings.output)
    encoder_uri = evaluation.encoder or files.pretrain.folder
    found = measure(settings, evaluation, encoder_uri, files.evaluation.folder)
    of_encoder = set(evaluation.protocols) != {"selection"}
    document = {
        "encoder": encoder_uri if of_encoder else None,
        "results": [asdict(result) for result in found],
    }
    storage.write_json(files.evaluation.results, document)
    return found


def check_encoder(settings: RunSettings) -> None:
    """Raises CurateError for an `evaluate.encoder` that is not there, and that no training of this
    config makes."""
    place = settings.evaluate.encoder if settings.evaluate else None
    files = RunFiles(settings.output)
    made = [files.pretrain.folder if settings.pretrain else None]
    made.append(files.target_encoder.folder if settings.encoder.pretrain else None)
    if place is not None and absolute(place) not in made and not encoders.is_there(place):
        raise CurateError(f"evaluate.encoder={place}: no such file or folder; check the path")


def measure(
    settings: RunSettings, evaluation: EvaluateSettings, encoder_uri: str, folder: str
) -> list[Result]:
    """Every protocol of `evaluation`, on the encoder at `encoder_uri`.

    folder: holds the labelled sets as `train` and `test`; they are made by the first call, and
    used again by others with the same sources. Calls that run at the same time need them made
    before: `labelled_sets`.
    Raises CurateError for what cannot be measured, before anything is trained.
    """
    if set(evaluation.protocols) != {"selection"} and not encoders.is_there(encoder_uri):
        raise CurateError(
            f"{encoder_uri}: no such file or folder to evaluate; `curate pretrain` makes an "
            "encoder, or set evaluate.encoder"
        )
    labelled_sets(settings, evaluation, folder)
    subject = Subject(settings, evaluation, encoder_uri, folder)
    evaluators = [EVALUATORS[name] for name in evaluation.protocols]
    for evaluator in evaluators:
        evaluator.check(subject)
    return [result for evaluator in evaluators for result in evaluator.run(subject)]


def labelled_sets(settings: RunSettings, evaluation: EvaluateSettings, folder: str) -> None:
    """The images of evaluate.train and test as training sets in `folder`, if they are not there."""
    if not evaluation.needs_labelled_sets:
        return
    for name in ("train", "test"):
        source = getattr(evaluation, name)
        materialise.labelled_images(settings, source, EvaluationFiles(folder).labelled(name))
