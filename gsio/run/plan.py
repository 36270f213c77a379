"""What a run is given: threads and blocks."""

from gsio.config import Config, parse_bytes
from gsio.errors import UsageError
from gsio.frames import layout as staging
from gsio.frames.layout import FrameLayout
from gsio.machine import available_memory, usable_cores


def encoding_threads(config: Config, layout: FrameLayout) -> int:
    """Return how many threads encode; by default one for each core this process may use.

    Fewer of many cores where a GPU encodes: threads that only write take turns at the interpreter, and the more of
    them there are, the longer the solver's thread waits for its own.
    """
    cores = usable_cores()
    return config.output.threads or (min(cores, 4 + cores // 4) if layout.gpu_codec else cores)


def pool_size(config: Config, layout: FrameLayout) -> int:
    """Return the number of blocks: what `output.memory` holds, else enough to keep the encoders and the link busy.

    Raises UsageError if that are less than two: one to be filled while another is written.
    """
    if memory := config.output.memory:
        blocks = parse_bytes("output.memory", memory) // layout.block_nbytes
        if blocks < 2:
            least = -(-2 * layout.block_nbytes // 2**20)
            raise UsageError(f"output.memory: expected at least {least}MiB, two blocks of frames, got {memory}")
    else:
        wanted = -(-encoding_threads(config, layout) // layout.slabs) + 4
        wanted *= max(1, staging.BLOCK_BYTES // layout.block_nbytes)  # small blocks too cover the pauses of a disk
        affordable = available_memory() // 4 // (2 * layout.block_nbytes)
        blocks = max(2, min(wanted, int(affordable)))
    in_the_run = -(-config.run.frames // layout.frames_per_block)
    return min(in_the_run, blocks)
