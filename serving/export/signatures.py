"""The signatures of an exported network: what TF Serving, TFMA and the client call."""

from __future__ import annotations

import json

import tensorflow as tf

from ahnet_tf.inference.predictor import ExportSettings
from ahnet_tf.networks.inputs import class_probabilities
from preprocessing.records.schema import parse_example
from serving import protocol


def build_signatures(
    network: tf.keras.Model, settings: ExportSettings
) -> tuple[tf.Module, dict[str, tf.types.experimental.ConcreteFunction]]:
    """Returns a module that holds the network's variables, and its signatures.

    All sizes are dynamic; shapes are [batch, z, y, x, channel] in, [batch, z, y, x, class] out.

    - `predict_windows`: `image` float32, raw intensities (HU in CT) -> `probabilities` float32.
      `serving_default` is the same.
    - `segment`: `image` float32 -> `label` uint8 [batch, z, y, x], the most probable class; an
      answer 4 x classes times smaller.
    - `predict_windows_int16`, `segment_int16` (`_uint16` where the task stores uint16): the same
      with voxels as they are stored, half the request.
    - `serialized_examples`: `examples` string [batch], records of the project's contract with the
      task's patch shape -> exact sums over the voxels of weight above 0, for Dice over the patches
      of a case: `counts` int64 [batch, class, 3] (intersection, predicted, reference) and
      `confusion` int64 [batch, reference class, predicted class], which also answers for unions
      of classes, such as LiTS' liver (label >= 1). Where the task's target is a heat map also
      `lesion_probability` float32 [batch, z, y, x], for lesions and FROC.
    - `describe`: `unused` int32 [batch] -> `settings` string [batch], the JSON of
      `assets.extra/ahnet.json` as often as there are inputs. (TF Serving with batching refuses
      signatures without an input.)
    """
    classes = settings.model.classes
    # The network is traced once, for all sizes, and called by every signature. Nothing here needs
    # Autograph, which takes as long again as the tracing.
    windows = [None, None, None, None, settings.model.channels]

    @tf.function(input_signature=[tf.TensorSpec(windows, tf.float32)], autograph=False)
    def probabilities(image: tf.Tensor) -> tf.Tensor:
        return class_probabilities(network(image, training=False), settings.model.activation)

    def labels(image: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.argmax(probabilities(image), axis=-1), tf.uint8)

    def predict_windows(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probabilities": probabilities(tf.cast(image, tf.float32))}

    def segment(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"label": labels(tf.cast(image, tf.float32))}

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.string, name="examples")], autograph=False
    )
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
        predicted = tf.cast(tf.argmax(found, axis=-1), tf.uint8)
        confusion = confusion_counts(reference, predicted, weight, classes)
        answer = {"counts": dice_counts(confusion), "confusion": confusion}
        if settings.task.target == "heat_map":
            answer["lesion_probability"] = found[..., 1]
        return answer

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.int32, name=protocol.UNUSED_INPUT)],
        autograph=False,
    )
    def describe(unused: tf.Tensor) -> dict[str, tf.Tensor]:
        text = json.dumps(settings.to_dict(), sort_keys=True)
        return {protocol.SETTINGS_OUTPUT: tf.fill(tf.shape(unused), text)}

    stored = settings.task.image_dtype
    signatures = {
        protocol.SERIALIZED_EXAMPLES: serialized_examples.get_concrete_function(),
        protocol.DESCRIBE: describe.get_concrete_function(),
    }
    for name, function in (
        (protocol.PREDICT_WINDOWS, predict_windows),
        (protocol.SEGMENT, segment),
    ):
        for key, dtype in ((name, "float32"), (protocol.stored_signature(name, stored), stored)):
            spec = tf.TensorSpec(windows, tf.as_dtype(dtype), name="image")
            traced = tf.function(function, input_signature=[spec], autograph=False)
            signatures[key] = traced.get_concrete_function()
    signatures[protocol.SERVING_DEFAULT] = signatures[protocol.PREDICT_WINDOWS]

    # The variables alone: a tracked Keras model would add a copy of every layer's graph.
    module = tf.Module()
    module.network_variables = network.variables
    return module, signatures


def confusion_counts(
    reference: tf.Tensor, predicted: tf.Tensor, weight: tf.Tensor, classes: int
) -> tf.Tensor:
    """Counts voxels by reference and predicted class where the weight is above 0.

    Args:
      reference: uint8 [batch, z, y, x].
      predicted: uint8 [batch, z, y, x].
      weight: float32 [batch, z, y, x]; 0 marks padding.
      classes: number of classes.

    Returns:
      int64 [batch, reference class, predicted class].
    """
    pair = tf.cast(reference, tf.int32) * classes + tf.cast(predicted, tf.int32)
    # One bin more, for voxels that don't count.
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


def _voxels(record: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    return tf.cast(record["image"], tf.float32), record["label"], record["weight"]
