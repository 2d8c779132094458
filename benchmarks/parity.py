"""The same weights in this project's AH-Net and in MONAI's: how far apart are the logits?

python -m benchmarks.parity [--expectations]

Random weights, drawn by name, go into both networks. Compared are the logits in inference and in
training mode (batch statistics), the moving statistics after one training pass, and the number of
parameters. `--expectations` also writes the small files that hold the ordinary tests to MONAI.
Run on the current stack, with Keras 3, it writes parity_current.json.
"""

from __future__ import annotations

import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.peers import ROOT, Worker, peer_versions, peers_python
from benchmarks.report import goal, print_table, versions, write_report
from preprocessing.cli import make_parser, run_command

SMALL = {"blocks": (1, 1, 1, 1), "pvp_levels": 2}
# Name, settings, shape [batch, z, y, x, channel]; what MONAI can take: z in 32s, y and x in 32s.
CASES = (
    ("128x128x32", {}, (1, 32, 128, 128, 1)),
    ("160x192x32", {}, (1, 32, 160, 192, 1)),
    ("256x128x64", {}, (1, 64, 256, 128, 1)),
    ("2 of 128x160x32", {}, (2, 32, 128, 160, 1)),
    ("2 channels", {"channels": 2, "classes": 2}, (1, 32, 128, 128, 2)),
    ("transposed", {"upsampling": "transpose"}, (1, 32, 128, 128, 1)),
)
EXPECTATIONS = (
    ("small_trilinear", SMALL, (1, 32, 96, 64, 1)),
    ("small_transpose", SMALL | {"upsampling": "transpose", "channels": 2}, (1, 32, 64, 96, 2)),
    ("whole", {}, (1, 32, 128, 128, 1)),
)
SAMPLE = (slice(None), slice(None, None, 5), slice(None, None, 7), slice(None, None, 3))
DATA = ROOT / "tests" / "ahnet_tf" / "networks" / "stored"
SEED = 7


def random_weight(name: str, shape: Sequence[int], seed: int = SEED) -> np.ndarray:
    """Returns a weight from the seed and its name alone; gammas of both signs, variances above 0.5."""
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    leaf = name.rsplit("/", 1)[-1]
    if "kernel" in leaf:
        outputs = int(np.prod(shape[-4:-2])) * shape[-1]
        kernel = generator.standard_normal(tuple(shape), np.float32)
        return kernel * np.float32(np.sqrt(2 / outputs))
    if leaf == "gamma":
        return generator.uniform(-0.4, 1.2, shape).astype(np.float32)
    if leaf == "moving_variance":
        return generator.uniform(0.5, 1.5, shape).astype(np.float32)
    return generator.normal(0, 0.2, shape).astype(np.float32)


def random_image(shape: Sequence[int], seed: int = SEED) -> np.ndarray:
    """Returns an image in -1..1, which the window of `parity_config` passes unchanged."""
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def parity_config(settings: dict):
    """Returns the settings of MONAI's network."""
    from ahnet_tf.config import ModelConfig

    return ModelConfig(intensity_window=(-1.0, 1.0), pvp_border=True, **settings)


def parity_network(settings: dict):
    """Returns AH-Net with random weights by name."""
    from ahnet_tf.networks import build_network, named_weights

    model = build_network(parity_config(settings))
    for name, variable in named_weights(model).items():
        variable.assign(random_weight(name, variable.shape))
    return model


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = make_parser(
        "benchmarks.parity", __doc__.splitlines()[0], ["python -m benchmarks.parity"]
    )
    parser.add_argument("--expectations", action="store_true", help="also write the tests' files")
    return run_command(_run, parser.parse_args(argv))


