"""The embedded server: answers, versions that come and go, load, and how it is started and stopped."""

from __future__ import annotations

import concurrent.futures
import ctypes
import shutil
import signal
import threading
import time
import urllib.request
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from ahnet_tf.inference.predictor import open_predictor
from preprocessing.errors import ServingError
from serving import protocol, status
from serving.client.sync import AHNetClient
from serving.embedded.batching import Batcher, BatchSettings
from serving.embedded.core import start_server
from tests.serving.server_process import ServerProcess

State = get_model_status_pb2.ModelVersionStatus.State


def stub(running):
    channel = grpc.insecure_channel(running.address)
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def states(running):
    spec = model_pb2.ModelSpec(name="ahnet")
    return {item.version: item.state for item in running.versions.status(spec)}


def wait_until(condition, seconds=300.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


@pytest.mark.slow
def test_versions_are_swapped_under_requests_without_an_error(
    tmp_path, export_linear, windows, linear_probabilities
):
    """Each answer is wholly of the version that it names, and everyone sees the same succession."""
    base = tmp_path / "models"
    export_linear(base, 1)
    lines, stop, seen = [], threading.Event(), [[], [], []]

    def ask(client, versions):
        while not stop.is_set():
            request = predict_pb2.PredictRequest()
            request.model_spec.name = "ahnet"
            request.model_spec.signature_name = "predict_windows_int16"
            request.inputs["image"].CopyFrom(protocol.encode_tensor(windows))
            response = client.Predict(request, timeout=30)
            version = response.model_spec.version.value
            found = tf.make_ndarray(response.outputs["probabilities"])
            expected = linear_probabilities(windows, float(version))
            np.testing.assert_allclose(found, expected, atol=1e-5)
            versions.append(version)

    with (
        start_server(base, poll_s=0.1, report=lines.append) as running,
        concurrent.futures.ThreadPoolExecutor(3) as pool,
    ):
        pinned = open_predictor(running.target)
        asking = [pool.submit(ask, stub(running), versions) for versions in seen]
        try:
            export_linear(base, 2)
            wait_until(lambda: states(running).get(2) == State.AVAILABLE)
            wait_until(lambda: states(running)[1] == State.END)
            # A version that can't be loaded changes nothing for those who ask.
            (base / "3").mkdir()
            (base / "3" / "saved_model.pb").write_bytes(b"not a model")
            wait_until(lambda: states(running).get(3) == State.END)
            with pytest.raises(ServingError, match=r"no version 1 loaded; version 2 is being"):
                pinned.predict(windows)
            # Its repair is noticed, under the same number.
            shutil.rmtree(base / "3")
            export_linear(base, 3)
            wait_until(lambda: states(running)[3] == State.AVAILABLE)
            # Without the newest version the next older one takes over.
            shutil.rmtree(base / "3")
            wait_until(lambda: running.versions.current_version == 2)
            for versions, future in zip(seen, asking, strict=True):
                wait_until(lambda v=versions, f=future: v[-1] == 2 or f.done())
        finally:
            stop.set()
        for future in asking:
            future.result()
    for versions in seen:
        changes = [versions[0]]
        for version in versions:
            if version != changes[-1]:
                changes.append(version)
        assert changes == [1, 2, 3, 2]
    assert lines[0] == "ahnet: version 2 replaces version 1"
    assert "version 3 was not loaded" in lines[1]
    assert lines[2:] == [
        "ahnet: version 3 replaces version 2",
        "ahnet: version 2 replaces version 3",
    ]


def test_queue_is_bounded():
    batcher = Batcher(BatchSettings(running=1, waiting=1))
    with batcher.place(), batcher.place():
        with pytest.raises(protocol.RefusedError) as caught, batcher.place():
            pass
        assert caught.value.code == grpc.StatusCode.UNAVAILABLE
    with batcher.place():
        pass
    batcher.close()


@pytest.mark.parametrize("attempts", [1, 40])
def test_more_requests_than_places(models, attempts):
    """They are refused, and answered if they are sent again; status is answered all the while."""
    large = np.zeros((1, 16, 256, 256, 1), np.int16)
    together = threading.Barrier(8)

    def ask(client):
        together.wait()
        try:
            return client.predict_windows(large)[0, 0, 0, 0]
        except ServingError as error:
            return str(error)

    with (
        start_server(models, batches=BatchSettings(1, 1)) as running,
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        clients = [AHNetClient(running.target, attempts=attempts) for _ in range(8)]
        for client in clients:
            client.describe()
        asking = [pool.submit(ask, client) for client in clients]
        while not all(future.done() for future in asking):
            assert clients[0].status()[0].state == State.AVAILABLE
            time.sleep(0.05)
        answers = [future.result() for future in asking]
    refused = [answer for answer in answers if isinstance(answer, str)]
    assert 1 <= len(refused) <= 6 if attempts == 1 else not refused
    for line in refused:
        assert "expected room for the request, found UNAVAILABLE: the queue is full; 2 pred" in line
    for answer in answers:
        if not isinstance(answer, str):
            np.testing.assert_allclose(answer, np.exp([0, 0, 1]) / (2 + np.e), atol=1e-6)


def test_stopping_lets_requests_in_progress_finish(models):
    large = np.zeros((1, 32, 256, 256, 1), np.int16)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with start_server(models) as running:
            client = AHNetClient(running.target, attempts=1)
            client.describe()
            wait_until(lambda: running.in_flight.count == 0)
            asking = pool.submit(client.predict_windows, large)
            wait_until(lambda: running.in_flight.count or asking.done())
        assert asking.result().shape == (1, 32, 256, 256, 3)
    with pytest.raises(ServingError, match="UNAVAILABLE"):
        client.predict_windows(large[:, :1])


@pytest.mark.slow
def test_command_serves_until_it_is_told_to_stop(models, windows, linear_probabilities):
    process = ServerProcess(models)
    try:
        found = open_predictor(process.address).predict(windows)
        np.testing.assert_allclose(found, linear_probabilities(windows, 1.0), atol=1e-5)
    finally:
        ended = process.stop()
    assert ended == (0, "", "")


@pytest.mark.slow
def test_command_stops_on_a_signal_that_another_thread_receives(models):
    """Python handles a signal in the main thread, which such a signal does not wake."""
    running = ServerProcess(models)
    process = running.process
    with AHNetClient(running.address) as client:
        client.describe()
    main_thread = Path(f"/proc/{process.pid}/task/{process.pid}/status")
    wait_until(lambda: "S (sleeping)" in main_thread.read_text())
    threads = {int(path.name) for path in Path(f"/proc/{process.pid}/task").iterdir()}
    # The thread that was started last.
    assert ctypes.CDLL(None).tgkill(process.pid, max(threads), signal.SIGTERM) == 0
    try:
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0


def test_status_command(server, capsys):
    assert status.main(["--target", server.target]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "version 1: AVAILABLE",
        "task tiny: background, liver, tumour",
        "window (z, y, x): 4, 16, 16",
        "network: ahnet, softmax",
    ]
    assert status.main(["--target", f"{server.address}/liver"]) == 1
    assert "model 'liver' is not served here; 'ahnet' is" in capsys.readouterr().err


def test_metrics(models, windows):
    with start_server(models, metrics_port=0) as running:
        with AHNetClient(running.target) as client:
            for _ in range(3):
                client.predict_windows(windows)
            with pytest.raises(ServingError):
                client.predict_windows(np.full((1, 1, 1, 1, 1), np.nan, np.float32))
        assert running.metrics_address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(running.metrics_address, timeout=10) as response:
            lines = response.read().decode().splitlines()
    counts = 'ahnet_serving_requests_total{method="Predict",status='
    # Three predictions, and `describe` before them and after the refusal.
    assert f'{counts}"OK"}} 5.0' in lines
    assert f'{counts}"INVALID_ARGUMENT"}} 1.0' in lines
    assert "ahnet_serving_batch_requests_count 5.0" in lines
    assert "ahnet_serving_waiting 0.0" in lines


def test_older_version_is_served_where_the_newest_is_broken(tmp_path, models):
    base = tmp_path / "models"
    shutil.copytree(models, base)
    (base / "2").mkdir()
    (base / "2" / "saved_model.pb").write_bytes(b"")
    lines = []
    with start_server(base, poll_s=0.02, report=lines.append) as running:
        time.sleep(0.3)
        assert running.versions.current_version == 1
        assert states(running) == {2: State.END, 1: State.AVAILABLE}
        (two, one) = AHNetClient(running.target).status()
    assert len(lines) == 1
    assert lines[0].startswith("ahnet: version 2 was not loaded")
    assert (one.status.error_message, two.status.error_message) == ("", lines[0].split(": ", 2)[2])
