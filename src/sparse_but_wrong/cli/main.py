"""The command `sbw`: each command lies in a file of its own, imported when it is needed."""

from __future__ import annotations

import importlib
import os
import signal
import sys

import click

from sparse_but_wrong.training.interrupt import Terminated, terminate

_COMMANDS = {
    "list": "run.list_experiments",
    "show": "run.show",
    "run": "run.run",
    "paper": "run.paper",
    "report": "run.report",
    "find-l0": "find_l0.find",
    "diagnose": "diagnose.diagnose",
    "export": "push.export",
    "push": "push.push",
    "cache-activations": "cache_activations.cache",
}
"""Modules here and functions in them, by the names of the commands, in the order of the help."""


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the help."""
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name, imported; None if there is none."""
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module, function = _COMMANDS[cmd_name].split(".")
        return getattr(importlib.import_module(f"sparse_but_wrong.cli.{module}"), function)


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(package_name="sparse_but_wrong", prog_name="sbw")
def cli() -> None:
    """Find the L0 at which a sparse autoencoder learns the true features."""


def main() -> None:
    """Entry point: a user's error is one line and exit code 2.

    SIGTERM, which batch systems send before they kill, ends a command as Ctrl-C does.
    """
    signal.signal(signal.SIGTERM, terminate)
    try:
        # Outside standalone mode click returns the code that a command exits with.
        sys.exit(cli.main(standalone_mode=False))
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message())
    except (click.Abort, KeyboardInterrupt) as stopped:
        # click makes an Abort of what interrupts a command.
        is_terminated = isinstance(stopped.__cause__ or stopped, Terminated)
        click.echo(f"sbw: {'terminated' if is_terminated else 'interrupted'}", err=True)
        sys.exit(128 + (signal.SIGTERM if is_terminated else signal.SIGINT))
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        # PyTorch's errors say only in their text that memory was the problem.
        no_memory = isinstance(error, MemoryError) or any(
            text in str(error) for text in ("can't allocate memory", "out of memory")
        )
        is_bug = isinstance(error, RuntimeError) and not no_memory
        if is_bug or os.environ.get("SBW_TRACEBACK"):
            raise
        advice = f"Not enough memory ({error}). Use fewer or smaller SAEs, batches or samples."
        _fail(advice if no_memory else str(error))


def _fail(message: str) -> None:
    click.echo(f"sbw: error: {' '.join(message.split())}", err=True)
    sys.exit(2)
