"""What each CPU optimization of the networks saves, alone, against plain TensorFlow.

python -m benchmarks.network_tricks [--case NAME] [--work forward-128] [--precision float32]

Each case computes what AH-Net's layers compute, at their shapes, once as the optimization does and once
plainly, in turn. The difference times the number of such layers, as a share of the whole network's time, is
how much longer the network would take without the optimization. Times are CPU seconds, which other
processes disturb less than the wall clock. Figures are added to the file as they come; cases that the networks
do not use (any more) are here as evidence.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from ahnet_tf.networks.normalization import GroupNorm
from ahnet_tf.networks.ops import resize, transposed_conv
from benchmarks.report import read_report, versions, write_report
from preprocessing.cli import make_parser, run_command

# Slices, rows and columns of the image.
WORKS = {
    "forward-128": (32, 128),
    "training-128": (32, 128),
    "forward-512": (32, 512),
    "training-512": (4, 512),
}
PRECISIONS = ("float32", "bfloat16")
# TensorFlow turns oneDNN on by itself only where the CPU has AVX512-VNNI, AVX512-BF16 or AMX.
ONEDNN = os.environ.get("TF_ENABLE_ONEDNN_OPTS", "default")
WARM_UP = 1
# Stride, bottleneck channels and number of the residual stages' blocks.
STAGES = ((4, 64, 3), (8, 128, 4), (16, 256, 6), (32, 512, 3))
# Stride and number of the decoder's pseudo-3D layers.
DENSE = ((16, 3), (8, 3), (4, 6), (2, 3))


@dataclass(frozen=True)
class Site:
    """A place in the network: its stride, the shapes of its weights, how often it occurs."""

    stride: int
    channels: int | tuple[int, ...]
    weights: tuple[tuple[int, ...], ...]
    count: int = 1


@dataclass(frozen=True)
class Case:
    """An optimization and what replaces it: functions of the maps [z, y, x, channel] and weights."""

    used: bool
    sites: tuple[Site, ...]
    fast: Callable
    plain: Callable
    kinds: tuple[str, ...] = ("forward", "training")


def conv(x, kernel, strides=1):
    padding = "SAME" if strides == 1 else "VALID"
    return tf.nn.conv2d(x, kernel, strides, padding)


def padded(x, size):
    return tf.pad(x, [[0, 0], [size, size], [size, size], [0, 0]])


def widen(x, width, axes=(-1,)):
    """Appends zeros along `axes` up to `width`."""
    for axis in axes:
        shape = x.shape.as_list()
        shape[axis] = width - shape[axis]
        x = tf.concat([x, tf.zeros(shape, x.dtype)], axis)
    return x


def scale_of(norm):
    gamma, variance = norm[0], tf.abs(norm[3]) + 1
    return gamma * tf.math.rsqrt(variance + 1e-5)


def folded_norm(x, kernel, norm):
    """Convolution with batch norm's scale in the kernel and its shift as bias."""
    norm = tf.cast(norm, tf.float32)
    scale = scale_of(norm)
    kernel = tf.cast(tf.cast(kernel, tf.float32) * scale, x.dtype)
    shift = tf.cast(norm[1] - norm[2] * scale, x.dtype)
    return tf.nn.bias_add(conv(x, kernel), shift)


def batch_norm(x, norm, training=False):
    norm = tf.cast(norm, tf.float32)
    statistics = {} if training else {"mean": norm[2], "variance": tf.abs(norm[3]) + 1}
    return tf.compat.v1.nn.fused_batch_norm(
        x, norm[0], norm[1], epsilon=1e-5, is_training=training, **statistics
    )[0]


def separate_norm(x, kernel, norm):
    return batch_norm(conv(x, kernel), norm)


def scaled_output(x, kernel, norm):
    """Convolution, then batch norm's scale and shift: no product with a large kernel."""
    norm = tf.cast(norm, tf.float32)
    scale = scale_of(norm)
    shift = norm[1] - norm[2] * scale
    return tf.nn.bias_add(conv(x, kernel) * tf.cast(scale, x.dtype), tf.cast(shift, x.dtype))


