"""The results of `flatlm bench` as text: llama-bench's table, and json, jsonl, csv or sql with its fields.

Scripts that read llama-bench's output find what they look for: model_filename, model_type, n_prompt, n_gen,
n_depth, n_threads, avg_ts, stddev_ts, samples_ts … Beside them stand flatlm's own (size, params, test …).
"""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
from collections.abc import Callable, Iterable
from typing import Any

from flatlm import __version__
from flatlm.runtime.measuring.bench import BATCH, Report, Result, markdown

FORMS = ("md", "json", "jsonl", "csv", "sql")
_TEST = re.compile(r"(\D+)(\d+)(?: @ d(\d+))?")  # pp512, tg128 @ d4096
_TABLE = "llama_bench"  # what llama-bench calls it


def table(report: Report, form: str) -> str:
    """The results as text of a form of FORMS.

    JSON has an object for each test; what is none follows as {"test": name, "found": …}. csv and sql have the
    tests alone, without lists.
    """
    if form == "md":
        head = ["model", "size", "params", "backend", "threads", "test", "t/s"]
        tables = [markdown(head, map(_cells, report.results), left=1)] if report.results else []
        return "\n\n".join([*tables, *report.texts.values()])
    write: dict[str, Callable[[], str]] = {
        "json": lambda: json.dumps(_objects(report)),
        "jsonl": lambda: "\n".join(map(json.dumps, _objects(report))),
        "csv": lambda: _csv(report.results),
        "sql": lambda: _sql(report.results),
    }
    return write[form]()


def _objects(report: Report) -> list[dict[str, Any]]:
    tests = [_row(r) | _samples(r) | report.more.get(r.test, {}) for r in report.results]
    named = {r.test for r in report.results}
    others = [{"test": name, **found} for name, found in report.more.items() if name not in named]
    return [*tests, *others, *({"test": name, "found": found} for name, found in report.extra.items())]


def _row(r: Result) -> dict[str, Any]:
    """flatlm's fields, then llama-bench's; nothing in it is a list. Times in nanoseconds."""
    kind, tokens, depth = _parts(r.test)
    seconds = _seconds(r)
    return {
        "model": r.model,
        "size": r.size,
        "params": r.params,
        "backend": r.backend,
        "threads": r.threads,
        "test": r.test,
        "avg_ts": r.mean,
        "stddev_ts": r.deviation,
        "build_commit": f"flatlm {__version__}",
        "build_number": 0,
        "cpu_info": r.machine,
        "gpu_info": "",
        "backends": r.backend,
        "model_filename": r.path,
        "model_type": r.model,
        "model_size": r.size,
        "model_n_params": r.params,
        "n_batch": BATCH,
        "n_ubatch": BATCH,
        "n_threads": r.threads,
        "n_gpu_layers": 0,
        "n_prompt": tokens if kind == "pp" else 0,
        "n_gen": 0 if kind == "pp" else tokens,
        "n_depth": depth,
        "test_time": r.began,
        "avg_ns": round(1e9 * statistics.fmean(seconds)),
        "stddev_ns": round(1e9 * statistics.stdev(seconds)) if len(seconds) > 1 else 0,
    }


def _samples(r: Result) -> dict[str, Any]:
    return {"rates": r.rates, "samples_ts": r.rates, "samples_ns": [round(1e9 * s) for s in _seconds(r)]}


def _seconds(r: Result) -> list[float]:
    return [_parts(r.test)[1] / rate for rate in r.rates]


def _parts(test: str) -> tuple[str, int, int]:
    """pp512 @ d100 → ("pp", 512, 100)."""
    found = _TEST.fullmatch(test)
    assert found is not None, test
    return found[1], int(found[2]), int(found[3] or 0)


def _csv(results: Iterable[Result]) -> str:
    rows = list(map(_row, results))
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0] if rows else (), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def _sql(results: Iterable[Result]) -> str:
    rows = list(map(_row, results))
    kinds = {int: "INTEGER", float: "REAL"}
    columns = ", ".join(
        f"{name} {kinds.get(type(value), 'TEXT')}" for name, value in (rows or [{}])[0].items()
    )
    lines = [f"CREATE TABLE IF NOT EXISTS {_TABLE} ({columns});"] if rows else []
    for row in rows:
        values = ", ".join(map(_quoted, row.values()))
        lines.append(f"INSERT INTO {_TABLE} ({', '.join(row)}) VALUES ({values});")
    return "\n".join(lines)


def _quoted(value: object) -> str:
    if value is None:
        return "NULL"
    return str(value) if isinstance(value, int | float) else "'" + str(value).replace("'", "''") + "'"


def _cells(result: Result) -> list[str]:
    size, params = f"{result.size / 2**20:.2f} MiB", f"{result.params / 1e6:.2f} M"
    rate = f"{result.mean:.2f} ± {result.deviation:.2f}"
    return [result.model, size, params, result.backend, str(result.threads or "auto"), result.test, rate]
