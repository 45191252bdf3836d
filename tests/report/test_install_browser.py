"""The script that the other tests send people to, on machines made of stand-ins."""

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
    command = [SHELL, str(SCRIPT)]
    return subprocess.run(command, env={"PATH": str(path)}, capture_output=True, text=True)


def test_a_browser_that_is_there_is_left_alone(tmp_path: Path) -> None:
    program(tmp_path, "google-chrome")
    program(tmp_path, "apt-get", "exit 9")
    done = run(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("as_root", [True, False])
def test_it_is_installed_where_nobody_need_be_asked(tmp_path: Path, as_root: bool) -> None:
    browser, log = tmp_path / "chromium", tmp_path / "log"
    program(tmp_path, "id", f"echo {0 if as_root else 1000}")
    if not as_root:
        program(tmp_path, "sudo", f'echo sudo "$@" >> {log}; shift; "$@"')
        program(tmp_path, "true")
    program(tmp_path, "env", 'shift; "$@"')
    make_browser = f"echo '#!{SHELL}' > {browser}; {shutil.which('chmod')} +x {browser}"
    log_and_install = f'echo "$@" >> {log}\ncase $1 in install) {make_browser};; esac'
    program(tmp_path, "apt-get", log_and_install)
    assert run(tmp_path).returncode == 0
    logged = log.read_text()
    assert "update" in logged
    assert "install -y -qq --no-install-recommends chromium" in logged
    assert ("sudo -n" in logged) is not as_root
    again = run(tmp_path)
    assert (again.returncode, again.stdout) == (0, "")


@pytest.mark.parametrize(
    ("programs", "message"),
    [
        ({}, "no apt-get"),
        ({"apt-get": "", "id": "echo 1000"}, "needs root: sudo apt-get install chromium"),
        ({"apt-get": "", "id": "echo 1000", "sudo": "exit 1"}, "needs root"),
        ({"apt-get": "exit 100", "id": "echo 0"}, "apt-get update failed"),
        ({"apt-get": "", "env": "exit 100", "id": "echo 0"}, "Installing chromium failed"),
        ({"apt-get": "", "env": "", "id": "echo 0"}, "is not on PATH"),
    ],
)
def test_where_it_cannot_it_says_what_to_do(
    tmp_path: Path, programs: dict[str, str], message: str
) -> None:
    for name, body in programs.items():
        program(tmp_path, name, body)
    done = run(tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Install Chromium or Google Chrome" in done.stderr
