"""EDRL-MEA for transformers. Importing the package registers it with all Auto classes."""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification

from .alignment import EmbeddingAlignment
from .configuration_edrl_mea import EdrlMeaConfig
from .correction import AdaptationReport
from .feature_extraction_edrl_mea import EdrlMeaFeatureExtractor
from .modeling_edrl_mea import EdrlMeaForAudioClassification, EdrlMeaModel, EdrlMeaOutput
from .multiblock_pls import MultiblockPLS
from .online_adaptation import Adapter
from .prediction import Prediction
from .recordings import RecordingError, load_recording
from .speech_gate import SpeechGate
from .timeline import Segment, Timeline
from .timeline_stream import TimelineStream

AutoConfig.register("edrl_mea", EdrlMeaConfig, exist_ok=True)
AutoFeatureExtractor.register(EdrlMeaConfig, EdrlMeaFeatureExtractor, exist_ok=True)
AutoModel.register(EdrlMeaConfig, EdrlMeaModel, exist_ok=True)
AutoModelForAudioClassification.register(EdrlMeaConfig, EdrlMeaForAudioClassification, exist_ok=True)

# So that what is saved carries this package's code and loads by `trust_remote_code=True` without it.
EdrlMeaConfig.register_for_auto_class()
EdrlMeaFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
EdrlMeaModel.register_for_auto_class("AutoModel")
EdrlMeaForAudioClassification.register_for_auto_class("AutoModelForAudioClassification")

__all__ = [
    "AdaptationReport",
    "Adapter",
    "AlignmentCallback",
    "EdrlMeaConfig",
    "EdrlMeaFeatureExtractor",
    "EdrlMeaForAudioClassification",
    "EdrlMeaModel",
    "EdrlMeaOutput",
    "EmbeddingAlignment",
    "MultiblockPLS",
    "Prediction",
    "RecordingError",
    "Segment",
    "SpeechGate",
    "Timeline",
    "TimelineStream",
    "load_recording",
]


def __getattr__(name: str):
    """`AlignmentCallback` only when it is asked for: transformers' Trainer takes seconds to import."""
    if name == "AlignmentCallback":
        from .alignment_callback import AlignmentCallback

        return AlignmentCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
