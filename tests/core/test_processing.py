import copy
import threading

import pytest
import torch
from models import ScriptedHeads, tiny, varied_prompt
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation import logits_process as lp

from medusa import CandidateTree, MedusaModel
from medusa.core.processing import TreeProcessors, copied_processors

VOCAB = 12
TREE = CandidateTree([(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 1, 0)])
CONTEXT = [3, 1, 4, 1, 5, 9, 2, 6]


class CountsCalls(LogitsProcessor):
    """A processor with a memory: it checks its last prefix, and counts its calls."""

    def __init__(self):
        self.calls, self.last = 0, None

    def __call__(self, input_ids, scores):
        self.calls += 1
        token = int(input_ids[0, -1])
        if self.last is not None:
            assert input_ids[0, :-1].tolist() == self.last, "a call was left out"
        self.last = input_ids[0].tolist()
        scores = scores.clone()
        scores[:, (token + 1) % scores.shape[-1]] = -torch.inf
        scores[:, self.calls % scores.shape[-1]] += 1
        return scores


class Locked(LogitsProcessor):
    """A processor with a memory that cannot be pickled."""

    def __init__(self):
        self.lock, self.calls, self.last = threading.Lock(), 0, None

    def __call__(self, input_ids, scores):
        self.calls += 1
        self.last = input_ids[0].tolist()
        with self.lock:
            scores = scores - torch.nn.functional.one_hot(input_ids[:, -1], scores.shape[-1]) * 5.0
            scores[:, self.calls % scores.shape[-1]] += 1
        return scores


class HoldsGenerator(Locked):
    """A processor with a generator, which cannot be copied."""

    def __init__(self):
        super().__init__()
        self.numbers = iter(number for number in range(10))


PREFIX_FREE = [lp.TemperatureLogitsWarper(0.7), lp.TopKLogitsWarper(5), lp.TopPLogitsWarper(0.8)]
BY_DEPTH = [
    lp.RepetitionPenaltyLogitsProcessor(1.7),
    lp.NoRepeatNGramLogitsProcessor(2),
    lp.MinNewTokensLengthLogitsProcessor(len(CONTEXT) - 2, 4, torch.tensor([7])),
]
LISTS = {
    "temperature": PREFIX_FREE[:1],
    "truncation": PREFIX_FREE,
    "min_p": [lp.MinPLogitsWarper(0.2)],
    "repetition": BY_DEPTH[:1],
    "n-grams": BY_DEPTH[1:2],
    "minimal length": BY_DEPTH[2:],
    "all of them": [*BY_DEPTH, *PREFIX_FREE],
    "one that remembers": [CountsCalls()],
    "one that remembers among others": [BY_DEPTH[0], CountsCalls(), PREFIX_FREE[1]],
}


def tree_with_scores(seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCAB, (len(TREE),), generator=generator)
    tokens[0], tokens[3] = CONTEXT[-1], 7
    return tokens, 3 * torch.randn(len(TREE), VOCAB, generator=generator)


def one_by_one(processors, context, tokens, scores):
    """Return the scores of each node by the calls of plain decoding, with processors of its own."""
    rows = []
    for path in TREE.paths:
        own = LogitsProcessorList(copied_processors(LogitsProcessorList(processors)))
        nodes = [TREE.paths.index(path[:depth]) for depth in range(len(path) + 1)]
        for depth, each in enumerate(nodes):
            prefix = torch.tensor([context + tokens[nodes[1 : depth + 1]].tolist()])
            result = own(prefix, scores[each : each + 1].clone())
        rows.append(result)
    return torch.cat(rows)