def bottleneck(convolve):
    def call(x, kernel1, kernel2, kernel3, norm1, norm2, norm3):
        y = tf.nn.relu(convolve(x, kernel1, norm1))
        y = tf.nn.relu(convolve(y, kernel2, norm2))
        return tf.nn.relu(convolve(y, kernel3, norm3) + x)

    return call


def depthwise_norm(x, norm):
    """Batch norm in inference as a 1x1 depthwise convolution."""
    norm = tf.cast(norm, tf.float32)
    scale = scale_of(norm)
    kernel = tf.cast(tf.reshape(scale, [1, 1, -1, 1]), x.dtype)
    shift = tf.cast(norm[1] - norm[2] * scale, x.dtype)
    x = tf.nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], "SAME")
    return tf.nn.relu(tf.nn.bias_add(x, shift))


def matmul(x, kernel):
    product = tf.matmul(tf.reshape(x, [-1, x.shape[-1]]), kernel[0, 0])
    return tf.reshape(product, [*x.shape[:3], -1])


def dense_tail(width, training):
    """A pseudo-3D layer after its first convolution, on maps of 20 channels or of `width` with zeros."""

    def call(x, kernel2, kernel3, kernel4, norm3, norm4):
        kernel2, kernel4 = widen(kernel2, width), widen(kernel4, width, (3, 2))
        kernel3 = widen(kernel3, width, (3, 2))
        norm3, norm4 = widen(norm3, width), widen(norm4, width)
        x = conv(x, kernel2)
        across = tf.nn.relu(batch_norm(x, norm3, training))
        flat = tf.reshape(across, [1, across.shape[0], -1, across.shape[-1]])
        x += tf.reshape(conv(flat, kernel3), x.shape)
        return conv(tf.nn.relu(batch_norm(x, norm4, training)), kernel4)

    return call


def on_pieces(training):
    """Norm, ReLU and 1x1 convolution of the pieces of a concatenation, summed."""

    def call(*inputs):
        *pieces, kernel, norm = inputs
        sizes = [piece.shape[-1] for piece in pieces]
        kernels, norms = tf.split(kernel, sizes, 2), tf.split(norm, sizes, 1)
        return tf.add_n(
            [
                conv(tf.nn.relu(batch_norm(piece, n, training)), k)
                for piece, k, n in zip(pieces, kernels, norms, strict=True)
            ]
        )

    return call


def on_concatenation(training):
    def call(*inputs):
        *pieces, kernel, norm = inputs
        return conv(tf.nn.relu(batch_norm(tf.concat(pieces, -1), norm, training)), kernel)

    return call


def to_few(x, kernel):
    """A 1x1 convolution to each pixel's share in its nine neighbours, added up by one of ones and zeros."""
    channels, classes = kernel.shape[2:]
    shares = tf.reshape(tf.transpose(kernel, [2, 0, 1, 3]), [1, 1, channels, 9 * classes])
    adding = np.eye(9 * classes, dtype=np.float32).reshape(3, 3, classes, 9 * classes)
    return conv(conv(x, shares), tf.cast(adding.transpose(0, 1, 3, 2), x.dtype))


def pools(x):
    found = [tf.nn.max_pool2d(x, 8, 8, "VALID")]
    for _ in range(3):
        found.append(tf.nn.max_pool2d(found[-1], 2, 2, "SAME"))
    return found


def separate_pools(x):
    return [tf.nn.max_pool2d(x, size, size, "VALID") for size in (8, 16, 32, 64)]


def neighbours(x):
    """Three neighbouring slices as channels."""
    wide = tf.pad(x, [[1, 1], [0, 0], [0, 0], [0, 0]])
    return tf.concat([wide[i : i + x.shape[0]] for i in range(3)], -1)


