import itertools
from fractions import Fraction

import pytest
import torch
from fit import chi_square
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tiny
from test_tree import trees

from medusa import CandidateTree, Greedy, MedusaModel, Rejection, Typical
from medusa.core.acceptance import Draft

seeds = st.integers(0, 2**31)
quick = settings(max_examples=60, deadline=None)


def random_draft(tree, vocab, rows, seed):
    """Return tokens [B, N] that differ between siblings, and base logits [B, N, V]."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.empty(rows, len(tree), dtype=torch.long)
    for row in range(rows):
        tokens[row, 0] = torch.randint(vocab, (), generator=generator)
        for children in tree.children:
            order = torch.randperm(vocab, generator=generator)
            for rank, child in enumerate(children):
                tokens[row, child] = order[rank]
    return Draft(tokens), 3 * torch.randn(
        rows, len(tree), vocab, generator=generator, dtype=torch.float64
    )


def path_to(tree, node):
    """Return the nodes from the root down to a node."""
    return [
        tree.paths.index(tree.paths[node][:depth]) for depth in range(len(tree.paths[node]) + 1)
    ]


def accepted(verdict, row):
    """Return the accepted nodes of a row, and its next root."""
    return verdict.path[row, : verdict.count[row]].tolist(), int(verdict.root[row])


@quick
@given(trees(), seeds)
def test_greedy_accepts_the_tokens_of_greedy_decoding(tree, seed):
    draft, logits = random_draft(tree, 4, 3, seed)
    verdict = Greedy().accept(tree, draft, logits, [None] * 3)
    for row in range(3):
        said = logits[row].argmax(-1).tolist()
        nodes = [0]
        while True:
            wanted = said[nodes[-1]]
            child = [c for c in tree.children[nodes[-1]] if draft.tokens[row, c] == wanted]
            if not child:
                break
            nodes.append(child[0])
        assert accepted(verdict, row) == (nodes, said[nodes[-1]])
        assert verdict.path.shape == (3, tree.max_depth + 1)
        assert set(verdict.path[row, len(nodes) :].tolist()) <= {nodes[-1]}


def typical_by_hand(tree, tokens, logits, epsilon, delta):
    """Return the longest accepted path of one row; of equally long ones the most likely."""
    p = logits.float().softmax(-1)
    threshold = [
        min(epsilon, delta * float(torch.exp(-torch.special.entr(each).sum()))) for each in p
    ]
    best, best_value = [0], (0, 0.0)
    for node in range(1, len(tree)):
        nodes = path_to(tree, node)
        steps = [
            (float(p[up, tokens[down]]), threshold[up]) for up, down in itertools.pairwise(nodes)
        ]
        value = (len(steps), float(torch.tensor([chance for chance, _ in steps]).log().sum()))
        if all(chance > least for chance, least in steps) and value > best_value:
            best, best_value = nodes, value
    return best


@quick
@given(trees(), seeds, st.sampled_from([(0.09, 0.3), (0.3, 0.6), (0.0, 0.5), (1.0, 0.9)]))
def test_typical_accepts_the_longest_plausible_path_and_the_likeliest_of_these(
    tree, seed, thresholds
):
    draft, logits = random_draft(tree, 4, 2, seed)
    verdict = Typical(*thresholds).accept(tree, draft, logits, [None] * 2)
    for row in range(2):
        nodes = typical_by_hand(tree, draft.tokens[row], logits[row], *thresholds)
        assert accepted(verdict, row) == (nodes, int(logits[row, nodes[-1]].argmax()))


@quick
@given(trees(), seeds, st.floats(0, 1), st.floats(0, 0.999))
def test_typical_always_takes_the_most_probable_token(tree, seed, epsilon, delta):
    draft, logits = random_draft(tree, 4, 2, seed)
    typical = Typical(epsilon, delta).accept(tree, draft, logits, [None] * 2)
    greedy = Greedy().accept(tree, draft, logits, [None] * 2)
    assert (typical.count >= greedy.count).all()


@quick
@given(trees(), seeds)
def test_typical_becomes_greedy_as_the_temperature_falls(tree, seed):
    draft, logits = random_draft(tree, 4, 2, seed)
    typical = Typical().accept(tree, draft, logits / 1e-4, [None] * 2)
    greedy = Greedy().accept(tree, draft, logits, [None] * 2)
    assert [accepted(typical, row) for row in range(2)] == [
        accepted(greedy, row) for row in range(2)
    ]


def test_typical_threshold_depends_on_the_entropy():
    """The paper's threshold: min(epsilon, delta * exp(-H))."""
    tree = CandidateTree([(0,)])
    flat = torch.full((1, 2, 50), -10.0)
    flat[..., :20] = 0.0
    sure = flat.clone()
    sure[..., 0] = 3.0
    draft = Draft(torch.tensor([[7, 5]]))
    p = [float(each[0, 0].softmax(-1)[5]) for each in (flat, sure)]
    assert p[0] < 0.09
    assert Typical().accept(tree, draft, flat, [None]).count.item() == 2
    assert Typical(delta=0.0).accept(tree, draft, sure, [None]).count.item() == 2
    assert Typical(epsilon=0.02, delta=0.9).accept(tree, draft, sure, [None]).count.item() == 1 + (
        p[1] > 0.02
    )
    assert Typical(epsilon=1.0, delta=0.9).accept(tree, draft, sure, [None]).count.item() == 1


