"""ImageNet's ResNet-50 from where Keras keeps it, with Keras' checksum."""

from __future__ import annotations

from pathlib import Path

from preprocessing.errors import ModelError

NAME = "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
URL = f"https://storage.googleapis.com/tensorflow/keras-applications/resnet/{NAME}"
MD5 = "4d473c1dd8becc155b73f8504c6f6626"


def imagenet_file(cache: str | Path | None = None) -> Path:
    """Returns the file of Keras' ImageNet weights, downloaded unless it is in Keras' cache.

    Args:
      cache: Keras' cache folder; ~/.keras by default.

    Raises:
      ModelError: no network and no file, or one with another checksum; says which file belongs where.
    """
    import tensorflow as tf

    cache = Path(cache or Path.home() / ".keras")
    target = cache / "models" / NAME
    if target.is_file() and _md5(target) != MD5:
        raise ModelError(target, f"MD5 {MD5}", f"MD5 {_md5(target)}", f"Get it anew from {URL}.")
    if not target.is_file():
        # Keras turns a failed download into a bare Exception.
        try:
            tf.keras.utils.get_file(
                NAME, URL, cache_dir=str(cache), cache_subdir="models", file_hash=MD5
            )
        except Exception as error:
            raise ModelError(
                URL, "a download", error, f"Put the file at {target} by other means, then repeat."
            ) from error
    return target


def _md5(path: Path) -> str:
    import hashlib

    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
