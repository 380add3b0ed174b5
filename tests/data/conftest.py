"""A server for downloads, real data where there is any."""

import functools
import http.server
import os
import sys
import threading
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # data_makers.py


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Small tensors: a second thread costs more than it gives, the more so beside other tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def real_data() -> str:
    """The folder of real data sets that PYCLS_TEST_DATA names."""
    folder = os.environ.get("PYCLS_TEST_DATA")
    if not folder:
        pytest.skip("PYCLS_TEST_DATA is not set: it names a folder of real data sets, laid out as torchvision does")
    return folder


@pytest.fixture
def server(tmp_path_factory):
    """A mirror on this machine: its folder and address."""
    folder = tmp_path_factory.mktemp("mirror")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as mirror:
        threading.Thread(target=mirror.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{mirror.server_port}/"
        mirror.shutdown()
