"""What a run is, as typed settings: each key with its type, its default and its limits."""

from curate.settings.base import Settings
from curate.settings.comparison import ArmSettings, ComparisonSettings, TargetSettings
from curate.settings.evaluation import (
    AnnotatedSettings,
    AttributesSettings,
    DetectionSettings,
    EvaluateSettings,
    FinetuneSettings,
    SegmentationSettings,
    SgdSettings,
)
from curate.settings.groups import (
    CheckpointSettings,
    DatasetSettings,
    OptimizerSettings,
    ProbeSettings,
    ResourceSettings,
    TeacherSettings,
    ViewSettings,
)
from curate.settings.run import ManyRunsSettings, RunSettings
from curate.settings.selection import CoresetSettings, EmbedSettings, EncoderSettings
from curate.settings.sources import (
    KINDS,
    ImageFolderSettings,
    ImageSettings,
    ParquetSettings,
    Source,
    SourceSettings,
    UrlListSettings,
    WebDatasetSettings,
)
from curate.settings.training import (
    EncoderTrainingSettings,
    OnSetsSettings,
    PretrainSettings,
    TrainingSettings,
)

__all__ = [
    "KINDS",
    "AnnotatedSettings",
    "ArmSettings",
    "AttributesSettings",
    "CheckpointSettings",
    "ComparisonSettings",
    "CoresetSettings",
    "DatasetSettings",
    "DetectionSettings",
    "EmbedSettings",
    "EncoderSettings",
    "EncoderTrainingSettings",
    "EvaluateSettings",
    "FinetuneSettings",
    "ImageFolderSettings",
    "ImageSettings",
    "ManyRunsSettings",
    "OnSetsSettings",
    "OptimizerSettings",
    "ParquetSettings",
    "PretrainSettings",
    "ProbeSettings",
    "ResourceSettings",
    "RunSettings",
    "SegmentationSettings",
    "Settings",
    "SgdSettings",
    "Source",
    "SourceSettings",
    "TargetSettings",
    "TeacherSettings",
    "TrainingSettings",
    "UrlListSettings",
    "ViewSettings",
    "WebDatasetSettings",
]
