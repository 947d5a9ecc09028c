"""Tests of what a soak of the server counts as a fault."""

import pytest

from benchmarks.serving_soak import Memory, faults_of


def report(growth=0.0, active=0, faults=()):
    part = {"memory": {"mebibytes": 1.0, "growth": growth}, "requests": {}}
    health = {"status": "ok", "active": active, "waiting": 0}
    return {"rough": part, "short": part, "health": health, "faults": list(faults)}


@pytest.mark.parametrize(
    ("found", "status", "printed", "told"),
    [
        (report(growth=0.03), 0, "", "rough: memory grew by 3.0%"),
        (report(active=1), 0, "", "not idle"),
        (report(faults=["slow: it broke"]), 0, "", "it broke"),
        (report(), 1, "", "status 1"),
        (report(), 0, '{"level": "info"}\n{"level": "error", "message": "damaged"}\n', "damaged"),
    ],
)
def test_faults_are_told(found, status, printed, told):
    assert told in faults_of(found, status, printed)[0]


def test_a_clean_run_has_none():
    assert faults_of(report(growth=0.01), 0, '{"level": "info"}\nno JSON\n') == []


def test_growth_counts_from_the_second_quarter_on():
    memory = Memory(1)
    memory.values = [1.0, 5.0, 10.0, 10.0, 10.0, 10.0, 11.0, 11.0]
    assert memory.growth == pytest.approx(0.1)
