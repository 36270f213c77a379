"""Ways to store frames by other libraries, and the least that any way costs.

All get the same frames and the same parameters of Blosc, so that storage alone differs.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from gsio.codec.blosc import Blosc
from gsio.machine import usable_cores
from gsio.writer.zarr.store import Folder


class Peer(Protocol):
    """A way to store float32 frames [frame, row, col]."""

    def write(self, first: int, frames: NDArray[np.float32]) -> None:
        """Store the frames from number `first` on; several threads may call this at once."""

    def flush(self) -> None:
        """Hand everything to the operating system."""

    def sync(self) -> None:
        """Wait until the disk has everything, and close."""


class H5py:
    """One chunked dataset with a frame in each chunk. HDF5 runs one call at a time, so one thread is enough."""

    def __init__(self, path: Path, shape: Sequence[int], how: Blosc) -> None:
        import h5py

        self.path = path
        self.file = h5py.File(path, "w", rdcc_nbytes=0)  # each chunk is written once and whole, and needs no cache
        self.frames = self.file.create_dataset("v", shape, np.float32, chunks=(1, *shape[1:]))

    def write(self, first: int, frames: NDArray[np.float32]) -> None:
        """Store frames by a selection."""
        self.frames[first : first + len(frames)] = frames

    def flush(self) -> None:
        """Flush HDF5's buffers."""
        self.file.flush()

    def sync(self) -> None:
        """Close, then fsync the file."""
        self.file.close()
        with self.path.open("rb") as file:
            os.fsync(file)


class ZarrPython:
    """Batches of frames that zarr-python's threads encode."""

    def __init__(
        self, path: Path, shape: Sequence[int], how: Blosc, pipeline: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        import zarr
        from zarr.codecs import BloscCodec

        cores = usable_cores()
        zarr.config.set({"async.concurrency": 2 * cores, "threading.max_workers": cores, **pipeline})
        self.path = path
        self.frames = zarr.create_array(
            path / "v",
            shape=tuple(shape),
            dtype=np.float32,
            chunks=(1, *shape[1:]),
            compressors=BloscCodec(cname=how.cname, clevel=how.clevel, shuffle="shuffle", blocksize=how.blocksize),
            config={"write_empty_chunks": True},  # else every chunk is compared with the fill value
        )

    def write(self, first: int, frames: NDArray[np.float32]) -> None:
        """Store frames by a selection."""
        self.frames[first : first + len(frames)] = frames

    def flush(self) -> None:
        """Do nothing: chunks are files, written when `write` returns."""

    def sync(self) -> None:
        """Sync the file system."""
        Folder(self.path).sync()  # one call, as gsio's own Zarr writer does


def zarr_fused(path: Path, shape: Sequence[int], how: Blosc) -> ZarrPython:
    """Return the peer with the pipeline that zarr-python 3.3 has for local files, one thread a chunk."""
    import zarr
    import zarr.core.codec_pipeline

    if not hasattr(zarr.core.codec_pipeline, "FusedCodecPipeline"):
        raise ImportError(f"zarr-python {zarr.__version__} has no FusedCodecPipeline")
    pipeline = {
        "codec_pipeline.path": "zarr.core.codec_pipeline.FusedCodecPipeline",
        "codec_pipeline.max_workers": usable_cores(),
    }
    return ZarrPython(path, shape, how, pipeline)


class TensorStore:
    """Asynchronous writes to a zarr3 array, with one block in flight for each core, and one fsync at the end."""

    def __init__(self, path: Path, shape: Sequence[int], how: Blosc) -> None:
        import tensorstore

        self.path = path
        blosc = {**how._asdict(), "shuffle": "shuffle", "typesize": 4}
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": f"{path}/v/"},
            "metadata": {
                "shape": list(shape),
                "data_type": "float32",
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, *shape[1:]]}},
                "codecs": [
                    {"name": "bytes", "configuration": {"endian": "little"}},
                    {"name": "blosc", "configuration": blosc},
                ],
            },
            "context": {
                "data_copy_concurrency": {"limit": usable_cores()},
                "file_io_concurrency": {"limit": usable_cores()},
                "file_io_sync": False,
            },
        }
        self.frames = tensorstore.open(spec, create=True).result()

    def write(self, first: int, frames: NDArray[np.float32]) -> None:
        """Write and wait; `frames` stay unchanged until then, so TensorStore need not copy them."""
        array = self.frames[first : first + len(frames)]
        array.write(frames, can_reference_source_data_indefinitely=True).result()

    def flush(self) -> None:
        """Do nothing: chunks are files, written when `write` returns."""

    def sync(self) -> None:
        """Sync the file system."""
        Folder(self.path).sync()  # one call, as gsio's own Zarr writer does


