"""Runtimes of ONNX as a benchmark worker, without torch; runs in the environment of `peers`."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

from benchmarks.peers import serve, timed

STATE = {}
# Of the largest logit: what another order of float32 sums may change.
TOLERANCE = 1e-3


def openvino_network(path: str, precision: str, threads: int, cache: str) -> Callable:
    """Returns the network as OpenVINO compiles it; the folder `cache` keeps what it compiled."""
    # The package reports each import to its maker, unless the module that sends is missing.
    sys.modules["openvino_telemetry"] = None
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "CACHE_DIR": cache,
    }
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()

    def call(image):
        return request.infer([image], share_inputs=True, share_outputs=True)[0]

    return call


def onnxruntime_network(path: str, precision: str, threads: int, cache: str) -> Callable:
    """Returns the network as ONNX Runtime optimizes it, which keeps nothing; on CPUs in float32 only."""
    import onnxruntime

    if precision != "float32":
        raise ValueError(
            f"expected float32, which ONNX Runtime computes on CPUs, found {precision}"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda image: session.run(None, {name: image})[0]


RUNTIMES = {"OpenVINO": openvino_network, "ONNX Runtime": onnxruntime_network}


def prepare(runtime, path, precision, threads, cache):
    """Sets up a forward pass of the .onnx `path` on its image; compares its logits with torch's.

    Image and logits [batch, channel, y, x, z] are in `path`.npz. Returns the largest difference as a
    share of the largest logit.
    """
    network = RUNTIMES[runtime](path, precision, threads, cache)
    with np.load(f"{path}.npz") as arrays:
        image, expected = arrays["image"], arrays["logits"]
    difference = float(np.abs(network(image) - expected).max() / np.abs(expected).max())
    if precision == "float32" and difference > TOLERANCE:
        raise ValueError(
            f"expected torch's logits from {runtime}, found a share of {difference:.1e}"
        )
    STATE["step"] = lambda: network(image)
    return difference


def once():
    """Runs the prepared work; returns its seconds and the peak memory of the process in MiB."""
    return timed(STATE["step"])


if __name__ == "__main__":
    serve({"prepare": prepare, "once": once})
