"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from sparse_but_wrong import atomic

Filling = Callable[[Path], AbstractContextManager[Path]]


def fill_and_fail(filling: Filling, folder: Path) -> None:
    with filling(folder) as unfinished:
        (unfinished / "half").write_text("half")
        raise KeyboardInterrupt


def names(folder: Path) -> list[str]:
    return sorted(place.relative_to(folder).as_posix() for place in folder.rglob("*"))


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
    assert names(file.parent) == ["file.json"]


def test_a_folder_takes_its_name_only_when_it_is_full(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with pytest.raises(KeyboardInterrupt):
        fill_and_fail(atomic.new_folder, folder)
    assert names(tmp_path) == []
    with atomic.new_folder(folder) as unfinished:
        (unfinished / "a").write_text("whole")
        assert not folder.exists()
    assert (folder / "a").read_text() == "whole"
    with pytest.raises(FileExistsError, match="not empty"):
        fill_and_fail(atomic.new_folder, folder)


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
            fill_and_fail(atomic.new_folder, tmp_path / "saes" / "x")
    (tmp_path / "saes" / "mine").write_text("whole")
    assert len(names(tmp_path)) == 6
    atomic.remove_leftovers(tmp_path)
    assert names(tmp_path) == ["logs", "saes", "saes/mine"]


def test_content_is_on_the_disk_before_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut after the rename must not leave a name without its content."""
    happened: list[str] = []

    def noted(word: str, real: Callable[..., object]) -> Callable[..., object]:
        return lambda *arguments: (happened.append(word), real(*arguments))[1]

    monkeypatch.setattr(os, "fsync", noted("sync", os.fsync))
    monkeypatch.setattr(Path, "rename", noted("rename", Path.rename))
    monkeypatch.setattr(Path, "replace", noted("rename", Path.replace))
    atomic.write_bytes(tmp_path / "file", b"content")
    assert happened == ["sync", "rename", "sync"]
    for filling, synced in ((atomic.new_folder, 2), (atomic.claimed, 1)):
        happened.clear()
        with filling(tmp_path / filling.__name__) as unfinished:
            (unfinished / "a").write_text("whole")
        assert happened == ["sync"] * synced + ["rename", "sync"]


def test_one_process_holds_a_folder_at_a_time(tmp_path: Path) -> None:
    with (
        atomic.locked(tmp_path),
        pytest.raises(ValueError, match="another process"),
        atomic.locked(tmp_path),
    ):
        pass
    with atomic.locked(tmp_path):
        pass


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left"), "is full.*first 3"),
        (OSError(errno.EDQUOT, "Quota exceeded"), "is full.*first 3"),
        (ValueError(f"I/O error (os error {errno.ENOSPC})"), "is full.*first 3"),
        (PermissionError(errno.EACCES, "not this"), "not this"),
    ],
)
def test_a_full_disk_is_told_with_what_to_do(
    tmp_path: Path, error: Exception, message: str
) -> None:
    named = atomic.full_disk_named(tmp_path, "The first 3 are kept.")
    with pytest.raises(OSError, match=message), named:
        raise error


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
    assert names(folder) == ["plots", "plots/a.png", "report.html"]
    with pytest.raises(FileExistsError, match="not empty"), atomic.claimed(folder):
        pass


def test_a_claim_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with pytest.raises(KeyboardInterrupt):
        fill_and_fail(atomic.claimed, folder)
    assert names(tmp_path) == []
    folder.mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        fill_and_fail(atomic.claimed, folder)
    assert names(tmp_path) == ["a", "a/b"]


def test_a_claim_takes_over_from_a_killed_process(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / ".unfinished-1").mkdir(parents=True)
    (folder / ".unfinished-1" / "half").touch()
    (folder / ".lock").touch()
    with atomic.claimed(folder) as place:
        (place / "report.html").write_text("whole")
    assert names(folder) == ["report.html"]


def test_a_place_that_cannot_be_a_folder_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "deep")
    (tmp_path / "inside").mkdir()
    (tmp_path / "good").symlink_to(tmp_path / "inside")
    for path, word in (("file", "a file"), ("file/x", "a file"), ("link", "leads nowhere")):
        with pytest.raises(NotADirectoryError, match=word):
            fill_and_fail(atomic.claimed, tmp_path / path)
    with atomic.claimed(tmp_path / "good") as place:  # a link to a folder is as good as the folder
        (place / "report.html").touch()
    assert (tmp_path / "inside" / "report.html").exists()
    new = tmp_path / "new" / "folder"
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        with pytest.raises(PermissionError, match="cannot be written to"):
            fill_and_fail(atomic.claimed, new)

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "touch", read_only)
    with pytest.raises(OSError, match=r"cannot be written to.*Read-only"):
        fill_and_fail(atomic.claimed, new)
    assert not new.parent.exists()
