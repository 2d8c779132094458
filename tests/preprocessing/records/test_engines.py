"""The conversion on Beam's engines: the same bytes from each, and what is refused."""

import contextlib
import pickle
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
from apache_beam.portability import python_urns
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from preprocessing.convert import main
from preprocessing.errors import SettingsError
from preprocessing.phantom.ct import PhantomSettings
from preprocessing.phantom.dataset import write_cases
from preprocessing.records.beam_runner import (
    MOST_THREADS,
    _cause,
    _check_processes,
    _quiet_while_it_fails,
    beam_runner,
)
from preprocessing.records.case_conversion import ConversionSettings, ConvertCase
from preprocessing.tasks import PRESETS

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = PhantomSettings(shape_xyz=(48, 40, 12), spacing_mm=(6.5, 6.5, 13.0))
WORKER = f"{sys.executable} -m apache_beam.runners.worker.sdk_worker_main"


def tree(folder):
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def convert(data, output, *options):
    patches = ["--patch-shape", "8", "32", "32", "--patches-per-case", "4"]
    # Many small shards: their borders must not depend on the engine either.
    paths = ["--input", str(data), "--output", str(output), "--shard-mib", "1"]
    return main([*paths, *patches, *options])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six cases and one that is rejected."""
    folder = tmp_path_factory.mktemp("data")
    write_cases(folder, 6, 0, settings=SETTINGS)
    (folder / "volume-7.nii.gz").write_bytes(b"no volume")
    (folder / "segmentation-7.nii.gz").write_bytes(b"no labels")
    return folder


@pytest.fixture(scope="module")
def expected(data, tmp_path_factory):
    """What one process with one worker writes, manifest included."""
    output = tmp_path_factory.mktemp("expected") / "out"
    assert convert(data, output, "--direct_running_mode", "in_memory", "--allow-rejected") == 0
    content = tree(output)
    assert {name.split("/")[0] for name in content} == {
        *("train", "eval", "manifest.json", "task.json")
    }
    return content


@pytest.fixture(scope="module")
def job_service(tmp_path_factory):
    """Beam's own portable job service in a process of its own; returns its address."""
    folder = tmp_path_factory.mktemp("job_service")
    port = folder / "port"
    module = "apache_beam.runners.portability.local_job_service_main"
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, "--port_file", str(port)],
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )
    deadline = time.monotonic() + 300
    while not port.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert port.exists(), (folder / "log").read_text()
    yield f"localhost:{port.read_text()}"
    process.terminate()
    process.wait()


needs_plain_path = pytest.mark.skipif(
    " " in sys.executable,
    reason=f"Beam starts no processes of an interpreter with a space: {sys.executable}",
)


class TestSameBytes:
    @pytest.mark.parametrize(
        "options",
        [
            [],
            ["--runner", "DirectRunner", "--direct_num_workers", "1"],
            ["--direct_running_mode", "multi_threading", "--direct_num_workers", "1"],
            ["--direct_running_mode", "multi_threading", "--direct_num_workers", "2"],
            ["--direct_running_mode", "multi_threading", "--direct_num_workers", "5"],
            pytest.param(
                ["--direct_running_mode", "multi_processing", "--direct_num_workers", "2"],
                marks=[pytest.mark.slow, needs_plain_path],
            ),
        ],
        ids=lambda options: " ".join(options).replace("--direct_", "") or "default",
    )
    def test_direct_runner(self, data, expected, tmp_path, capfd, options):
        assert convert(data, tmp_path / "out", "--allow-rejected", *options) == 0
        assert tree(tmp_path / "out") == expected
        # Nothing of the frameworks, whichever process imports them.
        lines = re.split(r"[\r\n]+", capfd.readouterr().err)
        own = ("convert:", "warning:", "rejected volume-7:")
        assert [line for line in lines if line and not line.startswith(own)] == []

    @pytest.mark.parametrize(
        "environment",
        [
            ["LOOPBACK"],
            pytest.param(
                [python_urns.SUBPROCESS_SDK, "--environment_config", WORKER],
                marks=[pytest.mark.slow, needs_plain_path],
            ),
        ],
        ids=lambda environment: environment[0],
    )
    def test_portable_runner(self, data, expected, job_service, tmp_path, environment):
        """The job goes to a server over gRPC, as to Flink's, and comes back to a worker the same way."""
        endpoint = ["--runner", "PortableRunner", "--job_endpoint", job_service]
        options = [*endpoint, "--environment_type", *environment, "--allow-rejected"]
        assert convert(data, tmp_path / "out", *options) == 0
        assert tree(tmp_path / "out") == expected


def test_an_error_on_a_portable_runner_is_one_line(data, job_service, tmp_path, capsys):
    (tmp_path / ".out.partial").mkdir()
    # Nobody can write there, not even root.
    (tmp_path / ".out.partial" / "train").symlink_to("/proc")
    endpoint = ["--runner", "PortableRunner", "--job_endpoint", job_service]
    assert convert(data, tmp_path / "out", *endpoint, "--environment_type", "LOOPBACK") == 1
    error = capsys.readouterr().err
    line = error.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert "expected a Beam job that finishes, found FileNotFoundError" in line
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--job_endpoint", "localhost:1", "--job_server_timeout", "1"], "localhost:1"),
        (["--job_endpoint", "localhost:1", "--environment_type", "NONE"], "environment type: NONE"),
        ([], "--job_endpoint"),
    ],
)
def test_a_job_server_out_of_reach_is_one_line(data, tmp_path, capsys, options, words):
    assert convert(data, tmp_path / "out", "--runner", "PortableRunner", *options) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert words in line
    assert list(tmp_path.iterdir()) == []


