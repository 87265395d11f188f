"""Errors of the pruning library. Each message says what, where, the values, and the fix."""


class GbnError(Exception):
    """Base of every error that `gbn` raises for its caller's input."""


class TraceError(GbnError):
    """The model could not be run on the example inputs, or its channels could not be followed."""


class RuleError(GbnError):
    """A rule of an op failed: a defect of this library or of a registered rule."""


class ScoresNotFinite(GbnError):  # noqa: N818
    """Scores hold NaN or infinity, so that channels cannot be ranked."""


class UnreachableTarget(GbnError):  # noqa: N818 - what happened, not what went wrong
    """No plan meets the target; the message states the smallest value that can be reached."""


class PlanMismatch(GbnError):  # noqa: N818
    """A plan was applied to a model whose tensors are not those it was made for."""


class ProofFailed(GbnError):  # noqa: N818
    """The physically smaller network does not compute what the gated one computes."""
