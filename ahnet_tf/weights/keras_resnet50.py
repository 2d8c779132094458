"""Keras' ResNet-50 with ImageNet weights as an encoder: download, and weights by name.

Its convolutions have biases, which are folded into the norms. Its stages 2 to 4 stride in the first
1x1 convolution, this encoder (as torchvision's) in the 3x3 one: the weights have the same shapes, but
features equal those of Keras up to res1 only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np

from ahnet_tf.networks.normalization import EPSILON
from preprocessing.errors import ModelError

KERAS_EPSILON = 1.001e-5

NAME = "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
URL = f"https://storage.googleapis.com/tensorflow/keras-applications/resnet/{NAME}"
MD5 = "4d473c1dd8becc155b73f8504c6f6626"


def keras_encoder_weight(name: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns an encoder weight from the arrays of Keras' ResNet-50, exact in inference.

    The bias of a convolution and the difference between the epsilons go into the norm after it.
    Raises KeyError with the weight's name in Keras if `arrays` lacks it.
    """
    layer, *middle, leaf = name.split("/")
    conv, norm = "conv1_conv", "conv1_bn"
    found = re.fullmatch(r"res(\d)_block(\d+)", layer)
    if found:
        number = 0 if middle[0] == "shortcut" else int(middle[0][-1])
        prefix = f"conv{int(found[1]) + 1}_block{found[2]}_{number}"
        conv, norm = f"{prefix}_conv", f"{prefix}_bn"
    if leaf == "kernel":
        return arrays[f"{conv}/kernel"]
    value = arrays[f"{norm}/{leaf}"]
    if leaf == "moving_mean":
        return value - arrays[f"{conv}/bias"]
    if leaf == "moving_variance":
        return value + np.float32(KERAS_EPSILON - EPSILON)
    return value


def imagenet_file(cache: str | Path | None = None) -> Path:
    """Returns the file of Keras' ImageNet weights, downloaded unless `cache` (~/.keras) has it.

    Raises ModelError, with the file and where it belongs, if download or checksum fail.
    """

    cache = Path(cache or Path.home() / ".keras")
    target = cache / "models" / NAME
    if target.is_file():
        md5 = hashlib.md5(target.read_bytes(), usedforsecurity=False).hexdigest()
        if md5 != MD5:
            raise ModelError(target, f"MD5 {MD5}", f"MD5 {md5}", f"Download it again from {URL}.")
        return target
    # Keras raises a bare Exception if the download fails.
    try:
        keras.utils.get_file(NAME, URL, file_hash=MD5, cache_dir=str(cache), cache_subdir="models")
    except Exception as error:
        remedy = f"Put the file at {target} by other means, then repeat."
        raise ModelError(URL, "a download", error, remedy) from error
    return target
