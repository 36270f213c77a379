"""Help for tests of gsio, and of programs that use it."""

from contextlib import ExitStack

from gsio.frames.sizes import DEFAULT, Sizes


def small_blocks(block_bytes: int = 4 * 2 * 3072, chunk_bytes: int = 2 * 3072, **sizes: int) -> ExitStack:
    """Make the blocks of this context's runs small, so that a short run has many.

    The sizes, in bytes, are those of `gsio.frames.sizes.Sizes`. They last until the end of a `with` statement, or to
    the end of the process where the call is a statement of its own.
    """
    until = ExitStack()
    until.callback(DEFAULT.reset, DEFAULT.set(Sizes(block_bytes=block_bytes, chunk_bytes=chunk_bytes, **sizes)))
    return until