def stem_space_to_depth(x, kernel):
    """Four neighbouring pixels become channels and the kernel a 4x4 one without stride."""
    channels, filters = kernel.shape[2:]
    kernel = tf.pad(kernel, [[1, 0], [1, 0], [0, 0], [0, 0]])
    kernel = tf.reshape(kernel, [4, 2, 4, 2, channels, filters])
    kernel = tf.reshape(tf.transpose(kernel, [0, 2, 1, 3, 4, 5]), [4, 4, 4 * channels, filters])
    x = tf.pad(neighbours(x), [[0, 0], [4, 2], [4, 2], [0, 0]])
    return tf.nn.conv2d(tf.nn.space_to_depth(x, 2), kernel, 1, "VALID")


def stem_strided(x, kernel):
    return conv(padded(neighbours(x), 3), kernel, 2)


def stem_3d(x, kernel):
    x = tf.pad(x, [[1, 1], [3, 3], [3, 3], [0, 0]])[tf.newaxis]
    kernel = tf.transpose(kernel[:, :, :, tf.newaxis], [2, 0, 1, 3, 4])
    return tf.nn.conv3d(x, kernel, [1, 1, 2, 2, 1], "VALID")


def across_folded(x, kernel):
    return conv(tf.reshape(x, [1, x.shape[0], -1, x.shape[-1]]), kernel)


def across_3d(x, kernel):
    return tf.nn.conv3d(x[tf.newaxis], kernel[:, :, tf.newaxis], [1] * 5, "SAME")


def slice_pool_folded(x):
    flat = tf.reshape(x, [1, x.shape[0], -1, x.shape[-1]])
    return tf.nn.max_pool2d(flat, [2, 1], [2, 1], "SAME")


def slice_pool_3d(x):
    return tf.nn.max_pool3d(x[tf.newaxis], [2, 1, 1], [2, 1, 1], "SAME")


def pool_in_two_steps(x):
    x = tf.nn.max_pool2d(padded(x, 1), 3, 2, "VALID")
    flat = tf.reshape(
        tf.pad(x, [[1, 1], [0, 0], [0, 0], [0, 0]]), [1, x.shape[0] + 2, -1, x.shape[-1]]
    )
    return tf.nn.max_pool2d(flat, [3, 1], [2, 1], "VALID")


def pool_3d(x):
    x = tf.pad(x, [[1, 1], [1, 1], [1, 1], [0, 0]])[tf.newaxis]
    return tf.nn.max_pool3d(x, 3, 2, "VALID")


def strided_padded(x, kernel):
    return conv(padded(x, 1), kernel, 2)


def strided_explicit(x, kernel):
    return tf.nn.conv2d(x, kernel, 2, [[0, 0], [1, 1], [1, 1], [0, 0]])


def conv_3d(x, kernel):
    return tf.nn.conv3d(x[tf.newaxis], kernel[tf.newaxis], [1] * 5, "SAME")


def norm_folded(x, norm):
    return batch_norm(x, norm, training=True)


def norm_5d(x, norm):
    norm = tf.cast(norm, tf.float32)
    wide = tf.cast(x, tf.float32)[tf.newaxis]
    mean, variance = tf.nn.moments(wide, [0, 1, 2, 3])
    y = tf.nn.batch_normalization(wide, mean, variance, norm[1], norm[0], 1e-5)
    return tf.cast(y, x.dtype)


def transposed_as_1x1(x, kernel):
    return transposed_conv(x[tf.newaxis], kernel)


def transposed_3d(x, kernel):
    shape = [1, 2 * x.shape[0], 2 * x.shape[1], 2 * x.shape[2], kernel.shape[-1]]
    kernel = tf.transpose(kernel, [0, 1, 2, 4, 3])
    return tf.nn.conv3d_transpose(x[tf.newaxis], kernel, shape, [1, 2, 2, 2, 1])


@functools.cache
def group_norm(own, channels):
    """Returns a layer with its weights, made outside of the compiled functions that call it."""
    with tf.init_scope():
        groups = math.gcd(channels, 16)
        keras = tf.keras.layers.GroupNormalization(groups, epsilon=1e-5, dtype="float32")
        layer = GroupNorm() if own else keras
        layer.build((None, None, None, channels))
    return layer


