"""Worker (see `peers`) that loads volumes and crops patches with MONAI, in the peers' environment."""

from __future__ import annotations

import os
import time

import torch
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    Orientationd,
    RandCropByPosNegLabeld,
    ScaleIntensityRanged,
)

from benchmarks.peers import peak_memory_mib, serve

STATE = {}
BOTH = ("image", "label")


def prepare(cores, window, patch_shape_xyz, patches, foreground_fraction):
    """Sets up the transforms of MONAI's tutorials for CT, with a given number of patches."""
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))
    low, high = window
    share = {"pos": foreground_fraction, "neg": 1 - foreground_fraction}
    STATE["transforms"] = Compose(
        [
            LoadImaged(keys=BOTH),
            EnsureChannelFirstd(keys=BOTH),
            Orientationd(keys=BOTH, axcodes="RAS"),
            ScaleIntensityRanged(
                keys="image", a_min=low, a_max=high, b_min=-1.0, b_max=1.0, clip=True
            ),
            RandCropByPosNegLabeld(
                keys=BOTH,
                label_key="label",
                spatial_size=patch_shape_xyz,
                num_samples=patches,
                **share,
            ),
        ]
    )


def once(image, label):
    """Returns the seconds from the two files to patches in memory, and the peak memory in MiB."""
    start = time.perf_counter()
    found = STATE["transforms"]({"image": image, "label": label})
    seconds = time.perf_counter() - start
    return seconds, peak_memory_mib(), [len(found), list(found[0]["image"].shape)]


if __name__ == "__main__":
    serve({"prepare": prepare, "once": once})
