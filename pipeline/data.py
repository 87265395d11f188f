"""Training and validation data, from wherever the user has it.

What enters: a `DataRequest`. What leaves: a `Data` with loaders that repeat for the same seed.
Refused: sources that are neither a folder, nor a .npz file, nor a factory of loaders, and whatever
these refuse.
"""

from pathlib import Path

from pipeline.arrays import load_arrays
from pipeline.config_sections import NO_SUCH_DATA
from pipeline.data_types import Batch, Data, DataRequest, Loader
from pipeline.errors import UsageError
from pipeline.factory_data import load_factory
from pipeline.image_folder import load_image_folder
from pipeline.shards import load_shards, names_shards

__all__ = ["Batch", "Data", "DataRequest", "Loader", "load_data"]


def load_data(request: DataRequest) -> Data:
    """The data that `request.source` names.

    Raises UsageError, in one line, for everything that is wrong with it.
    """
    path = Path(request.source)
    if names_shards(request.source):
        return load_shards(request)
    if path.is_dir():
        return load_image_folder(request)
    if path.suffix == ".npz" or path.is_file():
        return load_arrays(request)
    if ":" in request.source:
        return load_factory(request)
    raise UsageError(NO_SUCH_DATA.format(request.source))
