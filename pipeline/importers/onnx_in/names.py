"""Readable module names from the names in an ONNX file, and placing things under them.

What enters: names of nodes and initializers, free text. What leaves: dotted paths of Python
identifiers and numbers, each used once.
"""

import keyword
import re

import torch
from torch import nn

_NUMBERED = re.compile(r"(onnx::|val_|_val_|fn_|node_)?\w*?_?\d+")
_MAX_LENGTH = 80


def weight_path(name: str) -> str | None:
    """`layer1.0.conv1` from the initializer `layer1.0.conv1.weight`; None where it says nothing."""
    head, dot, tail = name.rpartition(".")
    if not dot or not head or not re.fullmatch(r"\w*(weight|kernel|gamma|scale)\w*", tail):
        return None
    return _cleaned(head)


def node_path(name: str) -> str | None:
    """`layer1.0.conv1` from the node `/layer1/layer1.0/conv1/Conv`; None where it says nothing."""
    parts = [part for part in name.split("/") if part]
    if not parts or (len(parts) == 1 and _NUMBERED.fullmatch(parts[0])):
        return None
    if len(parts) > 1 and re.fullmatch(r"[A-Z]\w*", parts[-1]):
        parts = parts[:-1]
    kept: list[str] = []
    for part in parts:
        # torch writes a member of a Sequential with its parent's name in front.
        if kept and part.startswith(f"{kept[-1]}."):
            kept[-1] = part
        else:
            kept.append(part)
    return _cleaned(".".join(kept))


def _cleaned(name: str) -> str | None:
    parts = [re.sub(r"\W+", "_", part).strip("_") for part in name.split(".")]
    kept = [part for part in parts if part]
    return ".".join(kept)[:_MAX_LENGTH].rstrip(".") or None


class Names:
    """Places modules, parameters and buffers in a tree of plain modules, each under a free name."""

    def __init__(self, root: nn.Module) -> None:
        self._root = root
        self._leaves: set[str] = set()
        self._folders: set[str] = {""}
        self._arguments: set[str] = set()

    def argument(self, wished: str) -> str:
        """A name for an argument of the forward."""
        cleaned = re.sub(r"\W+", "_", wished).strip("_") or "x"
        if cleaned[0].isdigit() or keyword.iskeyword(cleaned) or cleaned == "self":
            cleaned = f"x_{cleaned}"
        name = cleaned if cleaned.isascii() else "x"
        number = 1
        while name in self._arguments:
            number += 1
            name = f"{cleaned}_{number}"
        self._arguments.add(name)
        return name

    def place_module(self, module: nn.Module, wished: str) -> str:
        """Put `module` at `wished`, or at that with a number; returns where it is."""
        parent, name, path = self._parent(wished)
        parent.add_module(name, module)
        return path

    def place_tensor(self, tensor: torch.Tensor, wished: str) -> str:
        """A parameter or a buffer, likewise."""
        parent, name, path = self._parent(wished)
        if isinstance(tensor, nn.Parameter):
            parent.register_parameter(name, tensor)
        else:
            parent.register_buffer(name, tensor)
        return path

    def _parent(self, wished: str) -> tuple[nn.Module, str, str]:
        path = self._free(_cleaned(wished) or "value")
        *folders, name = path.split(".")
        parent, walked = self._root, ""
        for folder in folders:
            walked = f"{walked}.{folder}" if walked else folder
            if walked not in self._folders:
                parent.add_module(folder, nn.Module())
                self._folders.add(walked)
            parent = getattr(parent, folder)
        self._leaves.add(path)
        return parent, name, path

    def _free(self, wished: str) -> str:
        """A path of which no part is taken by something else, nor by Module's own attributes."""
        parts = wished.split(".")
        for i, part in enumerate(parts):
            prefix = ".".join(parts[:i])
            is_last = i == len(parts) - 1
            name, number = part, 1
            while self._is_taken(f"{prefix}.{name}" if prefix else name, is_last):
                number += 1
                name = f"{part}_{number}"
            parts[i] = name
        return ".".join(parts)

    def _is_taken(self, path: str, is_last: bool) -> bool:
        name = path.rpartition(".")[2]
        if path in self._leaves or (is_last and path in self._folders):
            return True
        return path not in self._folders and hasattr(nn.Module(), name)
