"""A network as an ONNX file: the same windows in, the same probabilities out, without TensorFlow."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import tensorflow as tf

from ahnet_tf.inference.predictor import IMAGE_INPUT, PROBABILITIES_OUTPUT, ExportSettings
from ahnet_tf.networks.inputs import class_probabilities
from preprocessing.files import atomic_write

# The newest that the converter writes and that runtimes have known for years.
OPSET = 17
SETTINGS_KEY = "ahnet"


def export_onnx(network: tf.keras.Model, settings: ExportSettings, output: str | Path) -> Path:
    """Writes `image` float32 [batch, z, y, x, channel] -> `probabilities` float32 [batch, z, y, x, class].

    All sizes but the channels are dynamic. The settings lie in the file's metadata, under "ahnet".

    Args:
      network: raw intensities to logits, in float32.
      settings: what the network was trained for.
      output: the file, which appears whole or not at all.

    Returns:
      `output` as a Path.
    """
    import onnx
    from tf2onnx import optimizer, tf_loader, tfonnx

    windows = [None, None, None, None, settings.model.channels]

    @tf.function(input_signature=[tf.TensorSpec(windows, tf.float32, "image")], autograph=False)
    def probabilities(image: tf.Tensor) -> tf.Tensor:
        return class_probabilities(network(image, training=False), settings.model.activation)

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
    model = optimizer.optimize_graph(converted, False, _optimizers(optimizer)).make_model("ahnet")
    onnx.helper.set_model_props(model, {SETTINGS_KEY: json.dumps(settings.to_dict())})
    with atomic_write(output) as temporary:
        onnx.save(model, str(temporary))
    return Path(output)


def _optimizers(optimizer: ModuleType) -> dict[str, type]:
    """Returns the converter's optimisations by its own names for them, without the reshapes'.

    Of two reshapes in a row, the second with zeros for "as before", that one makes a wrong one.
    """
    return {
        "optimize_transpose": optimizer.TransposeOptimizer,
        "fold_constants": optimizer.ConstFoldOptimizer,
        "merge_duplication": optimizer.MergeDuplicatedNodesOptimizer,
        "remove_identity": optimizer.IdentityOptimizer,
    }
