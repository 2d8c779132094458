"""Shared parts of the commands: option parser, quiet framework logs, one-line errors."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Collection, Sequence

from preprocessing.errors import ALLOWANCES, AHNetError, SettingsError, Stopped, named_extra
from preprocessing.quiet_start import quiet_frameworks


def make_parser(module: str, purpose: str, examples: Sequence[str]) -> argparse.ArgumentParser:
    """Returns a parser for `python -m MODULE` with examples and the options that all commands have."""
    # The console command passes "ahnet COMMAND" on as the program's name.
    program = os.path.basename(sys.argv[0])
    parser = argparse.ArgumentParser(
        prog=program if program.partition(" ")[0] == "ahnet" else f"python -m {module}",
        description=purpose,
        epilog="examples:\n" + "\n".join(f"  {example}" for example in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    debug = "show framework logs, and a traceback on errors"
    parser.add_argument("--debug", action="store_true", help=debug)
    return parser


def own_options(parser: argparse.ArgumentParser) -> list[str]:
    """Returns the names of a parser's options, to distinguish them from Beam's."""
    return [option for action in parser._actions for option in action.option_strings]


def add_allow_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--allow`; see `parse_allowances`."""
    checks = "; ".join(f"{name}: {what}" for name, what in ALLOWANCES.items())
    what = f"accept cases that fail a check: {checks}"
    parser.add_argument("--allow", default="", metavar="CHECK,...", help=what)


def parse_allowances(text: str, known: Collection[str] = tuple(ALLOWANCES)) -> frozenset[str]:
    """Returns the names in a comma-separated list; raises SettingsError unless all are `known`."""
    names = frozenset(name.strip() for name in text.split(",") if name.strip())
    unknown = sorted(names - set(known))
    if unknown:
        raise SettingsError("--allow", f"names among {', '.join(known)}", unknown[0])
    return names


def run_command(
    run: Callable[[argparse.Namespace], int | None], arguments: argparse.Namespace
) -> int:
    """Runs a command and returns its exit code; a user's error becomes one line on stderr.

    The code is what `run` returns (0 for None), 1 after an error, 130 after Ctrl-C, and 128 plus the
    signal's number if a signal stopped work that can be resumed. With `--debug` errors are raised.
    """
    quiet_frameworks(arguments.debug)
    try:
        with named_extra(AHNetError):
            return run(arguments) or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.signal
    except (AHNetError, OSError) as error:
        if arguments.debug:
            raise
        text = " ".join(str(error).split())
        if isinstance(error, OSError) and error.strerror:
            text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        print(f"error: {text}", file=sys.stderr)
        return 1
