from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from hub_server import HubServer

from peftkit.artifacts import hub_reachable, locate_model
from peftkit.artifacts.reachability import hub_problem
from peftkit.errors import ArtifactError


class SilentServer:
    """Accepts connections and never says a word."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.accepted: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                self.accepted.append(self.socket.accept()[0])
            except OSError:
                return

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        for connection in self.accepted:
            connection.close()


@pytest.fixture
def silent(hub_server: HubServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[SilentServer]:
    server = SilentServer()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.socket.getsockname()[1]}/")
    yield server
    server.close()


def test_silent_hub_is_noticed_within_three_seconds_and_asked_only_once(silent: SilentServer) -> None:
    started = time.monotonic()
    assert hub_reachable() is False
    first = time.monotonic() - started
    for number in range(5):
        with pytest.raises(ArtifactError, match=r"hub: .*127\.0\.0\.1"):
            locate_model(f"owner/model-{number}")
    assert first < 3
    assert time.monotonic() - started - first < 1
    assert len(silent.accepted) == 1


def test_hanging_name_lookup_is_given_up_in_time(hub_server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hang = threading.Event()

    def getaddrinfo(*args: object, **kwargs: object) -> list[object]:
        hang.wait(20)
        raise socket.gaierror("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr("peftkit.artifacts.reachability.ANSWER_SECONDS", 0.2)  # the test above waits for the real one
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    started = time.monotonic()
    try:
        assert hub_problem() == "no answer from http://hub.invalid within 3 seconds"
        assert time.monotonic() - started < 1
    finally:
        hang.set()
        for thread in threading.enumerate():
            if thread.name == "peftkit-hub-probe":
                thread.join()


def test_answering_hub_is_reachable_and_asked_once(hub_server: HubServer) -> None:
    assert [hub_reachable() for _ in range(3)] == [True, True, True]
    assert [request.path for request in hub_server.requests] == ["/"]


def test_refused_connection_is_unreachable(hub_server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    assert f"http://127.0.0.1:{port} cannot be reached (ConnectError" in str(hub_problem())


def test_proxy_of_the_environment_is_used(hub_server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("HTTP_PROXY", hub_server.url)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    assert hub_reachable() is True
    assert [request.path for request in hub_server.requests] == ["http://hub.invalid/"]


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_mode_asks_nobody(hub_server: HubServer, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    assert hub_reachable() is False
    assert "offline mode is on" in str(hub_problem())
    assert hub_server.requests == []
