"""What a cluster needs to know about a pipeline's pods: image, storage, resources; one JSON file."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ahnet_tf.config import from_dict, to_dict
from preprocessing.errors import SettingsError

# The key of `pods` that speaks for every component without an entry of its own.
DEFAULT_POD = "default"

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# The object store that TensorFlow and Beam read and write by themselves.
OBJECT_STORE = "gs://"
# Kubernetes' quantities: how much one of each unit is.
_UNITS = {"m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_UNITS |= {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_QUANTITY = re.compile(rf"(\d+(?:\.\d+)?)({'|'.join(sorted(_UNITS, key=len, reverse=True))})")


@dataclass(frozen=True)
class VolumeSettings:
    """A persistent volume that every pod sees.

    Attributes:
      claim: name of the PersistentVolumeClaim, in the namespace of the runs.
      mount_path: where pods see it.
    """

    claim: str
    mount_path: str

    def __post_init__(self):
        _check("volume: claim", self.claim, _NAME, "a name in Kubernetes")
        _check_path("volume: mount_path", self.mount_path)


@dataclass(frozen=True)
class SecretSettings:
    """A secret of the cluster that every pod is given.

    Attributes:
      name: of the Secret, in the namespace of the runs.
      variables: environment variable by key of the secret.
      mount_path: folder that its keys appear in as files; empty for none.
    """

    name: str
    variables: dict[str, str] = field(default_factory=dict)
    mount_path: str = ""

    def __post_init__(self):
        _check("secret: name", self.name, _NAME, "a name in Kubernetes")
        _check_texts(f"secret {self.name}: variables", self.variables)
        for variable in self.variables.values():
            _check(f"secret {self.name}: variables", variable, _VARIABLE, "names of variables")
        if self.mount_path:
            _check_path(f"secret {self.name}: mount_path", self.mount_path)
        if not self.variables and not self.mount_path:
            raise SettingsError(f"secret {self.name}", "variables or a mount_path", "neither")


@dataclass(frozen=True)
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

    cpu: str = ""
    memory: str = ""
    gpus: int = 0
    gpu_type: str = "nvidia.com/gpu"
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: tuple[dict[str, str], ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        for name in ("cpu", "memory"):
            if getattr(self, name) != "":
                quantity(name, getattr(self, name))
        if not isinstance(self.gpus, int) or isinstance(self.gpus, bool) or self.gpus < 0:
            raise SettingsError("gpus", "a whole number of at least 0", repr(self.gpus))
        if not isinstance(self.gpu_type, str) or not self.gpu_type:
            raise SettingsError("gpu_type", "the name of a resource", repr(self.gpu_type))
        for name in ("node_selector", "environment", "labels"):
            _check_texts(name, getattr(self, name))
        for name in self.environment:
            _check("environment", name, _VARIABLE, "names of variables")
        known = ("key", "operator", "value", "effect")
        for toleration in self.tolerations:
            _check_texts("tolerations", toleration)
            for name in toleration:
                if name not in known:
                    raise SettingsError("tolerations", f"keys among {', '.join(known)}", repr(name))


@dataclass(frozen=True)
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

    image: str
    storage_root: str
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    volumes: tuple[VolumeSettings, ...] = ()
    secrets: tuple[SecretSettings, ...] = ()
    pods: dict[str, PodSettings] = field(default_factory=dict)
    beam_options: tuple[str, ...] = ()

    def __post_init__(self):
        if not isinstance(self.image, str) or not re.fullmatch(r"[^\s]+", self.image):
            raise SettingsError("image", "the name of an image", repr(self.image))
        policies = ("Always", "IfNotPresent", "Never")
        if self.image_pull_policy not in policies:
            known = f"one of {', '.join(policies)}"
            raise SettingsError("image_pull_policy", known, repr(self.image_pull_policy))
        for name in self.image_pull_secrets:
            _check("image_pull_secrets", name, _NAME, "names in Kubernetes")
        for option in self.beam_options:
            if not isinstance(option, str) or not option.startswith("--"):
                raise SettingsError("beam_options", 'options like "--runner=..."', repr(option))
        self._check_storage()

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as plain JSON types, as `read_settings` takes them back."""
        return to_dict(self)

    def pod(self, component: str) -> PodSettings:
        """Returns what the pod of a component may take."""
        return self.pods.get(component) or self.pods.get(DEFAULT_POD) or PodSettings()

    def check_components(self, components: Collection[str]) -> None:
        """Refuses settings of pods for components that the pipeline does not have."""
        for name in self.pods:
            if name not in (DEFAULT_POD, *components):
                near = difflib.get_close_matches(name, [DEFAULT_POD, *components], n=1)
                remedy = f"Did you mean {near[0]!r}?" if near else ""
                known = f"components among {', '.join([DEFAULT_POD, *components])}"
                raise SettingsError("pods", known, repr(name), remedy)

    def _check_storage(self) -> None:
        root = self.storage_root
        if isinstance(root, str) and root.startswith(OBJECT_STORE) and root != OBJECT_STORE:
            return
        _check_path("storage_root", root)
        mounts = [volume.mount_path for volume in self.volumes]
        if not any(PurePosixPath(root).is_relative_to(mount) for mount in mounts):
            raise SettingsError(
                "storage_root",
                f"an address {OBJECT_STORE}... or a folder on one of the volumes",
                f"{root}, with {', '.join(mounts) if mounts else 'no volume'}",
                "Pods share no other folder.",
            )