def test_only_the_threads_of_a_failed_job_end_without_a_traceback(monkeypatch):
    shown, end = [], threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda arguments: shown.append(arguments.thread))

    def fail_later():
        end.wait()
        raise RuntimeError("as a reader of a job server that is gone")

    other, own = (threading.Thread(target=fail_later) for _ in range(2))
    other.start()
    with contextlib.suppress(ValueError), _quiet_while_it_fails():
        own.start()
        raise ValueError
    end.set()
    own.join()
    other.join()
    assert shown == [other]


def test_the_transform_can_be_sent_to_workers():
    settings = ConversionSettings(PRESETS["ct_liver"], 3, 2**20)
    sent = pickle.loads(pickle.dumps(ConvertCase(settings, "/out")))
    assert (sent.settings, sent.folder) == (settings, "/out")
    assert isinstance(sent, beam.DoFn)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "Pipeline job-1 failed in state FAILED: org.apache.beam.grpc.StatusRuntimeException: "
            "CANCELLED: client cancelled",
            "a worker that was lost (org.apache",
        ),
        (
            "Pipeline job-1 failed in state FAILED: org.apache.spark.SparkException: Lost task 0.0: "
            "StatusRuntimeException: CANCELLED: client cancelled\n\tat java.base/java.util.concurrent\n"
            "Caused by: org.apache.beam.grpc.StatusRuntimeException: CANCELLED: client cancelled",
            "a worker that was lost (org.apache.spark",
        ),
        (
            "Pipeline job-1 failed in state FAILED: bundle failed:SDK worker disconnected: worker[job]",
            "a worker that was lost (bundle",
        ),
        (
            "Pipeline job-1 failed in state FAILED: java.util.concurrent.TimeoutException: Waited 3 minutes",
            f"no answer from the workers; their log says why, for example because they are not of Beam "
            f"{beam.__version__} and Python {sys.version_info[0]}.{sys.version_info[1]} (java",
        ),
        (
            "Pipeline job-1 failed in state FAILED: java.lang.RuntimeException: Error received from SDK: "
            "Traceback (most recent call last):\nOSError: [Errno 28] No space left [while running "
            "'Convert']\n\tat org.apache.beam.runners",
            "OSError: [Errno 28] No space left",
        ),
    ],
)
def test_what_engines_report_is_one_line(text, found):
    cause = _cause(RuntimeError(text))
    assert cause.startswith(found)
    assert len(cause.splitlines()) == 1


class TestChoice:
    @pytest.mark.parametrize(
        ("cores", "mode", "workers"),
        [(1, "in_memory", 1), (2, "multi_threading", 2), (64, "multi_threading", MOST_THREADS)],
    )
    def test_one_thread_per_core_up_to_a_maximum(self, monkeypatch, cores, mode, workers):
        monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
        runner, options = beam_runner([], [])
        assert isinstance(runner, FnApiRunner)
        direct = options.view_as(DirectOptions)
        assert (direct.direct_running_mode, direct.direct_num_workers) == (mode, workers)
        _, options = beam_runner(["--direct_num_workers", "1"], [])
        assert options.view_as(DirectOptions).direct_running_mode == "in_memory"

    def test_options_of_a_job_server_are_accepted_but_misspelled_ones_are_not(self):
        endpoint = ["--runner", "PortableRunner", "--job_endpoint", "localhost:1"]
        beam_runner([*endpoint, "--checkpointing_interval", "3000"], ["--patches-per-case"])
        with pytest.raises(SettingsError, match="Did you mean --patches-per-case"):
            beam_runner([*endpoint, "--patchs-per-case", "3"], ["--patches-per-case"])
        with pytest.raises(SettingsError, match="found --checkpointing_interval"):
            beam_runner(["--checkpointing_interval", "3000"], ["--patches-per-case"])

    @pytest.mark.parametrize(
        "name", ["DaskRunner", "apache_beam.runners.dask.dask_runner.DaskRunner"]
    )
    def test_dask_is_refused_because_it_loses_outputs(self, name):
        with pytest.raises(SettingsError, match="found DaskRunner, which silently skips steps"):
            beam_runner(["--runner", name], [])

    @pytest.mark.parametrize(
        ("name", "option"),
        [
            ("FlinkRunner", "--flink_job_server_jar"),
            ("SparkRunner", "--spark_job_server_jar"),
            ("PrismRunner", "--prism_location"),
        ],
    )
    def test_no_program_is_downloaded(self, tmp_path, name, option):
        with pytest.raises(SettingsError, match=f"expected {option} FILE or --job_endpoint"):
            beam_runner(["--runner", name], [])
        with pytest.raises(
            SettingsError, match=f"{option}: expected a file, found none at nowhere"
        ):
            beam_runner(["--runner", name, option, "nowhere"], [])
        (tmp_path / "there").touch()
        runner, _ = beam_runner(["--runner", name, option, str(tmp_path / "there")], [])
        assert type(runner).__name__ == name
        runner, _ = beam_runner(["--runner", name, "--job_endpoint", "localhost:1"], [])
        assert type(runner).__name__ == name

    def test_processes_of_an_interpreter_with_a_space_are_refused(self):
        processes = PipelineOptions(["--direct_running_mode", "multi_processing"])
        with pytest.raises(SettingsError, match="folder without spaces"):
            _check_processes(processes, "/my folder/python")
        _check_processes(processes, "/folder/python")
        _check_processes(PipelineOptions([]), "/my folder/python")
