"""Model files in, trained `nn.Module` objects out."""

from pipeline.importers.check import check_forward
from pipeline.importers.load import load_model, load_network, model_facts
from pipeline.importers.source import LoadedModel, ModelSource

__all__ = [
    "LoadedModel",
    "ModelSource",
    "check_forward",
    "load_model",
    "load_network",
    "model_facts",
]
