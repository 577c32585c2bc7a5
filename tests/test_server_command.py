"""flatlm serve as a command: what it refuses before it listens, the key it makes, how it ends."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from flatlm.runtime.cli import main
from flatlm.runtime.commands import serve
from flatlm.runtime.errors import UsageError
from flatlm.runtime.server.options import ServeOptions
from flatlm.runtime.server.run import addresses, listen
from tests.test_nested import exported

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifact")
    return exported(folder, "edge")


def refused(capsys, *words):
    status = main(["serve", *words])
    return status, capsys.readouterr().err


def test_without_a_model_or_with_two_of_one_name_it_does_not_begin(capsys, model):
    assert refused(capsys)[0] == 2
    status, words = refused(capsys, str(model), str(model))
    assert status == 2
    assert "--alias" in words
    status, words = refused(capsys, "nowhere")
    assert status == 1
    assert "no exported model" in words


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::"])
def test_who_can_be_reached_by_others_needs_a_key_or_says_that_none_is_wanted(capsys, model, host):
    status, words = refused(capsys, str(model), "--host", host)
    assert status == 2
    assert "--api-key" in words
    assert "--no-auth" in words
    assert serve.keys_of(ServeOptions(host=host, no_auth=True)) == ()
    assert serve.keys_of(ServeOptions(host=host, api_key=("a", "b"))) == ("a", "b")


def test_a_file_may_hold_keys(tmp_path):
    file = tmp_path / "keys"
    file.write_text("one\n\ntwo\n")
    assert serve.keys_of(ServeOptions(api_key_file=str(file), api_key=("zero",))) == ("zero", "one", "two")
    with pytest.raises(UsageError, match="--api-key-file"):
        serve.keys_of(ServeOptions(api_key_file=str(tmp_path / "none")))


def test_a_key_is_made_once_and_kept_for_its_owner(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (key,) = serve.keys_of(ServeOptions(api_key=("auto",)))
    assert len(key) > 30
    assert key in capsys.readouterr().err
    assert serve.keys_of(ServeOptions(api_key=("auto",))) == (key,)
    assert key not in capsys.readouterr().err
    assert (tmp_path / "flatlm" / "api-key").stat().st_mode & 0o077 == 0


def test_an_address_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"127.0.0.1 port {port}"):
            listen(ServeOptions(port=port))


def test_a_socket_may_be_a_file(tmp_path):
    options = ServeOptions(host=str(tmp_path / "flatlm.sock"))
    (found,) = listen(options)
    assert addresses([found], options) == [f"unix:{options.host}"]
    assert Path(options.host).stat().st_mode & 0o777 == 0o600
    found.close()
    listen(options)[0].close()  # what a server that was killed has left is no hindrance


def test_packages_that_are_missing_are_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for name in [name for name in sys.modules if name.startswith("flatlm.runtime.commands.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "flatlm.runtime.server.run")
    status, words = refused(capsys, "x")
    assert status == 1
    assert "pip install flatlm[serve]" in words


def test_a_check_says_what_models_take(capsys, model):
    assert main(["serve", str(model), "--check", "--parallel", "3", "--backend", "numpy"]) == 0
    words = capsys.readouterr().out
    assert "3 slots of" in words
    assert "backend numpy" in words


def test_a_process_answers_and_ends_with_a_signal(model):
    command = [sys.executable, "-m", "flatlm", "serve", str(model), "--port", "0", "--backend", "numpy"]
    command += ["--log-json", "--api-key", "k"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        url = re.findall(r"http://[0-9.:]+", process.stderr.readline())[0]
        until = time.monotonic() + 60
        while httpx.get(url + "/health").status_code != 200:
            assert time.monotonic() < until
            time.sleep(0.1)
        assert httpx.get(url + "/v1/models").status_code == 401
        body = {"prompt": [1, 2], "max_tokens": 2}
        headers = {"X-Api-Key": "k"}
        found = httpx.post(url + "/v1/completions", json=body, headers=headers, timeout=60)
        assert found.status_code == 200, found.text
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert time.monotonic() - started < 5
        assert '"level": "info"' in process.stderr.read()
    finally:
        process.kill()
        process.communicate()
