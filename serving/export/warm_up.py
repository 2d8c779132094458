"""Warm-up requests beside an export: replayed before a version answers its first real request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from preprocessing.errors import ModelError
from serving import protocol

WARM_UP_FILE = "assets.extra/tf_serving_warmup_requests"
# Enough for every layer to run; graph optimisation, the slow part, does not depend on the size.
WARM_UP_SHAPE_ZYX = (8, 64, 64)
# TF Serving refuses files with more records.
MOST_RECORDS = 1000


def write_warm_up(
    export: Path, *, window_shape_zyx: tuple[int, int, int], channels: int, image_dtype: str
) -> None:
    """Writes one small request for each signature that takes windows, and one for `describe`."""
    sizes = [min(pair) for pair in zip(window_shape_zyx, WARM_UP_SHAPE_ZYX, strict=True)]
    requests = []
    for name in (protocol.PREDICT_WINDOWS, protocol.SEGMENT):
        for key, dtype in (
            (name, "float32"),
            (protocol.stored_signature(name, image_dtype), image_dtype),
        ):
            request = _request(key)
            image = protocol.repeated_value(0, (1, *sizes, channels), tf.as_dtype(dtype))
            request.inputs["image"].CopyFrom(image)
            requests.append(request)
    describe = _request(protocol.DESCRIBE)
    describe.inputs[protocol.UNUSED_INPUT].CopyFrom(tf.make_tensor_proto([0], tf.int32))
    requests.append(describe)
    path = export / WARM_UP_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for request in requests:
            log = prediction_log_pb2.PredictLog(request=request)
            record = prediction_log_pb2.PredictionLog(predict_log=log)
            writer.write(record.SerializeToString(deterministic=True))


def read_warm_up(export: Path) -> Iterator[predict_pb2.PredictRequest]:
    """Yields the warm-up requests of an export; none if it has no such file.

    Raises:
      ModelError: the file is damaged.
    """
    path = export / WARM_UP_FILE
    if not path.is_file():
        return
    wanted, remedy = "a TFRecord of PredictionLog messages", "Export the model again."
    found = 0
    try:
        for record in tf.data.TFRecordDataset(str(path)).take(MOST_RECORDS).as_numpy_iterator():
            log = prediction_log_pb2.PredictionLog.FromString(record)
            found += 1
            if log.HasField("predict_log"):
                yield log.predict_log.request
    except (tf.errors.DataLossError, DecodeError):
        raise ModelError(path, wanted, "a damaged file", remedy) from None
    # To TensorFlow, a file that is cut off within its first record's header is an empty one.
    if not found:
        raise ModelError(path, wanted, "none", remedy)


def _request(signature_name: str) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = protocol.DEFAULT_MODEL_NAME
    request.model_spec.signature_name = signature_name
    return request
