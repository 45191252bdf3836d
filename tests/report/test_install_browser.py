"""The script that finds or installs a browser, on machines made of stand-ins."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "install_browser.sh"
SHELL = shutil.which("sh") or "sh"


def program(folder: Path, name: str, body: str = "") -> None:
    file = folder / name
    file.write_text(f"#!{SHELL}\n{body}\n")
    file.chmod(0o755)


def run(path: Path) -> subprocess.CompletedProcess[str]:
    command = [SHELL, str(SCRIPT), "python"]
    return subprocess.run(command, env={"PATH": str(path)}, capture_output=True, text=True)


def test_a_browser_that_is_there_is_left_alone(tmp_path: Path) -> None:
    program(tmp_path, "google-chrome")
    program(tmp_path, "python", "exit 9")
    done = run(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_playwrights_own_needs_no_root_and_is_installed_once(tmp_path: Path) -> None:
    there, log = tmp_path / "there", tmp_path / "log"
    program(
        tmp_path,
        "python",
        f'echo "$@" >> {log}\ncase "$1" in -m) : > {there};; *) [ -e {there} ];; esac',
    )
    done = run(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Outside this folder" in done.stdout
    assert log.read_text().splitlines()[1] == "-m playwright install chromium"
    again = run(tmp_path)
    assert (again.returncode, again.stdout) == (0, "")


@pytest.mark.parametrize("uid", [0, 1000])
def test_the_systems_is_installed_by_root_only(tmp_path: Path, uid: int) -> None:
    browser, log = tmp_path / "chromium", tmp_path / "log"
    program(tmp_path, "python", "exit 1")
    program(tmp_path, "id", f"echo {uid}")
    make_browser = f"echo > {browser}; {shutil.which('chmod')} +x {browser}"
    program(tmp_path, "apt-get", f'echo "$@" >> {log}\ncase $1 in install) {make_browser};; esac')
    done = run(tmp_path)
    assert done.returncode == 0
    assert log.exists() is (uid == 0)
    # Tests go on without one, and a line says what is not tested.
    assert ("not tested" in done.stderr) is (uid != 0)
