"""The normalisation that the main job writes into an ONNX file's metadata, read back.

Enters: the metadata of a file. Leaves: mean and standard deviation per channel, for pixels of 0..1.
"""

import json
from collections.abc import Mapping

from pipeline.errors import UsageError

METADATA_KEY = "gbn_compress"
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


def written_normalisation(metadata: Mapping[str, str], file: object) -> Normalisation | None:
    """(mean, std), or None where the file has none. Raises UsageError for what cannot be read."""
    text = metadata.get(METADATA_KEY)
    if text is None:
        return None
    try:
        written = json.loads(text).get("preprocessing", {})
        mean, std = written.get("mean"), written.get("std")
        if mean is None or std is None:
            return None
        return tuple(float(v) for v in mean), tuple(float(v) for v in std)
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            f"'{file}': its metadata '{METADATA_KEY}' cannot be read: give --mean and --std"
        ) from error
