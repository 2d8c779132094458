"""TF Serving's REST bodies: JSON -> tensors of a call, outputs -> JSON."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

import grpc
import numpy as np
import tensorflow as tf

from serving import protocol
from serving.embedded.batching import Outputs
from serving.embedded.loaded_model import Call, ServedModel, call_of, find_signature
from serving.protocol import RefusedError, malformed

# A number takes about twenty characters, and as many bytes again while it is written.
MAX_ANSWER_ELEMENTS = 4 * 2**20

_KEYS = {"signature_name", "instances", "inputs"}


def parse_body(content: bytes) -> dict[str, Any]:
    """Returns the JSON object of a predict request.

    Raises:
      RefusedError: (INVALID_ARGUMENT) no JSON, or without exactly one of "instances" and "inputs".
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise malformed("body: expected JSON") from None
    if not isinstance(body, dict) or not set(body) <= _KEYS:
        raise malformed('body: expected an object of "signature_name", "instances" or "inputs"')
    if ("instances" in body) == ("inputs" in body):
        raise malformed('body: expected exactly one of "instances" and "inputs"')
    if not isinstance(body.get("signature_name", ""), str):
        raise malformed("signature_name: expected a string")
    return body


def call_from_json(model: ServedModel, body: dict[str, Any], max_voxels: int) -> Call:
    """Returns what a parsed body asks for, checked against the signature.

    Raises:
      RefusedError: (INVALID_ARGUMENT) unknown signature or input, or values that don't fit.
    """
    name, signature = find_signature(model, body.get("signature_name", ""))
    specs = signature.structured_input_signature[1]
    values = _columns(body["instances"], specs) if "instances" in body else body["inputs"]
    if len(specs) == 1 and not isinstance(values, dict):
        values = {next(iter(specs)): values}
    if not isinstance(values, dict) or set(values) != set(specs):
        raise malformed(f"inputs of {name}: expected {', '.join(specs) or 'none'}")
    arrays = {
        key: _array(values[key], spec, f"input {key} of {name}") for key, spec in specs.items()
    }
    return call_of(model, name, arrays, (), max_voxels)


def answer_json(call: Call, outputs: Outputs, *, rows: bool) -> bytes:
    """Returns the JSON of outputs: {"predictions": [...]} for rows, {"outputs": ...} otherwise.

    Raises:
      RefusedError: (RESOURCE_EXHAUSTED) more numbers than JSON is good for.
    """
    elements = sum(array.size for array in outputs.values())
    if elements > MAX_ANSWER_ELEMENTS:
        raise RefusedError(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"the answer of {elements} numbers is above the limit of {MAX_ANSWER_ELEMENTS} for JSON; "
            "use gRPC, or the signature segment",
        )
    plain = {name: _plain(array) for name, array in outputs.items()}
    only = next(iter(plain.values())) if len(plain) == 1 else None
    if not rows:
        content = {"outputs": plain if only is None else only}
    elif only is not None:
        content = {"predictions": only}
    else:
        columns = zip(*plain.values(), strict=True)
        content = {"predictions": [dict(zip(plain, row, strict=True)) for row in columns]}
    return json.dumps(content, separators=(",", ":")).encode()


def _columns(instances: Any, specs: dict[str, tf.TensorSpec]) -> Any:
    """Turns rows into columns, where rows are objects of named inputs."""
    if not isinstance(instances, list) or not instances:
        raise malformed("instances: expected a list with at least one entry")
    named = [isinstance(each, dict) and set(each) == set(specs) for each in instances]
    if not all(named):
        return instances
    return {name: [each[name] for each in instances] for name in specs}


def _array(values: Any, spec: tf.TensorSpec, where: str) -> np.ndarray:
    if spec.dtype == tf.string:
        return _strings(values, where)
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError, TypeError, RecursionError):
        raise malformed(f"{where}: expected nested lists of one shape") from None
    if array.dtype.kind not in "iuf":
        raise malformed(f"{where}: expected numbers")
    protocol.check_finite(array, where)
    if spec.dtype.is_integer:
        fits = array.size == 0 or (
            spec.dtype.min <= array.min()
            and array.max() <= spec.dtype.max
            and not np.any(array % 1)
        )
        if not fits:
            raise malformed(f"{where}: expected {spec.dtype.name} values")
    with np.errstate(over="ignore"):
        array = array.astype(spec.dtype.as_numpy_dtype)
    protocol.check_finite(array, where)
    return array


def _strings(values: Any, where: str) -> np.ndarray:
    """Returns bytes [batch] of a list of texts or {"b64": ...} objects."""
    if not isinstance(values, list):
        raise malformed(f"{where}: expected a list of strings")
    found = []
    for value in values:
        if isinstance(value, dict) and set(value) == {"b64"} and isinstance(value["b64"], str):
            try:
                found.append(base64.b64decode(value["b64"], validate=True))
            except (binascii.Error, ValueError):
                raise malformed(f"{where}: expected base64") from None
        elif isinstance(value, str):
            found.append(value.encode("utf-8", "surrogatepass"))
        else:
            raise malformed(f'{where}: expected strings or {{"b64": ...}}')
    array = np.empty(len(found), object)
    array[:] = found
    return array


def _plain(array: np.ndarray) -> Any:
    if array.dtype.kind != "O":
        return array.tolist()
    # Texts, which only `describe` answers with.
    decoded = np.vectorize(lambda value: value.decode("utf-8", "replace"), otypes=[object])(array)
    return decoded.tolist()
