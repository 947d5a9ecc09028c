import pytest
import torch
from models import ScriptedHeads, tiny, varied_prompt
from safetensors.torch import load_file, save_file

from medusa import CandidateTree, MedusaModel, Rejection
from medusa.calibration.recording import Recording, record, rejection_credit
from medusa.calibration.search import expected_rate, joint_tree, replayed_rate
from medusa.core.acceptance import Draft
from medusa.files import locked

NEW = 40


def model_with_heads(accuracy=0.7):
    base, ids = tiny(), varied_prompt("llama")
    model = MedusaModel.from_base(base, num_heads=3)
    text = base.generate(ids, max_new_tokens=NEW + 8, do_sample=False).tolist()
    with torch.inference_mode():
        model.heads = ScriptedHeads(model, text, accuracy)
    return model, ids


@pytest.mark.parametrize(
    "tree", [CandidateTree.chain(3), CandidateTree.dense([3, 2, 2]), CandidateTree.default(3, 9)]
)
def test_a_replay_gives_the_rate_that_decoding_has(tree):
    base, ids = tiny(), varied_prompt("llama")
    model = MedusaModel.from_base(base, num_heads=3)
    torch.manual_seed(0)
    for parameter in model.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    options = {"max_new_tokens": NEW, "do_sample": False}
    recorded = record(model, [ids[0].tolist(), ids[0, 3:].tolist()], options, ranks=61)
    tokens = steps = 0
    for prompt in (ids, ids[:, 3:]):
        stats = model.generate(prompt, tree=tree, return_dict_in_generate=True, **options).stats
        tokens, steps = tokens + stats.tokens, steps + stats.steps
    assert replayed_rate(recorded, tree) == pytest.approx(tokens / steps)


def test_credits_are_at_the_ranks_of_the_decoded_tokens():
    model, ids = model_with_heads(1.0)
    recorded = record(
        model, [ids[0].tolist()], {"max_new_tokens": NEW, "do_sample": False}, ranks=3
    )
    assert recorded.lengths == (NEW - 1,)
    assert recorded.known.sum(0).tolist() == [NEW - 1, NEW - 2, NEW - 3]
    assert all(row[1] == 1 for row in recorded.accuracies()), (
        "scripted heads have it first or second"
    )
    tree = joint_tree(recorded, 8)
    assert tree.max_rank <= 2


def test_an_interrupted_recording_is_resumed(tmp_path):
    model, ids = model_with_heads()
    prompts = [ids[0, begin:].tolist() for begin in range(4)]
    options = {"max_new_tokens": 10, "do_sample": False}
    done = []
    whole = record(model, prompts, options, batch_size=2, work=tmp_path, finished=done.append)
    assert done == [2, 2]
    first, second = sorted(tmp_path.rglob("*.safetensors"))
    second.unlink()
    before, written = Recording.load(first), first.stat().st_mtime_ns
    again = record(model, prompts, options, batch_size=2, work=tmp_path)
    assert again.lengths == whole.lengths
    assert torch.equal(again.credit[: len(before.credit)], before.credit)
    assert first.stat().st_mtime_ns == written


def test_other_settings_are_recorded_again(tmp_path):
    model, ids = model_with_heads()
    prompts, options = [ids[0].tolist()], {"max_new_tokens": 4, "do_sample": False}

    def recorded(prompts=prompts, options=options, **settings):
        record(model, prompts, options, work=tmp_path, **settings)
        return len(list(tmp_path.rglob("*.safetensors")))

    assert recorded() == 1
    assert recorded() == 1
    assert recorded(prompts=[ids[0, 1:].tolist()]) == 2
    assert recorded(options={**options, "max_new_tokens": 5}) == 3
    assert recorded(acceptance="greedy") == 4
    assert recorded(ranks=8) == 5
    assert recorded(batch_size=2) == 6
    model.base.generation_config.repetition_penalty = 1.5
    assert recorded() == 7
    with torch.no_grad():
        model.base.get_output_embeddings().weight.mul_(1.5)
    assert recorded() == 8, "another base model"
    model.heads = MedusaModel.from_base(model.base, num_heads=3).heads
    assert recorded() == 9, "other heads"


def other_texts(named):
    named["lengths"] = torch.tensor([1, 2])


def too_few_positions(named):
    named["known"] = named["known"][:-1]


def no_numbers(named):
    named["credit"][0, 0, 0] = torch.nan


def no_lengths(named):
    del named["lengths"]