def read_settings(path: str | Path) -> KubeflowSettings:
    """Reads the settings of a cluster from a JSON file.

    Raises:
      SettingsError: no such file, no JSON, an unknown setting (the nearest name is suggested) or a
        value that is not possible.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(path, "a JSON file of settings", error.strerror) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(path, "a JSON object of settings", error) from None
    if not isinstance(content, dict):
        raise SettingsError(path, "a JSON object of settings", type(content).__name__)
    for name, kind in (("volumes", VolumeSettings), ("secrets", SecretSettings)):
        entries = content.get(name, [])
        if not isinstance(entries, list):
            raise SettingsError(f"{path}: {name}", "a list of objects", repr(entries))
        content[name] = [_entry(kind, entry, f"{path}: {name}") for entry in entries]
    pods = content.get("pods", {})
    if not isinstance(pods, dict):
        raise SettingsError(f"{path}: pods", "an object for each component", repr(pods))
    content["pods"] = {
        name: _entry(PodSettings, entry, f"{path}: pods: {name}") for name, entry in pods.items()
    }
    return _entry(KubeflowSettings, content, str(path))


def quantity(name: str, text: Any) -> float:
    """Returns the number that a quantity of Kubernetes stands for: "500m" is 0.5, "1Ki" is 1024.

    Raises:
      SettingsError: it is none.
    """
    match = _QUANTITY.fullmatch(text) if isinstance(text, str) else None
    if not match:
        raise SettingsError(name, 'a quantity like "4", "500m" or "32Gi"', repr(text))
    return float(match[1]) * _UNITS[match[2]]


def _entry(kind: type, content: Any, where: str) -> Any:
    """Returns an object of settings, checked; a list that should be one, or the reverse, is refused."""
    if not isinstance(content, dict):
        raise SettingsError(where, "an object of settings", repr(content))
    fields = {each.name: each for each in dataclasses.fields(kind)}
    needed = [
        name
        for name, each in fields.items()
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
    ]
    # A misspelt name says more than a missing one.
    for name in needed if content.keys() <= fields.keys() else ():
        if name not in content:
            raise SettingsError(where, f"the setting {name!r}", "none")
    for name, value in content.items():
        expected = fields[name].type if name in fields else ""
        if expected.startswith("tuple") and not isinstance(value, list):
            raise SettingsError(f"{where}: {name}", "a list", repr(value))
        if expected == "str" and not isinstance(value, str):
            raise SettingsError(f"{where}: {name}", "a text", repr(value))
    try:
        return from_dict(kind, content, where)
    except SettingsError as error:
        if error.where.startswith(where):
            raise
        place = f"{where}: {error.where}"
        raise SettingsError(place, error.expected, error.found, error.remedy) from None


def _check(where: str, value: Any, pattern: re.Pattern, expected: str) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise SettingsError(where, expected, repr(value))


def _check_path(where: str, value: Any) -> None:
    if not isinstance(value, str) or not PurePosixPath(value).is_absolute():
        raise SettingsError(where, "an absolute path, as pods see it", repr(value))


def _check_texts(where: str, value: Any) -> None:
    texts = isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
    if not texts:
        raise SettingsError(where, "an object of texts", repr(value))
