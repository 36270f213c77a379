"""No compression: the chunks are stored as they are."""

from gsio.codec.interface import Codec, Hdf5Filter

NONE = Codec(
    name="none",
    family="none",
    encode=lambda chunk, itemsize, level: chunk,
    decode=lambda encoded, itemsize, nbytes: encoded,
    levels=range(10),
    hdf5=Hdf5Filter((), lambda itemsize, nbytes, level: {}),
    zarr=lambda itemsize, level: [],
    raw=True,
)