def test_typical_root_is_the_most_probable_token_or_sampled():
    tree, draft = CandidateTree(), Draft(torch.zeros(400, 1, dtype=torch.long))
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(400, 1, 3)
    generators = [torch.Generator().manual_seed(seed) for seed in range(400)]
    greedy = Typical().accept(tree, draft, logits, generators).root
    assert set(greedy.tolist()) == {0}
    sampled = Typical(root="sample").accept(tree, draft, logits, generators).root
    assert chi_square(sampled.bincount(minlength=3), torch.tensor([0.5, 0.3, 0.2])) > 1e-3


@pytest.mark.parametrize("epsilon", [0.0, 0.01, 0.09, 0.25])
def test_delta_is_by_default_the_square_root_of_epsilon(epsilon):
    """The paper's recommendation (section 2.3.1)."""
    logits = torch.randn(4, 5, VOCAB, generator=torch.Generator().manual_seed(0)).double()
    draft = Draft(torch.randint(VOCAB, (4, 5), generator=torch.Generator().manual_seed(1)))
    tree = CandidateTree([(0,), (0, 0), (1,), (1, 0)])
    given, same = (
        policy.accept(tree, draft, logits, [None] * 4)
        for policy in (Typical(epsilon), Typical(epsilon, epsilon**0.5))
    )
    assert (given.path.tolist(), given.root.tolist()) == (same.path.tolist(), same.root.tolist())
    assert Typical(epsilon).entropy_threshold == pytest.approx(epsilon**0.5)


def test_an_empty_residual_distribution_still_gives_a_token(monkeypatch):
    """If p and q differ only by rounding, p - q may have no positive part."""
    from medusa.core import acceptance

    monkeypatch.setattr(
        acceptance,
        "_uniforms",
        lambda generators, count, like: torch.full((1, count), 1 - 1e-9).double(),
    )
    draft = Draft(torch.zeros(1, 2, dtype=torch.long), torch.full((1, 1, 2), 0.50001))
    found = Rejection().accept(CandidateTree.chain(1), draft, torch.zeros(1, 2, 2), [None])
    assert found.count.item() == 1
    assert found.root.item() in (0, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epsilon": 1.5}, "epsilon"),
        ({"delta": 1.0}, "delta"),
        ({"delta": -0.1}, "delta"),
        ({"root": "best"}, "root"),
    ],
)
def test_typical_refuses_invalid_settings(options, words):
    with pytest.raises(ValueError, match=words):
        Typical(**options)