class AcquireZarr:
    """acquire-zarr with one frame in each chunk; its own threads compress and write."""

    def __init__(self, path: Path, shape: Sequence[int], how: Blosc) -> None:
        import acquire_zarr as az

        kinds = az.DimensionType.TIME, az.DimensionType.SPACE, az.DimensionType.SPACE
        dimensions = [
            az.Dimension(name=name, kind=kind, array_size_px=size, chunk_size_px=chunk, shard_size_chunks=1)
            for name, kind, size, chunk in zip("tyx", kinds, (0, *shape[1:]), (1, *shape[1:]), strict=True)
        ]
        lz4 = az.CompressionSettings(
            compressor=az.Compressor.BLOSC1, codec=az.CompressionCodec.BLOSC_LZ4, level=how.clevel, shuffle=1
        )
        array = az.ArraySettings(output_key="v", dimensions=dimensions, data_type=az.DataType.FLOAT32, compression=lz4)
        self.path = path
        settings = az.StreamSettings(arrays=[array], store_path=str(path), version=az.ZarrVersion.V3)
        self.stream: Any = az.ZarrStream(settings)

    def write(self, first: int, frames: NDArray[np.float32]) -> None:
        """Append frames."""
        self.stream.append(np.ascontiguousarray(frames))

    def flush(self) -> None:
        """Close the stream, which waits for its threads."""
        self.stream.close()

    def sync(self) -> None:
        """Sync the file system."""
        Folder(self.path).sync()


class RawPwrite:
    """Raw frames that threads `pwrite` into one preallocated file, without format and codec."""

    def __init__(self, path: Path, shape: Sequence[int], how: Blosc) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self.frame_nbytes = 4 * shape[1] * shape[2]
        os.posix_fallocate(self.fd, 0, shape[0] * self.frame_nbytes)

    def write(self, first: int, frames: NDArray[np.float32]) -> None:
        """Write frames to their place."""
        rest, place = frames.reshape(-1).view(np.uint8).data, first * self.frame_nbytes
        while rest:
            written = os.pwrite(self.fd, rest, place)
            rest, place = rest[written:], place + written

    def flush(self) -> None:
        """Do nothing: the operating system has everything."""

    def sync(self) -> None:
        """Sync and close the file."""
        os.fsync(self.fd)
        os.close(self.fd)


class Contender(NamedTuple):
    """A peer, the threads that call its `write`, and the frames of a call; 0: as many as gsio stages together."""

    make: Callable[[Path, Sequence[int], Blosc], Peer]
    threads: int
    batch: int = 0


PEERS = {
    "h5py": Contender(H5py, 1),
    # Two batches at once keep the threads of zarr-python busy.
    "zarr-python": Contender(ZarrPython, 2, usable_cores()),
    "zarr-python fused": Contender(zarr_fused, 2, usable_cores()),
    "TensorStore": Contender(TensorStore, usable_cores()),
    "acquire-zarr": Contender(AcquireZarr, 1),  # which takes frames in their order
    "pwrite": Contender(RawPwrite, usable_cores()),
}
