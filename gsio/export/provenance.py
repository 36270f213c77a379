"""The origin of an export: the attributes of its run, with the export in the history."""

import os
from typing import Any

from msgspec.structs import replace

from gsio.config import Config
from gsio.frames.metadata import DAMAGED, OF_ARRAYS
from gsio.inputs import portable
from gsio.reader.selection import Selection, slice_of
from gsio.writer.provenance import history_line


def attributes_of(selection: Selection) -> dict[str, Any]:
    """Return the provenance of the run, with this export in its history, and the selection."""
    known = selection.stack.attributes
    kept = portable({name: known[name] for name in known if name not in ("status", "ended", DAMAGED, *OF_ARRAYS)})
    kept["output_id"] = os.urandom(16).hex()
    kept["history"] = f"{kept['history']}\n{history_line()}"
    if selection.stack.is_of_run:
        kept["config"] = _config_of(selection).to_toml()
    else:
        kept["content"] = selection.content.to_toml()
    frames, rows, cols = selection.frames, selection.rows, selection.cols
    if not selection.is_whole_frame or len(frames) != selection.stack.frames:
        places = {"frames": frames, "rows": rows, "columns": cols}
        if len(selection.members) != selection.stack.content.volume[0].size:
            places["members"] = selection.members
        chosen = ", ".join(f"{name} {place.start}:{place.stop}:{place.step}" for name, place in places.items())
        kept["selection"] = f"{kept['selection']}; then {chosen}" if "selection" in kept else chosen
    return kept


def _config_of(selection: Selection) -> Config:
    """Return the configuration of a run that saves only the fields and members of a selection, and in its way.

    The grid is that of the whole run, which computed the frames.
    """
    config, content = selection.stack.config, selection.content

    def of_members(value: Any) -> Any:
        kept = value[slice_of(selection.members)] if isinstance(value, tuple) else (value,)
        return kept if len(kept) > 1 else kept[0]

    model = replace(config.model, feed=of_members(config.model.feed), kill=of_members(config.model.kill))
    initial = replace(config.initial, seed=of_members(config.initial.seed))
    output = replace(
        config.output,
        fields=",".join(content.fields),
        compression=content.compression,
        level=content.level,
        store=config.output.store if content.store == config.stored else content.store,
        keep_bits=content.keep_bits,
        shard_frames=content.shard_frames,
        pyramid=content.pyramid,
    )
    return replace(config, model=model, initial=initial, output=output)
