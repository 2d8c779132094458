"""The quiet import of TensorFlow, in processes of their own, on a package that writes as it does."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from preprocessing.quiet_start import quiet_saving

ROOT = Path(__file__).resolve().parents[2]
RUN = """
from preprocessing.quiet_start import quiet_frameworks
quiet_frameworks(debug={debug})
import tensorflow
import os
os.write(2, b"after\\n")
"""


@pytest.fixture
def noisy(tmp_path):
    """The folder of a package that is called tensorflow and writes to file descriptor 2."""
    folder = tmp_path / "tensorflow"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "import os, sys\nif sys.stderr: os.write(2, b'notice\\n')\n"
    )
    return tmp_path


@pytest.mark.parametrize(("debug", "printed"), [(False, "after\n"), (True, "notice\nafter\n")])
def test_only_the_import_is_silent(noisy, debug, printed):
    result = start(noisy, RUN.format(debug=debug), stderr=subprocess.PIPE)
    assert (result.returncode, result.stderr) == (0, printed)


@pytest.mark.parametrize(("level", "printed"), [("3", "after\n"), ("0", "notice\nafter\n")])
def test_workers_are_as_silent_as_their_parent(noisy, level, printed):
    """A worker process of Beam begins with the package of what it unpickles."""
    code = 'import preprocessing.records, tensorflow, os; os.write(2, b"after\\n")'
    before = ("env", f"TF_CPP_MIN_LOG_LEVEL={level}")
    result = start(noisy, code, before=before, stderr=subprocess.PIPE)
    assert (result.returncode, result.stderr) == (0, printed)


def test_an_error_of_the_import_is_shown(noisy):
    (noisy / "tensorflow" / "__init__.py").write_text("raise ImportError('libcudart')\n")
    result = start(noisy, RUN.format(debug=False), stderr=subprocess.PIPE)
    assert result.returncode == 1
    assert "ImportError: libcudart" in result.stderr


def test_a_process_without_stderr(noisy):
    code = RUN.format(debug=False).replace("os.write", "# os.write")
    assert start(noisy, code, before=("sh", "-c", 'exec "$0" "$@" 2>&-')).returncode == 0


def start(folder, code, before=(), **options):
    paths = os.pathsep.join([str(folder), str(ROOT)])
    command = [*before, sys.executable, "-c", code]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, text=True, **options)


def test_saving_is_silent_and_only_saving(caplog):
    logger = logging.getLogger("tensorflow")
    with caplog.at_level(logging.INFO, logger="tensorflow"):
        with quiet_saving():
            logger.info("Assets written")
        logger.info("after")
        with pytest.raises(MemoryError), quiet_saving():
            raise MemoryError
        logger.info("after an error")
    assert caplog.messages == ["after", "after an error"]
