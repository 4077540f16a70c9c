"""Writing files so that nothing is ever half-written, and saying so plainly when the disk is full."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from limbeck.errors import UserError

NO_SPACE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
WORDS_FOR_NO_SPACE = ("file write failed", "inline_container", *(f"(os error {number})" for number in NO_SPACE))


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file that appears under its name only when it is complete and on the disk.

    Raises:
        UserError: the disk is full; what stood under the name before is untouched.
    """
    with whole_or_nothing(path) as partial, partial.open("wb") as file:
        yield file


@contextlib.contextmanager
def whole_or_nothing(path: Path) -> Iterator[Path]:
    """A temporary name for something else to write to, moved to `path` on success and removed on failure.

    Raises:
        UserError: the disk is full; what stood under the name before is untouched.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb") as file:
            os.fchmod(file.fileno(), 0o666 & ~_umask())  # some writers keep their files from everybody else
            os.fsync(file.fileno())
        os.replace(partial, path)
    except Exception as error:
        # torch's and safetensors' own writers report a full disk in exceptions and words of their own.
        if _is_full_disk(error):
            partial.unlink(missing_ok=True)
            raise UserError(
                f"No space to write {path} ({shutil.disk_usage(path.parent).free / 1e6:.0f} MB are free on that disk). What was "
                "there before is untouched. Free some space and start the same command again, a run with --resume; or choose "
                "another --out."
            ) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _is_full_disk(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            return True
        if any(words in str(error) for words in WORDS_FOR_NO_SPACE):
            return True
        error = error.__cause__ or error.__context__
    return False
