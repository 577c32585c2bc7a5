"""What a run says: how much is right, how sure that is, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flatlm.runtime.evaluation.intervals import wilson


def summarize(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of a run; times in seconds, rates in tokens per second, costs summed over all items."""
    n = len(records)
    cost = {name: sum(record["cost"][name] for record in records) for name in records[0]["cost"]}
    result: dict[str, Any] = {"n": n, **_share(records, "right")}
    if "answer" in records[0]:
        result["authors"] = _share(records, "authors_right")
        result["parsers_differ"] = sum(record["right"] != record["authors_right"] for record in records)
        result["unread"] = sum(record["answer"] is None for record in records)
    else:
        result["results"] = _counts(record["result"] for record in records)
    written = [answer for record in records for answer in record["answers"]]
    result["answers"] = len(written)
    result["cut_off"] = sum(answer["finish_reason"] == "length" for answer in written)
    result["cost"] = cost
    result["prefill_rate"] = _rate(cost["prompt_tokens"] - cost["reused_tokens"], cost["prefill_seconds"])
    result["decode_rate"] = _rate(cost["generated_tokens"] - len(written), cost["decode_seconds"])
    result["answers_per_hour"] = _rate(3600 * len(written), cost["prefill_seconds"] + cost["decode_seconds"])
    return result


def lines(figures: dict[str, Any]) -> list[str]:
    """The figures for people."""
    n, cost = figures["n"], figures["cost"]
    result = [f"right {share_text(figures, n)}"]
    if "authors" in figures:
        result.append(f"by the authors' parser {share_text(figures['authors'], n)}")
        result.append(
            f"the parsers differ on {figures['parsers_differ']}, no answer read in {figures['unread']}"
        )
    else:
        result.append(", ".join(f"{name} {count}" for name, count in figures["results"].items()))
    answers = figures["answers"]
    each = {name: value / answers for name, value in cost.items()}
    result.append(
        f"an answer: prompt {each['prompt_tokens']:.1f} tokens ({each['reused_tokens']:.1f} reused), read in "
        f"{1000 * each['prefill_seconds']:.1f} ms; wrote {each['generated_tokens']:.1f} tokens in "
        f"{each['decode_seconds']:.2f} s"
    )
    result.append(
        f"all {answers} answers: {cost['prefill_seconds'] + cost['decode_seconds']:.1f} s "
        f"({figures['answers_per_hour']:.0f} an hour), prompt {figures['prefill_rate']:.1f} t/s, answer "
        f"{figures['decode_rate']:.1f} t/s, {figures['cut_off']} cut off at -n or the context"
    )
    return result


def share_text(share: dict[str, Any], n: int) -> str:
    """`12.0 % (6/50, 95 % interval 5.6 … 23.8)`."""
    low, high = share["interval"]
    interval = f"95 % interval {100 * low:.1f} … {100 * high:.1f}"
    return f"{100 * share['share']:.1f} % ({share['right']}/{n}, {interval})"


def _share(records: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    right = sum(record[name] for record in records)
    return {"right": right, "share": right / len(records), "interval": wilson(right, len(records))}


def _counts(words: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    return counts


def _rate(tokens: float, seconds: float) -> float:
    return tokens / seconds if seconds > 0 and tokens > 0 else 0.0
