"""The chunk files of a Zarr output: any process that computes lines of its frames encodes and stores these."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gsio import codec
from gsio.codec import CODECS
from gsio.files import require_same
from gsio.frames.block import Block, EncodedBlock, FilledBlock
from gsio.frames.content import Content
from gsio.trace import Trace
from gsio.writer.ome import level_path, levels_of
from gsio.writer.zarr.layout import chunk_key, halved, shard_pieces
from gsio.writer.zarr.store import Folder


class ChunkWriter:
    """Encodes blocks into the chunk files of an output that exists; the metadata belong to another writer.

    A rank whose blocks begin in the slab `first_slab` of the frames has such a writer alone.

    Attributes
    ----------
    store
        The folder.
    nbytes
        Bytes of the chunks that were committed here.
    """

    def __init__(self, path: Path, content: Content, trace: Trace, first_slab: int = 0) -> None:
        self.store, self._folder = Folder(path), path.stat()
        self.nbytes = 0
        self._levels, self._trace, self._first_slab = levels_of(content), trace, first_slab

    def check(self) -> None:
        """Raise StorageError if another program has replaced the folder."""
        require_same(self.store.path, self._folder)

    def encode(self, block: FilledBlock, task: int) -> None:
        """Compress one task of `block`, take checksums, and store its chunks; no reader looks at them yet."""
        with self._trace.span("encode", block.first):
            codec.encode(block, task)
        self.check()  # nothing is written into the folder of another program
        with self._trace.span("write", block.first):
            layout = block.layout
            numbers, slab = block.chunk_numbers(task)
            together = max(1, layout.chunks.frames_per_shard // layout.chunks.frames_per_chunk)
            chunks = [block.chunks[number, slab] for number in numbers]
            first = (block.first // layout.chunks.frames_per_chunk + numbers.start) // together
            for number in range(-(-len(chunks) // together)):
                of_fields = zip(*chunks[number * together : (number + 1) * together], strict=True)
                for name, encoded in zip(layout.frame.fields, of_fields, strict=True):
                    parts = shard_pieces(encoded, together) if layout.chunks.frames_per_shard else encoded
                    self.store.put_new(chunk_key(name, first + number, self._first_slab + slab, layout), parts)
        if self._levels:
            with self._trace.span("encode", block.first):
                self._encode_levels(block, task)
        self.store.begin_to_write()

    def _encode_levels(self, block: Block, task: int) -> None:
        """Compress and store the smaller levels of one task of `block`."""
        layout = block.layout
        itemsize, compress = layout.frame.dtype.itemsize, CODECS[layout.chunks.codec].encode
        numbers, slab = block.chunk_numbers(task)
        for number in numbers:
            for field, name in enumerate(layout.frame.fields):
                values = (
                    codec.chunk_bytes(block, number, slab, field)
                    .view(layout.frame.dtype)
                    .reshape(layout.chunks.chunk_shape)
                )
                for level in self._levels:
                    values = halved(values)
                    place = block.first // layout.chunks.frames_per_chunk + number, self._first_slab + slab
                    encoded = compress(values.reshape(-1).view(np.uint8), itemsize, layout.chunks.level)
                    self.store.put_new(chunk_key(level_path(name, level), *place, layout), [encoded])

    def commit(self, blocks: Sequence[EncodedBlock]) -> None:
        """Count the bytes of `blocks`, whose chunks are stored."""
        self.nbytes += sum(block.encoded_nbytes for block in blocks)

    def sync(self) -> None:
        """Wait until the disk has the chunks."""
        self.store.sync()

    def close(self, status: str) -> None:
        """Close the files; the writer of the metadata asks for `sync` before."""
        self.store.close()
