"""What keeping to a form costs: seconds a token of constrained answers beside free ones, in turns.

    python scripts/bench_constraints.py models/smollm2-edge --rounds 7 -n 120 -t 1 --json forms.json

Every round writes -n tokens freely (no token that ends the answer), then -n tokens of each form, greedy and
sampled; the order changes from round to round. A ratio is the median, over rounds, of free seconds a token
divided by constrained ones: 1 is no cost, more than 1 a gain. With --draft it is drafted on both sides, so
that what the form leaves no choice about counts too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

from flatlm import LLM

PEOPLE = {
    "type": "object",
    "properties": {
        "people": {
            "type": "array",
            "minItems": 40,
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "maxLength": 24},
                    "born": {"type": "integer", "minimum": 1000, "maximum": 2020},
                    "known_for": {"type": "string", "maxLength": 60},
                },
                "required": ["name", "born", "known_for"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["people"],
    "additionalProperties": False,
}
FORMS: dict[str, dict[str, Any]] = {
    "free": {"ignore_eos": True},
    "schema": {"json_schema": PEOPLE},
    "one long text": {
        "json_schema": {"type": "object", "properties": {"text": {"type": "string", "minLength": 3000}}}
    },
    "regex": {"regex": "([A-Z][a-z]{2,12}: [a-z ,]{20,60}\\.\n){30}"},
}
SAMPLING = {"greedy": {"temp": 0.0}, "sampled": {"temp": 0.8, "seed": 1}}
QUESTION = [{"role": "user", "content": "Name some mathematicians, and tell what each is known for."}]


def main() -> None:
    """Measure, print a table, keep it as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-n", type=int, default=120)
    parser.add_argument("-t", "--threads", type=int, default=1)
    parser.add_argument("--draft", default="off")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    jobs = [(form, how) for form in FORMS for how in SAMPLING]
    seconds: dict[tuple[str, str], list[float]] = {job: [] for job in jobs}
    with LLM(args.model, threads=args.threads, draft=args.draft) as llm:
        for (
            form,
            how,
        ) in jobs:  # the form's first use reads the tokenizer, and the prompt is held from here on
            measured(llm, form, how, 8)
        for number in range(args.rounds):
            for form, how in jobs if number % 2 else jobs[::-1]:
                seconds[form, how].append(measured(llm, form, how, args.n))
    rows = []
    for form, how in jobs:
        ratios = [a / b for a, b in zip(seconds["free", how], seconds[form, how], strict=True)]
        rows.append(
            {
                "form": form,
                "sampling": how,
                "ms_per_token": round(1e3 * statistics.median(seconds[form, how]), 3),
                "ratio": round(statistics.median(ratios), 3),
                "ratios": [round(ratio, 3) for ratio in ratios],
            }
        )
        print(
            "{form:14} {sampling:8} {ms_per_token:8.3f} ms a token, free / constrained {ratio:.3f}".format(
                **rows[-1]
            )
        )
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(
                {"arguments": vars(args), "date": time.strftime("%Y-%m-%d"), "rows": rows}, file, indent=1
            )


def measured(llm: LLM, form: str, how: str, n: int) -> float:
    """Seconds a token between the first and the last of an answer of `n`."""
    answer = llm.chat(QUESTION, n=n, **SAMPLING[how], **FORMS[form])
    timings = answer.timings
    return timings.decode_seconds / max(timings.generated_tokens - 1, 1)


if __name__ == "__main__":
    main()
