"""Settings of a cluster: image, storage and resources of a pipeline's pods, in one JSON file."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any

import attrs

from preprocessing.errors import SettingsError
from preprocessing.settings import Requirement, check_names, load_settings, one_of, to_dict, whole

# The key of `pods` that speaks for every component without an entry of its own.
DEFAULT_POD = "default"

_NAME_PATTERN = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_IMAGE = re.compile(r"\S+")
# The object store that TensorFlow and Beam read and write by themselves.
OBJECT_STORE = "gs://"
# Kubernetes' quantities: how much one of each unit is.
_UNITS = {"m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_UNITS |= {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_QUANTITY_PATTERN = re.compile(
    rf"(\d+(?:\.\d+)?)({'|'.join(sorted(_UNITS, key=len, reverse=True))})"
)


_NAME = Requirement("a name in Kubernetes", lambda value: bool(_NAME_PATTERN.fullmatch(value)))
_PATH = Requirement(
    "an absolute path, as pods see it", lambda value: PurePosixPath(value).is_absolute()
)
_QUANTITY = Requirement(
    'a quantity like "4", "500m" or "32Gi"',
    lambda value: value == "" or bool(_QUANTITY_PATTERN.fullmatch(value)),
)
_TOLERATION_KEYS = ("key", "operator", "value", "effect")


def _are_variables(names: Collection[str]) -> bool:
    return all(_VARIABLE.fullmatch(name) for name in names)


@attrs.frozen
class VolumeSettings:
    """A persistent volume that every pod sees.

    Attributes:
      claim: name of the PersistentVolumeClaim, in the namespace of the runs.
      mount_path: where pods see it.
    """

    claim: str = attrs.field(validator=_NAME)
    mount_path: str = attrs.field(validator=_PATH)


@attrs.frozen
class SecretSettings:
    """A secret of the cluster that every pod is given.

    Attributes:
      name: of the Secret, in the namespace of the runs.
      variables: environment variable by key of the secret.
      mount_path: folder that its keys appear in as files; empty for none.
    """

    name: str = attrs.field(validator=_NAME)
    variables: dict[str, str] = attrs.field(
        factory=dict,
        validator=Requirement(
            "an object of names of variables", lambda value: _are_variables(value.values())
        ),
    )
    mount_path: str = attrs.field(
        default="",
        validator=Requirement(_PATH.expected, lambda value: value == "" or _PATH.holds(value)),
    )

    def __attrs_post_init__(self) -> None:
        if not self.variables and not self.mount_path:
            raise SettingsError(f"secret {self.name}", "variables or a mount_path", "neither")


@attrs.frozen
class PodSettings:
    """What the pod of a component may take, and which machines it may run on.

    Attributes:
      cpu: cores, as Kubernetes writes them: "4", "500m"; empty for no limit.
      memory: as Kubernetes writes it: "32Gi"; empty for no limit.
      gpus: number of GPUs.
      gpu_type: the cluster's name for them: a resource in Kubernetes, a type on Vertex AI.
      node_selector: labels that the machine must have.
      tolerations: taints of machines that the pod may run on nevertheless, as Kubernetes writes them.
      environment: variables of the pod, by name.
      labels: of the pod, by which a service or a policy of the cluster finds it.
    """

    cpu: str = attrs.field(default="", validator=_QUANTITY)
    memory: str = attrs.field(default="", validator=_QUANTITY)
    gpus: int = attrs.field(default=0, validator=whole(0))
    gpu_type: str = attrs.field(
        default="nvidia.com/gpu", validator=Requirement("the name of a resource", bool)
    )
    node_selector: dict[str, str] = attrs.field(factory=dict)
    tolerations: tuple[dict[str, str], ...] = attrs.field(
        default=(),
        validator=Requirement(
            f"a list of objects with keys among {', '.join(_TOLERATION_KEYS)}",
            lambda value: all({*toleration} <= {*_TOLERATION_KEYS} for toleration in value),
        ),
    )
    environment: dict[str, str] = attrs.field(
        factory=dict,
        validator=Requirement("an object of texts, by names of variables", _are_variables),
    )
    labels: dict[str, str] = attrs.field(factory=dict)


@attrs.frozen
class KubeflowSettings:
    """Everything about a cluster; what a pipeline computes is no part of it.

    Attributes:
      image: the project's image (see Dockerfile), which every component runs in.
      storage_root: folder of the pipeline's outputs as pods see it: on one of `volumes`, or gs://...
      image_pull_policy: "Always", "IfNotPresent" or "Never".
      image_pull_secrets: names of the secrets that the image's registry asks for.
      volumes: persistent volumes.
      secrets: secrets of the cluster.
      pods: resources by component; "default" for all others.
      beam_options: Beam's command line for every component that runs on Beam.
    """

    image: str = attrs.field(
        validator=Requirement("the name of an image", lambda value: bool(_IMAGE.fullmatch(value)))
    )
    storage_root: str
    image_pull_policy: str = attrs.field(
        default="IfNotPresent", validator=one_of("Always", "IfNotPresent", "Never")
    )
    image_pull_secrets: tuple[str, ...] = attrs.field(
        default=(),
        validator=Requirement(
            "a list of names in Kubernetes", lambda names: all(map(_NAME.holds, names))
        ),
    )
    volumes: tuple[VolumeSettings, ...] = ()
    secrets: tuple[SecretSettings, ...] = ()
    pods: dict[str, PodSettings] = attrs.field(factory=dict)
    beam_options: tuple[str, ...] = attrs.field(
        default=(),
        validator=Requirement(
            'a list of options like "--runner=..."',
            lambda options: all(option.startswith("--") for option in options),
        ),
    )

    def __attrs_post_init__(self) -> None:
        root = self.storage_root
        if root.startswith(OBJECT_STORE) and root != OBJECT_STORE:
            return
        if not _PATH.holds(root):
            raise SettingsError("storage_root", _PATH.expected, repr(root))
        mounts = [volume.mount_path for volume in self.volumes]
        if not any(PurePosixPath(root).is_relative_to(mount) for mount in mounts):
            raise SettingsError(
                "storage_root",
                f"an address {OBJECT_STORE}... or a folder on one of the volumes",
                f"{root}, with {', '.join(mounts) if mounts else 'no volume'}",
                "Pods share no other folder.",
            )

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as plain JSON types, as `read_settings` takes them back."""
        return to_dict(self)

    def pod(self, component: str) -> PodSettings:
        """Returns what the pod of a component may take."""
        return self.pods.get(component) or self.pods.get(DEFAULT_POD) or PodSettings()

    def check_components(self, components: Collection[str]) -> None:
        """Refuses settings of pods for components that the pipeline does not have."""
        check_names(self.pods, [DEFAULT_POD, *components], "pods")


def read_settings(path: str | Path) -> KubeflowSettings:
    """Reads the settings of a cluster from a JSON file.

    Raises:
      SettingsError: no such file, no JSON, an unknown setting (the nearest name is suggested) or a
        value that is not possible.
    """
    return load_settings(path, KubeflowSettings)


def quantity(text: str) -> float:
    """Returns the number that a quantity of Kubernetes stands for: "500m" is 0.5, "1Ki" is 1024."""
    match = _QUANTITY_PATTERN.fullmatch(text)
    if not match:
        raise SettingsError("quantity", _QUANTITY.expected, repr(text))
    return float(match[1]) * _UNITS[match[2]]
