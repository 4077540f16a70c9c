"""Names are understood or refused before any heavy library is loaded."""

import subprocess
import sys
from pathlib import Path

import pytest

from limbeck.data.names import check_data_name
from limbeck.errors import MissingExtraError, UserError


def test_kinds(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"x")
    (tmp_path / "images" / "cat").mkdir(parents=True)
    (tmp_path / "tables" / "data").mkdir(parents=True)
    (tmp_path / "tables" / "data" / "train-0.parquet").write_bytes(b"x")
    assert check_data_name("digits") == "digits"
    assert check_data_name(str(tmp_path / "a.npz")) == "npz"
    assert check_data_name(str(tmp_path / "images")) == "folder"
    assert check_data_name(str(tmp_path / "tables")) == "parquet"
    assert check_data_name(str(tmp_path / "tables" / "data" / "train-0.parquet")) == "parquet"
    assert check_data_name("hf:owner/name:config") == "hub"


def test_missing_data_is_both_a_users_error_and_a_missing_file() -> None:
    for kind in (UserError, FileNotFoundError):
        with pytest.raises(kind, match=r"'no/such/folder' does not exist.*digits"):
            check_data_name("no/such/folder")


def test_other_files_empty_files_and_bad_names(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("a,b")
    with pytest.raises(UserError, match=r"table\.csv' is a file, but neither"):
        check_data_name(str(tmp_path / "table.csv"))
    (tmp_path / "void.npz").touch()
    with pytest.raises(UserError, match=r"void\.npz is empty \(0 bytes\)"):
        check_data_name(str(tmp_path / "void.npz"))
    with pytest.raises(UserError, match="is no name on the Hugging Face hub"):
        check_data_name("hf:a/b/c")
    with pytest.raises(UserError, match="empty"):
        check_data_name("")


def test_an_absent_extra_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'limbeck\[data\]'"):
        check_data_name("hf:owner/name")


def test_names_and_options_load_nothing_heavy() -> None:
    code = (
        "import sys, limbeck.data.names, limbeck.data.options; limbeck.data.names.check_data_name('digits');"
        "print([m for m in ('torch', 'numpy', 'PIL', 'sklearn', 'datasets') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
