"""Files and folders: what may get a name, and how it gets it.

Nothing that has a name loses it unless the user named it to be replaced. `require_new` looks before a command begins.
`publish` decides when the name is given, for what appeared meanwhile: what is made has a temporary name until it is
whole, and the file system itself refuses to rename it over anything. No link is followed.
"""

import ctypes
import errno
import glob
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gsio.errors import StorageError, TakenError, UsageError

LIBC = ctypes.CDLL(None, use_errno=True)
# By these a file system says that it does not offer something; the last, 524, is the kernel's own ENOTSUPP.
UNSUPPORTED = errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.ENOLCK, 524
FOLDER_LOST = "after a power cut, files that were made last can be missing"
HERE, NOREPLACE, EXCHANGE = -100, 1, 2  # AT_FDCWD and the flags of renameat2

_lacking: set[str] = set()  # calls that a warning has named

OR_OVERWRITE = "choose another name, or replace it with --overwrite"
Replaces = Callable[[Path], bool]  # whether the file or folder at a path may be replaced


def require_new(
    option: str,
    path: Path,
    *,
    endings: Iterable[str] = (),
    apart_from: Iterable[Path] = (),
    replaces: Replaces | None = None,
    instead: str = "choose another name",
) -> None:
    """Raise UsageError, in a line that begins with `option`, unless a file or folder can be made at `path`.

    Parameters
    ----------
    endings
        The name has to have one of these, if there are any.
    apart_from
        What the same command makes or reads: `path` must be neither one of these, nor in one, nor above one.
    replaces
        Says of what is at `path` whether it may be replaced; by default nothing may.
    instead
        What to do where the name is taken.
    """
    if (allowed := tuple(endings)) and not path.name.endswith(allowed):
        raise UsageError(f"{option}: expected a name that ends in {' or '.join(allowed)}, got '{path}'")
    if not os.path.isdir(path.parent):  # noqa: PTH112 - Path.is_dir raises where it may not look
        raise UsageError(f"{option}: the folder '{path.parent}' does not exist; create it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError(f"{option}: the folder '{path.parent}' is not writable; choose another")
    require_apart(option, path, apart_from)
    if os.path.lexists(path):
        if replaces is None:
            raise UsageError(f"{option}: '{path}' exists; {instead}")
        if not replaces(path):
            raise UsageError(f"{option}: '{path}' is {_kind(path)} that gsio did not write; choose another name")
    try:  # a name may be too long for what is made under a longer one first
        temporary_beside(path).lstat()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UsageError(f"{option}: '{path}' cannot be made: {error.strerror}; choose another name") from None


def require_apart(option: str, path: Path, others: Iterable[Path]) -> None:
    """Raise UsageError if `path` is one of `others`, or in one, or above one."""
    place = Path(os.path.realpath(path.parent), path.name)  # `resolve` fails in a loop of links
    for other in others:
        there = Path(os.path.realpath(other.parent), other.name)
        if place == there or place in there.parents or there in place.parents:
            raise UsageError(f"{option}: expected a place apart from '{other}', got '{path}'; choose another name")


def require_folder(option: str, path: Path, names: Iterable[str]) -> None:
    """Raise UsageError unless new files of these `names` can be made in a folder, which need not be there yet."""
    there = next(folder for folder in (path, *path.absolute().parents) if os.path.lexists(folder))
    if not os.path.isdir(there):  # noqa: PTH112
        raise UsageError(f"{option}: '{there}' is {_kind(there)}; expected a folder, or the name of a new one")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"{option}: the folder '{there}' is not writable; choose another")
    for name in names if there == path else ():
        require_new(option, path / name, instead="choose another folder, or remove that file first")


def publish(option: str, new: Path, path: Path, *, replaces: Replaces | None = None, keep: Path | None = None) -> None:
    """Rename `new`, a file or folder in the same folder as `path`, to `path`.

    An existing `path` is replaced only if `replaces(path)` is true now. The old file gets the name `keep`, or is
    deleted without `keep`. Otherwise TakenError is raised, the old file stays, and the caller has to deal with `new`.
    Where the file system can exchange names, `path` always names a whole file. With `keep` equal to `new` the two are
    exchanged.
    """
    if _rename_to_free(new, path):
        return
    taken = TakenError(f"{option}: '{path}' was taken by something else meanwhile, which stays; choose another name")
    if replaces is None or not replaces(path):
        raise taken
    if not _renameat2(new, path, EXCHANGE):
        old = new
        if not replaces(old):  # it came between the look and the exchange
            _renameat2(new, path, EXCHANGE)
            raise taken
    elif new.is_dir() or keep is not None:
        old = keep if keep not in (None, new) else temporary_beside(path)
        publish(option, path, old, replaces=replaces)
        try:
            publish(option, new, path)
        except BaseException:
            _rename_to_free(old, path)
            raise
    else:
        new.replace(path)
        return
    if keep is None:
        remove(old)
    elif old != keep:
        publish(option, old, keep, replaces=replaces)


