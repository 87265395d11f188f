"""The settings of `compress inspect`.

Enters: values already of the right type. Leaves: one frozen `InspectConfig`.
"""

from dataclasses import dataclass

from pipeline.config import ConstraintConfig, ModelConfig
from pipeline.target import Target


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """What `compress inspect` is asked to show."""

    model: ModelConfig
    """The model and how to build it."""
    constraints: ConstraintConfig
    """As in the main job: the multiple and the frozen modules."""
    equal_cut: Target
    """Cost at which an equal cut of every width is shown."""
    inputs: tuple[str, ...] = ()
    """Inputs that are not one image: shapes, named shapes, or a callable that returns them."""
