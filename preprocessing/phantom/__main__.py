"""`python -m preprocessing.phantom`: writes synthetic CT or DBT cases."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from preprocessing.cli import make_parser, run_command
from preprocessing.errors import SettingsError
from preprocessing.phantom.ct import PhantomSettings
from preprocessing.phantom.dataset import write_cases
from preprocessing.phantom.dbt import DBTSettings

KINDS = {"ct": PhantomSettings, "dbt": DBTSettings}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    parser = make_parser(
        "preprocessing.phantom",
        "Writes synthetic cases with exact ground truth. CT: volume-N.nii.gz (HU) and "
        "segmentation-N.nii.gz (0 background, 1 liver, 2 tumour). DBT: PHANTOM-N_VIEW.nii.gz and its "
        "_mask.nii.gz (1 mass), or PHANTOM-N_VIEW.dcm, with the tables of BCS-DBT.",
        [
            "python -m preprocessing.phantom --output phantom",
            "python -m preprocessing.phantom --output unseen --cases 1 --first 100",
            "python -m preprocessing.phantom --kind dbt --output breasts --cases 24",
            "python -m preprocessing.phantom --kind dbt --output scans --format dicom",
        ],
    )
    add = parser.add_argument
    add("--output", required=True, metavar="DIR", help="folder for the cases")
    add("--kind", choices=list(KINDS), default="ct", help="default: ct")
    add("--cases", type=int, default=8, help="number of cases (default: 8)")
    add("--first", type=int, default=0, metavar="N", help="number of the first case")
    add("--seed", type=int, default=0, help="case N depends only on N and the seed")
    shape = "mean size in voxels (default: 128 128 32 for CT, 160 288 40 for DBT)"
    add("--shape", type=int, nargs=3, metavar=("X", "Y", "Z"), help=shape)
    spacing = "voxel spacing (default: 2.5 2.5 5 for CT, 0.4 0.4 1 for DBT)"
    add("--spacing-mm", type=float, nargs=3, metavar=("X", "Y", "Z"), help=spacing)
    contrast = "DBT: attenuation of masses relative to gland (default: 1.0 1.15)"
    add("--mass-contrast", type=float, nargs=2, metavar=("LOW", "HIGH"), help=contrast)
    form = "files of DBT (default: nifti)"
    add("--format", choices=("nifti", "dicom"), default="nifti", help=form)
    add("--overwrite", action="store_true", help="replace cases of the same name")
    return run_command(_run, parser.parse_args(argv))


def _run(arguments: argparse.Namespace) -> None:
    given = {"shape_xyz": arguments.shape, "spacing_mm": arguments.spacing_mm}
    if arguments.mass_contrast and arguments.kind != "dbt":
        raise SettingsError("--mass-contrast", "--kind dbt", f"--kind {arguments.kind}")
    if arguments.mass_contrast:
        given["mass_contrast"] = arguments.mass_contrast
    settings = KINDS[arguments.kind](**{k: tuple(v) for k, v in given.items() if v is not None})
    cases = write_cases(
        arguments.output,
        arguments.cases,
        arguments.seed,
        first=arguments.first,
        settings=settings,
        overwrite=arguments.overwrite,
        dicom=arguments.format == "dicom",
    )
    lesions = {"ct": "tumours", "dbt": "masses"}[arguments.kind]
    with_lesions = sum(case["label_voxels"][-1] > 0 for case in cases)
    print(f"{len(cases)} cases, {with_lesions} with {lesions}, in {arguments.output}")


if __name__ == "__main__":
    sys.exit(main())
