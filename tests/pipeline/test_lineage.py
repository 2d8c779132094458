"""The lineage command on models that no run is beside."""

from __future__ import annotations

from pipeline.lineage import main


def test_a_model_near_the_root_of_the_file_system_needs_its_metadata_named(capsys):
    """Such as /models/VERSION in a container; /proc/1 is a folder like that on any Linux."""
    assert main(["/proc/1"]) == 1
    line = "error: /metadata.sqlite: expected a pipeline's metadata, found no such file."
    assert capsys.readouterr().err.startswith(line)
