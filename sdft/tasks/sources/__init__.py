"""Public data sets by name: where their files are, and how rows are made of them."""

from sdft.tasks.sources.description import (
    Description,
    description_names,
    read_description,
    shipped_rows,
)
from sdft.tasks.sources.download import MIRROR_VARIABLE, FetchError
from sdft.tasks.sources.fetching import CONVERTERS, fetched

__all__ = [
    "CONVERTERS",
    "MIRROR_VARIABLE",
    "Description",
    "FetchError",
    "description_names",
    "fetched",
    "read_description",
    "shipped_rows",
]
