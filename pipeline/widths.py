"""How wide each layer is before and after, for the report.

Enters: the network as given and the smaller one. Leaves: one plain row a layer. Weights that no
convolution or linear layer owns (those of an exported program) are in no row.
"""

from typing import Any

from torch import nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def layer_widths(before: nn.Module, after: nn.Module) -> list[dict[str, Any]]:
    """{name, kind, before, after} of each convolution and linear layer that both networks have.

    Widths are output channels or features, in the order of the network's modules.
    """
    rows = []
    smaller = dict(after.named_modules())
    for name, module in before.named_modules():
        width = _width(module)
        then = _width(smaller[name]) if name in smaller else None
        if width is not None and then is not None:
            kind = "linear" if isinstance(module, nn.Linear) else "convolution"
            rows.append({"name": name, "kind": kind, "before": width, "after": then})
    return rows


def _width(module: nn.Module) -> int | None:
    if isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
        return int(module.weight.shape[0])
    if isinstance(module, _TRANSPOSED):
        return int(module.weight.shape[1]) * module.groups
    return None
