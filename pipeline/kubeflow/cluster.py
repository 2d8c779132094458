"""Settings of a cluster: image, storage and resources of a pipeline's pods, in one JSON file."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import attrs

from preprocessing.errors import SettingsError
from preprocessing.settings import Requirement, one_of, whole

# The key of `pods` for components without an entry of their own.
DEFAULT_POD = "default"
SHARED_MEMORY_PATH = "/dev/shm"

# The object store that TensorFlow and Beam access without further libraries.
OBJECT_STORE = "gs://"
# Where pods of v2 specs see the artifacts of an object store: the launcher of Kubeflow Pipelines 2 copies
# them to and from these folders, Vertex AI mounts the first.
ARTIFACT_FOLDERS = {OBJECT_STORE: "/gcs/", "minio://": "/minio/", "s3://": "/s3/"}
# The launcher's variable for runs without a pod: the folder that those folders are in, if not the root.
ROOT_VARIABLE = "ARTIFACT_LOCAL_PATH"
# The pipeline root of a Kubeflow Pipelines 2 whose administrator has chosen none.
DEFAULT_PIPELINE_ROOT = "minio://mlpipeline/v2/artifacts"


@attrs.frozen
class TextRequirement(Requirement):
    """Requirement of a text that matches a regular expression as a whole."""

    pattern: str = ""


def _text(expected: str, pattern: str, *, optional: bool = False) -> TextRequirement:
    """Returns the requirement of a text; an empty one is accepted too if it is `optional`."""
    pattern = f"({pattern})?" if optional else pattern
    return TextRequirement(
        expected, lambda text: bool(re.fullmatch(pattern, text)), pattern=pattern
    )


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NAME_PATTERN = r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?"
_PATH_PATTERN = r"/[^\0]*"
_TOLERATION_KEYS = ("key", "operator", "value", "effect")

_NAMESPACE = _text(
    "a namespace: up to 63 lower-case letters, digits and inner hyphens",
    # RFC 1123.
    r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
    optional=True,
)
_ADDRESS = _text(
    f"a bucket's address {', '.join(ARTIFACT_FOLDERS)}BUCKET/...",
    rf"({'|'.join(ARTIFACT_FOLDERS)})[a-z0-9][a-z0-9._-]{{1,61}}[a-z0-9](/[^\s?#]*)?",
    optional=True,
)
_NAME = _text("a name in Kubernetes", _NAME_PATTERN)
_NO_NAME = _text(_NAME.expected, _NAME_PATTERN, optional=True)
_PATH = _text("an absolute path in the pods", _PATH_PATTERN)
_NO_PATH = _text(_PATH.expected, _PATH_PATTERN, optional=True)
_QUANTITY = _text(
    'a quantity like "4", "500m" or "32Gi"', r"\d+(\.\d+)?(m|[kMGT]|[KMGT]i)?", optional=True
)
_VARIABLES = Requirement(
    "texts by names of environment variables", lambda names: all(map(_VARIABLE.fullmatch, names))
)
_VARIABLES_BY_KEY = Requirement(
    "names of environment variables by key", lambda names: _VARIABLES.holds(names.values())
)
_RESOURCE = Requirement("the name of a resource", bool)
_TOLERATIONS = Requirement(
    f"a list of objects with keys among {', '.join(_TOLERATION_KEYS)}",
    lambda tolerations: all({*each} <= {*_TOLERATION_KEYS} for each in tolerations),
)
_IMAGE = _text("the name of an image", r"\S+")
_NAMES = Requirement("a list of names in Kubernetes", lambda names: all(map(_NAME.holds, names)))
_OPTIONS = Requirement(
    'a list of options like "--runner=..."',
    lambda options: all(option.startswith("--") for option in options),
)


@attrs.frozen
class VolumeSettings:
    """A persistent volume, mounted in every pod; `claim` names its PersistentVolumeClaim."""

    claim: str = attrs.field(validator=_NAME)
    mount_path: str = attrs.field(validator=_PATH)


@attrs.frozen
class SecretSettings:
    """A secret of the cluster, available in every pod.

    Attributes:
      name: name of the Secret, in the namespace of the runs.
      variables: environment variable by key of the secret.
      mount_path: mount point for its keys as files; empty for none.
    """

    name: str = attrs.field(validator=_NAME)
    variables: dict[str, str] = attrs.field(factory=dict, validator=_VARIABLES_BY_KEY)
    mount_path: str = attrs.field(default="", validator=_NO_PATH)

    def __attrs_post_init__(self) -> None:
        if not self.variables and not self.mount_path:
            raise SettingsError(f"secret {self.name}", "variables or a mount_path", "neither")


@attrs.frozen
class PodSettings:
    """Resources, node selection and environment of a component's pod.

    Attributes:
      cpu: cores as a Kubernetes quantity ("4", "500m"); empty for no limit.
      memory: bytes as a Kubernetes quantity ("32Gi"); empty for no limit.
      gpu_type: resource name in Kubernetes, accelerator type on Vertex AI.
      shared_memory: size of /dev/shm as a Kubernetes quantity; empty for the container's default.
      node_selector: labels that the node must have.
      tolerations: Kubernetes tolerations of node taints.
    """

    cpu: str = attrs.field(default="", validator=_QUANTITY)
    memory: str = attrs.field(default="", validator=_QUANTITY)
    gpus: int = attrs.field(default=0, validator=whole(0))
    gpu_type: str = attrs.field(default="nvidia.com/gpu", validator=_RESOURCE)
    shared_memory: str = attrs.field(default="", validator=_QUANTITY)
    node_selector: dict[str, str] = attrs.field(factory=dict)
    tolerations: tuple[dict[str, str], ...] = attrs.field(default=(), validator=_TOLERATIONS)
    environment: dict[str, str] = attrs.field(factory=dict, validator=_VARIABLES)


@attrs.frozen
class KubeflowSettings:
    """Image, storage and pods of a cluster.

    Attributes:
      image: the project's image (see Dockerfile), used by every component.
      storage_root: folder of the pipeline's outputs: a path on one of `volumes`, or gs://...
      artifact_root: for v2 specs, address of the artifacts; by default below `storage_root` if that is
        in a bucket, else what the cluster is set to.
      namespace: where the runs are, in installations for several users the profile's.
      experiment: name of the experiment that runs belong to; by default the pipeline's.
      service_account: account of the pods; by default the cluster's.
      run_as_user: user id of the pods; 0 for the image's own.
      fs_group: group id that volumes are given to; 0 for none.
      image_pull_secrets: names of secrets for the image's registry.
      pods: resources by component; "default" for all others.
      beam_options: Beam's command line for every component that runs on Beam.
    """

    image: str = attrs.field(validator=_IMAGE)
    storage_root: str
    artifact_root: str = attrs.field(default="", validator=_ADDRESS)
    namespace: str = attrs.field(default="", validator=_NAMESPACE)
    experiment: str = ""
    service_account: str = attrs.field(default="", validator=_NO_NAME)
    run_as_user: int = attrs.field(default=0, validator=whole(0))
    fs_group: int = attrs.field(default=0, validator=whole(0))
    image_pull_policy: str = attrs.field(
        default="IfNotPresent", validator=one_of("Always", "IfNotPresent", "Never")
    )
    image_pull_secrets: tuple[str, ...] = attrs.field(default=(), validator=_NAMES)
    volumes: tuple[VolumeSettings, ...] = ()
    secrets: tuple[SecretSettings, ...] = ()
    pods: dict[str, PodSettings] = attrs.field(factory=dict)
    beam_options: tuple[str, ...] = attrs.field(default=(), validator=_OPTIONS)

    def __attrs_post_init__(self) -> None:
        root = self.storage_root
        in_bucket = root.startswith(OBJECT_STORE)
        if in_bucket and _ADDRESS.holds(root):
            return
        mounts = [volume.mount_path for volume in self.volumes]
        if in_bucket or not any(PurePosixPath(root).is_relative_to(mount) for mount in mounts):
            expected = f"an address {OBJECT_STORE}BUCKET/... or a folder on one of the volumes"
            found = f"{root}, with {', '.join(mounts) or 'no volume'}"
            remedy = "Pods share no other folder."
            if _ADDRESS.holds(root) and root:
                remedy = "TensorFlow can't read that store: there, only artifact_root may be."
            raise SettingsError("storage_root", expected, found, remedy)

    def pod(self, component: str) -> PodSettings:
        """Returns the pod settings of a component."""
        return self.pods.get(component) or self.pods.get(DEFAULT_POD) or PodSettings()

    def artifacts(self) -> str:
        """Returns the address of the artifacts of v2 specs; empty for the cluster's own."""
        if self.artifact_root or not self.storage_root.startswith(OBJECT_STORE):
            return self.artifact_root.rstrip("/")
        return f"{self.storage_root.rstrip('/')}/artifacts"