@quick
@given(trees(), seeds)
def test_children_of_a_node_are_distinct_tokens_in_order_of_rank(tree, seed):
    torch.manual_seed(seed)
    root, logits = torch.tensor([3, 4]), torch.randn(2, 4, 9)
    by_rank = Greedy().draft(root, logits, tree, [None] * 2).tokens
    drawn = Rejection().draft(root, logits, tree, [None] * 2)
    order = logits.argsort(-1, descending=True)
    for node in range(1, len(tree)):
        depth, rank = len(tree.paths[node]) - 1, tree.paths[node][-1]
        assert by_rank[:, node].tolist() == order[:, depth, rank].tolist()
    for tokens in (by_rank, drawn.tokens):
        assert tokens[:, 0].tolist() == [3, 4]
        for children in tree.children:
            assert all(len(set(row)) == len(children) for row in tokens[:, list(children)].tolist())
    torch.testing.assert_close(drawn.probs, logits.softmax(-1))


def test_rejection_refuses_drafts_without_distributions():
    tree, logits = CandidateTree.chain(1), torch.zeros(1, 2, 3)
    draft = Greedy().draft(torch.tensor([0]), torch.zeros(1, 1, 3), tree, [None])
    with pytest.raises(ValueError, match="no probabilities"):
        Rejection().accept(tree, draft, logits, [None])


# The exact distribution of the tokens that Rejection gives


def normalised(weights):
    total = sum(weights)
    return [each / total for each in weights] if total else weights


def next_token(p, q, children):
    """Return the exact P(child i accepted with token x) and P(nothing accepted, then x is drawn).

    It enumerates all draws of the children.
    """
    taken = [[Fraction(0)] * len(p) for _ in range(children)]
    fallback = [Fraction(0)] * len(p)

    def branch(rank, p, q, chance):
        if rank == children or not any(q):
            for x, weight in enumerate(p):
                fallback[x] += chance * weight
            return
        for x, weight in enumerate(q):
            if not weight:
                continue
            passes = min(Fraction(1), p[x] / weight)
            taken[rank][x] += chance * weight * passes
            if passes < 1:
                left = normalised([max(Fraction(0), a - b) for a, b in zip(p, q, strict=True)])
                rest = normalised([Fraction(0) if y == x else b for y, b in enumerate(q)])
                branch(rank + 1, left, rest, chance * weight * (1 - passes))

    branch(0, p, q, Fraction(1))
    return taken, fallback


def simplex(parts):
    """Return distributions over 3 tokens in steps of 1 / parts, zeros included."""
    for a in range(parts + 1):
        for b in range(parts + 1 - a):
            yield [Fraction(n, parts) for n in (a, b, parts - a - b)]


@pytest.mark.parametrize("children", [1, 2, 3])
def test_exact_next_token_distribution_is_that_of_the_base(children):
    """For any draft distribution, the emitted token follows p."""
    for p, q in itertools.product(simplex(4), simplex(4)):
        taken, fallback = next_token(p, q, children)
        assert [sum(column) for column in zip(*taken, fallback, strict=True)] == p


P0 = [Fraction(n, 10) for n in (5, 3, 2)]
P1 = [[Fraction(n, 10) for n in row] for row in ((1, 1, 8), (6, 0, 4), (3, 3, 4))]
Q = [[Fraction(n, 10) for n in row] for row in ((2, 7, 1), (4, 4, 2))]
TWO_BY_TWO = CandidateTree.dense([2, 2])


def paths_by_enumeration():
    """Return the exact distribution of (accepted ranks, tokens with the next root).

    It is for V = 3 and the 2 x 2 tree.
    """
    outcome = {}
    first_taken, first_fallback = next_token(P0, Q[0], 2)
    for x, chance in enumerate(first_fallback):
        outcome[(), (x,)] = chance
    for rank, x in itertools.product(range(2), range(3)):
        second_taken, second_fallback = next_token(P1[x], Q[1], 2)
        for y, chance in enumerate(second_fallback):
            outcome[(rank,), (x, y)] = first_taken[rank][x] * chance
        for other, y in itertools.product(range(2), range(3)):
            outcome[(rank, other), (x, y)] = first_taken[rank][x] * second_taken[other][y]
    return outcome


