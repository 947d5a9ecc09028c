import pytest
import torch
from models import tiny

from benchmarks.replay import replay
from medusa import CandidateTree, MedusaModel
from medusa.calibration.recording import Recording
from medusa.calibration.search import replayed_rate
from medusa.core.engine import PLAIN


@pytest.mark.parametrize("tree", [PLAIN, CandidateTree.chain(3), CandidateTree.default(3, 16)])
def test_a_replay_accepts_the_recorded_nodes(tree):
    generator = torch.Generator().manual_seed(0)
    lengths = (5, 1, 12, 30)
    ranks = torch.randint(6, (sum(lengths), 3), generator=generator)
    known = torch.cat(
        [torch.arange(length)[:, None] + torch.arange(3) + 1 < length for length in lengths]
    )
    credit = torch.nn.functional.one_hot(ranks, 6).float() * known[..., None]
    recording = Recording(credit, known, lengths)
    model = MedusaModel.from_base(tiny(dtype=torch.float32), num_heads=3)
    found = replay(model, recording, 7, tree, len(lengths))
    assert [stats.tokens for stats in found] == list(lengths)
    rate = sum(stats.tokens for stats in found) / sum(stats.steps for stats in found)
    assert rate == pytest.approx(replayed_rate(recording, tree))
    assert (rate > 1) == (tree is not PLAIN)
