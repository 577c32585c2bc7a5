"""Servers under load, in turns within one run: flatlm beside any other that speaks OpenAI's dialect.

    flatlm serve models/smol --port 8080 --parallel 4 -t 2 --draft auto &
    llama-server -m smollm2-Q4_0.gguf --port 8081 -np 4 -t 2 &
    python scripts/bench_server.py flatlm=http://127.0.0.1:8080 llama.cpp=http://127.0.0.1:8081 --json o.json

For each number of clients and length of prompt the servers take turns, `--rounds` times. A client asks, reads
the stream to its end and asks again, `--answers` times; no two prompts of a run begin alike. Reported are
tokens a second of all clients together, the time to the first token (median, 95 %), the longest gap in a
stream while another client's long prompt is read, and how long an abandoned long prompt keeps its slot from
the next. stdout has the table in Markdown. Start servers with as many slots as clients you ask for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx

WORDS = (
    "river",
    "stone",
    "light",
    "house",
    "garden",
    "window",
    "morning",
    "water",
    "paper",
    "bridge",
    "forest",
)
CHAT = "/v1/chat/completions"


@dataclass
class Answer:
    """When its tokens came, in seconds since it was asked."""

    times: list[float]
    tokens: int

    @property
    def gaps(self) -> list[float]:
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


@dataclass
class Load:
    """One server under one load; lists have an entry a round."""

    server: str
    clients: int
    prompt: int
    rates: list[float] = field(default_factory=list)  # tokens a second, all clients
    first: list[float] = field(default_factory=list)  # seconds, an entry an answer
    failed: int = 0

    def row(self) -> str:
        first = sorted(self.first) or [float("nan")]
        late = first[min(len(first) - 1, int(0.95 * len(first)))]
        rate = statistics.median(self.rates) if self.rates else float("nan")
        return (
            f"| {self.server} | {self.clients} | {self.prompt} | {rate:.1f} | "
            f"{statistics.median(first):.2f} | {late:.2f} | {self.failed} |"
        )


def prompt_of(words: int, chance: random.Random) -> list[dict[str, str]]:
    """A question of about so many tokens that no other begins like."""
    text = " ".join(chance.choice(WORDS) for _ in range(max(1, words - 30)))
    return [{"role": "user", "content": f"{chance.random():.9f} {text} Tell a story about that."}]


async def ask(client: httpx.AsyncClient, messages: Sequence[dict[str, str]], tokens: int) -> Answer:
    """Read one answer to its end. Raises httpx.HTTPError."""
    body = {"messages": list(messages), "max_tokens": tokens, "stream": True, "temperature": 0}
    body |= {"stream_options": {"include_usage": True}, "model": "any", "ignore_eos": True}
    started, times, written = time.perf_counter(), list[float](), 0
    async with client.stream("POST", CHAT, json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if event.get("choices") and event["choices"][0].get("delta", {}).get("content"):
                times.append(time.perf_counter() - started)
            if event.get("usage"):
                written = event["usage"]["completion_tokens"]
    return Answer(times, written)


async def crowd(url: str, load: Load, args: argparse.Namespace, chance: random.Random) -> None:
    """All clients at once, each asking several times."""
    answers: list[Answer] = []

    async def client_() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=args.timeout) as client:
            for _ in range(args.answers):
                try:
                    answers.append(await ask(client, prompt_of(load.prompt, chance), args.tokens))
                except httpx.HTTPError:
                    load.failed += 1

    started = time.perf_counter()
    await asyncio.gather(*(client_() for _ in range(load.clients)))
    load.rates.append(sum(answer.tokens for answer in answers) / (time.perf_counter() - started))
    load.first += [answer.times[0] for answer in answers if answer.times]


async def stall(url: str, args: argparse.Namespace, chance: random.Random) -> tuple[float, float]:
    """(usual gap, longest gap) of a stream while a long prompt of another client is read."""
    async with httpx.AsyncClient(base_url=url, timeout=args.timeout) as client:
        writer = asyncio.create_task(ask(client, prompt_of(40, chance), 4 * args.tokens))
        await asyncio.sleep(1.0)
        await ask(client, prompt_of(args.long, chance), 1)
        gaps = (await writer).gaps
    return statistics.median(gaps), max(gaps)


async def abandoned(url: str, args: argparse.Namespace, chance: random.Random) -> float:
    """Seconds from giving up all slots' long prompts to the first token of a short question, asked then."""
    async with httpx.AsyncClient(base_url=url, timeout=args.timeout) as client:
        long = [asyncio.create_task(ask(client, prompt_of(args.long, chance), 4)) for _ in range(args.slots)]
        await asyncio.sleep(1.5)
        for one in long:
            one.cancel()
        await asyncio.gather(*long, return_exceptions=True)
        answer = await ask(client, prompt_of(40, chance), 2)
    return answer.times[0]


async def run(args: argparse.Namespace) -> dict[str, object]:
    chance, loads, stalls, freed = random.Random(args.seed), list[Load](), {}, {}
    print("| server | clients | prompt | tokens/s | first token, median s | 95 % | failed |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for prompt in args.prompts:
        for clients in args.clients:
            these = [Load(name, clients, prompt) for name, _ in args.servers]
            for turn in range(args.rounds):
                order = list(zip(args.servers, these, strict=True))
                for (_, url), load in order[:: -1 if turn % 2 else 1]:
                    await crowd(url, load, args, chance)
            for load in these:
                print(load.row(), flush=True)
            loads += these
    for name, url in args.servers:
        stalls[name] = await stall(url, args, chance)
        freed[name] = await abandoned(url, args, chance)
        usual, longest = stalls[name]
        print(
            f"\n{name}: usual gap {usual:.3f} s, longest {longest:.2f} s while a prompt of {args.long} "
            f"tokens is read; first token {freed[name]:.2f} s after such prompts were given up"
        )
    return {
        "load_average": os.getloadavg(),
        "loads": [asdict(load) for load in loads],
        "stalls": stalls,
        "abandoned": freed,
    }


def server(text: str) -> tuple[str, str]:
    name, equals, url = text.partition("=")
    if not equals or not url.startswith("http"):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=http://…")
    return name, url.rstrip("/").removesuffix("/v1")


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("servers", nargs="+", type=server, metavar="NAME=URL")
    parser.add_argument("--clients", type=numbers, default=[1, 4, 8, 16])
    parser.add_argument("--prompts", type=numbers, default=[50, 1200], help="tokens, about")
    parser.add_argument("--long", type=int, default=1200, help="tokens of the prompt that others wait for")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--answers", type=int, default=2, help="a client and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slots", type=int, default=4, help="that each server was started with")
    parser.add_argument("--timeout", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = asyncio.run(run(args))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
        print(f"written to {args.json}", file=sys.stderr)


if __name__ == "__main__":
    main()
