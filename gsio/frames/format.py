"""The format of a frame: its shape, its fields, and how its values are stored."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class FrameFormat:
    """The format of a frame: a frame has one plane of stored values for each saved field.

    Attributes
    ----------
    shape
        Cells of a plane: [rows, cols], or [members, rows, cols] for a batch.
    fields
        Names of the saved fields.
    computed, dtype
        The dtypes in which values are computed and stored. Unsigned integers that are stored for floats stand for 0 to
        1.
    keep_bits
        The number of bits of the mantissa that are kept; 0: all bits.
    shuffle
        Whether a plane is staged as byte planes (all first bytes, then all second bytes, …). Checksums are taken
        over the bytes in this order.
    """

    shape: tuple[int, ...]
    fields: tuple[str, ...]
    computed: np.dtype[Any]
    dtype: np.dtype[Any]
    keep_bits: int = 0
    shuffle: bool = False

    def __post_init__(self) -> None:
        if not self.shape or min(self.shape) < 1 or not self.fields:
            raise ValueError(f"a frame has cells and fields; got the shape {self.shape} and the fields {self.fields}")
        if self.dtype != self.dtype.newbyteorder("<"):
            raise ValueError(f"values are stored as little-endian; got {self.dtype}")
        if self.keep_bits and self.dtype.kind != "f":
            raise ValueError(f"only floats have a mantissa; got keep_bits={self.keep_bits} with {self.dtype}")

    @classmethod
    def of(
        cls,
        shape: tuple[int, ...],
        fields: str,
        computed: str,
        *,
        store: str = "",
        keep_bits: int = 0,
        shuffle: bool = False,
    ) -> "FrameFormat":
        """Return the format from the words of a configuration: fields as in "u,v", and names of dtypes."""
        dtype = np.dtype(store or computed).newbyteorder("<")
        return cls(shape, tuple(fields.split(",")), np.dtype(computed), dtype, keep_bits, shuffle)

    @property
    def cells(self) -> int:
        """Cells of a plane."""
        return math.prod(self.shape)

    @property
    def plane_nbytes(self) -> int:
        """Bytes of one field of one frame."""
        return self.cells * self.dtype.itemsize

    @property
    def frame_nbytes(self) -> int:
        """Bytes of one frame, all saved fields."""
        return self.plane_nbytes * len(self.fields)

    @property
    def stored_one(self) -> int:
        """The unsigned integer that stands for 1; 0 where values are stored as they are."""
        return int(np.iinfo(self.dtype).max) if self.dtype.kind == "u" and self.computed.kind == "f" else 0

    @property
    def scale(self) -> np.floating[Any]:
        """The value of the stored integer 1, in the computed dtype: readers decode in the dtype of the scale."""
        dtype: type[np.floating[Any]] = self.computed.type
        return dtype(1 / (self.stored_one or 1))

    @property
    def lossy(self) -> bool:
        """Whether stored values differ from computed ones."""
        return self.dtype != self.computed or self.keep_bits > 0
