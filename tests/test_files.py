"""Files appear whole or not at all."""

import errno
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from limbeck.errors import UserError
from limbeck.files import atomic_write, whole_or_nothing


def test_a_failed_write_leaves_the_old_file_and_no_traces(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="stop"), atomic_write(file) as out:
        out.write(b"half of the new")
        raise RuntimeError("stop")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_full_disk_is_a_sentence_that_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    with pytest.raises(UserError, match=r"No space to write .*a\.txt"), whole_or_nothing(file) as partial:
        partial.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", ["torch.save(tensor, partial)", "save_file({'a': tensor}, partial)"])
def test_the_libraries_writers_meet_a_real_limit(tmp_path: Path, write: str) -> None:
    """A real limit on the size of files, met by torch's and safetensors' own writers in a process of its own."""
    code = f"""
import resource, torch
from safetensors.torch import save_file
from pathlib import Path
from limbeck.files import whole_or_nothing
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, {resource.getrlimit(resource.RLIMIT_FSIZE)[1]}))
try:
    with whole_or_nothing(Path({str(tmp_path)!r}) / "x.ckpt") as partial:
        tensor = torch.zeros(1_000_000)
        {write}
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("UserError No space to write"), done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []
