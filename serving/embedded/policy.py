"""What a server is told to serve: models, their folders, which versions, and labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from google.protobuf import text_format
from tensorflow_serving.config import file_system_storage_path_source_pb2, model_server_config_pb2

from preprocessing.errors import SettingsError
from serving.protocol import RefusedError, malformed

PLATFORM = "tensorflow"


@dataclass(frozen=True)
class VersionPolicy:
    """Which versions of a model are served.

    Attributes:
      latest: so many of the highest numbers that can be loaded; 0: all.
      specific: these numbers and no others, if any are given.
    """

    latest: int = 1
    specific: tuple[int, ...] = ()

    def candidates(self, found: Iterable[int]) -> list[int]:
        """Returns the versions to try, the newest first."""
        wanted = set(found) & set(self.specific) if self.specific else set(found)
        return sorted(wanted, reverse=True)

    def most(self) -> int | None:
        """Returns how many are served at most; None: all candidates."""
        return self.latest if self.latest and not self.specific else None


@dataclass(frozen=True)
class ModelConfig:
    """One model to serve.

    Attributes:
      name: what requests call it.
      base_path: folder of numbered SavedModel folders.
      policy: which of them.
      labels: names of versions, which requests may give instead of a number.
    """

    name: str
    base_path: Path
    policy: VersionPolicy = VersionPolicy()
    labels: dict[str, int] = field(default_factory=dict)


def read_config_file(path: str | Path) -> list[ModelConfig]:
    """Returns the models of a file in TF Serving's own format (a ModelServerConfig as text).

    Raises:
      SettingsError: no such file, or one that says something else.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
        return configs_of(config)
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise SettingsError(path, "a ModelServerConfig as text", error) from None
    except RefusedError as error:
        raise SettingsError(path, "models that can be served", error.reason) from None


def configs_of(config: model_server_config_pb2.ModelServerConfig) -> list[ModelConfig]:
    """Returns the models of a configuration as received.

    Raises:
      RefusedError: (INVALID_ARGUMENT) it lists no models, or one that can't be served.
    """
    if config.WhichOneof("config") != "model_config_list" or not config.model_config_list.config:
        raise malformed("config: expected a model_config_list with at least one model")
    configs = [_config_of(each) for each in config.model_config_list.config]
    if len({each.name for each in configs}) < len(configs):
        raise malformed("model_config_list: expected every name once")
    return configs


def check_labels(config: ModelConfig, loaded: Iterable[int]) -> None:
    """Refuses labels of versions that are not loaded, as TF Serving does.

    Raises:
      RefusedError: (FAILED_PRECONDITION) names the label.
    """
    for label, version in config.labels.items():
        if version not in loaded:
            raise RefusedError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"model {config.name!r}: label {label[:60]!r} names version {version}, "
                "which is not loaded",
            )


def _config_of(config: model_server_config_pb2.ModelConfig) -> ModelConfig:
    if not config.name or not config.base_path:
        raise malformed("model_config_list: expected a name and a base_path for each model")
    if config.model_platform not in ("", PLATFORM):
        raise malformed(
            f"model {config.name[:60]!r}: expected model_platform {PLATFORM!r}, "
            f"found {config.model_platform[:60]!r}"
        )
    return ModelConfig(
        config.name,
        Path(config.base_path),
        _policy_of(config.model_version_policy),
        dict(config.version_labels),
    )


def _policy_of(
    policy: file_system_storage_path_source_pb2.FileSystemStoragePathSourceConfig.ServableVersionPolicy,
) -> VersionPolicy:
    kind = policy.WhichOneof("policy_choice")
    if kind == "all":
        return VersionPolicy(latest=0)
    if kind == "specific":
        if not policy.specific.versions:
            raise malformed("model_version_policy: expected versions in specific")
        return VersionPolicy(specific=tuple(policy.specific.versions))
    # 0 and an absent number both mean one, as in TF Serving.
    return VersionPolicy(latest=max(1, policy.latest.num_versions))