def group_norm_own(x):
    return group_norm(True, x.shape[-1])(x)


def group_norm_keras(x):
    return tf.cast(group_norm(False, x.shape[-1])(x), x.dtype)


def upsample_matmul(x):
    return resize(x[tf.newaxis], [2 * size for size in x.shape[:3]])


def upsample_gather(x):
    """Linear interpolation along z between gathered neighbours."""
    size = [2 * n for n in x.shape[1:3]]
    slices = x.shape[0]
    at = np.linspace(0, slices - 1, 2 * slices)
    low = np.minimum(at.astype(int), max(slices - 2, 0))
    share = tf.cast((at - low).reshape(-1, 1, 1, 1), x.dtype)
    x = tf.gather(x, low) * (1 - share) + tf.gather(x, np.minimum(low + 1, slices - 1)) * share
    y = tf.raw_ops.ResizeBilinear(images=x, size=size, align_corners=True)
    return tf.cast(y, x.dtype)


def _bottleneck_sites(stages):
    return tuple(
        Site(
            stride,
            4 * width,
            (
                (1, 1, 4 * width, width),
                (3, 3, width, width),
                (1, 1, width, 4 * width),
                (4, width),
                (4, width),
                (4, 4 * width),
            ),
            count,
        )
        for stride, width, count in stages
    )


