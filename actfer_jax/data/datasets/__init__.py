"""Data sets, a file or folder each, behind one Protocol."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # who only renders faces, in a folder here, goes without what reads data
    from actfer_jax.data.sources import DataConfig, Source


class DataSet(Protocol):
    """What the module of a data set has.

    Attributes:
      Config: a dataclass that extends `data.sources.DataConfig`: the section `data` of a config that names this one.
    """

    Config: "type[DataConfig]"

    def labels(self, config: "DataConfig") -> tuple[str, ...]:
        """The emotions that the data set tells apart, in the order of its classes."""

    def open_source(self, config: "DataConfig") -> "Source":
        """The samples of `config.split`, the first `config.size` of them or all; any index gives the same each time.

        Raises:
          DataError, OSError: the split, so many samples or a file of it is not there; the message names which.
        """
