"""The server's inside and edges through real HTTP: order of answers, cancelling, limits, keys, origins."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import ssl
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from flatlm.runtime.errors import ResourceError
from flatlm.runtime.server.guard import Access
from tests.serving import CONTEXT, NAME, serving, tiny_llm

HELLO = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 12}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    with serving(lambda: tiny_llm(folder)) as found:
        yield found


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """2 ms a token; a chunk of 128 takes a quarter of a second."""
    folder = tmp_path_factory.mktemp("model")
    with serving(lambda: tiny_llm(folder, seconds=0.002, slots=1), parallel=1, max_queue=2) as found:
        yield found


def text_of(response):
    return response.json()["choices"][0]["message"]["content"]


# ---- answers


def test_an_answer_is_the_one_that_the_model_gives_without_a_server(served, tmp_path):
    expected = tiny_llm(tmp_path).chat(HELLO["messages"], n=12)
    found = served.post("/v1/chat/completions", HELLO).json()
    assert found["choices"][0]["message"]["content"] == expected.text
    assert found["choices"][0]["finish_reason"] == expected.finish_reason
    assert found["usage"]["prompt_tokens"] == expected.timings.prompt_tokens
    assert found["usage"]["completion_tokens"] == expected.timings.generated_tokens


@pytest.mark.parametrize("drafted", [False, True])
def test_answers_under_load_are_those_alone(tmp_path, drafted):
    """Streamed and not, drawn and greedy, beside strangers that are given up in the middle."""
    llm = tiny_llm(tmp_path / "alone", slots=1)
    with serving(lambda: tiny_llm(tmp_path / "served", drafted=drafted), cache_ram=1) as served:
        ask_all(served, llm)


def ask_all(served, llm):
    jobs = [
        {
            "messages": [{"role": "user", "content": f"{'x' * (i * 7 % 90)} question {i % 11}"}],
            "max_tokens": 3 + i % 20,
            "temperature": float(i % 3),
            "seed": i,
        }
        for i in range(48)
    ]

    def given_up(i):
        with httpx.stream(
            "POST", served.url + "/v1/chat/completions", json={**jobs[i], "stream": True}
        ) as one:
            next(one.iter_lines())

    def answer(i):
        if i % 6 == 5:
            given_up(i - 1)
        if i % 2:
            return text_of(served.post("/v1/chat/completions", jobs[i]))
        deltas = [one["choices"][0]["delta"] for one in served.events("/v1/chat/completions", jobs[i])]
        return "".join(delta.get("content") or "" for delta in deltas)

    with ThreadPoolExecutor(12) as threads:
        found = list(threads.map(answer, range(len(jobs))))
    expected = [
        llm.chat(job["messages"], n=job["max_tokens"], temp=job["temperature"], seed=job["seed"]).text
        for job in jobs
    ]
    assert found == expected
    served.until_idle()


def test_several_models_are_told_apart_by_name(tmp_path):
    first, second = tmp_path / "1", tmp_path / "2"
    with serving(lambda: tiny_llm(first), lambda: tiny_llm(second, context=40)) as both:
        assert [one["id"] for one in both.get("/v1/models").json()["data"]] == [NAME, "other"]
        named = {**HELLO, "messages": [{"role": "user", "content": "x" * 60}]}
        assert both.post("/v1/chat/completions", {**named, "model": NAME}).status_code == 200
        assert both.post("/v1/chat/completions", {**named, "model": "other"}).status_code == 400
        unknown = both.post("/v1/chat/completions", {**named, "model": "third"})
        assert unknown.status_code == 404
        assert "tiny, other" in unknown.json()["error"]["message"]


def test_a_model_that_sleeps_is_opened_by_the_next_request(tmp_path):
    with serving(lambda: tiny_llm(tmp_path), sleep_idle_seconds=0.2) as one:
        before = text_of(one.post("/v1/chat/completions", HELLO))
        time.sleep(0.6)
        assert not one.host.loaded
        assert text_of(one.post("/v1/chat/completions", HELLO)) == before
        assert one.host.counts["loads"] == 2


def test_titles_between_two_turns_do_not_throw_a_chat_out(served):
    """Open WebUI asks for a title, tags and what may come next after each answer."""
    turn = [{"role": "user", "content": "tell me about rivers " + "and lakes " * 12}]
    first = served.post("/v1/chat/completions", {"messages": turn, "max_tokens": 20}).json()
    for task in ("a title", "tags", "follow-ups"):
        content = f"write {task} for this chat: {'x' * 70}"
        served.post(
            "/v1/chat/completions", {"messages": [{"role": "user", "content": content}], "max_tokens": 5}
        )
    said = first["choices"][0]["message"]["content"]
    if "\ufffd" in said:  # bytes that are no text are other tokens when they come back
        said = said[: said.index("\ufffd")]
    more = [*turn, {"role": "assistant", "content": said}, {"role": "user", "content": "and?"}]
    usage = served.post("/v1/chat/completions", {"messages": more, "max_tokens": 5}).json()["usage"]
    held = usage["prompt_tokens_details"]["cached_tokens"]
    assert held >= 0.98 * first["usage"]["prompt_tokens"]


def test_a_warm_prompt_is_held_and_kept_on_disk_over_a_start(tmp_path):
    system = {"role": "system", "content": "You are a voice assistant. " * 8}
    file = tmp_path / "warm.json"
    file.write_text(json.dumps({"messages": [system]}))
    body = {"messages": [system, {"role": "user", "content": "lights on"}], "max_tokens": 3}
    held, texts, read = [], [], []
    for _ in range(2):
        options = {"cache_dir": str(tmp_path / "kept"), "cache_ram": 64, "warm": (str(file),)}
        with serving(lambda: tiny_llm(tmp_path / "model"), **options) as one:
            while not (one.host.counts["answers"] and one.host.idle):
                time.sleep(0.01)
            read.append(one.host.counts["prompt_tokens"])
            found = one.post("/v1/chat/completions", body)
            held.append(found.json()["usage"]["prompt_tokens_details"]["cached_tokens"])
            texts.append(text_of(found))
    assert held[0] >= len(system["content"])
    assert held[1] >= held[0]
    assert read[0] > len(system["content"])
    assert read[1] == 1  # all but the last token was on disk
    assert texts[0] == texts[1]


def test_a_model_is_opened_in_the_place_of_an_idle_one_where_memory_is_short(tmp_path):
    served_ = []

    def second():
        if served_[0].host.loaded:
            raise ResourceError("there is room for one")
        return tiny_llm(tmp_path / "2")

    with serving(lambda: tiny_llm(tmp_path / "1"), second) as both:
        served_.append(both)
        assert both.post("/v1/chat/completions", {**HELLO, "model": NAME}).status_code == 200
        assert both.post("/v1/chat/completions", {**HELLO, "model": "other"}).status_code == 200
        assert [one["name"] for one in both.get("/api/ps").json()["models"]] == ["other:latest"]


def test_a_model_that_cannot_be_opened_is_said_and_others_are_answered(tmp_path):
    def broken():
        raise ResourceError("too large for this machine")

    with serving(broken, lambda: tiny_llm(tmp_path)) as both:
        refused = both.post("/v1/chat/completions", {**HELLO, "model": NAME})
        assert refused.status_code == 503
        assert "too large" in refused.json()["error"]["message"]
        assert both.get("/health").status_code == 503
        assert both.post("/v1/chat/completions", {**HELLO, "model": "other"}).status_code == 200


def test_a_line_of_the_log_stays_a_line(served, caplog):
    caplog.set_level("INFO", "flatlm.server")
    served.get("/v1/models/evil%1b[2J%0d")
    assert any("evil" in record.getMessage() for record in caplog.records)
    assert not any(set("\r\n\x1b") & set(record.getMessage()) for record in caplog.records)


def test_tls_is_spoken_where_a_certificate_is_given(tmp_path):
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl to make a certificate")
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "cert.pem")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    made = [openssl, "req", "-x509", "-nodes", "-newkey", "rsa:2048", "-keyout", key, "-out", certificate]
    subprocess.run([*made, *subject], check=True, capture_output=True, timeout=60)
    with serving(lambda: tiny_llm(tmp_path), ssl_keyfile=key, ssl_certfile=certificate) as secure:
        assert secure.url.startswith("https://")
        trusted = ssl.create_default_context(cafile=certificate)
        assert httpx.get(secure.url + "/v1/models", verify=trusted).status_code == 200


# ---- clients that go away


def connected(url):
    """A connection to the server at `url`."""
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def raw(url, body):
    """A connection on which a request was sent."""
    data = json.dumps(body).encode()
    connection = connected(url)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


LONG = {"messages": [{"role": "user", "content": "x" * 360}], "max_tokens": 1}
WRITING = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 300}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("body", [LONG, WRITING], ids=["reading", "writing"])
def test_a_client_that_goes_away_frees_its_slot(slow, body, stream):
    connection = raw(slow.url, {**body, "stream": stream})
    while slow.host.idle:
        time.sleep(0.005)
    time.sleep(0.02)
    connection.close()
    assert slow.until_idle() < 0.6  # a chunk and some
    assert slow.host.counts["ended_cancelled"] >= 1


def test_a_client_that_goes_away_while_it_waits_is_never_read(slow):
    first = raw(slow.url, WRITING)
    while slow.host.idle:
        time.sleep(0.005)
    read = slow.host.counts["prompt_tokens"]
    second = raw(slow.url, LONG)
    while len(slow.host.orders) < 2:
        time.sleep(0.005)
    second.close()
    while len(slow.host.orders) > 1:
        time.sleep(0.005)
    first.close()
    slow.until_idle()
    assert slow.host.counts["prompt_tokens"] - read < 100


def test_who_comes_when_too_many_wait_is_told_to_come_again(slow):
    waiting = [raw(slow.url, WRITING) for _ in range(3)]
    while len(slow.host.orders) < 3:
        time.sleep(0.005)
    refused = slow.post("/v1/chat/completions", HELLO)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.json()["error"]["type"] == "unavailable_error"
    for one in waiting:
        one.close()
    slow.until_idle()


def test_an_answer_that_takes_too_long_is_ended(tmp_path):
    with serving(lambda: tiny_llm(tmp_path, seconds=0.02), request_timeout=1.0) as one:
        late = one.post("/v1/chat/completions", WRITING)
        assert late.status_code == 504
        assert "more than 1 seconds" in late.json()["error"]["message"]
        one.until_idle()


def test_a_model_that_fails_fails_the_answer_and_not_the_server(tmp_path):
    llm = tiny_llm(tmp_path)
    forward = llm.backend.forward_many
    broken = [True]

    def fail(segments):
        if broken.pop() if broken else False:
            raise RuntimeError("secret")
        return forward(segments)

    llm.backend.forward_many = fail
    with serving(lambda: llm) as one:
        failed = one.post("/v1/chat/completions", HELLO)
        assert failed.status_code == 500
        assert "secret" not in failed.text
        assert one.post("/v1/chat/completions", HELLO).status_code == 200


# ---- limits


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"messages": []}, "at least one"),
        ({"messages": "hello"}, "list of objects"),
        ({"messages": [{"content": "x"}]}, "role"),
        ({**HELLO, "temperature": "hot"}, "temperature"),
        ({**HELLO, "temperature": -1}, "temperature"),
        ({**HELLO, "n": 3}, "slots"),
        ({**HELLO, "n": 0}, "at least 1"),
        ({**HELLO, "stop": ["x"] * 17}, "stop"),
        ({**HELLO, "stop": "x" * 101}, "stop"),
        ({**HELLO, "stream": "yes"}, "stream"),
        ({"messages": [{"role": "user", "content": "x"}] * 1001}, "1000"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_field(served, body, words):
    refused = served.post("/v1/chat/completions", body)
    assert refused.status_code == 400
    assert refused.json()["error"]["type"] == "invalid_request_error"
    assert words in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b"[" * 5000, b'{"a":1,"a":2}', b"nul"]
)
def test_a_body_that_is_no_object_is_refused(served, body):
    refused = httpx.post(served.url + "/v1/chat/completions", content=body, timeout=20)
    assert refused.status_code == 400
    assert refused.json()["error"]["message"]


def test_what_no_client_means_to_say_is_let_be(served):
    known = text_of(served.post("/v1/chat/completions", HELLO))
    more = {**HELLO, "user": "me", "store": True, "metadata": {"a": 1}, "mirostat": 2, "max_tokens": 12.0}
    assert text_of(served.post("/v1/chat/completions", more)) == known


def test_a_prompt_that_is_too_long_is_refused_with_both_numbers_also_when_streamed(served):
    for stream in (False, True):
        for size in (CONTEXT, 100 * CONTEXT):
            long = {**HELLO, "messages": [{"role": "user", "content": "x" * size}], "stream": stream}
            refused = served.post("/v1/chat/completions", long)
            assert refused.status_code == 400
            error = refused.json()["error"]
            assert error["type"] == "exceed_context_size_error"
            assert error["n_ctx"] == CONTEXT < error["n_prompt_tokens"]
            assert "exceeds the available context size" in error["message"]


def test_a_large_body_is_refused_before_it_is_read(served):
    with connected(served.url) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n{"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")

    def endless():
        for _ in range(200):
            yield b" " * 65536

    with contextlib.suppress(httpx.WriteError):  # it was closed while we wrote
        assert httpx.post(served.url + "/v1/chat/completions", content=endless()).status_code == 413
    assert served.post("/v1/chat/completions", HELLO).status_code == 200


def test_connections_that_never_ask_are_closed(served, monkeypatch):
    monkeypatch.setattr("flatlm.runtime.server.run.HEADER_SECONDS", 0.2)
    half_open = [connected(served.url) for _ in range(50)]
    for number, one in enumerate(half_open):
        one.sendall(b"GET /v1/models HTTP/1.1\r\nHost: l"[: number + 1])
    assert served.get("/v1/models").status_code == 200
    for one in half_open:
        assert one.recv(1) == b""
        one.close()


def test_an_unknown_path_and_a_wrong_method_are_json(served):
    assert served.get("/nothing").json()["error"]["type"] == "not_found_error"
    wrong = served.get("/v1/chat/completions")
    assert wrong.status_code == 405
    assert wrong.json()["error"]["code"] == 405
    assert "ask by POST" in wrong.json()["error"]["message"]


@pytest.mark.parametrize(
    "head",
    ["Host: [bad", "Host: a]b", "Host: localhost\r\nOrigin: http://[x"],
)
def test_addresses_that_are_none_are_refused(served, head):
    with connected(served.url) as one:
        one.sendall(f"GET /v1/models HTTP/1.1\r\n{head}\r\nConnection: close\r\n\r\n".encode())
        assert b" 403 " in one.recv(100)


def test_who_leaves_in_the_midst_of_a_body_is_no_failure(served, caplog):
    with connected(served.url) as one:
        one.sendall(b'POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{"prompt":')
    assert served.get("/v1/models").status_code == 200
    time.sleep(0.2)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_number_of_hundreds_of_digits_is_refused_by_name(served):
    body = '{"prompt": "Hi", "n_predict": 2, "temperature": 1' + 400 * "0" + "}"
    refused = httpx.post(served.url + "/completion", content=body, timeout=60)
    assert refused.status_code == 400
    assert "temp" in refused.json()["error"]["message"]


# ---- who may ask


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    access = Access(("secret", "second"), ("box.lan",), ("https://page.example",))
    with serving(lambda: tiny_llm(folder), access=access) as found:
        yield found


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Basic secret"}, 401),
        ({"Authorization": "Bearer secret"}, 200),
        ({"Authorization": "bearer second"}, 200),
        ({"X-Api-Key": "secret"}, 200),
        ({"X-Api-Key": "sécret".encode("latin-1")}, 401),
    ],
)
def test_a_key_is_asked_for(keyed, headers, status):
    found = keyed.get("/v1/models", headers=headers)
    assert found.status_code == status
    if status == 401:
        assert found.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("127.0.0.1:8080", 200),
        ("[::1]:80", 200),
        ("pi.local", 200),
        ("box.lan:80", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("x@evil.example", 403),
    ],
)
def test_another_name_than_ours_is_refused(keyed, host, status):
    headers = {"Host": host, "X-Api-Key": "secret"}
    assert keyed.get("/v1/models", headers=headers).status_code == status


def test_pages_of_other_origins_are_refused_unless_named(keyed):
    key = {"X-Api-Key": "secret"}
    for origin in ("https://evil.example", "null", "http://page.example"):
        assert keyed.get("/v1/models", headers={**key, "Origin": origin}).status_code == 403
    allowed = keyed.get("/v1/models", headers={**key, "Origin": "https://page.example"})
    assert allowed.headers["access-control-allow-origin"] == "https://page.example"
    same = keyed.get("/v1/models", headers={**key, "Origin": keyed.url})
    assert same.status_code == 200
    assert "access-control-allow-origin" not in same.headers


def test_a_preflight_needs_no_key(keyed):
    for origin, status in (("https://page.example", 200), ("https://evil.example", 403)):
        headers = {"Origin": origin, "Access-Control-Request-Headers": "authorization"}
        found = httpx.options(keyed.url + "/v1/chat/completions", headers=headers)
        assert found.status_code == status
        assert ("access-control-allow-headers" in found.headers) == (status == 200)


def test_an_idle_server_uses_no_processor(served):
    served.until_idle()
    before = time.process_time()
    time.sleep(2)
    assert time.process_time() - before < 0.05


def test_stopping_ends_answers_that_run(tmp_path):
    started = time.monotonic()
    with serving(lambda: tiny_llm(tmp_path, seconds=0.02)) as one:
        connection = raw(one.url, WRITING)
        while one.host.idle:
            time.sleep(0.005)
    assert time.monotonic() - started < 7
    connection.close()
