"""What all commands share: their option parser, quiet framework logs, one-line errors."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence

from preprocessing.errors import AHNetError, Stopped


def make_parser(module: str, purpose: str, examples: Sequence[str]) -> argparse.ArgumentParser:
    """Returns a parser for `python -m MODULE` with its examples and the options of every command."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=purpose,
        epilog="examples:\n" + "\n".join(f"  {example}" for example in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--debug", action="store_true", help="show framework logs, and a traceback on errors"
    )
    return parser


def own_options(parser: argparse.ArgumentParser) -> list[str]:
    """Returns the options of a parser, which Beam's are told apart from."""
    return [option for action in parser._actions for option in action.option_strings]


def quiet_frameworks(debug: bool = False) -> None:
    """Silences the frameworks' start-up logs and warnings; call before importing TensorFlow."""
    if debug:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # What goes wrong in a Beam job is raised as well.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="tensorflow_addons")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=UserWarning)


def run_command(
    run: Callable[[argparse.Namespace], int | None], arguments: argparse.Namespace
) -> int:
    """Runs a command and returns its exit code; a user's error becomes one line on stderr.

    The code is what `run` returns (None counts as 0), 1 after an error, 130 after Ctrl-C, and 128 more
    than the signal where one stopped work that can be gone on with.
    With `--debug` errors keep their traceback.
    """
    quiet_frameworks(arguments.debug)
    try:
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
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 1


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}"
    return " ".join(str(error).split())
