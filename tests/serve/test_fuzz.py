"""Requests made from the server's own OpenAPI description: every response is as it says."""

import pytest
from hypothesis import HealthCheck, given, settings
from running import demo_app, running

schemathesis = pytest.importorskip("schemathesis", reason="needs Python 3.11")
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi import checks  # noqa: E402

pytestmark = pytest.mark.slow
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def quick(demo_model):
    """A server whose answers end soon."""
    with running(demo_app(*demo_model, max_new_tokens=8, max_seconds=0.5)) as address:
        yield address


@pytest.fixture(scope="module")
def description(quick):
    return schemathesis.openapi.from_url(f"{quick}/openapi.json")


POSITIVE, NEGATIVE = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
ANSWERS = ("chat/completions", "completions", "responses", "messages", "messages/count_tokens")


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [
        *[("POST", f"/v1/{path}", mode) for path in ANSWERS for mode in (POSITIVE, NEGATIVE)],
        *[("GET", path, POSITIVE) for path in ("/v1/models", "/health", "/metrics")],
    ],
)
def test_responses_are_as_described(description, method, path, mode):
    served = []

    @given(description[path][method].as_strategy(generation_mode=mode))
    @settings(
        max_examples=60,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def check(case):
        if isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = "demo"  # another name would be refused before the rest is read
        served.append(case.call_and_validate(checks=CHECKS).status_code == 200)

    check()
    assert mode is NEGATIVE or any(served)
