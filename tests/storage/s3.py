"""An S3-compatible server on 127.0.0.1 that can be killed, and a way to it that can be slow."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

BUCKET = "bucket"
SECRET = "wJalrXUtnFEMI-K7MDENG-bPxRfiCY"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_EC2_METADATA_DISABLED": "true",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """What is in it is gone with its process."""

    def __init__(self) -> None:
        self.port = free_port()
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        environment = {**os.environ, **CREDENTIALS}
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=Path("/")
        )
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/{BUCKET}", method="PUT")
        for _ in range(600):
            with suppress(OSError):
                urllib.request.urlopen(request, timeout=5).close()
                return
            time.sleep(0.1)
        raise AssertionError("the server does not start")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def address(self, port: int | None = None) -> str:
        """Of a directory in the bucket; `port`: by a detour."""
        return f"s3://{BUCKET}/runs?endpoint_override=127.0.0.1:{port or self.port}&scheme=http&region=us-east-1"


class Detour:
    """A port that leads to another one, and takes a moment for every 16 KiB."""

    def __init__(self, port: int, delay: float) -> None:
        self.to, self.delay = port, delay
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.socket.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.socket.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                here, _ = self.socket.accept()
                try:
                    there = socket.create_connection(("127.0.0.1", self.to), timeout=60)
                except OSError:
                    here.close()
                    continue
                for source, target in ((here, there), (there, here)):
                    threading.Thread(target=self._pass, args=(source, target), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(16_384):
                time.sleep(self.delay)
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