def reachable(scores, tokens):
    """Say for each node whether its parents' scores allow the tokens on its path."""
    reached = [True]
    for node in range(1, len(TREE)):
        parent = int(TREE.parent[node])
        reached.append(reached[parent] and bool(scores[parent, tokens[node]] > -torch.inf))
    return reached


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("seed", range(4))
def test_every_node_is_scored_with_its_own_prefix(name, seed):
    tokens, scores = tree_with_scores(seed)
    processors = TreeProcessors(copy.deepcopy(LISTS[name]))
    expected = one_by_one(LISTS[name], CONTEXT, tokens, scores)
    given = processors(CONTEXT, TREE, tokens, scores.clone(), may_accept=lambda *_: True)
    assert torch.equal(given, expected)
    assert not torch.equal(expected, scores)


@pytest.mark.parametrize("seed", range(4))
def test_a_processor_with_a_memory_scores_only_nodes_that_can_be_accepted(seed):
    tokens, scores = tree_with_scores(seed)
    tokens[1] = (tokens[0] + 1) % VOCAB  # which the processor forbids
    expected = one_by_one([CountsCalls()], CONTEXT, tokens, scores)
    reached = reachable(expected, tokens)
    assert 1 < sum(reached) < len(TREE) - 2
    given = TreeProcessors([CountsCalls()])(CONTEXT, TREE, tokens, scores.clone())
    assert torch.equal(given[reached], expected[reached])
    unreached = [not each for each in reached]
    assert torch.equal(given[unreached], scores[unreached])


def test_a_policy_that_accepts_what_it_excludes_is_an_error():
    tokens, scores = tree_with_scores()
    processors = TreeProcessors([CountsCalls()])
    processors(CONTEXT, TREE, tokens, scores, may_accept=lambda *_: False)
    processors.advance(0)
    with pytest.raises(ValueError, match="may_accept excludes"):
        processors.advance(1)


def test_no_processors_change_nothing():
    tokens, scores = tree_with_scores()
    assert not TreeProcessors()
    assert torch.equal(TreeProcessors()(CONTEXT, TREE, tokens, scores), scores)
    assert torch.equal(TreeProcessors().draft(scores), scores)


def test_depth_counts_towards_a_minimal_length():
    tokens, scores = tree_with_scores()
    processed = TreeProcessors(LISTS["minimal length"])(CONTEXT, TREE, tokens, scores)
    forbidden = processed[:, 7].isinf().tolist()
    assert forbidden == [depth < 2 for depth in TREE.depth.tolist()], (
        "two tokens of four are there already"
    )


def test_memory_of_processors_follows_the_accepted_branch():
    processors = TreeProcessors([CountsCalls()])
    ids = list(CONTEXT)
    kept = [6, 0, 5, 2]
    for seed, accepted in enumerate(kept):
        tokens, scores = tree_with_scores(seed)
        tokens[0] = ids[-1]
        processors(ids, TREE, tokens, scores)
        processors.advance(accepted)
        path = torch.nonzero(TREE.mask[accepted]).flatten()[1:]
        ids += tokens[path].tolist()
        memory = processors.processors[0]
        assert memory.last == ids
        ids.append(seed)
    assert memory.calls == sum(1 + len(TREE.paths[node]) for node in kept)


def test_processors_with_and_without_memory_are_distinguished():
    assert TreeProcessors(PREFIX_FREE).prefix_free
    assert not TreeProcessors(BY_DEPTH).prefix_free
    assert TreeProcessors(BY_DEPTH).takes_any_prefix
    assert not TreeProcessors([CountsCalls()]).takes_any_prefix
    assert TreeProcessors([CountsCalls()]).unforked() is None
    assert TreeProcessors([Locked()]).unforked() is None, "forks share locks"
    assert (
        TreeProcessors([HoldsGenerator()])
        .unforked()
        .startswith("HoldsGenerator cannot be copied (cannot pickle 'generator'")
    )


def test_a_subclass_of_a_stateless_processor_counts_as_stateful():
    class Mine(lp.TemperatureLogitsWarper):
        pass

    assert not TreeProcessors([Mine(0.5)]).takes_any_prefix


def test_drafts_use_only_processors_that_need_no_prefix():
    scores = torch.randn(3, VOCAB)
    mixed = TreeProcessors([*BY_DEPTH, CountsCalls(), *PREFIX_FREE])
    assert torch.equal(
        mixed.draft(scores), LogitsProcessorList(PREFIX_FREE)(torch.zeros(3, 1), scores)
    )


