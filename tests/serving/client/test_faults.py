"""A server killed and started again, and stopped, under load: an answer or a clear error, never a wrong one."""

from __future__ import annotations

import concurrent.futures
import contextlib
import signal
import threading
import time

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from preprocessing.errors import ServingError
from preprocessing.volumes.geometry import Volume
from serving.client.sync import AHNetClient
from serving.embedded.core import start_server
from tests.serving.server_process import ServerProcess


def ask_until(again, client, windows, expected):
    """Asks again and again, until an answer to a question of after `again` is set; returns the errors."""
    errors = []
    while True:
        is_last = again.is_set()
        try:
            found = client.predict_windows(windows)
        except ServingError as error:
            errors.append(str(error))
        else:
            np.testing.assert_allclose(found, expected, atol=1e-5)
        if is_last:
            return errors


@pytest.mark.slow
def test_killed_and_started_again_under_load(models, windows, linear_probabilities):
    expected = linear_probabilities(windows, 1.0)
    again = threading.Event()
    process = ServerProcess(models)
    voxels = np.zeros((64, 64, 16), np.int16)
    with contextlib.ExitStack() as stack, concurrent.futures.ThreadPoolExecutor(4) as pool:
        try:
            clients = [
                stack.enter_context(AHNetClient(process.address, attempts=400, timeout_s=300))
                for _ in range(4)
            ]
            for client in clients:
                client.describe()
            asking = [
                pool.submit(ask_until, again, client, windows, expected) for client in clients[1:]
            ]
            killed = threading.Event()

            def kill(done, total):
                if not killed.is_set():
                    killed.set()
                    process.stop(signal.SIGKILL)

            # The volume that is on its way when the server dies is finished by the next one.
            volume = pool.submit(clients[0].segment, Volume(voxels, np.eye(4)), progress=kill)
            assert killed.wait(300)
            process.process.wait()
            process = ServerProcess(models, port=process.port)
            labels = volume.result(300).labels
            again.set()
            answers = [future.result() for future in asking]
        finally:
            again.set()
            process.stop()
    # Logits (0, 0, 1) everywhere.
    assert np.all(labels == 2)
    assert answers == [[], [], []]


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
            assert check(request, timeout=300).status == health_pb2.HealthCheckResponse.SERVING
            asking = pool.submit(client.predict_windows, large)
            while not (running.in_flight.count or asking.done()):
                time.sleep(0.001)
            stopping = pool.submit(serving.__exit__, None, None, None)
            seen = set()
            while not stopping.done() and len(seen) < 2:
                with contextlib.suppress(grpc.RpcError):
                    seen.add(check(request, timeout=300).status)
        assert health_pb2.HealthCheckResponse.NOT_SERVING in seen
        assert asking.result().shape == (1, 32, 256, 256, 3)
        stopping.result()
