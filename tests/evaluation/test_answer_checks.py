"""Checkers of answers, and the process in which generated programs run."""

import os
import time
from decimal import Decimal

import pytest

from medusa.evaluation.checks import last_number, program_check, program_of
from medusa.evaluation.sandbox import succeeds

PROMPT = 'import math\n\ndef area(r):\n    """Return the area."""\n'


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It is 7.", "7"),
        ("First 3, then 1,234.50 dollars.", "1234.50"),
        ("-5", "-5"),
        ("a .5", "0.5"),
        ("2 + 2 = 5\n#### 4 apples, 9 pears", "4"),
        ("none", None),
        ("1,,2 is odd", "12"),
    ],
)
def test_the_last_number_of_a_text(text, number):
    assert last_number(text) == (None if number is None else Decimal(number))


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        ("    return math.pi * r**2\n", PROMPT + "    return math.pi * r**2\n"),
        (
            "```python\ndef area(r):\n    return 1\n```",
            "import math\n\n\ndef area(r):\n    return 1\n",
        ),
        ("Yes:\n```\ndef area(r):\n    return 1", "import math\n\n\ndef area(r):\n    return 1"),
        ("def area(r):\n    return 1\n", "import math\n\n\ndef area(r):\n    return 1\n"),
    ],
)
def test_the_program_of_an_answer(answer, program):
    assert program_of(answer, PROMPT, "area") == program


def test_a_program_is_judged_by_the_test():
    check = program_check(PROMPT, "area", "def check(f):\n    assert round(f(1), 2) == 3.14\n")
    assert check("    return math.pi * r * r\n")
    assert not check("    return r\n")
    assert not check("    return (\n")


def test_a_program_that_does_not_end_is_stopped_with_what_it_started(tmp_path):
    started = time.perf_counter()
    alive = tmp_path / "alive"
    child = f"import time, pathlib\ntime.sleep(3)\npathlib.Path({str(alive)!r}).touch()"
    program = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])\n"
    assert not succeeds(program, seconds=1)
    assert time.perf_counter() - started < 10
    time.sleep(3)
    assert not alive.exists()


@pytest.mark.parametrize(
    "program",
    [
        "x = bytearray(2 << 30)",
        "open('large', 'wb').write(bytes(4 << 20))",
        "raise SystemExit(3)",
        "import os\nassert os.environ.get('PATH')",
        "assert input()",
        "\udc80",
    ],
)
@pytest.mark.skipif(os.name != "posix", reason="limits are POSIX")
def test_limits(program):
    assert not succeeds(program)


def test_a_good_program_succeeds_and_leaves_nothing():
    assert succeeds("import os\nassert os.listdir() == ['program.py']\nopen('a', 'w').write('b')")
