"""Exports a trained network as a SavedModel for TF Serving, and as an ONNX file."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import keras
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from ahnet_tf.inference.predictor import (
    IMAGE_INPUT,
    PROBABILITIES_OUTPUT,
    SETTINGS_FILE,
    ExportSettings,
)
from ahnet_tf.networks import build_network
from ahnet_tf.networks.factory import named_weights
from ahnet_tf.networks.factory import precision as computing_in
from ahnet_tf.networks.inputs import network_probabilities
from ahnet_tf.weights.checkpoint import assign_weights
from preprocessing.errors import ModelError, named_extra
from preprocessing.files import atomic_write, write_json
from preprocessing.quiet_start import quiet_saving
from serving import protocol
from serving.export.signatures import build_signatures

# Large enough to run every layer; graph optimization, the slow part, does not depend on the size.
WARM_UP_SHAPE_ZYX = (8, 64, 64)

# The newest ONNX operator set that the converter writes and that runtimes have long supported.
OPSET = 17
ONNX_SETTINGS_KEY = "ahnet"


def export_model(
    model: keras.Model,
    settings: ExportSettings,
    output: str | Path,
    *,
    precision: str = "float32",
    onnx: str | Path | None = None,
) -> Path:
    """Writes a network as a SavedModel in TF Serving's layout, atomically, and returns its path.

    The signatures are those of `signatures.build_signatures`. `assets.extra/ahnet.json` holds the
    settings, `assets.extra/tf_serving_warmup_requests` the warm-up requests (PredictionLog records).

    `model` maps float32 raw intensities [batch, z, y, x, channel] to logits [batch, z, y, x,
    class]; `settings` say what it was trained for. `output` is the SavedModel folder, DIR/VERSION
    for a server; an earlier export there is replaced. `precision`, "float32" or "bfloat16", is that
    of computation and weights in the export, whatever the network was trained in. `onnx` is a file
    that also gets `predict_windows`. ModelError if network, configuration and task do not match.
    """
    _check(model, settings, output)
    settings = attrs.evolve(settings, precision=precision)
    network = _in_precision(model, settings)
    module, signatures = build_signatures(network, settings)
    with atomic_write(output) as folder, quiet_saving():
        tf.saved_model.save(module, str(folder), signatures=signatures)
        write_json(folder / SETTINGS_FILE, settings.to_dict())
        _write_warm_up(folder / protocol.WARM_UP_FILE, settings)
        if onnx is not None:
            export_onnx(network, settings, onnx)
    return Path(output)


def export_onnx(network: keras.Model, settings: ExportSettings, output: str | Path) -> Path:
    """Writes `image` float32 [batch, z, y, x, channel] -> `probabilities` float32 [batch, z, y, x, class].

    The network maps raw intensities to logits in float32. All sizes except the number of channels are
    dynamic. The file's metadata holds the settings under "ahnet". It is written atomically. Raises
    ModelError if the converter is not installed.
    """
    with named_extra(ModelError):
        import onnx
        from tf2onnx import optimizer, tf_loader, tfonnx

    windows = [None, None, None, None, settings.model.channels]

    @tf.function(input_signature=[tf.TensorSpec(windows, tf.float32, "image")], autograph=False)
    def probabilities(image: tf.Tensor) -> tf.Tensor:
        return network_probabilities(network, image, settings.model.activation)

    traced = probabilities.get_concrete_function()
    (image,) = (tensor.name for tensor in traced.inputs if tensor.dtype != tf.resource)
    (answer,) = (tensor.name for tensor in traced.outputs)
    frozen = tf_loader.from_function(traced, [image], [answer])
    with tf.Graph().as_default() as graph:
        tf.graph_util.import_graph_def(frozen, name="")
        converted = tfonnx.process_tf_graph(
            graph,
            opset=OPSET,
            input_names=[image],
            output_names=[answer],
            tensors_to_rename={image: IMAGE_INPUT, answer: PROBABILITIES_OUTPUT},
        )
    # Without the merging of reshapes, which gives a wrong shape for two consecutive reshapes whose
    # second keeps sizes by zeros.
    optimizations = {
        "optimize_transpose": optimizer.TransposeOptimizer,
        "fold_constants": optimizer.ConstFoldOptimizer,
        "merge_duplication": optimizer.MergeDuplicatedNodesOptimizer,
        "remove_identity": optimizer.IdentityOptimizer,
    }
    model = optimizer.optimize_graph(converted, False, optimizations).make_model("ahnet")
    onnx.helper.set_model_props(model, {ONNX_SETTINGS_KEY: json.dumps(settings.to_dict())})
    with atomic_write(output) as temporary:
        onnx.save(model, str(temporary))
    return Path(output)


def _check(model: keras.Model, settings: ExportSettings, output: str | Path) -> None:
    config, task = settings.model, settings.task
    if config.class_count != len(task.class_names):
        expected = f"a network with {len(task.class_names)} classes, as in task {task.name!r}"
        raise ModelError(output, expected, f"{config.classes} classes")
    found = (model.input_shape[-1], model.output_shape[-1])
    if found != (config.channels, config.classes):
        expected = f"a network with {config.channels} channels and {config.classes} classes"
        raise ModelError(output, expected, f"{found[0]} and {found[1]}")


def _in_precision(model: keras.Model, settings: ExportSettings) -> keras.Model:
    """Returns the network, rebuilt if it computes in another precision than the settings say."""
    computed = {layer.compute_dtype for layer in model.layers}
    if settings.precision == "float32" and computed <= {"float32"}:
        return model
    with computing_in(settings.precision):
        network = build_network(settings.model, seed=None)
    assign_weights(network, {name: weight.numpy() for name, weight in named_weights(model).items()})
    return network


def _write_warm_up(path: Path, settings: ExportSettings) -> None:
    """Writes one small request for each signature that takes windows, and one for `describe`."""
    sizes = [min(pair) for pair in zip(settings.window_shape_zyx, WARM_UP_SHAPE_ZYX, strict=True)]
    shape = (1, *sizes, settings.model.channels)
    stored = settings.task.image_dtype
    inputs = {}
    for name in (protocol.PREDICT_WINDOWS, protocol.SEGMENT):
        for key, dtype in ((name, "float32"), (protocol.stored_signature(name, stored), stored)):
            inputs[key] = (IMAGE_INPUT, tf.make_tensor_proto(0, tf.as_dtype(dtype), shape))
    inputs[protocol.DESCRIBE] = (protocol.UNUSED_INPUT, tf.make_tensor_proto([0], tf.int32))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for key, (name, content) in inputs.items():
            request = predict_pb2.PredictRequest(inputs={name: content})
            request.model_spec.name = protocol.DEFAULT_MODEL_NAME
            request.model_spec.signature_name = key
            log = prediction_log_pb2.PredictLog(request=request)
            record = prediction_log_pb2.PredictionLog(predict_log=log)
            writer.write(record.SerializeToString(deterministic=True))
