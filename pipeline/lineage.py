"""`python -m pipeline.lineage MODEL`: data, settings, scores and code behind a pushed model."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.local.preflight import METADATA_FILE, open_store
from preprocessing.cli import make_parser, run_command
from preprocessing.errors import InputError

if TYPE_CHECKING:
    from pipeline.local.model_lineage import Step

PURPOSE = """\
Shows the lineage of a pushed model from the pipeline's metadata: its training data, the results of
data validation, the settings of every training, the scores that blessed it, and the code version."""
EXAMPLES = (
    "python -m pipeline.lineage run/serving_model/ahnet/1732600000",
    "python -m pipeline.lineage run/serving_model/ahnet      (the newest version)",
    "python -m pipeline.lineage run/serving_model/ahnet/1732600000 --json",
)
# Parameters to show; those of TFX's own components are long and redundant.
_SHOWN = ("span", "fingerprint", "input_fingerprint", "volumes", "input_base", "run_fn", "requests")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m pipeline.lineage`."""
    parser = make_parser("pipeline.lineage", PURPOSE, EXAMPLES)
    add = parser.add_argument
    add("model", metavar="MODEL", help="a pushed version, or the folder of all versions (newest)")
    metadata = f"the pipeline's metadata (default: {METADATA_FILE} in the folder of the run)"
    add("--metadata", metavar="FILE", help=metadata)
    add("--json", action="store_true", help="print everything as JSON")
    return run_command(_run, parser.parse_args(argv))


def _run(arguments: argparse.Namespace) -> None:
    model = _version(Path(arguments.model).resolve())
    # RUN/serving_model/NAME/VERSION; a mounted model may have fewer folders above it.
    run = [*model.parents][:3][-1]
    metadata = Path(arguments.metadata or run / METADATA_FILE)
    from pipeline.local.model_lineage import lineage_of

    steps = lineage_of(open_store(metadata), model)
    if arguments.json:
        print(json.dumps([vars(step) for step in steps], indent=2))
    else:
        print("\n".join(_lines(model, steps)))


def _version(model: Path) -> Path:
    if not model.is_dir():
        raise InputError(model, "a pushed model", "no such folder")
    if model.name.isdigit():
        return model
    versions = [int(child.name) for child in model.iterdir() if child.name.isdigit()]
    if not versions:
        raise InputError(model, "a folder of pushed versions", "none")
    return model / str(max(versions))


def _lines(model: Path, steps: Sequence[Step]) -> Iterator[str]:
    """Yields the lines of the printed report, starting with the model card of the run."""
    reports = [address for step in steps for _, address in step.outputs.get("report", [])]
    card = Path(reports[-1]) / "model_card.md" if reports else None
    if card is not None and card.is_file():
        yield card.read_text(encoding="utf-8")
    yield f"## Lineage of {model}"
    for step in steps:
        yield f"\n{step.name} (execution {step.execution}, {step.state.lower()})"
        for name, value in step.parameters.items():
            if name == "custom_config" and value and "training" in value:
                yield f"  code version {value['code_version']}"
                for section in ("model", "training"):
                    settings = ", ".join(f"{key}={each}" for key, each in value[section].items())
                    yield f"  {section}: {settings}"
            elif name in _SHOWN:
                yield f"  {name}: {value}"
        for arrow, side in (("<-", step.inputs), ("->", step.outputs)):
            for name, artifacts in sorted(side.items()):
                for number, address in artifacts:
                    yield f"  {arrow} {name}: artifact {number}, {address}"


if __name__ == "__main__":
    sys.exit(main())
