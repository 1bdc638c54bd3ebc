from pathlib import Path

import pytest

from sparseflow.data import debian


def test_unpack_fills_lists_of_its_own_where_the_machine_has_none(fake_apt: Path, tmp_path: Path) -> None:
    (fake_apt / "note").write_text("delivered")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    root = debian.unpack(["some-package"], scratch)
    assert (root / "note").read_text() == "delivered"
    assert (scratch / "state/lists/Packages").exists()
    assert (scratch / "downloads/some-package.deb").exists()


def test_failures_end_in_the_last_words_of_the_program(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="sh: second"):
        debian.run(["sh", "-c", "echo first >&2; echo second >&2; exit 3"], tmp_path)


def test_a_silent_failure_is_named_by_its_status(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="sh: exit status 3"):
        debian.run(["sh", "-c", "exit 3"], tmp_path)


def test_a_program_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "_TIMEOUT", 0.05)
    with pytest.raises(OSError, match="no answer"):
        debian.run(["sleep", "5"], tmp_path)
