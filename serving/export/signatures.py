"""Signatures of an exported network, as called by TF Serving, TFMA and the clients."""

from __future__ import annotations

import json
from collections.abc import Callable

import keras
import tensorflow as tf

from ahnet_tf.inference.predictor import ExportSettings
from ahnet_tf.keras_versions import tensorflow_variables
from ahnet_tf.networks.inputs import network_probabilities
from preprocessing.records.schema import parse_example
from serving import protocol


def build_signatures(
    network: keras.Model, settings: ExportSettings
) -> tuple[tf.Module, dict[str, tf.types.experimental.ConcreteFunction]]:
    """Returns a module that owns the network's variables, and the signatures of the export.

    All sizes are dynamic. Windows are [batch, z, y, x, channel] of raw intensities (HU in CT).

    - `predict_windows`: `image` float32 -> `probabilities` float32 [batch, z, y, x, class]; also
      named `serving_default`.
    - `segment`: `image` float32 -> `label` uint8 [batch, z, y, x], the most probable class.
    - `predict_windows_int16`, `segment_int16` (or `_uint16`): the same for `image` in the task's
      stored dtype, which halves the request.
    - `serialized_examples`: `examples` string [batch], records with the task's patch shape ->
      exact counts of the voxels with weight above 0: `counts` int64 [batch, class, 3]
      (intersection, predicted, reference) and `confusion` int64 [batch, reference class, predicted
      class]. For heat map tasks also `lesion_probability` float32 [batch, z, y, x].
    - `describe`: `unused` int32 [batch] -> `settings` string [batch], the JSON of
      `assets.extra/ahnet.json`. (TF Serving with batching refuses signatures without an input.)
    """
    classes = settings.model.class_count
    # All signatures share one trace of the network.
    windows = [None, None, None, None, settings.model.channels]

    @tf.function(input_signature=[tf.TensorSpec(windows, tf.float32)], autograph=False)
    def probabilities(image: tf.Tensor) -> tf.Tensor:
        return network_probabilities(network, image, settings.model.activation)

    def labels_of(found: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.argmax(found, axis=-1), tf.uint8)

    def predict_windows(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probabilities": probabilities(tf.cast(image, tf.float32))}

    def segment(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"label": labels_of(probabilities(tf.cast(image, tf.float32)))}

    def serialized_examples(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        z, y, x = settings.task.patch_shape_zyx
        image, reference, weight = tf.map_fn(
            lambda example: _voxels(parse_example(example, settings.task)),
            examples,
            fn_output_signature=(
                tf.TensorSpec([z, y, x, 1], tf.float32),
                tf.TensorSpec([z, y, x], tf.uint8),
                tf.TensorSpec([z, y, x], tf.float32),
            ),
        )
        found = probabilities(image)
        confusion = confusion_counts(reference, labels_of(found), weight, classes)
        answer = {"counts": dice_counts(confusion), "confusion": confusion}
        if settings.task.target == "heat_map":
            answer["lesion_probability"] = found[..., 1]
        return answer

    def describe(unused: tf.Tensor) -> dict[str, tf.Tensor]:
        text = json.dumps(settings.to_dict(), sort_keys=True)
        return {protocol.SETTINGS_OUTPUT: tf.fill(tf.shape(unused), text)}

    examples_spec = tf.TensorSpec([None], tf.string, "examples")
    unused_spec = tf.TensorSpec([None], tf.int32, protocol.UNUSED_INPUT)
    signatures = {
        protocol.SERIALIZED_EXAMPLES: _trace(serialized_examples, examples_spec),
        protocol.DESCRIBE: _trace(describe, unused_spec),
    }
    stored = settings.task.image_dtype
    of_windows = {protocol.PREDICT_WINDOWS: predict_windows, protocol.SEGMENT: segment}
    for name, function in of_windows.items():
        for key, dtype in ((name, "float32"), (protocol.stored_signature(name, stored), stored)):
            spec = tf.TensorSpec(windows, tf.as_dtype(dtype), "image")
            signatures[key] = _trace(function, spec)
    signatures[protocol.SERVING_DEFAULT] = signatures[protocol.PREDICT_WINDOWS]

    # Only the variables: a tracked Keras model would add a copy of every layer's graph.
    module = tf.Module()
    module.network_variables = tensorflow_variables(network.variables)
    return module, signatures


def confusion_counts(
    reference: tf.Tensor, predicted: tf.Tensor, weight: tf.Tensor, classes: int
) -> tf.Tensor:
    """Counts voxels by reference and predicted class where the weight is above 0.

    Takes uint8 labels and float32 weights (0 where a patch doesn't count) [batch, z, y, x], and
    returns int64 [batch, reference class, predicted class].
    """
    pair = tf.cast(reference, tf.int32) * classes + tf.cast(predicted, tf.int32)
    # One more bin, for the ignored voxels.
    pair = tf.where(weight > 0, pair, classes * classes)
    flat = tf.reshape(pair, [tf.shape(pair)[0], -1])
    bins = classes * classes + 1
    counts = tf.math.bincount(flat, minlength=bins, maxlength=bins, axis=-1, dtype=tf.int64)
    return tf.reshape(counts[:, :-1], [-1, classes, classes])


def dice_counts(confusion: tf.Tensor) -> tf.Tensor:
    """Returns int64 [batch, class, 3]: intersection, predicted and reference voxels."""
    intersection = tf.linalg.diag_part(confusion)
    predicted = tf.reduce_sum(confusion, axis=1)
    reference = tf.reduce_sum(confusion, axis=2)
    return tf.stack([intersection, predicted, reference], axis=-1)


def _trace(function: Callable, spec: tf.TensorSpec) -> tf.types.experimental.ConcreteFunction:
    # Autograph is not needed, and doubles the time of tracing.
    return tf.function(function, input_signature=[spec], autograph=False).get_concrete_function()


def _voxels(record: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    return tf.cast(record["image"], tf.float32), record["label"], record["weight"]
