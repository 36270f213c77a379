"""The formats, codecs and cuts of outputs that tests of readers make on the small grid of tests/conftest.py."""

PLANE = 12 * 17 * 4  # bytes of a field
OUTPUTS = [
    *(("run.h5", compression) for compression in ("deflate", "lz4", "zstd", "none")),
    *(("run.zarr", compression) for compression in ("lz4", "zstd", "none")),
]
CUTS = {  # of chunks, blocks and slabs, in bytes of a field
    "a frame a chunk": (PLANE, 2 * PLANE, PLANE, PLANE),
    "frames that share chunks": (3 * PLANE, 12 * PLANE, PLANE, PLANE),
    "slabs": (PLANE, PLANE, PLANE - 1, PLANE * 5 // 12),  # of five rows: the last is shorter
}
