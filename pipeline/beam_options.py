"""Beam's command line for all components: the user's options, or one process on this machine."""

from __future__ import annotations

from collections.abc import Sequence

# By its full name: Beam's default runner would first look for a runner to download.
LOCAL_RUNNER = "--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner"
# Without an image TFX packages its own source for each component, which takes seconds and is only
# needed by workers in other processes.
NO_PACKING = "--sdk_container_image=none"
IN_THIS_PROCESS = ("--direct_running_mode=in_memory", "--direct_num_workers=1")
BEAM_ARGUMENTS = (LOCAL_RUNNER, NO_PACKING, *IN_THIS_PROCESS)


def beam_arguments(options: Sequence[str]) -> list[str]:
    """Returns Beam's command line for the components from the user's options."""
    names = {option.split("=")[0] for option in options}
    if "--runner" in names:
        return list(options)
    chosen = any(name.startswith("--direct_") for name in names)
    return [LOCAL_RUNNER, NO_PACKING, *(() if chosen else IN_THIS_PROCESS), *options]


def own_beam_options(arguments: Sequence[str]) -> list[str]:
    """Returns the user's options among `beam_arguments`; the conversion has its own defaults."""
    return [each for each in arguments if each not in BEAM_ARGUMENTS]
