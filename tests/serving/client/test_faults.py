"""A server killed and started again, and stopped, under load: an answer or a clear error, never a wrong one."""

from __future__ import annotations

import concurrent.futures
import contextlib
import signal
import threading
import time

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from preprocessing.errors import ServingError
from preprocessing.volumes.geometry import Volume
from serving.client.sync import AHNetClient
from serving.embedded.core import start_server
from tests.serving.server_process import ServerProcess


def ask_until(stop, address, windows, expected):
    """Asks again and again; returns how many answers were right and which errors came."""
    right, errors = 0, []
    with AHNetClient(address, attempts=40, timeout_s=60) as client:
        while not stop.is_set():
            try:
                found = client.predict_windows(windows)
            except ServingError as error:
                errors.append(str(error))
            else:
                np.testing.assert_allclose(found, expected, atol=1e-5)
                right += 1
    return right, errors


def test_killed_and_started_again_under_load(models, windows, linear_probabilities):
    expected = linear_probabilities(windows, 1.0)
    stop = threading.Event()
    process = ServerProcess(models)
    voxels = np.zeros((64, 64, 16), np.int16)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        try:
            asking = [
                pool.submit(ask_until, stop, process.address, windows, expected) for _ in range(3)
            ]
            with AHNetClient(process.address, attempts=40, timeout_s=60) as client:
                client.describe()
                killed = threading.Event()

                def kill(done, total):
                    if not killed.is_set():
                        killed.set()
                        process.stop(signal.SIGKILL)

                # The volume that is on its way when the server dies is finished by the next one.
                volume = pool.submit(client.segment, Volume(voxels, np.eye(4)), progress=kill)
                assert killed.wait(60)
                process.process.wait()
                process = ServerProcess(models, port=process.port)
                labels = volume.result(60).labels
            time.sleep(0.5)
            stop.set()
            answers = [future.result() for future in asking]
        finally:
            stop.set()
            process.stop()
    # Logits (0, 0, 1) everywhere.
    assert np.all(labels == 2)
    for right, errors in answers:
        assert right > 0
        assert errors == []


def test_health_says_that_a_server_is_stopping(models):
    request = health_pb2.HealthCheckRequest(service="tensorflow.serving.PredictionService")
    large = np.zeros((1, 32, 256, 256, 1), np.int16)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        serving = start_server(models)
        running = serving.__enter__()
        client = AHNetClient(running.target, attempts=1)
        client.describe()
        with grpc.insecure_channel(running.address) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            assert check(request, timeout=30).status == health_pb2.HealthCheckResponse.SERVING
            asking = pool.submit(client.predict_windows, large)
            while not (running.in_flight.count or asking.done()):
                time.sleep(0.001)
            stopping = pool.submit(serving.__exit__, None, None, None)
            seen = set()
            while not stopping.done() and len(seen) < 2:
                with contextlib.suppress(grpc.RpcError):
                    seen.add(check(request, timeout=30).status)
        assert health_pb2.HealthCheckResponse.NOT_SERVING in seen
        assert asking.result().shape == (1, 32, 256, 256, 3)
        stopping.result()