@pytest.mark.parametrize("change", [None, other_texts, too_few_positions, no_numbers, no_lengths])
def test_an_error_names_a_broken_batch(tmp_path, change):
    model, ids = model_with_heads()
    prompts, options = [ids[0].tolist()], {"max_new_tokens": 4, "do_sample": False}
    record(model, prompts, options, work=tmp_path)
    (file,) = tmp_path.rglob("*.safetensors")
    if change is None:
        file.write_bytes(file.read_bytes()[:-9])
    else:
        named = load_file(file)
        change(named)
        save_file(named, file)
    with pytest.raises(ValueError, match=f"^{file} .*delete it"):
        record(model, prompts, options, work=tmp_path)


def test_a_batch_that_cannot_be_written_leaves_no_partial_file(tmp_path, monkeypatch):
    model, ids = model_with_heads()

    def full(_, file):
        file.write_bytes(b"part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medusa.calibration.recording.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        record(model, [ids[0].tolist()], {"max_new_tokens": 4, "do_sample": False}, work=tmp_path)
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".lock"]


def test_one_process_records_in_a_folder(tmp_path):
    model, ids = model_with_heads()
    arguments = [ids[0].tolist()], {"max_new_tokens": 4, "do_sample": False}
    record(model, *arguments, work=tmp_path)
    (folder,) = (each for each in tmp_path.iterdir() if each.is_dir())
    with (
        locked(folder),
        pytest.raises(ValueError, match=r"another process is writing to .*--resume"),
    ):
        record(model, *arguments, work=tmp_path)


def test_credit_of_rejection_is_the_frequency_of_accepted_draws():
    """The reference is the policy itself, over many draws."""
    size, rows, ranks = 7, 40_000, 3
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.rand(size, generator=generator, dtype=torch.float64).pow(2) for _ in range(2))
    p, q = p / p.sum(), q / q.sum()
    came = torch.multinomial(p, rows, replacement=True, generator=generator)
    credit = rejection_credit(p.expand(rows, -1), q.expand(rows, -1), came, ranks, generator).mean(
        0
    )

    tree = CandidateTree([(rank,) for rank in range(ranks)])
    policy, generators = Rejection(), [None] * rows
    torch.manual_seed(1)
    draft = policy.draft(
        torch.zeros(rows, dtype=torch.long), q.log().expand(rows, 1, -1), tree, generators
    )
    verdict = policy.accept(
        tree, Draft(draft.tokens, draft.probs), p.log().expand(rows, len(tree), -1), generators
    )
    accepted = verdict.path[:, -1][verdict.count == 2]
    frequency = torch.bincount(accepted, minlength=ranks + 1)[1:] / rows
    torch.testing.assert_close(credit.float(), frequency.float(), rtol=0, atol=0.012)


def test_a_sampled_recording_predicts_what_sampling_gives():
    base = tiny(dtype=torch.float32, vocab_size=12)
    model = MedusaModel.from_base(base, num_heads=2)
    torch.manual_seed(0)
    for parameter in model.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    options = {"max_new_tokens": 60, "do_sample": True, "temperature": 1.5, "top_k": 0}
    prompts = [[1 + number % 10, 3, 5] for number in range(64)]
    recorded = record(model, prompts, options, batch_size=64, ranks=4)
    tree = CandidateTree.dense([3, 2])
    batch = torch.tensor(prompts).repeat(4, 1)
    stats = model.generate(
        batch,
        attention_mask=torch.ones_like(batch),
        tree=tree,
        return_dict_in_generate=True,
        **options,
    ).stats
    assert stats.acceleration_rate == pytest.approx(expected_rate(recorded, tree), rel=0.05)


@pytest.mark.parametrize("architecture", ["llama", "cohere", "granite", "gemma2"])
def test_base_logits_are_the_base_models(architecture):
    model = MedusaModel.from_base(tiny(architecture, attention="eager"), num_heads=1)
    ids = varied_prompt("llama")
    with torch.inference_mode():
        torch.testing.assert_close(
            model.base_logits(model.hidden_states(ids)), model.base(ids).logits
        )


def test_chunks_do_not_change_what_is_recorded(monkeypatch):
    model, ids = model_with_heads()
    torch.manual_seed(0)
    model.heads = MedusaModel.from_base(model.base, num_heads=3).heads
    for parameter in model.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    options = {"max_new_tokens": 12, "do_sample": False}
    whole = record(model, [ids[0].tolist()], options)
    monkeypatch.setattr("medusa.calibration.recording.CHUNK_BYTES", 1)
    assert torch.equal(record(model, [ids[0].tolist()], options).credit, whole.credit)
