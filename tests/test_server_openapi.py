"""The OpenAPI document says what the code answers, no more and no less."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flatlm.runtime.server.app import ENDPOINTS
from flatlm.runtime.server.asks import FIELDS
from tests.serving import serving, tiny_llm

DOCS = (Path(__file__).parent.parent / "docs" / "server.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    with serving(lambda: tiny_llm(folder)) as found:
        yield found


def test_every_endpoint_is_in_the_document_and_nothing_else(served):
    found = served.get("/openapi.json").json()
    listed = {(method.upper(), path) for path, row in found["paths"].items() for method in row}
    assert listed == {(one.method, re.sub(r":\w+\}", "}", one.path)) for one in ENDPOINTS}
    assert set(FIELDS) <= set(found["components"]["schemas"]["Request"]["properties"])


def test_every_path_of_the_document_is_answered(served):
    for path, row in served.get("/openapi.json").json()["paths"].items():
        at = path.replace("{name}", "tiny")
        for method in row:
            found = served.get(at) if method == "get" else served.post(at, {})
            assert found.status_code not in (404, 405, 500), at


def test_every_endpoint_is_in_the_docs():
    missing = [one.path for one in ENDPOINTS if one.path.partition("{")[0].rstrip("/") not in DOCS]
    assert missing == []
