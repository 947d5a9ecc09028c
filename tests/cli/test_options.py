"""Numbers on the command line: what no model can use is refused before a model is loaded, by the
option's name.
"""

import pytest
from typer.testing import CliRunner

from medusa.cli import app

COMMANDS = {
    "generate": ["generate", "no-model", "--prompt", "a"],
    "chat": ["chat", "no-model"],
    "calibrate": ["calibrate", "no-model", "--data", "no-data"],
    "demo": ["demo"],
}
HUGE = str(2**70)
SAMPLED = ("generate", "chat", "calibrate")


@pytest.mark.parametrize(
    ("commands", "option", "value"),
    [
        (("generate", "chat"), "--seed", "-1"),
        (("generate", "chat"), "--seed", str(2**64)),
        (("generate", "chat"), "--seed", HUGE),
        *(
            (SAMPLED, "--temperature", value)
            for value in ("nan", "inf", "-inf", "-1", "1e-300", "1e300")
        ),
        *((SAMPLED, "--top-p", value) for value in ("nan", "inf", "-1", "0", "1.1")),
        *((SAMPLED, "--top-k", value) for value in ("0", HUGE)),
        *(((*SAMPLED, "demo"), "--max-new-tokens", value) for value in ("0", HUGE)),
        *(
            (("demo",), option, value)
            for option in ("--per-category", "--threads")
            for value in ("0", HUGE)
        ),
        *(
            (("calibrate",), option, value)
            for option in ("--prompts", "--max-nodes", "--batch-size", "--context", "--rounds")
            for value in ("0", HUGE)
        ),
        (("calibrate",), "--heads", "0"),
    ],
)
def test_a_number_out_of_range_is_refused_by_its_option(commands, option, value):
    for command in commands:
        sampled = ["--temperature", "1"] if option in ("--top-p", "--top-k") else []
        result = CliRunner().invoke(app, [*COMMANDS[command], *sampled, option, value])
        assert result.exit_code == 2, result.output
        assert f"Invalid value for '{option}'" in result.stderr


@pytest.mark.parametrize(
    "options", [["--seed", str(2**64 - 1)], ["--temperature", "1e-6"], ["--temperature", "1e6"]]
)
def test_the_ends_of_the_ranges_can_be_used(folders, options):
    options = [
        *(["--temperature", "1"] if "--temperature" not in options else []),
        *options,
        "--max-new-tokens",
        "9",
    ]
    result = CliRunner().invoke(
        app, ["generate", str(folders / "heads"), "--prompt", "one", "--raw", *options]
    )
    assert result.exit_code == 0, result.stderr
