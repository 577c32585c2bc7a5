"""The options of `flatlm serve`, as `runtime/options.py` declares options."""

from __future__ import annotations

from dataclasses import dataclass

from flatlm.runtime.options import check_fields, option


@dataclass(frozen=True)
class ServeOptions:
    """Where and for whom a server answers, and what it takes on."""

    host: str = option("127.0.0.1", "--host", help="address to listen on, or the path of a socket, *.sock")
    port: int = option(8080, "--port", low=0, high=65535, help="port, 0: any that is free")
    ollama: bool = option(False, "--ollama", help="listen on 11434 too, where Ollama's clients look")
    parallel: int = option(
        2, "--parallel", "-np", low=1, high=64, help="answers written at once by a model, its slots"
    )
    alias: str | None = option(None, "--alias", "-a", metavar="NAME", help="name of the (first) model")
    api_key: tuple[str, ...] = option(
        (), "--api-key", metavar="KEY", help="who has it may ask; auto: make one"
    )
    api_key_file: str | None = option(None, "--api-key-file", metavar="FILE", help="keys, one a line")
    no_auth: bool = option(False, "--no-auth", help="no key although others can reach the address")
    allowed_host: tuple[str, ...] = option(
        (),
        "--allowed-host",
        metavar="NAME",
        help="a name of this server beside localhost, *.local and addresses",
    )
    cors_origins: tuple[str, ...] = option(
        (), "--cors-origins", metavar="ORIGIN", help="web pages that may ask from their own origin; *: any"
    )
    max_queue: int = option(32, "--max-queue", low=0, high=10_000, help="answers that may wait for a slot")
    request_timeout: float = option(
        600.0, "--request-timeout", low=1.0, high=86_400.0, help="seconds an answer may take"
    )
    max_body: int = option(4 << 20, "--max-body", low=1024, high=1 << 28, help="bytes of a request's body")
    sleep_idle_seconds: float = option(
        -1.0,
        "--sleep-idle-seconds",
        low=-1.0,
        high=1e9,
        help="close a model that was idle so long, -1: never",
    )
    cache_ram: int | None = option(
        None,
        "--cache-ram",
        low=0,
        high=2**20,
        help="MiB for what was computed of prompts and has no slot; default: a tenth of the free memory",
    )
    cache_dir: str | None = option(
        None, "--cache-dir", metavar="FOLDER", help="keep that on disk, too, from one start to the next"
    )
    cache_disk: int = option(500, "--cache-disk", low=1, high=2**24, help="MiB that --cache-dir may take")
    warm: tuple[str, ...] = option(
        (), "--warm", metavar="FILE", help="read this prompt at the start: a request's JSON, or a text"
    )
    metrics: bool = option(False, "--metrics", help="answer /metrics, for Prometheus")
    no_slots: bool = option(False, "--no-slots", help="do not answer /slots")
    no_ui: bool = option(False, "--no-ui", help="no chat page at /")
    ssl_keyfile: str | None = option(None, "--ssl-keyfile", "--ssl-key-file", metavar="FILE", help="TLS key")
    ssl_certfile: str | None = option(
        None, "--ssl-certfile", "--ssl-cert-file", metavar="FILE", help="TLS certificate"
    )
    log_json: bool = option(False, "--log-json", help="the log as one JSON object a line")

    def __post_init__(self) -> None:
        check_fields(self)