def test_copies_share_models_and_tokenizers():
    class Judged(LogitsProcessor):
        def __init__(self, judge):
            self.judge, self.memory = judge, []

        def __call__(self, input_ids, scores):
            return scores

    own = Judged(torch.nn.Linear(2, 2))
    (copied,) = copied_processors([own])
    assert copied is not own
    assert copied.judge is own.judge
    assert copied.memory is not own.memory


NEW = 30


def with_heads(name="llama"):
    base, ids = tiny(name), varied_prompt(name)
    model = MedusaModel.from_base(base, num_heads=3, tree=CandidateTree.dense([3, 2, 2]))
    return base, ids, model


@pytest.mark.parametrize("kind", [CountsCalls, Locked, HoldsGenerator])
@pytest.mark.filterwarnings("ignore:HoldsGenerator cannot be copied")
def test_custom_processors_give_the_base_models_text(kind):
    base, ids, model = with_heads()
    options = {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True}
    text = base.generate(ids, logits_processor=LogitsProcessorList([kind()]), **options).sequences
    assert text.tolist() != base.generate(ids, **options).sequences.tolist()
    with torch.inference_mode():
        model.heads = ScriptedHeads(model, text.tolist(), 0.7)
    mine = kind()
    output = model.generate(ids, logits_processor=LogitsProcessorList([mine]), **options)
    assert output.sequences.tolist() == text.tolist()
    if kind is not HoldsGenerator:
        assert output.stats.acceleration_rate > 1.2
        assert (mine.calls, mine.last) == (0, None), "the caller's own processor is not used up"


@pytest.mark.parametrize("kind", [Locked, HoldsGenerator])
@pytest.mark.filterwarnings("ignore:HoldsGenerator cannot be copied")
def test_several_sequences_with_processors_that_cannot_be_pickled(kind):
    base, ids, model = with_heads()
    options = {"max_new_tokens": 6, "do_sample": True, "top_k": 1}
    expected = base.generate(ids, logits_processor=LogitsProcessorList([kind()]), **options)[
        0
    ].tolist()
    for prompts, copies in ((ids, 2), (ids.expand(2, -1), 1)):
        given = model.generate(
            prompts,
            logits_processor=LogitsProcessorList([kind()]),
            num_return_sequences=copies,
            **options,
        )
        assert given.tolist() == [expected, expected]


class Narrow(LogitsProcessor):
    """A processor that returns scores of the first tokens only."""

    def __call__(self, input_ids, scores):
        return scores[:, :20]


@pytest.mark.parametrize("sampled", [False, True])
def test_a_processor_may_leave_out_the_end_of_the_vocabulary(sampled):
    base, ids, model = with_heads()
    options = {"max_new_tokens": NEW, "do_sample": sampled, **({"top_k": 1} if sampled else {})}
    expected = base.generate(ids, logits_processor=LogitsProcessorList([Narrow()]), **options)
    assert (
        model.generate(ids, logits_processor=LogitsProcessorList([Narrow()]), **options).tolist()
        == expected.tolist()
    )
    many = model.generate(
        ids, logits_processor=[Narrow()], max_new_tokens=NEW, do_sample=True, num_return_sequences=4
    )
    assert many[:, ids.shape[1] :].max() < 20


