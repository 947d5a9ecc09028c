"""The candidate trees that the authors of the paper published for their own models.

In each of them siblings have the ranks 0, 1, 2, ... without gaps. So the numbers of children
describe a tree: a row for each depth, in it a number for each node of that depth, in the order of
the paths. Zeros at the end of a row are left out.
"""

from __future__ import annotations

import itertools

CHILDREN = {
    "mc_sim_7b_63": """
        10
        10 7 3 2 1 1 1 1 1 1
        10 3 2 1 1 1 1 1 0 0 2 0 0 0 0 0 0 1
        2""",
    "vicuna_7b_stage1": """
        10
        10 7 4 3 2 2 1 1 1 1
        9 3 2 1 1 1 0 0 0 0 2 0 0 0 0 0 0 1
        1""",
    "vicuna_7b_stage1_ablation": """
        10
        10 4 2 2 1 1 1
        10 4 2 1 1 1 0 0 0 0 3 1 0 0 1 0 1
        4 1 1 0 0 0 0 0 0 0 1""",
    "vicuna_7b_stage2": """
        10
        10 5 2 2 1 1 1 1
        9 4 2 1 1 1 0 0 0 0 3 1 0 0 0 1
        4 1 1 0 0 0 0 0 0 1""",
    "vicuna_13b_stage1": """
        10
        10 7 4 2 2 1 1 1 1
        10 4 2 1 1 1 0 0 0 0 2 1 0 0 0 0 0 1
        1""",
    "vicuna_13b_stage2": """
        10
        10 4 2 1 1 1
        10 4 2 1 1 1 0 0 0 0 3 1 0 0 1 0 1
        4 2 1 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0 0 1""",
    "vicuna_33b_stage1": """
        10
        10 8 5 3 2 2 1 1 1 1
        9 3 2 1 1 0 0 0 0 0 2 0 0 0 0 0 0 0 1""",
    "vicuna_33b_stage2": """
        10
        10 5 3 2 1 1 1 1
        10 4 2 1 1 1 0 0 0 0 3 1 0 0 0 1
        3 1 0 0 0 0 0 0 0 0 1""",
    "zephyr_stage2": """
        10
        10 6 4 2 2 1 1 1
        10 4 2 1 1 1 0 0 0 0 2 1 0 0 0 0 1
        2 1""",
}
"""Numbers of children in each tree, by the name that the authors gave it."""


def paths(name: str) -> list[tuple[int, ...]]:
    """Return the rank paths of a tree, without the root's.

    Raises:
        ValueError: no tree has this name; lists those that exist.
    """
    if name not in CHILDREN:
        raise ValueError(f"no published tree is named {name!r}: there are {', '.join(CHILDREN)}")
    found: list[tuple[int, ...]] = []
    level: list[tuple[int, ...]] = [()]
    for row in CHILDREN[name].strip().splitlines():
        counts = itertools.chain(map(int, row.split()), itertools.repeat(0))
        level = [
            (*path, rank)
            for path, count in zip(level, counts, strict=False)
            for rank in range(count)
        ]
        found += level
    return found
