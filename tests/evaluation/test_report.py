import io

from rich.console import Console
from test_measure import comparison

from medusa.cli.side_by_side import table as demo_table
from medusa.evaluation.report import (
    WITHOUT_PREFILL,
    figures,
    new_speed_table,
    speed_cells,
    speed_columns,
    speed_table,
)

BASELINES = ("plain", "generate")


def result():
    return figures([comparison(), comparison("math", lambda ids: False)], greedy=True)


def test_speed_tables_lead_with_the_whole_time_and_show_the_first_token():
    columns = speed_columns(BASELINES)
    cells = dict(zip(columns[4:], speed_cells(result()["totals"], BASELINES)[4:], strict=True))
    assert columns[:4] == ["vs plain", WITHOUT_PREFILL, "vs generate", WITHOUT_PREFILL]
    assert speed_cells(result()["totals"], BASELINES)[:4] == ["1.80", "2.00", "3.40", "4.00"]
    assert cells["first token ms, Medusa"] == cells["first token ms, generate"] == "500.0"
    assert cells["tokens / step"] == "2.00"


def test_categories_have_figures_of_their_own():
    made = result()
    assert list(made["categories"]) == ["sql", "math"]
    assert made["categories"]["sql"]["correct"] == 1.0
    assert made["totals"]["correct"] == 0.5
    assert all("first_token_ms" in each for each in made["categories"].values())


def test_a_speed_table_has_a_row_for_each_category_and_the_total():
    console = Console(width=200, file=io.StringIO())
    table = new_speed_table("title", BASELINES)
    summary = result()["totals"]
    table.add_row("total", *speed_cells(summary, BASELINES), "yes", "50%")
    console.print(table)
    assert "1.80" in console.file.getvalue()
    every = result()
    for each in (every["totals"], *every["categories"].values()):
        for name in ("prompt_lookup", "generate_packed", "prompt_lookup_packed"):
            each |= {f"speedup_over_{name}": 1.0, f"speedup_over_{name}_with_prefill": 1.0}
    assert speed_table("title", every).row_count == 3


def test_the_demos_table_leads_with_the_whole_time_too():
    table = demo_table([comparison(), comparison("math", lambda ids: False)])
    headings = [column.header for column in table.columns]
    assert headings[1:5] == ["vs plain", WITHOUT_PREFILL, "vs generate", WITHOUT_PREFILL]
    assert "first token ms, Medusa" in headings
    assert "first token ms, generate" in headings
    cells = [list(column.cells) for column in table.columns]
    assert cells[0] == ["sql", "math", "all"]
    assert cells[1] == ["1.80"] * 3
    assert cells[-1] == ["yes", "no", "50%"]
