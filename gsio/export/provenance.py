"""The origin of an export: the attributes of its run, with the export in the history."""

import secrets
from typing import Any

from gsio.frames.metadata import DAMAGED, OF_ARRAYS
from gsio.inputs import portable
from gsio.reader.selection import Selection
from gsio.writer.provenance import history_line


def attributes_of(selection: Selection) -> dict[str, Any]:
    """Return the provenance of the run, with this export in its history, and the selection."""
    known = selection.stack.attributes
    kept = portable({name: known[name] for name in known if name not in ("status", "ended", DAMAGED, *OF_ARRAYS)})
    kept["output_id"] = secrets.token_hex(16)
    kept |= {"history": f"{kept['history']}\n{history_line()}", "config": selection.config.to_toml()}
    frames, rows, cols = selection.frames, selection.rows, selection.cols
    if not selection.is_whole_frame or len(frames) != selection.stack.frames:
        places = {"frames": frames, "rows": rows, "columns": cols}
        if len(selection.members) != selection.stack.config.model.members:
            places["members"] = selection.members
        chosen = ", ".join(f"{name} {place.start}:{place.stop}:{place.step}" for name, place in places.items())
        kept["selection"] = f"{kept['selection']}; then {chosen}" if "selection" in kept else chosen
    return kept
