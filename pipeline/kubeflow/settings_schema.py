"""`python -m pipeline.kubeflow.settings_schema`: prints the JSON Schema of a cluster's settings.

For editors and other tools; the settings are checked by their classes, which give clearer errors.
"""

from __future__ import annotations

import json
from typing import Any, get_args, get_origin

import attrs

from pipeline.kubeflow.cluster import KubeflowSettings, TextRequirement
from preprocessing.settings import Requirement

_NAMES = {str: "string", int: "integer"}


def settings_schema() -> dict[str, Any]:
    """Returns the JSON Schema of `KubeflowSettings`."""
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return dialect | {"title": "Settings of a cluster"} | _schema(KubeflowSettings)


def _schema(kind: Any) -> dict[str, Any]:
    """Returns the schema of a type that settings are made of."""
    if attrs.has(kind):
        fields = attrs.fields(attrs.resolve_types(kind))
        return {
            "type": "object",
            "properties": {field.name: _property(field) for field in fields},
            "required": [field.name for field in fields if field.default is attrs.NOTHING],
            "additionalProperties": False,
        }
    if get_origin(kind) is tuple:
        return {"type": "array", "items": _schema(get_args(kind)[0])}
    if get_origin(kind) is dict:
        return {"type": "object", "additionalProperties": _schema(get_args(kind)[1])}
    return {"type": _NAMES[kind]}


def _property(field: Any) -> dict[str, Any]:
    """Returns the schema of a field: its type's, and what its requirement adds."""
    schema = _schema(field.type)
    requirement = field.validator
    if isinstance(requirement, Requirement):
        schema["description"] = requirement.expected
        if requirement.choices:
            schema["enum"] = list(requirement.choices)
    if isinstance(requirement, TextRequirement):
        schema["pattern"] = f"^({requirement.pattern})$"
    return schema


if __name__ == "__main__":
    print(json.dumps(settings_schema(), indent=2))