FORWARD, TRAINING = ("forward",), ("training",)
DENSE_TAILS = tuple(
    Site(stride, 80, ((3, 3, 80, 20), (3, 1, 20, 20), (1, 1, 20, 20), (4, 20), (4, 20)), count)
    for stride, count in DENSE
)
PIECES = tuple(
    Site(stride, (width, 20, 20), ((1, 1, width + 40, 80), (4, width + 40)), count)
    for (stride, count), width in zip(DENSE, (1024, 512, 160, 64), strict=True)
)
LARGE_1X1 = tuple(
    Site(stride, channels, ((1, 1, channels, filters),), count)
    for stride, channels, filters, count in (
        (16, 1024, 256, 5),
        (16, 256, 1024, 6),
        (32, 2048, 512, 2),
        (32, 512, 2048, 3),
        (32, 2048, 1024, 1),
        (16, 1084, 512, 1),
    )
)
NORMS = tuple(
    Site(stride, channels, ((4, channels),), count)
    for stride, channels, count in ((4, 84, 4), (2, 64, 1), (2, 84, 1), (2, 104, 1), (2, 128, 1))
)
CASES = {
    "batch norm in the convolution": Case(
        True, _bottleneck_sites(STAGES), bottleneck(folded_norm), bottleneck(separate_norm), FORWARD
    ),
    "norm after large kernels": Case(
        False,
        _bottleneck_sites(STAGES[3:]),
        bottleneck(scaled_output),
        bottleneck(folded_norm),
        FORWARD,
    ),
    "norm as depthwise convolution": Case(
        False,
        NORMS,
        depthwise_norm,
        lambda x, norm: tf.nn.relu(batch_norm(x, norm)),
        FORWARD,
    ),
    "large 1x1 kernels as products": Case(False, LARGE_1X1, matmul, conv),
    "channels in sixteens, inference": Case(
        False, DENSE_TAILS, dense_tail(32, False), dense_tail(20, False), FORWARD
    ),
    "channels in sixteens, training": Case(
        False, DENSE_TAILS, dense_tail(32, True), dense_tail(20, True), TRAINING
    ),
    "pieces, not concatenations, inference": Case(
        False, PIECES, on_pieces(False), on_concatenation(False), FORWARD
    ),
    "pieces, not concatenations, training": Case(
        False, PIECES, on_pieces(True), on_concatenation(True), TRAINING
    ),
    "3x3 to few classes as 1x1": Case(False, (Site(2, 128, ((3, 3, 128, 3),)),), to_few, conv),
    "pyramid pools from each other": Case(True, (Site(2, 124, ()),), pools, separate_pools),
    "stem by space to depth": Case(
        False, (Site(1, 1, ((7, 7, 3, 64),)),), stem_space_to_depth, stem_strided
    ),
    "stem as 3D convolution": Case(False, (Site(1, 1, ((7, 7, 3, 64),)),), stem_3d, stem_strided),
    "3x3x3 pool in two steps": Case(True, (Site(2, 64, ()),), pool_in_two_steps, pool_3d),
    "slice pool on folded maps": Case(
        True,
        (Site(2, 64, ()), Site(8, 512, (), 2), Site(16, 1024, (), 2), Site(32, 2048, (), 2)),
        slice_pool_folded,
        slice_pool_3d,
    ),
    "slice convolution on folded maps": Case(
        True,
        tuple(Site(stride, 20, ((3, 1, 20, 20),), count) for stride, count in DENSE),
        across_folded,
        across_3d,
    ),
    "slices folded into the batch, 3x3": Case(
        True,
        tuple(Site(s, width, ((3, 3, width, width),), count) for s, width, count in STAGES)
        + tuple(Site(s, 80, ((3, 3, 80, 20),), count) for s, count in DENSE),
        conv,
        conv_3d,
    ),
    "slices folded into the batch, norm": Case(
        True,
        tuple(Site(s, width, ((4, width),), 2 * count) for s, width, count in STAGES)
        + tuple(Site(s, 4 * width, ((4, 4 * width),), count) for s, width, count in STAGES)
        + NORMS,
        norm_folded,
        norm_5d,
        TRAINING,
    ),
    "strides padded first": Case(
        True,
        tuple(Site(s // 2, width, ((3, 3, width, width),)) for s, width, _ in STAGES[1:]),
        strided_padded,
        strided_explicit,
    ),
    "upsampling of slices as product": Case(
        True,
        (Site(2, 3, ()), Site(4, 64, ()), Site(8, 256, ()), Site(16, 512, ()), Site(32, 1024, ())),
        upsample_matmul,
        upsample_gather,
    ),
    "transposed convolution as 1x1": Case(
        True,
        (
            Site(2, 3, ((2, 2, 2, 3, 3),)),
            Site(4, 64, ((2, 2, 2, 64, 64),)),
            Site(8, 256, ((2, 2, 2, 256, 256),)),
        ),
        transposed_as_1x1,
        transposed_3d,
    ),
    "own group norm": Case(
        True,
        tuple(Site(s, width, (), 2 * count) for s, width, count in STAGES)
        + tuple(Site(s, 4 * width, (), count) for s, width, count in STAGES)
        + tuple(Site(site.stride, site.channels, (), site.count) for site in NORMS),
        group_norm_own,
        group_norm_keras,
    ),
}


def inputs_of(site: Site, image: tuple[int, int], dtype: str) -> list[tf.Tensor]:
    """Returns noise for a site's maps and weights."""
    slices, size = image
    generator = np.random.default_rng(0)
    plane = [size // site.stride] * 2
    channels = (site.channels,) if isinstance(site.channels, int) else site.channels
    shapes = [[max(1, slices // site.stride), *plane, width] for width in channels]
    arrays = [generator.standard_normal(shape, np.float32) for shape in shapes]
    for shape in site.weights:
        scale = 1 if len(shape) == 2 else math.prod(shape[:-1]) ** -0.5
        arrays.append(scale * generator.standard_normal(shape, np.float32))
    return [tf.constant(array, dtype) for array in arrays]


def step_of(function: Callable, kind: str) -> Callable:
    """Returns a compiled forward pass, or one with the gradients of all inputs."""

    @tf.function
    def forward(*inputs):
        return function(*inputs)

    @tf.function
    def training(*inputs):
        # Nothing before the stem learns, so the image has no gradient.
        learning = inputs[1:] if inputs[0].shape[-1] == 1 else inputs
        with tf.GradientTape() as tape:
            tape.watch(learning)
            outputs = tf.nest.flatten(function(*inputs))
            loss = tf.add_n([tf.reduce_sum(tf.cast(y, tf.float32)) for y in outputs])
        return tape.gradient(loss, learning)

    return forward if kind == "forward" else training


def cpu_seconds(step: Callable, inputs: Sequence[tf.Tensor]) -> float:
    """Returns the CPU seconds of a call."""
    start = time.process_time()
    for value in tf.nest.flatten(step(*inputs)):
        if value is not None:
            tf.reshape(value, [-1])[0].numpy()
    return time.process_time() - start


def measure(name: str, work: str, precision: str, turns: int) -> dict:
    """Measures a case at all of its sites; returns its figures."""
    case, kind = CASES[name], work.split("-")[0]
    saved, fast_total = 0.0, 0.0
    for site in case.sites:
        inputs = inputs_of(site, WORKS[work], precision)
        steps = {key: step_of(getattr(case, key), kind) for key in ("fast", "plain")}
        seconds = {key: [] for key in steps}
        for turn in range(WARM_UP + turns):
            for key, step in steps.items():
                taken = cpu_seconds(step, inputs)
                if turn >= WARM_UP:
                    seconds[key].append(taken)
        fast, plain = (statistics.median(taken) for taken in seconds.values())
        saved += site.count * (plain - fast)
        fast_total += site.count * fast
    return {
        "case": name,
        "used": case.used,
        "work": work,
        "precision": precision,
        "fast_cpu_seconds": fast_total,
        "saved_cpu_seconds": saved,
        "onednn": ONEDNN,
    }


def measure_whole(work: str, precision: str) -> dict:
    """Measures the whole network."""
    from benchmarks import tensorflow_worker

    kind, (slices, size) = work.split("-")[0], WORKS[work]
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    tensorflow_worker.prepare(kind, (1, slices, size, size, 1), precision, threads)
    step = tensorflow_worker.STATE.pop("step")
    seconds = [cpu_seconds(step, ()) for _ in range(4)][1:]
    tf.keras.mixed_precision.set_global_policy("float32")
    return {
        "case": "whole network",
        "work": work,
        "precision": precision,
        "fast_cpu_seconds": min(seconds),
        "onednn": ONEDNN,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = make_parser(
        "benchmarks.network_tricks",
        __doc__.splitlines()[0],
        ["python -m benchmarks.network_tricks"],
    )
    cases = ("whole network", *CASES)
    parser.add_argument("--case", choices=cases, action="append", help="may be repeated")
    parser.add_argument("--work", choices=WORKS, action="append", help="may be repeated")
    parser.add_argument("--precision", choices=PRECISIONS, action="append", help="may be repeated")
    parser.add_argument("--turns", type=int, default=5, help="timed calls of each (default: 5)")
    parser.add_argument("--threads", type=int, default=2, help="threads (default: 2)")
    return run_command(_run, parser.parse_args(argv))


def _run(arguments) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
    tf.config.threading.set_inter_op_parallelism_threads(arguments.threads)
    for work in arguments.work or WORKS:
        for precision in arguments.precision or PRECISIONS:
            for name in arguments.case or ("whole network", *CASES):
                if name == "whole network":
                    found = measure_whole(work, precision)
                elif work.split("-")[0] in CASES[name].kinds:
                    found = measure(name, work, precision, arguments.turns)
                else:
                    continue
                print(
                    {k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()},
                    flush=True,
                )
                _add(found, arguments)


def _add(found: dict, arguments) -> None:
    keys = ("case", "work", "precision", "onednn")
    figures = [
        figure
        for figure in read_report("network_tricks")["figures"]
        if any(figure[key] != found[key] for key in keys)
    ]
    with contextlib.redirect_stdout(None):
        write_report(
            "network_tricks",
            [*figures, found],
            [],
            versions("tensorflow", "keras", "numpy"),
            {"turns": arguments.turns, "threads": arguments.threads},
        )


if __name__ == "__main__":
    sys.exit(main())
