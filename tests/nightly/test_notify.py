import json
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from laue_dask.nightly.config import NotifyConfig
from laue_dask.nightly.notify import notify

GOOD, BAD = {"exit_code": 0}, {"exit_code": 3, "counts": {"aside": 1}}


@pytest.fixture
def hook():
    """A server that keeps what it is sent; refuses where the address ends in /no."""
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if self.path == "/no" else 200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", got
        server.shutdown()
        thread.join()


def test_the_webhook_gets_the_summary_when_there_is_a_problem_or_always(hook):
    address, got = hook
    assert notify(NotifyConfig(webhook=address), GOOD) == []
    assert got == []
    assert notify(NotifyConfig(webhook=address), BAD) == []
    assert notify(NotifyConfig(webhook=address, when="always"), GOOD) == []
    assert got == [BAD, GOOD]


def test_a_webhook_that_refuses_is_a_line(hook):
    (line,) = notify(NotifyConfig(webhook=f"{hook[0]}/no"), BAD)
    assert "500" in line


def test_a_webhook_that_does_not_answer_is_a_line_after_its_time():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        (line,) = notify(NotifyConfig(webhook=address, timeout_seconds=0.2), BAD)
    assert "timed out" in line


def test_a_command_gets_the_summary_on_its_standard_input(tmp_path):
    keep = [sys.executable, "-c", f"import sys; open(r'{tmp_path}/got', 'w').write(sys.stdin.read())"]
    assert notify(NotifyConfig(command=keep), BAD) == []
    assert json.loads((tmp_path / "got").read_text()) == BAD


@pytest.mark.parametrize("command", [["/no/such/program"], [sys.executable, "-c", "raise SystemExit(4)"]])
def test_a_command_that_fails_is_a_line(command):
    (line,) = notify(NotifyConfig(command=command), BAD)
    assert "\n" not in line
