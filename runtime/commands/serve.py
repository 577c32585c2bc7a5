"""flatlm serve: answer over HTTP, as OpenAI, Ollama, llama.cpp and Anthropic do."""

from __future__ import annotations

import argparse
import json
import logging
import os
import secrets
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from flatlm.kernels_arm.files import read_text
from flatlm.runtime import names
from flatlm.runtime.commands.common import sampling_of, say, warn_of_threads
from flatlm.runtime.errors import UsageError
from flatlm.runtime.memory import available_bytes
from flatlm.runtime.options import BackendOptions, DraftOptions, SamplingOptions, add_flags, from_args
from flatlm.runtime.server.app import application
from flatlm.runtime.server.engine import Engine
from flatlm.runtime.server.guard import Access
from flatlm.runtime.server.hosts import Host, Opening, host_of
from flatlm.runtime.server.options import ServeOptions
from flatlm.runtime.server.orders import Desk
from flatlm.runtime.server.run import addresses, listen, serve
from flatlm.runtime.server.shop import Shop

LOOPBACK = ("127.", "localhost", "::1")


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's flags."""
    parser.set_defaults(run=run)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="names or folders of exported models")
    parser.add_argument(
        "-m", "--model", action="append", default=[], metavar="MODEL", help="the same, as a flag"
    )
    parser.add_argument("--check", action="store_true", help="open the models, say what they take, and leave")
    add_flags(parser, ServeOptions)
    add_flags(parser, SamplingOptions)
    add_flags(parser, BackendOptions)
    add_flags(parser, DraftOptions)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    options = from_args(args, ServeOptions)
    hosts = hosts_of(args, options)
    access = Access(keys_of(options), options.allowed_host, options.cors_origins)
    if args.check:
        return check(list(hosts.values()))
    log_to_stderr(options)
    sockets = listen(options)
    engine = Engine(hosts.values())
    shop = Shop(hosts, engine, Desk(engine, options.max_queue), options, ThreadPoolExecutor(2, "flatlm-text"))
    for address in addresses(sockets, options):
        say(f"listening on {address} ({', '.join(hosts)}); Ctrl-C ends it")
    serve(application(shop, access), options, sockets)
    return 0


def hosts_of(args: argparse.Namespace, options: ServeOptions) -> dict[str, Host]:
    """The models by name. Raises UsageError where there is none, or two of one name; ArtifactError."""
    paths = [*args.models, *args.model]
    if not paths:
        raise UsageError("give the folder of at least one model", param="model")
    backend = replace(from_args(args, BackendOptions), batch=options.parallel)
    warn_of_threads(backend)
    opening = Opening(
        backend,
        from_args(args, DraftOptions),
        SamplingOptions(),
        options.sleep_idle_seconds,
        cache_bytes(options),
        None if options.cache_dir is None else Path(options.cache_dir),
        options.cache_disk << 20,
    )
    hosts: dict[str, Host] = {}
    for given in paths:
        path = names.resolve(given)
        sampling = sampling_of(args, path, True)
        chosen = replace(opening, sampling=sampling if args.n is not None else replace(sampling, n=-1))
        host = host_of(path, None if hosts else options.alias, chosen)
        if host.name in hosts:
            raise UsageError(f"two models are called {host.name!r}: give the first another name with --alias")
        hosts[host.name] = host
    return hosts


def cache_bytes(options: ServeOptions) -> int:
    """For prefixes that have no slot, in memory."""
    if options.cache_ram is not None:
        return options.cache_ram << 20
    return (available_bytes() or 0) // 10


def keys_of(options: ServeOptions) -> tuple[str, ...]:
    """The keys that are accepted. UsageError where others can reach the address and none is asked for."""
    keys = [auto_key() if key == "auto" else key for key in options.api_key]
    if options.api_key_file is not None:
        try:
            keys += [line.strip() for line in read_text(Path(options.api_key_file)).splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"--api-key-file {options.api_key_file}: {error}", param="api_key_file"
            ) from None
    found = tuple(key for key in keys if key)
    local = options.host.startswith(LOOPBACK) or options.host.endswith(".sock")
    if not (found or local or options.no_auth):
        raise UsageError(
            f"--host {options.host} can be reached by others: give --api-key KEY (or auto), or say --no-auth",
            param="host",
        )
    return found


def auto_key() -> str:
    """A key that is made once and kept where only this user reads it."""
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "flatlm"
    file = folder / "api-key"
    if file.exists():
        return file.read_text(encoding="utf-8").strip()
    key = f"sk-{secrets.token_urlsafe(24)}"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
        out.write(key + "\n")
    say(f"made a key, kept in {file}: {key}")
    return key


def check(hosts: Sequence[Host]) -> int:
    """Open each model and say what it takes."""
    for host in hosts:
        host.open()
        backend = host.opened.backend
        print(
            f"{host.name}: {host.bytes / 1e6:,.0f} MB of files, opened in {host.load_seconds:.2f} s, backend "
            f"{backend.name}, {host.slots} slots of {backend.context} tokens"
        )
        host.close()
    return 0


class JsonLines(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        found = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            found["traceback"] = self.formatException(record.exc_info)
        return json.dumps(found, ensure_ascii=False)


def log_to_stderr(options: ServeOptions) -> None:
    """The log of a server goes to stderr, times in UTC."""
    handler = logging.StreamHandler(sys.stderr)
    lines = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    lines.converter = time.gmtime
    handler.setFormatter(JsonLines() if options.log_json else lines)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
