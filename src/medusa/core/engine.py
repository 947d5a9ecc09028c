"""The decoding loop: draft, verify, accept, keep (paper, section 2.1 and figure 1), for requests
that join and leave between steps.

Token ids in, token ids out; text and configuration live in other layers. Plain decoding is the same
loop with a tree that is only its root.
Shapes: B rows, N tree nodes, D tree depth, H hidden size, V vocabulary.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..runtime.modes import ModesKept
from .budget import CacheBudget
from .cache import TreeCache
from .checks import vocabulary_of_inputs
from .integrity import check_integrity
from .model import TreeModel
from .prefill import Prefill, left_padded
from .prefixes import Prefixes
from .request import Event, Request, Row, StepTiming
from .schedule import AdaptiveTree
from .step import Clock, Group, accept, advance, events_of, grouped, joined, observe
from .tree import CandidateTree

PLAIN = CandidateTree()
"""The tree of plain decoding: the root alone."""


class Engine:
    """Decodes requests together. They join and leave at step boundaries.

    `submit` and `cancel` may be called from any thread at any time. `step` advances all requests;
    threads that call it take turns. A row's result does not depend on its neighbours. An exception
    in a request's processors or stop rule ends that request alone. After any other exception in a
    step, KeyboardInterrupt included, every request stands where it stood before, and the next step
    goes on from there; only random generators have moved on. An interrupt between the end of `step`
    and the statement that takes its result loses its events, but not the tokens in `Row.ids`.

    Args:
        model: the base model with its heads.
        max_rows: requests that decode at the same time; others wait.
        prefill_tokens: prompt tokens that one step runs at most. Longer prompts are run in chunks,
            so that other requests do not wait for them.
        cache_tokens: tokens that the key-value caches may have (`budget.bytes_per_token` tells the
            bytes of each); None for no limit. A request begins when there is room for its longest
            text and its largest tree, so that it never fails for memory later. Caches are
            rectangles of rows, and have 256 columns or a multiple.
        prefix_tokens: tokens of earlier texts whose keys and values are kept, so that a prompt that
            begins with them need not run them again. They are part of `cache_tokens`, and give way
            to requests. Models whose rotary factors change with the length keep none.
        frozen: nobody changes the base model, so that it is read once, not before every prompt.

    Attributes:
        rows: requests that decode, in the order of the cache's rows.
        prefixes: states of earlier texts.
        waiting: requests that wait for a row, in the order they came.
    """

    def __init__(
        self,
        model: TreeModel,
        max_rows: int = 64,
        prefill_tokens: int = 2048,
        cache_tokens: int | None = None,
        prefix_tokens: int = 0,
        frozen: bool = False,
    ):
        for name, value in (("max_rows", max_rows), ("prefill_tokens", prefill_tokens)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if prefix_tokens < 0:
            raise ValueError(f"prefix_tokens must be 0 or more, got {prefix_tokens}")
        self.model, self.max_rows, self.prefill_tokens = model, max_rows, prefill_tokens
        self.budget = CacheBudget(model, cache_tokens)
        self.prefixes, self.frozen = Prefixes(prefix_tokens), frozen
        self.rows: list[Row] = []
        self.waiting: deque[Row] = deque()
        self._schedule = AdaptiveTree(model.tree, model.calibration, model.history)
        self._prefill: Prefill | None = None
        self._cache: TreeCache | None = None
        self._read = False  # the base model, and it is frozen
        self._events: list[Event] = []
        self._cancelled: set[int] = set()
        self._numbers = itertools.count()
        self._lock = threading.RLock()

    def submit(self, request: Request) -> Row:
        """Add a request, which begins at the next step that has a free row; return its row.

        Raises:
            ValueError: a token id lies outside the vocabulary, more log-probabilities are wanted
                than there are tokens, the tree does not fit the heads, the text's length does not
                fit the model's positions or the cache, or a processor cannot be copied for each
                branch of the tree.
        """
        model, schedule = self.model, request.schedule or self._schedule
        schedule.largest.check_heads(model.heads.config.num_heads, model.heads.config.choices)
        model.positions.check(len(request.ids), request.max_length)
        words = vocabulary_of_inputs(model.base)
        if min(request.ids) < 0 or max(request.ids) >= words:
            raise ValueError(f"ids must lie in 0 to {words - 1}, the model's vocabulary")
        if not 0 <= (request.logprobs or 0) <= model.heads.config.vocab_size:
            raise ValueError(
                f"logprobs must lie in 0 to {model.heads.config.vocab_size}, the tokens of the "
                f"model, got {request.logprobs}"
            )
        row = Row(next(self._numbers), request, schedule)
        if schedule.largest.max_depth and not row.processors.forkable:
            raise ValueError(f"{row.processors.unforked()}: pass schedule=FixedTree(PLAIN)")
        self.budget.check(row)
        self.waiting.append(row)
        return row

    def cancel(self, number: int) -> None:
        """End a request at the next step, which returns its last event, unless it has ended."""
        self._cancelled.add(number)

    def fail(self, error: Exception) -> None:
        """End the requests that have a row or are being prefilled because of an exception.

        The next step returns their last events. Waiting requests stay.
        """
        with self._lock:
            rows = [row for row in (*self.rows, *self._joining) if not row.finished]
            self._fail(rows, error)

    @property
    def reserved(self) -> int:
        """Tokens of the caches that the requests under way may need; prefixes are not counted."""
        return self.budget.needed(self.rows, self._joining).tokens

    @property
    def _joining(self) -> list[Row]:
        """The rows that are being prefilled."""
        return self._prefill.rows if self._prefill is not None else []

    @property
    def idle(self) -> bool:
        """True if no request decodes or waits."""
        return not (self.waiting or self._events or any(not row.finished for row in self.rows))

    def step(self) -> list[Event]:
        """Advance every request that decodes by one step, then admit waiting ones.

        Returns:
            What each request got. Its prefill gives a request its first token.
        """
        with self._lock, self.model.lock, ModesKept(), torch.inference_mode():
            for phase in (self._cancel, self._decode, self._admit):
                phase()
                self._leave()
            for event in self._events:
                event.row.stats.count([event])
            # last, because an interrupt after this line would lose the events
            events, self._events = self._events, []
            return events

    def check(self) -> None:
        """Raise a RuntimeError that names the fault if rows, caches and budget do not agree."""
        with self._lock:
            cache = self._cache
            check_integrity(self.rows, self._joining, cache, self.budget, self.prefixes, self.idle)

    def close(self) -> None:
        """Drop requests that have not ended and events that no step has returned yet; give the
        cache back to the model.
        """
        with self._lock, self.model.lock:
            self.waiting.clear()
            self.rows, self._prefill, self._events = [], None, []
            self.prefixes.limit(0)
            self._leave()

    # --- the loop

    def _decode(self) -> None:
        """Draft, verify, accept and keep once for all rows."""
        rows, cache, clock = self.rows, self._cache, Clock()
        if not rows or cache is None:
            return
        with self._undone_on_failure(rows):
            groups, trees = self._draft(rows, clock)
            tokens = joined(groups, trees)
            clock.lap("draft")
            logits, hidden = self.model.verify(tokens, trees, cache)
            clock.lap("verify")
            paths, delivered = accept(groups, rows, logits)
            clock.lap("accept")
            cache.keep(paths)
            advance(rows, paths, hidden)
            clock.lap("keep")
            observe(rows, trees, paths, clock.total)
            timing = StepTiming(tokens.shape[1], clock.total, clock.phases)
            self._events = self._events + events_of(groups, rows, paths, delivered, logits, timing)

    def _draft(self, rows: Sequence[Row], clock: Clock) -> tuple[list[Group], list[CandidateTree]]:
        """Fill each row's tree with the heads' candidates; return groups, and each row's tree."""
        schedules = {id(row.schedule): row.schedule for row in rows}
        chosen = {key: schedule.tree() for key, schedule in schedules.items()}
        trees = [chosen[id(row.schedule)] for row in rows]
        head_logits = None
        if depth := max(tree.max_depth for tree in trees):
            hidden = torch.stack([row.hidden for row in rows if row.hidden is not None])
            head_logits = self.model.draft_logits(hidden, depth)
        clock.lap("heads")
        roots = torch.tensor([row.ids[-1] for row in rows], device=self.model.device)
        return grouped(rows, trees, roots, head_logits), trees

    # --- joining and leaving

    def _cancel(self) -> None:
        """End the requests that were cancelled."""
        if not (numbers := self._cancelled.copy()):  # other threads may add to the set meanwhile
            return
        # after an interrupt a row may still be in the queue, too
        known = dict.fromkeys((*self.rows, *self.waiting))
        ended = [row for row in known if row.number in numbers and not row.finished]
        with self._undone_on_failure(ended):
            for row in ended:
                row.finish_reason = "cancelled"
            self._events = self._events + [Event(row, [], "cancelled") for row in ended]
        for row in {*ended} & {*self.waiting}:
            self.waiting.remove(row)
        self._cancelled -= numbers

    def _leave(self) -> None:
        """Drop what has ended or moved on from the queue, the prefill and the rows.

        An engine without requests gives its cache back. After an interrupt the next step does what
        is left of this, so nothing else may rely on it.
        """
        # from the front only, so that the queue's length costs a step nothing
        while self.waiting and not self.waiting[0].waits:
            self.waiting.popleft()
        if self._prefill is not None and not all(row.waits for row in self._prefill.rows):
            self._prefill = None
        if self._cache is None:
            return
        for place in reversed(range(len(self.rows))):
            if self.rows[place].finished:
                self._remember(place)
                with self._undone_on_failure():
                    self._cache.evict(place)
                    left = list(self.rows)
                    left[place] = left[-1]
                    self.rows = left[:-1]
        if not self.rows and not self.waiting:
            cache, self._cache = self._cache, None
            self.model.give_back(cache)

    def _remember(self, place: int) -> None:
        """Keep the states of a row's text for later prompts."""
        row, cache = self.rows[place], self._cache
        known = self._reuses and row.weights is self.prefixes.weights
        if cache is None or not known or row.finish_reason == "error":
            return
        others = [each for each in self.rows if not each.finished]
        spare = self.budget.spare(cache, others, self._joining)
        ids = row.ids[: cache.length[place]]
        self.prefixes.store(ids, cache, place, self.prefixes.most if spare is None else spare)

    @property
    def _reuses(self) -> bool:
        """True if prompts reuse states; never where a longer text has other rotary factors."""
        return self.prefixes.most > 0 and self.model.positions.change is None

    def _admit(self) -> None:
        """Run the prompts of waiting requests, or the next chunk of a long prompt.

        Prompts that begin like earlier texts run one by one, as many as a step may run tokens.
        """
        left = self.prefill_tokens
        while left > 0 and (rows := self._joining or self._next_rows()):
            left -= self._run_prompts(rows, left)
            self._leave()
            for place, row in enumerate(self.rows):
                if row in rows:
                    self._remember(place)
            if not rows[0].cached:
                break

    def _run_prompts(self, rows: list[Row], most: int) -> int:
        """Run up to `most` columns of prompts; return how many were run."""
        clock, begin, end = Clock(), 0, most
        try:
            prefill = self._prefill = self._prefill or self._new_prefill(rows)
            width, begin = prefill.ids.shape[1], prefill.done
            end = min(width, begin + most)
            if self.model.positions.has_long_factors(width):
                end = width  # a chunk would get the rotary factors of a short text
            logits, hidden = self.model.prefill(
                prefill.ids[:, begin:end], prefill.mask[:, :end], prefill.cache
            )
            prefill.seconds += clock.total
            if end < width:
                prefill.done = end
            else:
                self._join(prefill, logits[:, None], hidden[:, None])
        except Exception as error:  # such as too little memory: these requests end, others continue
            self._fail(rows, error)
        return end - begin

    def _next_rows(self) -> list[Row]:
        """Return waiting requests that fit into the free rows and into one forward."""
        long, chosen = self.model.positions.has_long_factors, list[Row]()
        # by index: other threads may append meanwhile, which a deque's iterators do not survive
        free = min(len(self.waiting), self.max_rows - len(self.rows))
        for row in (self.waiting[place] for place in range(free)):
            if not row.waits:
                continue
            others = [*self.rows, *chosen]
            width = max(len(each.ids) for each in (*chosen, row))
            if others and long(len(others[0].request.ids)) != long(len(row.ids)):
                break  # one forward has the same rotary factors for all rows
            if chosen and width * (len(chosen) + 1) > self.prefill_tokens:
                break
            if not self.budget.fits(self.rows, [*chosen, row]):
                break
            shares = self._reuses and self.prefixes.shared(row.ids) > 0
            if not (chosen and shares):
                chosen.append(row)
            if shares:
                break  # its cache begins with states that other prompts do not have
        return chosen

    def _new_prefill(self, rows: list[Row]) -> Prefill:
        if not self._read:
            self.model.refresh()
            if self._reuses:
                self.prefixes.use(self.model.weights_state)
            self._read = self.frozen
        for row in rows:
            row.waited = time.perf_counter() - row.submitted
            row.weights = self.prefixes.weights
        ids, mask = left_padded([row.ids for row in rows], self.model.device)
        if self._cache is None:
            self._cache = self.model.take_cache()
        cache = self.budget.prepare(self._cache, self.rows, rows, self.prefixes)
        if self._reuses and len(rows) == 1:
            rows[0].cached = self.prefixes.load(rows[0].ids, cache)
        return Prefill(rows, ids, mask, cache, rows[0].cached)

    def _join(self, prefill: Prefill, logits: Tensor, hidden: Tensor) -> None:
        """Give each prefilled request its first token, and a row of the cache.

        Args:
            logits: [B, 1, V] after the prompts.
            hidden: [B, 1, H] likewise.
        """
        rows, cache, clock = prefill.rows, self._cache, Clock()
        assert cache is not None, "the prefill began with one"
        with self._undone_on_failure(rows):
            groups = grouped(rows, [PLAIN] * len(rows), prefill.ids[:, -1], None)
            paths, delivered = accept(groups, rows, logits)
            advance(rows, paths, hidden)
            places = [place for place, row in enumerate(rows) if not row.finished]
            if places:
                joining = [rows[place] for place in places]
                longest = [row.request.max_length for row in joining]
                cache.admit(prefill.cache, places, longest)
                self.rows = [*self.rows, *joining]
                self.model.compile_steps(cache)
            timing = StepTiming(0, prefill.seconds + clock.total)
            self._events = self._events + events_of(groups, rows, paths, delivered, logits, timing)

    def _fail(self, rows: Sequence[Row], error: Exception) -> None:
        with self._undone_on_failure(rows):
            for row in rows:
                row.fail(error)
            self._events = self._events + [Event(row, [], row.finish_reason) for row in rows]

    @contextmanager
    def _undone_on_failure(self, rows: Sequence[Row] = ()) -> Iterator[None]:
        """Restore the engine and the rows if the block is left by an exception or an interrupt.

        States that a step wrote stand behind the columns that are kept, so the cache needs no copy.
        """
        saved = [row.saved() for row in rows]
        batch, cache, events = self.rows, self._cache, self._events
        kept = cache.saved() if cache is not None else None
        try:
            yield
        except GeneratorExit:
            raise  # an interrupt in `contextlib`'s own code: the block has ended or has not begun
        except BaseException:
            self.rows, self._cache, self._events = batch, cache, events
            if cache is not None and kept is not None:
                cache.restore(kept)
            for row, state in zip(rows, saved, strict=True):
                row.restore(state)
            raise