@contextmanager
def new_file(option: str, path: Path, *, replaces: Replaces | None = None) -> Iterator[Path]:
    """Give the temporary name under which to write a file, with the ending of `path`, which becomes its name.

    Raises TakenError if something has that name by then that `replaces` does not allow to replace, and what is there
    stays.
    """
    temporary = temporary_beside(path, path.suffix)
    try:
        yield temporary
        publish(option, temporary, path, replaces=replaces)
    finally:
        temporary.unlink(missing_ok=True)


def set_aside(path: Path) -> Path:
    """Give what is at `path` another name beside it, which is returned."""
    aside = path.with_name(f"{path.name}.{os.urandom(4).hex()}")
    publish("", path, aside)
    return aside


def is_file(path: Path) -> bool:
    """Return whether `path` is a file, or a link that leads to no folder; a link itself is what would be replaced."""
    return (path.is_symlink() or path.is_file()) and not path.is_dir()


def temporary_beside(path: Path, ending: str = ".tmp") -> Path:
    """Return a new name in the folder of `path`, for what is renamed to it once it is whole."""
    return path.with_name(f".{path.name}-{os.urandom(8).hex()}{ending}")


def remove_temporaries(path: Path) -> None:
    """Delete what a killed process left of `path` under temporary names, and under temporary names of those."""
    for dots in (".", ".."):
        for left in path.parent.glob(f"{dots}{glob.escape(path.name)}-{'[0-9a-f]' * 16}.*"):
            remove(left)


def write(fd: int, data: Any) -> None:
    """Write all of a bytes-like object."""
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(fd, rest) :]


def require_same(path: Path, known: os.stat_result) -> None:
    """Raise StorageError unless the file or folder at `path`, through links, is the one that is `known`."""
    try:
        same = os.path.samestat(path.stat(), known)
    except OSError:
        same = False
    if not same:
        raise changed(path, "deleted, renamed or replaced")


def changed(path: Path, how: str) -> StorageError:
    """Return the error of an output that somebody else changed, in a way that `how` says, under the run."""
    return StorageError(
        f"'{path}' was {how} by another program while gsio was writing it; put back what was there and resume, or run "
        "again"
    )


def sync_folder(path: Path) -> None:
    """Wait until the disk has the names in a folder; some network file systems cannot, or let nobody open one."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder can be written to and not be read
        lacks("fsync of a folder", FOLDER_LOST)
        return
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (*UNSUPPORTED, errno.EBADF, errno.EACCES, errno.EPERM):
            raise
        lacks("fsync of a folder", FOLDER_LOST)
    finally:
        os.close(fd)


def lacks(call: str, what: str) -> None:
    """Warn, once in a process, that the file system does not offer a call, and what can happen without it."""
    if call not in _lacking:
        from gsio.log import log

        _lacking.add(call)
        log.warning(f"this file system offers no {call}: {what}")


def _rename_to_free(new: Path, path: Path) -> bool:
    """Rename `new` to `path` and return True, or return False if something is there.

    Some file systems, as NFS, cannot refuse to replace. There the name is claimed first, by an empty file or folder:
    to make one fails where something is, and to rename a folder replaces none but an empty one.
    """
    code = _renameat2(new, path, NOREPLACE)
    if code in (0, errno.EEXIST):
        return code == 0
    is_folder = new.is_dir() and not new.is_symlink()
    try:
        path.mkdir() if is_folder else path.touch(exist_ok=False)
    except FileExistsError:
        return False
    try:
        new.rename(path)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR):  # taken in between
            return False
        with suppress(OSError):
            path.rmdir() if is_folder else path.unlink()
        raise
    return True


def _renameat2(old: Path, new: Path, flag: int) -> int:
    """Rename with a flag, and return 0, or the number of the error."""
    if not hasattr(LIBC, "renameat2"):
        return errno.ENOSYS
    if LIBC.renameat2(HERE, os.fsencode(old), HERE, os.fsencode(new), flag):
        return ctypes.get_errno()
    return 0


def remove(path: Path) -> None:
    """Delete a file, a link, or a folder with all that it holds."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _kind(path: Path) -> str:
    if path.is_symlink():
        return "a link"
    return "a folder" if path.is_dir() else "a file"
