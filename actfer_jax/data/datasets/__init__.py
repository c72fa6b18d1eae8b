"""Data sets: one file or folder each, behind one Protocol."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # Rendering faces, in a folder here, does not import what reads data.
    from actfer_jax.data.sources import DataConfig, Source


class DataSet(Protocol):
    """The interface of a data set's module.

    A data set of files may also have `inventory(config) -> data.inventory.Inventory`: the records of all splits without
    their pictures, and what is wrong with the files. `data.check` reads it, and `data.inventory.Pictures` makes a
    source of it. One whose samples differ in their labels may have `label_sets(config)`, each choice that a sample may
    have; `labels` are then all of them together.

    Attributes:
      Config: a dataclass that extends `data.sources.DataConfig`: the section `data` of a config with this data set.
    """

    Config: "type[DataConfig]"

    def labels(self, config: "DataConfig") -> tuple[str, ...]:
        """The emotions that the data set distinguishes, in the order of its classes."""

    def open_source(self, config: "DataConfig") -> "Source":
        """The first `config.size` samples of `config.split`, or all. An index always gives the same sample.

        Raises:
          DataError, OSError: the split or one of its files is missing, or it has fewer samples; the message says which.
        """
