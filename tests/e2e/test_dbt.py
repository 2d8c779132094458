"""Tomosynthesis through the whole workflow, with the commands users type."""

import json

import nibabel as nib
import numpy as np
import pytest

from ahnet_tf.predict import main as predict
from ahnet_tf.train import main as train
from preprocessing.convert import main as convert
from preprocessing.phantom.__main__ import main as phantom
from serving.export.__main__ import main as export

# One stage will do here: that AH-Net learns to find masses is in test_learning.py.
TINY = ["width=0.0625", "blocks=[1,1,1,1]", "warmup_steps=1", "evaluate_every=4"]


@pytest.mark.slow
def test_synthetic_breasts_to_label_maps(tmp_path):
    breasts, records, run = (str(tmp_path / name) for name in ("breasts", "records", "run"))
    made = ["--kind", "dbt", "--cases", "2", "--shape", "64", "96", "16"]
    made += ["--spacing-mm", "1", "1", "2"]
    assert phantom([*made, "--output", breasts]) == 0
    options = ["--task", "dbt_lesion_small", "--patch-shape", "16", "64", "64"]
    assert convert([*options, "--input", breasts, "--output", records]) == 0
    settings = [part for setting in TINY for part in ("--set", setting)]
    stage = ["--stage", "2d", "--steps", "4"]
    assert train(["--input", records, "--output", run, *stage, *settings]) == 0
    evaluation = json.loads((tmp_path / "run" / "mcgcn" / "evaluation.json").read_text())
    assert set(evaluation["dice"]) == {"lesion"}

    model, answers = str(tmp_path / "model"), {}
    assert export(["--model", f"{run}/mcgcn", "--output", model]) == 0
    for name, source in (("checkpoint", f"{run}/mcgcn"), ("model", model)):
        output = tmp_path / name
        options = ["--model", source, breasts, str(output), "--probabilities"]
        assert predict(options) == 0
        answers[name] = sorted(output.glob("*.nii.gz"))
        assert len(answers[name]) == 2
        assert all(path.name.startswith("dbt-") for path in answers[name])
    grids = [nib.load(path) for path in (tmp_path / "breasts").glob("*_[lr][cm]*.nii.gz")]
    shapes = {grid.shape for grid in grids}
    for one, other in zip(*answers.values(), strict=True):
        labels = [np.asarray(nib.load(path).dataobj) for path in (one, other)]
        assert labels[0].shape in shapes
        assert (labels[0] != labels[1]).mean() < 1e-3
        case = one.name.removesuffix(".nii.gz")
        background, lesion = (
            np.asarray(nib.load(one.parent / "probabilities" / f"{case}_{name}.nii.gz").dataobj)
            for name in ("background", "lesion")
        )
        np.testing.assert_allclose(background + lesion, 1, atol=1e-4)
        np.testing.assert_array_equal(labels[0] > 0, lesion > background)