def test_enumerated_pairs_follow_the_base_distribution():
    outcome = paths_by_enumeration()
    assert sum(outcome.values()) == 1
    for x in range(3):
        assert sum(chance for (_, tokens), chance in outcome.items() if tokens[0] == x) == P0[x]
        for y in range(3):
            pair = sum(chance for (_, tokens), chance in outcome.items() if tokens == (x, y))
            stopped = outcome[(), (x,)]
            assert pair + stopped * P1[x][y] == P0[x] * P1[x][y]


ROWS = 4000


def sample(tree, first, later, q, change=lambda probs: probs):
    """Apply Rejection to many rows with equal distributions; return draft tokens and verdict.

    The base is a first-order model: p(x | root) = first, p(y | .., x) = later[x].
    """
    torch.manual_seed(1)
    generators = [None] * ROWS
    draft = Rejection().draft(
        torch.zeros(ROWS, dtype=torch.long), q.log().expand(ROWS, -1, -1), tree, generators
    )
    logits = torch.where(tree.depth[:, None] == 0, first.log(), later[draft.tokens].log())
    return draft.tokens, Rejection().accept(
        tree, Draft(draft.tokens, change(draft.probs)), logits, generators
    )


def sample_pairs(tree, first, later, q, change=lambda probs: probs):
    """Return counts [V, V] of the two next tokens, and the verdict.

    Rows that got one token draw their second from `later`, as the next step's root would.
    """
    tokens, verdict = sample(tree, first, later, q, change)
    text = torch.cat([tokens.gather(1, verdict.path), torch.zeros(ROWS, 1, dtype=torch.long)], 1)
    rows = torch.arange(ROWS)
    text[rows, verdict.count] = verdict.root
    first_token, second_token = text[:, 1], text[:, min(2, text.shape[1] - 1)]
    alone = verdict.count == 1
    second_token = torch.where(
        alone, torch.multinomial(later[first_token], 1).squeeze(1), second_token
    )
    counts = torch.zeros(len(first), len(first)).index_put(
        (first_token, second_token), torch.ones(ROWS), True
    )
    return counts, verdict


def test_rejection_accepts_each_path_with_its_exact_probability():
    first, later, q = (
        torch.tensor([[float(x) for x in row] for row in rows]) for rows in ([P0], P1, Q)
    )
    tokens, verdict = sample(TWO_BY_TWO, first[0], later, q)
    expected = paths_by_enumeration()
    seen = dict.fromkeys(expected, 0)
    for row in range(ROWS):
        nodes, root = accepted(verdict, row)
        seen[TWO_BY_TWO.paths[nodes[-1]], (*tokens[row, nodes[1:]].tolist(), root)[:2]] += 1
    counts, chances = (
        torch.tensor([float(table[key]) for key in expected]) for table in (seen, expected)
    )
    assert chi_square(counts, chances) > 1e-3


REJECTION_TREES = {
    "root": CandidateTree(),
    "chain": CandidateTree.chain(3),
    "wide": CandidateTree.dense([3]),
    "everything": CandidateTree.dense([6]),
    "deep": CandidateTree.dense([3, 2, 2]),
    "gaps": CandidateTree([(0,), (2,), (2, 1), (0, 0), (0, 3), (2, 1, 0)]),
    "uneven": CandidateTree([(0,), (1,), (1, 0), (1, 1), (1, 2)]),
}
VOCAB = 6


