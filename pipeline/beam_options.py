"""Beam options of the pipeline: the user's own for every component, or one process on this machine."""

from __future__ import annotations

from collections.abc import Sequence

# Named in full: Beam's default would look for a runner to download first.
LOCAL_RUNNER = "--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner"
# Where no image is named, TFX packs its own source again for every component, seconds each, to send
# it to workers; in this process there are none.
NO_PACKING = "--sdk_container_image=none"
IN_THIS_PROCESS = ("--direct_running_mode=in_memory", "--direct_num_workers=1")
BEAM_ARGUMENTS = (LOCAL_RUNNER, NO_PACKING, *IN_THIS_PROCESS)


def beam_arguments(options: Sequence[str]) -> list[str]:
    """Returns the command line for every component on Beam from the user's options."""
    names = {option.split("=")[0] for option in options}
    if "--runner" in names:
        return list(options)
    chosen = any(name.startswith("--direct_") for name in names)
    return [LOCAL_RUNNER, NO_PACKING, *(() if chosen else IN_THIS_PROCESS), *options]


def own_beam_options(arguments: Sequence[str]) -> list[str]:
    """Returns what the user chose among `beam_arguments`: the conversion has defaults of its own."""
    return [each for each in arguments if each not in BEAM_ARGUMENTS]
