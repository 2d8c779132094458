"""The options of every command that writes a page."""

from __future__ import annotations

import argparse
from pathlib import Path

from preprocessing.errors import SettingsError
from preprocessing.page import VOLUMES


def add_page_options(parser: argparse.ArgumentParser, which: str) -> None:
    """Adds `--report` and `--report-cases`; `which` says which cases are shown."""
    parser.add_argument(
        "--report",
        metavar="PAGE.html",
        help="write one HTML page that needs no other file and no network",
    )
    parser.add_argument(
        "--report-cases",
        type=int,
        default=VOLUMES,
        metavar="N",
        help=f"how many {which} can be looked at on the page; all are in its tables "
        "(default: %(default)s)",
    )


def check_page_options(arguments: argparse.Namespace) -> None:
    """Checks them before any work.

    Raises:
      SettingsError: no place for the page, or a number below 1.
    """
    if arguments.report_cases < 1:
        raise SettingsError("--report-cases", "a number of at least 1", arguments.report_cases)
    if arguments.report is not None and Path(arguments.report).is_dir():
        raise SettingsError("--report", "a file, for example page.html", arguments.report)