def distributions(kind, seed=3):
    """Return p(first), p(later | x) and q of 3 heads, with zeros in p, q or both, or q = p."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (VOCAB,), (VOCAB, VOCAB), (3, VOCAB)
    first, later, q = (
        (2 * torch.randn(shape, generator=generator)).softmax(-1) for shape in shapes
    )
    if kind in ("q with zeros", "both with zeros"):
        q[:, 1], q[0, 2:5] = 0, 0
    if kind in ("p with zeros", "both with zeros"):
        first[2:4], later[:, 3], later[1, :3] = 0, 0, 0
    if kind == "q = p":
        q[0] = first
    return (each / each.sum(-1, keepdim=True) for each in (first, later, q))


@pytest.mark.parametrize("tree", REJECTION_TREES)
@pytest.mark.parametrize(
    "kind", ["spread", "q with zeros", "p with zeros", "both with zeros", "q = p"]
)
def test_rejection_follows_the_base_distribution(tree, kind):
    first, later, q = distributions(kind)
    counts, verdict = sample_pairs(REJECTION_TREES[tree], first, later, q)
    assert chi_square(counts.flatten(), (first[:, None] * later).flatten()) > 1e-3
    if tree != "root":
        assert verdict.count.max() > 1
    if tree != "root" and kind == "q = p":
        assert verdict.count.min() > 1


WRONG = {
    "draft probabilities of another head": lambda probs: probs.roll(1, 1),
    "flattened draft probabilities": lambda probs: torch.full_like(probs, 1 / VOCAB),
    "sharpened draft probabilities": lambda probs: probs**2 / (probs**2).sum(-1, keepdim=True),
}


@pytest.mark.parametrize("change", WRONG)
@pytest.mark.parametrize("tree", ["chain", "wide", "deep", "gaps"])
def test_the_chi_square_test_notices_a_wrong_draft_distribution(tree, change):
    first, later, q = distributions("spread")
    counts, _ = sample_pairs(REJECTION_TREES[tree], first, later, q, WRONG[change])
    assert chi_square(counts.flatten(), (first[:, None] * later).flatten()) < 1e-6


def test_rows_draw_from_their_own_generators():
    tree = TWO_BY_TWO
    head_logits, logits = torch.randn(4, 2, 5), torch.randn(4, len(tree), 5)

    def run(rows):
        generators = [torch.Generator().manual_seed(row) for row in rows]
        draft = Rejection().draft(
            torch.zeros(len(rows), dtype=torch.long), head_logits[rows], tree, generators
        )
        return draft, Rejection().accept(tree, draft, logits[rows], generators)

    together, verdicts = run([0, 1, 2, 3])
    for row in range(4):
        alone, verdict = run([row])
        assert alone.tokens[0].tolist() == together.tokens[row].tolist()
        assert accepted(verdict, 0) == accepted(verdicts, row)


@pytest.mark.parametrize("tree", ["chain", "deep", "gaps"])
def test_sampled_pairs_of_a_real_model_follow_its_own_distribution(tree):
    """The next two tokens of a model with a vocabulary of 6, decoded with heads."""
    base = tiny("llama", torch.float32, vocab_size=VOCAB)
    model = MedusaModel.from_base(base, num_heads=3, tree=REJECTION_TREES[tree])
    torch.manual_seed(0)
    for parameter in model.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    ids = torch.tensor([[1, 4, 2]])
    sampling = {"do_sample": True, "temperature": 3.0, "top_k": 0, "max_new_tokens": 3}
    counts = torch.zeros(VOCAB, VOCAB, VOCAB)
    for _ in range(10):
        text = model.generate(ids.expand(250, -1), attention_mask=torch.ones(250, 3), **sampling)[
            :, 3:
        ]
        counts.index_put_(tuple(text.T), torch.ones(len(text)), accumulate=True)
    stories = torch.tensor([[1, 4, 2, x, y] for x in range(VOCAB) for y in range(VOCAB)])
    with torch.inference_mode():
        p = (base(stories).logits.double() / 3.0).softmax(-1)
    index = torch.arange(VOCAB)
    first, second, third = (p[:, position].view(VOCAB, VOCAB, VOCAB) for position in (2, 3, 4))
    expected = first[0, 0][:, None, None] * second[index, 0][:, :, None] * third
    assert chi_square(counts.flatten(), expected.flatten()) > 1e-3
