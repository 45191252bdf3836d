"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sparse_but_wrong import atomic


def test_a_file_is_replaced_whole_or_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "new" / "file.json"
    atomic.write_bytes(file, b"first")
    assert file.read_bytes() == b"first"

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full_disk)
        with pytest.raises(OSError, match="no space left"):
            atomic.write_bytes(file, b"second")
    assert file.read_bytes() == b"first"
    assert [f.name for f in file.parent.iterdir()] == ["file.json"]


def fill_and_fail(folder: Path) -> None:
    with atomic.new_folder(folder) as unfinished:
        (unfinished / "a").write_text("half")
        raise KeyboardInterrupt


def test_a_folder_takes_its_name_only_when_it_is_full(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with pytest.raises(KeyboardInterrupt):
        fill_and_fail(folder)
    assert list(tmp_path.iterdir()) == []
    with atomic.new_folder(folder) as unfinished:
        (unfinished / "a").write_text("whole")
        assert not folder.exists()
    assert (folder / "a").read_text() == "whole"
    with pytest.raises(FileExistsError, match="not empty"):
        fill_and_fail(folder)


def test_what_a_kill_leaves_behind_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise SystemError

    with monkeypatch.context() as patch:  # nothing after the kill runs, no cleaning up either
        patch.setattr(Path, "replace", killed)
        patch.setattr(Path, "unlink", killed)
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(SystemError):
            atomic.write_bytes(tmp_path / "logs" / "x.json", b"half")
        with pytest.raises(SystemError):
            fill_and_fail(tmp_path / "saes" / "x")
    (tmp_path / "saes" / "mine").write_text("whole")
    assert len([f for f in tmp_path.rglob("*") if f.is_file()]) == 3
    atomic.remove_leftovers(tmp_path)
    assert [f.name for f in tmp_path.rglob("*") if f.is_file()] == ["mine"]


def test_content_is_on_the_disk_before_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut after the rename must not leave a name without its content."""
    happened: list[str] = []
    real_sync, real_rename, real_replace = os.fsync, Path.rename, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (happened.append("sync"), real_sync(handle)))

    def renaming(real: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        def rename(self: Path, to: Path) -> Path:
            happened.append("rename")
            return real(self, to)

        return rename

    monkeypatch.setattr(Path, "rename", renaming(real_rename))
    monkeypatch.setattr(Path, "replace", renaming(real_replace))
    atomic.write_bytes(tmp_path / "file", b"content")
    assert happened == ["sync", "rename", "sync"]
    happened.clear()
    with atomic.new_folder(tmp_path / "folder") as unfinished:
        (unfinished / "a").write_text("whole")
    assert happened == ["sync", "sync", "rename", "sync"]


def test_one_process_holds_a_folder_at_a_time(tmp_path: Path) -> None:
    with (
        atomic.locked(tmp_path),
        pytest.raises(ValueError, match="another process"),
        atomic.locked(tmp_path),
    ):
        pass
    with atomic.locked(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_with_what_to_do(tmp_path: Path, number: int) -> None:
    advice = "The first 3 are kept."
    with (
        pytest.raises(OSError, match=rf"{tmp_path.name} is full.*first 3"),
        atomic.full_disk_named(tmp_path, advice),
    ):
        raise OSError(number, "No space left on device")
    with (
        pytest.raises(PermissionError, match="not this"),
        atomic.full_disk_named(tmp_path, advice),
    ):
        raise PermissionError(errno.EACCES, "not this")


def test_a_claimed_folder_holds_its_place_and_then_the_results(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "new"
    with atomic.claimed(folder) as place:
        assert place.parent == folder
        with pytest.raises(ValueError, match="another process"), atomic.claimed(folder):
            pass
        (place / "plots").mkdir()
        (place / "plots" / "a.png").write_bytes(b"a")
        (place / "report.html").write_text("whole")
        assert not (folder / "report.html").exists()
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*")) == [
        "plots",
        "plots/a.png",
        "report.html",
    ]
    with pytest.raises(FileExistsError, match="not empty"), atomic.claimed(folder):
        pass


@pytest.mark.parametrize("existed", [False, True])
def test_a_claim_that_fails_leaves_what_was_there(tmp_path: Path, existed: bool) -> None:
    folder = tmp_path / "a" / "b"
    if existed:
        folder.mkdir(parents=True)

    def claim_and_fail() -> None:
        with atomic.claimed(folder) as place:
            (place / "half").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        claim_and_fail()
    there = [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")]
    assert there == (["a", "a/b"] if existed else [])


def test_a_claim_takes_over_from_a_killed_process(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / ".unfinished-1").mkdir(parents=True)
    (folder / ".unfinished-1" / "half").touch()
    (folder / ".lock").touch()
    with atomic.claimed(folder) as place:
        (place / "report.html").write_text("whole")
    assert [p.name for p in folder.iterdir()] == ["report.html"]


def test_a_place_that_cannot_be_a_folder_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "deep")
    (tmp_path / "inside").mkdir()
    (tmp_path / "good").symlink_to(tmp_path / "inside")
    for path, word in (("file", "a file"), ("file/x", "a file"), ("link", "leads nowhere")):
        with pytest.raises(NotADirectoryError, match=word), atomic.claimed(tmp_path / path):
            pass
    with atomic.claimed(tmp_path / "good") as place:  # a link to a folder is as good as the folder
        (place / "report.html").touch()
    assert (tmp_path / "inside" / "report.html").exists()

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "touch", read_only)
    with (
        pytest.raises(OSError, match=r"cannot be written to.*Read-only"),
        atomic.claimed(tmp_path / "new"),
    ):
        pass
    assert not (tmp_path / "new").exists()
