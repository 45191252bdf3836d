"""The script that finds or installs a browser, on machines made of stand-ins."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "install_browser.sh"
SHELL = shutil.which("sh") or "sh"


def run(path: Path, **programs: str) -> tuple[int, str, str]:
    """Exit status and output, on a machine that has these programs."""
    for name, body in programs.items():
        (path / name).write_text(f"#!{SHELL}\n{body}\n")
        (path / name).chmod(0o755)
    command = [SHELL, str(SCRIPT), "python"]
    done = subprocess.run(command, env={"PATH": str(path)}, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_a_browser_that_is_there_is_left_alone(tmp_path: Path) -> None:
    assert run(tmp_path, **{"google-chrome": "", "python": "exit 9"}) == (0, "", "")


def test_playwrights_own_needs_no_root_and_is_installed_once(tmp_path: Path) -> None:
    there, log = tmp_path / "there", tmp_path / "log"
    python = f'echo "$@" >> {log}\ncase "$1" in -m) : > {there};; *) [ -e {there} ];; esac'
    code, out, err = run(tmp_path, python=python)
    assert (code, err) == (0, "")
    assert "Outside this folder" in out
    assert log.read_text().splitlines()[1] == "-m playwright install chromium"
    assert run(tmp_path)[:2] == (0, "")


@pytest.mark.parametrize("uid", [0, 1000])
def test_the_systems_is_installed_by_root_only(tmp_path: Path, uid: int) -> None:
    browser, log = tmp_path / "chromium", tmp_path / "log"
    make_browser = f"echo > {browser}; {shutil.which('chmod')} +x {browser}"
    apt = f'echo "$@" >> {log}\ncase $1 in install) {make_browser};; esac'
    machine = {"python": "exit 1", "id": f"echo {uid}", "apt-get": apt}
    code, _, err = run(tmp_path, **machine)
    assert code == 0
    assert log.exists() is (uid == 0)
    # Tests go on without one, and a line says what is not tested.
    assert ("not tested" in err) is (uid != 0)
