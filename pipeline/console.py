"""The console command `ahnet`: each command of the project by a short name, without `python -m`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from preprocessing.cli import make_parser

# Module with the command's `main`, and what it does, by name.
COMMANDS = {
    "phantom": ("preprocessing.phantom.__main__", "writes synthetic CT or DBT cases"),
    "verify": ("preprocessing.verify", "checks a data set before conversion, also as a page"),
    "convert": ("preprocessing.convert", "converts volumes to TFRecords of patches"),
    "train": ("ahnet_tf.train", "trains the 2D network, then the 3D network from its encoder"),
    "predict": ("ahnet_tf.predict", "segments NIfTI and DICOM volumes"),
    "evaluate": ("ahnet_tf.evaluate", "scores predictions against references"),
    "weights": ("ahnet_tf.weights.__main__", "imports weights of Keras, torchvision or MONAI"),
    "export": ("serving.export.__main__", "exports a checkpoint for TF Serving or as ONNX"),
    "serve": ("serving.server", "serves an exported model on this machine"),
    "status": ("serving.status", "prints what a model server serves"),
    "pipeline": ("pipeline.local_runner", "runs the TFX pipeline on this machine"),
    "lineage": ("pipeline.lineage", "shows data, settings and scores behind a pushed model"),
    "kubeflow": ("pipeline.kubeflow_runner", "compiles the pipeline for Kubeflow and Vertex AI"),
    "rehearsal": ("pipeline.kubeflow.rehearsal", "runs a compiled pipeline on this machine"),
    "demo": ("pipeline.demo", "demonstrates all of it on synthetic cases, or your own"),
}
PURPOSE = "Runs a command of this project, the same as python -m MODULE:\n\n" + "\n".join(
    f"  {name:<11}{purpose}" for name, (_, purpose) in COMMANDS.items()
)
EXAMPLES = (
    "ahnet phantom --output phantom",
    "ahnet convert --task ct_liver --input phantom --output records",
    "ahnet predict --help",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `ahnet COMMAND ...`; returns the command's exit code."""
    parser = make_parser("pipeline.console", PURPOSE, EXAMPLES)
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="COMMAND ...", help="a command and its options"
    )
    arguments = parser.parse_args(argv)
    if arguments.version:
        from importlib.metadata import version

        print(f"ahnet-tf {version('ahnet-tf')}")
        return 0
    if not arguments.command:
        parser.print_help()
        return 0
    name, *options = arguments.command
    if name not in COMMANDS:
        from preprocessing.settings import one_of

        parser.error(str(one_of(*COMMANDS).error("COMMAND", name)))
    # As the command sees itself when it is started alone, with its options in `sys.argv`.
    sys.argv = [f"ahnet {name}", *["--debug"] * arguments.debug, *options]
    return importlib.import_module(COMMANDS[name][0]).main()


if __name__ == "__main__":
    sys.exit(main())
