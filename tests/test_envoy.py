"""Several servers behind one address, with the configuration that deploy/ has for Envoy."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

from chain import ROOT
from server_process import running

from serving.client import SearchClient

ENVOY = Path(sys.executable).parent / "envoy"
CLIENTS = 6


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def envoy(directory: Path, servers: list[str]):
    """Envoy before these servers; its address."""
    front, admin = free_ports(2)
    text = (ROOT / "deploy" / "envoy.yaml").read_text("utf-8")
    for shown, real in (("50051", front), ("9901", admin), *zip(("50061", "50062"), servers, strict=True)):
        assert f"port_value: {shown}" in text
        text = text.replace(f"port_value: {shown}", f"port_value: {str(real).rpartition(':')[2]}")
    config = directory / "envoy.yaml"
    config.write_text(text)
    command = [ENVOY, "-c", config, "--log-level", "error", "--base-id", str(front), "--concurrency", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield f"127.0.0.1:{front}"
        assert process.poll() is None, process.communicate()[1]
    finally:
        process.kill()
        process.communicate()


class Log:
    """What a server writes to standard error, read as it comes: a full pipe would hold it up."""

    def __init__(self, process: subprocess.Popen) -> None:
        self._process, self._lines = process, []
        self._reading = threading.Thread(target=lambda: self._lines.extend(process.stderr), daemon=True)
        self._reading.start()

    def searches_until_stopped(self) -> int:
        """Stop the server; how many searches it answered."""
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(timeout=30) == 0
        self._reading.join()
        return "".join(self._lines).count("method=SearchService.Search code=OK")


def test_calls_are_spread_and_none_fails_when_a_server_goes(index, tmp_path):
    with running(index, "--log-calls", "all") as first, running(index, "--log-calls", "all") as second:
        logs = [Log(process) for process, _ in (first, second)]
        for _, address in (first, second):
            with SearchClient(address) as client:
                client.wait_until_ready(30)
        with envoy(tmp_path, [first[1], second[1]]) as front:
            with SearchClient(front) as client:
                client.wait_until_ready(30)
            ended, half, failed, answered = threading.Event(), threading.Event(), [], Counter()

            def ask(number: int) -> None:
                with SearchClient(front, timeout=30) as client:
                    while not ended.is_set():
                        try:
                            found = client.search(f"red {number}", k=5)
                            answered[{hit.attributes["colour"] for hit in found} == {"red"}] += 1
                        except Exception as error:
                            failed.append(error)
                        if answered[True] > 100:
                            half.set()

            threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(CLIENTS)]
            for thread in threads:
                thread.start()
            assert half.wait(60)
            searches = [logs[0].searches_until_stopped()]
            before = answered.total()
            with SearchClient(front, timeout=30) as client:
                while answered.total() < before + 200 and not failed:
                    client.search("red", k=1)
            ended.set()
            for thread in threads:
                thread.join()
            searches.append(logs[1].searches_until_stopped())
    assert failed == []
    assert set(answered) == {True}
    assert min(searches) > 20, searches


def test_the_configuration_is_one_that_envoy_takes():
    done = subprocess.run(
        [ENVOY, "--mode", "validate", "-c", ROOT / "deploy" / "envoy.yaml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
