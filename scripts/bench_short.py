"""Short answers of a chat, each in a process of its own: does drafting lose where little is written?

    python scripts/bench_short.py models/qwen-1.5b --draft auto:models/qwen-0.5b -n 60 -t 2 --json short.json

Forty everyday prompts; an answer ends by itself or after -n tokens. Every process knows nothing of earlier
ones (what drafting keeps is not kept) and answers one prompt, plain or drafted, in turns. A ratio is plain /
drafted of the seconds from the first token to the last, of answers with 10 tokens and more.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

QUESTIONS = """
Why is the sky blue?
What is a binary search?
Who wrote Hamlet?
What does HTTP stand for?
How does a fridge keep food cold?
What is the boiling point of water?
Why do we have seasons?
What is a Raspberry Pi?
What is recursion?
How many days has a leap year?
What is the largest planet?
What does a compiler do?
Why do cats purr?
What is photosynthesis?
What is the difference between TCP and UDP?
How do vaccines work?
What is a prime number?
Why is the sea salty?
What is a hash table?
Who painted the Mona Lisa?
"""

REQUESTS = """
Write a greeting for a birthday card.
Translate 'good morning' into French.
Name three fruits.
What is 17 times 4?
Write a Python expression that reverses a list x.
Suggest a name for a cat.
Give me a synonym of 'fast'.
Write a SQL query that counts the rows of table users.
What should I pack for a day on the beach?
Say thank you in a polite way.
Write a one-line bash command that lists files by size.
What is the plural of 'mouse'?
How long do I boil an egg?
Name the colours of the rainbow.
What is the capital of Australia?
Write a regular expression for a four-digit number.
Convert 10 km to miles.
What is the opposite of 'ancient'?
Give an example of a metaphor.
What does CPU mean?
"""

PROMPTS = [
    *("Answer in one sentence: " + line for line in QUESTIONS.strip().splitlines()),
    *("Be brief. " + line for line in REQUESTS.strip().splitlines()),
]

CODE = """
import json, sys
from flatlm import LLM
from flatlm.runtime.drafting import kept
kept.default_folder = lambda: None  # nothing of earlier processes
model, draft, threads, n, text = sys.argv[1:]
with LLM(model, draft=draft, threads=int(threads), ctx=1024) as llm:
    done = llm.chat([{"role": "user", "content": text}], n=int(n), temp=0.0)
print(json.dumps([done.timings.generated_tokens, done.timings.decode_seconds, list(done.tokens)]))
"""


def answer(args: argparse.Namespace, draft: str, text: str) -> tuple[int, float, list[int]]:
    """Tokens, seconds of decoding, and the ids, of a process of its own."""
    command = [sys.executable, "-c", CODE, str(args.model), draft, str(args.t), str(args.n), text]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"bench_short: {done.stderr[-2000:]}")
    count, seconds, tokens = json.loads(done.stdout)
    return count, seconds, tokens


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--draft", required=True, help="as of flatlm generate")
    parser.add_argument("-n", type=int, default=60, help="most tokens of an answer (default 60)")
    parser.add_argument("-t", type=int, default=2, help="threads (default 2)")
    parser.add_argument("--limit", type=int, default=len(PROMPTS), help="prompts (default all 40)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    args = parser.parse_args()
    rows, differing = [], 0
    for number, text in enumerate(PROMPTS[: args.limit]):
        order = ("off", args.draft) if number % 2 else (args.draft, "off")
        found = {draft: answer(args, draft, text) for draft in order}
        (count, plain, tokens), (_, drafted, others) = found["off"], found[args.draft]
        differing += tokens != others
        rows.append({"prompt": text, "tokens": count, "plain": plain, "drafted": drafted})
        print(
            f"{number + 1:2d}  {count:3d} tokens  {plain / drafted:.2f}  {text}", file=sys.stderr, flush=True
        )
    ratios = sorted(row["plain"] / row["drafted"] for row in rows if row["tokens"] >= 10)
    print(
        f"{len(ratios)} answers of 10 tokens and more: median {statistics.median(ratios):.2f}, worst "
        f"{ratios[0]:.2f}, best {ratios[-1]:.2f}; {differing} of {len(rows)} differ"
    )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