def test_more_scores_than_tokens_are_refused():
    class Wide(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores.repeat(1, 2)

    _, ids, model = with_heads()
    with pytest.raises(ValueError, match="122 scores for 61 tokens"):
        model.generate(ids, logits_processor=LogitsProcessorList([Wide()]), max_new_tokens=3)


def test_processors_that_cannot_be_copied_cause_plain_decoding():
    _, ids, model = with_heads()
    with pytest.warns(UserWarning, match="HoldsGenerator cannot be copied .*: decoding plainly"):
        output = model.generate(
            ids,
            logits_processor=LogitsProcessorList([HoldsGenerator()]),
            max_new_tokens=NEW,
            do_sample=False,
            return_dict_in_generate=True,
        )
    assert output.stats.acceleration_rate == 1
    assert output.stats.steps == NEW - 1


def test_rows_of_a_batch_have_memories_of_their_own():
    base, ids, model = with_heads()
    prompts = torch.cat([ids, ids.flip(1)])
    options = {"max_new_tokens": NEW, "do_sample": False}
    alone = [
        base.generate(row[None], logits_processor=LogitsProcessorList([CountsCalls()]), **options)[
            0
        ].tolist()
        for row in prompts
    ]
    with torch.inference_mode():
        model.heads = ScriptedHeads(model, alone, 0.7)
    together = model.generate(
        prompts, logits_processor=LogitsProcessorList([CountsCalls()]), **options
    )
    assert together.tolist() == alone


class Forks(LogitsProcessor):
    """A processor that only its own method can copy; it rejects texts that it did not allow."""

    def __init__(self, at=0):
        self.at, self.allowed = at, None
        self.lines = (line for line in ())  # generators cannot be copied

    def __call__(self, input_ids, scores):
        token = int(input_ids[0, -1])
        assert self.allowed is None or token in self.allowed, "the text was forbidden before"
        self.at += 1
        self.allowed = {(7 * self.at + 3 * step) % scores.shape[-1] for step in range(12)}
        mask = torch.full_like(scores, -torch.inf)
        mask[0, list(self.allowed)] = 0
        return scores + mask

    def fork(self):
        other = Forks(self.at)
        other.allowed = self.allowed
        return other


class Holds(LogitsProcessor):
    """A processor around an object that only its own method can copy."""

    def __init__(self, inner):
        self.parts = {"inner": [inner]}

    def __call__(self, input_ids, scores):
        return self.parts["inner"][0](input_ids, scores)


class DeepCopies(Forks):
    """Likewise, with the other name of the method."""

    deep_copy = Forks.fork
    fork = None


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize(
    "new", [Forks, DeepCopies, lambda: Holds(Forks()), lambda: Holds(DeepCopies())]
)
@pytest.mark.parametrize("sampled", [False, True])
def test_processors_that_fork_themselves_take_part_in_trees(name, new, sampled):
    base, ids, model = with_heads(name)
    with pytest.raises(TypeError, match="cannot pickle 'generator'"):
        copy.deepcopy(new())
    options = {"max_new_tokens": NEW, "do_sample": sampled, "return_dict_in_generate": True}
    options |= {"top_k": 1} if sampled else {}
    text = base.generate(ids, logits_processor=LogitsProcessorList([new()]), **options).sequences
    with torch.inference_mode():
        model.heads = ScriptedHeads(model, text.tolist(), 0.7)
    options |= {"tree": CandidateTree.dense([3, 2, 2])}
    output = model.generate(ids, logits_processor=LogitsProcessorList([new()]), **options)
    assert output.sequences.tolist() == text.tolist()
    assert output.stats.acceleration_rate > 1.2


def test_a_function_of_allowed_tokens_is_not_asked_about_texts_that_it_forbids():
    base, ids, model = with_heads()
    known = base.generate(ids, max_new_tokens=NEW, do_sample=False)[0, ids.shape[1] :].tolist()
    start = ids[0].tolist()

    def allowed(row, given):
        new = given.tolist()[len(start) :]
        # as tries of allowed texts do; transformers raises an error for an empty list
        return [known[len(new)], 1] if new == known[: len(new)] else []

    with torch.inference_mode():
        model.heads = ScriptedHeads(model, [start + known], 0.5)
    output = model.generate(
        ids,
        prefix_allowed_tokens_fn=allowed,
        tree=CandidateTree.dense([3, 2, 2]),
        max_new_tokens=NEW,
        do_sample=False,
        return_dict_in_generate=True,
    )
    assert output.sequences[0].tolist() == start + known
    assert output.stats.acceleration_rate > 1.2
