"""Tests of the check of an engine: it passes at every step, and names what is damaged."""

import random

import pytest
import torch
from models import VOCAB, tiny

from medusa import MedusaModel
from medusa.core.engine import Engine
from medusa.core.request import Request


def engine_of(**options):
    model = MedusaModel.from_base(tiny(max_position_embeddings=4096), num_heads=3)
    return Engine(model, **{"max_rows": 4, "cache_tokens": 2304, "prefix_tokens": 640, **options})


def submitted(engine, rng):
    ids = [1 + place % (VOCAB - 1) for place in range(rng.choice([2, 40, 300]))]
    return engine.submit(Request(ids, len(ids) + rng.choice([1, 5, 60])))


def test_an_engine_is_sound_after_each_step():
    rng, engine, rows = random.Random(0), engine_of(prefill_tokens=64), []
    for _ in range(60):
        rows.append(submitted(engine, rng))
        if rng.random() < 0.2:
            engine.cancel(rng.choice(rows).number)
        if rng.random() < 0.15:
            engine.fail(RuntimeError("a fault"))
        engine.step()
        engine.check()
    while not engine.idle:
        engine.step()
        engine.check()
    assert {row.finish_reason for row in rows} == {"length", "cancelled", "error"}


def swap_rows(engine):
    engine.rows.reverse()


def repeat_a_row(engine):
    engine.rows[1] = engine.rows[0]


def drop_a_row(engine):
    engine.rows.pop()


def drop_the_cache(engine):
    engine._cache = None


def end_a_row(engine):
    engine.rows[0].finish_reason = "stop"


def grow_the_cache(engine):
    for layer in engine._cache.layers:
        layer.cut(2, 2048)


def grow_the_prefixes(engine):
    engine.prefixes.most = 0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (swap_rows, "the cache holds"),
        (repeat_a_row, r"requests \[0\] have several rows"),
        (drop_a_row, "the cache holds"),
        (drop_the_cache, "2 rows decode without a cache"),
        (end_a_row, r"requests \[0\] have ended and still have a row"),
        (grow_the_cache, "tokens of memory are taken, more than cache_tokens, 2304"),
        (grow_the_prefixes, "tokens of prefixes are kept, more than 0"),
    ],
)
def test_damage_is_named(damage, message):
    engine = engine_of()
    for length in (40, 70):
        engine.submit(Request([1] * length, 100))
    engine.step()
    engine.step()
    engine.check()
    with torch.inference_mode():
        damage(engine)
    with pytest.raises(RuntimeError, match=message):
        engine.check()


def test_an_idle_engine_that_keeps_its_cache_is_named():
    engine = engine_of()
    engine.submit(Request([1] * 5, 8))
    while not engine.idle:
        engine.step()
    engine.check()
    engine._cache = engine.model.new_cache()
    with pytest.raises(RuntimeError, match="nobody decodes or waits, and the cache was not given"):
        engine.check()
