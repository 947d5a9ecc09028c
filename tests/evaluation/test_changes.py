"""Comparison of two reports."""

import json

import pytest

from medusa.evaluation.changes import Report, changes, different_settings, read_report


def report_of(plain=10.0, medusa=20.0, per_step=2.0, turns=9, **settings):
    def methods(number):
        noise = 1 + 0.01 * (number % 3)
        return {
            "plain": {"tokens_per_second": plain * noise, "tokens_per_step": 1.0},
            "medusa": {"tokens_per_second": medusa * noise, "tokens_per_step": per_step},
        }

    found = [
        {"question": str(number), "turn": 0, "methods": methods(number)} for number in range(turns)
    ]
    return Report(settings=settings, turns=found)


def test_changes_are_ratios_of_the_same_turns():
    found = changes(report_of(), report_of(plain=20.0, medusa=60.0, per_step=2.0, turns=5))
    by_name = {(each.method, each.figure): each for each in found}
    assert by_name["plain", "tokens a second"].ratio == pytest.approx(2)
    assert by_name["medusa", "speedup over plain"].ratio == pytest.approx(1.5)
    assert by_name["medusa", "speedup over plain"].certain
    assert by_name["medusa", "tokens a step"].ratio == 1
    assert not by_name["medusa", "tokens a step"].certain
    assert {each.turns for each in found} == {5}
    assert ("plain", "speedup over plain") not in by_name


def test_noise_is_no_change():
    one, other = report_of(), report_of()
    speeds = [each.methods["medusa"] for each in other.turns]
    noisy = [
        {
            **each.model_dump(),
            "methods": {
                "medusa": {
                    "tokens_per_second": own.tokens_per_second * (1.2 if number % 2 else 0.8),
                    "tokens_per_step": 2.0,
                }
            },
        }
        for number, (each, own) in enumerate(zip(other.turns, speeds, strict=True))
    ]
    found = changes(one, Report(settings={}, turns=noisy))
    (speed,) = (each for each in found if each.figure == "tokens a second")
    assert not speed.certain


def test_settings_that_differ_are_listed():
    assert different_settings(report_of(seed=0, a=1), report_of(seed=1, a=1)) == ["seed: 0, 1"]


def test_reports_without_a_common_turn_and_other_files_are_refused(tmp_path):
    one, other = report_of(turns=1), report_of(turns=2)
    apart = Report(settings={}, turns=other.turns[1:])
    with pytest.raises(ValueError, match="no method of a question in common"):
        changes(one, apart)
    (tmp_path / "a.json").write_text(json.dumps({"settings": {}, "turns": [{"question": "a"}]}))
    with pytest.raises(ValueError, match=r"turns\[0\]\.turn: field required"):
        read_report(tmp_path / "a.json")