def _run(arguments) -> None:
    python = peers_python()
    rows, figures, goals = [], [], []
    with (
        Worker(python, "benchmarks.monai_worker") as monai,
        tempfile.TemporaryDirectory() as folder,
    ):
        for name, settings, shape in CASES:
            found = _compare(monai, Path(folder), settings, shape)
            figures.append({"case": name, "shape_zyx": shape[1:4]} | found)
            rows.append(
                (name, *(f"{found[key]:.2e}" for key in ("inference", "training", "moving")))
            )
            goals.append(goal(f"{name}: logits, of their range", "<=", 1e-3, found["inference"]))
            goals.append(goal(f"{name}: in training mode", "<=", 1e-3, found["training"]))
        if arguments.expectations:
            for name, settings, shape in EXPECTATIONS:
                _expect(monai, Path(folder), name, settings, shape)
        print_table(("case", "inference", "training", "moving statistics"), rows)
    parameters = figures[0]["parameters"]
    goals.append(goal("parameters, MONAI's", "==", figures[0]["parameters_monai"], parameters))
    goals.append(goal("parameters, as published", "==", 27_087_804, parameters))
    packages = versions("tensorflow", "keras", "numpy") | peer_versions("torch", "monai")
    report = "parity" if packages["keras"].startswith("2.") else "parity_current"
    write_report(report, figures, goals, packages, {"seed": SEED})


def _monai_logits(monai, folder: Path, model, settings: dict, shape, training: bool) -> dict:
    from ahnet_tf.networks import named_weights
    from ahnet_tf.weights.torch_names import ahnet_source

    config = parity_config(settings)
    state = {}
    for name, variable in named_weights(model).items():
        state |= ahnet_source(name, config.pvp_levels).write(variable.numpy())
    np.savez(folder / "state.npz", **state)
    np.save(folder / "image.npy", random_image(shape))
    parameters = monai.ask(
        do="load",
        threads=2,
        blocks=config.blocks,
        channels=config.channels,
        classes=config.classes,
        pvp_levels=config.pvp_levels,
        upsampling=config.upsampling,
        weights=str(folder / "state.npz"),
    )
    output = folder / "output.npz"
    monai.ask(do="run", image=str(folder / "image.npy"), output=str(output), training=training)
    with np.load(output) as arrays:
        return dict(arrays) | {"parameters": parameters}


def _compare(monai, folder: Path, settings: dict, shape) -> dict:
    from ahnet_tf.networks import named_weights
    from ahnet_tf.weights.torch_names import ahnet_source

    model = parity_network(settings)
    found = {"parameters": sum(int(np.prod(w.shape)) for w in model.trainable_weights)}
    image = random_image(shape)
    for mode in ("inference", "training"):
        training = mode == "training"
        theirs = _monai_logits(monai, folder, model, settings, shape, training)
        ours = model(image, training=training).numpy()
        spread = float(np.ptp(theirs["logits"]))
        found[mode] = float(np.abs(ours - theirs["logits"]).max()) / spread
        found[f"{mode}_range"] = spread
        found["parameters_monai"] = theirs["parameters"]
    worst = 0.0
    for name, variable in named_weights(model).items():
        if name.rsplit("/", 1)[-1].startswith("moving_"):
            expected = ahnet_source(name, parity_config(settings).pvp_levels).read(theirs)
            difference = np.abs(variable.numpy() - expected).max() / np.abs(expected).max()
            worst = max(worst, float(difference))
    return found | {"moving": worst}


def _expect(monai, folder: Path, name: str, settings: dict, shape) -> None:
    """Writes MONAI's logits, sampled, in both modes; weights and image come from their seed."""
    model = parity_network(settings)
    arrays = {}
    for mode in ("inference", "training"):
        theirs = _monai_logits(monai, folder, model, settings, shape, mode == "training")
        arrays[mode] = theirs["logits"][SAMPLE]
        arrays[f"{mode}_mean"] = theirs["logits"].mean(axis=(1, 2, 3))
        arrays[f"{mode}_range"] = np.ptp(theirs["logits"])
    arrays["stem_moving_variance"] = theirs["bn0.running_var"]
    arrays["final_moving_mean"] = theirs["final.norm.running_mean"]
    DATA.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(DATA / f"monai_{name}.npz", **arrays)


if __name__ == "__main__":
    sys.exit(main())
