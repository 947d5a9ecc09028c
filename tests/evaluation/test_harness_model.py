"""Models with heads in the lm-evaluation-harness score as their base models do."""

import json

import pytest
import torch
import yaml
from models import tiny

from medusa import MedusaModel

pytest.importorskip("lm_eval", reason="the extra 'harness' is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.slow,
]

from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from medusa.evaluation.lm_eval import MedusaLM  # noqa: E402

RECORDS = [
    {"question": "count from one", "answer": "two", "choices": ["two", "cat"], "label": 0},
    {
        "question": "where is the cat?",
        "answer": "on the mat",
        "choices": ["nine", "mat"],
        "label": 1,
    },
    {"question": "a", "answer": "cat", "choices": ["cat sat", "five six"], "label": 0},
    {"question": "one two three four", "answer": "five", "choices": ["five", "sat"], "label": 0},
    {"question": "the mat", "answer": "seven", "choices": ["eight", "on"], "label": 1},
]
GENERATE = {
    "task": "tiny_generate",
    "output_type": "generate_until",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["e", "zz"], "max_gen_toks": 24, "do_sample": False},
    "metric_list": [{"metric": "exact_match"}],
}
CHOOSE = {
    "task": "tiny_choose",
    "output_type": "multiple_choice",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc"}],
}


@pytest.fixture
def tasks(tmp_path):
    """Two local tasks."""
    file = tmp_path / "records.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in RECORDS))
    for task in (GENERATE, CHOOSE):
        common = {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(file)}},
            "test_split": "test",
            "doc_to_text": "{{question}}",
        }
        place = tmp_path / "tasks" / f"{task['task']}.yaml"
        place.parent.mkdir(exist_ok=True)
        place.write_text(yaml.safe_dump({**common, **task}))
    return TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)


def evaluated(model, tasks, **options):
    """Texts of the answers, log-likelihoods of the choices, and scores of both tasks."""
    names = [GENERATE["task"], CHOOSE["task"]]
    results = simple_evaluate(model, tasks=names, task_manager=tasks, bootstrap_iters=0, **options)
    texts, choices = (
        [response for each in results["samples"][name] for response in each["resps"]]
        for name in names
    )
    likelihoods = torch.tensor([logprob for ((logprob, _),) in choices])
    found = [results["results"][name] for name in names]
    scores = found[0]["exact_match,none"], found[1]["acc,none"]
    return [text for (text,) in texts], likelihoods, scores


def assert_equal(given, expected):
    assert given[0] == expected[0]
    torch.testing.assert_close(given[1], expected[1], rtol=1e-4, atol=1e-4)
    assert given[2] == expected[2]


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_answers_and_scores_are_the_base_models(kind, batch_size, tasks, tokenizer, monkeypatch):
    base = tiny(kind, torch.float32, vocab_size=len(tokenizer))
    of_base = HFLM(base, tokenizer=tokenizer, batch_size=batch_size)
    expected = evaluated(of_base, tasks)
    medusa = MedusaModel.from_base(base, num_heads=3)
    decoded = []
    custom_generate = MedusaModel.custom_generate
    monkeypatch.setattr(
        MedusaModel,
        "custom_generate",
        lambda self, *args, **kwargs: decoded.append(1) or custom_generate(self, *args, **kwargs),
    )
    given = evaluated(MedusaLM(medusa, tokenizer=tokenizer, batch_size=batch_size), tasks)
    assert_equal(given, expected)
    assert len(decoded) == {1: 5, 3: 2}[batch_size]
    assert len(set(expected[0])) > 2
    assert len(expected[1]) == 10


def test_a_folder_of_heads_by_its_name(tasks, base_folder, tmp_path):
    base = MedusaModel.from_base(base_folder, num_heads=2)
    base.save_pretrained(tmp_path / "my-heads")
    arguments = {"pretrained": str(tmp_path / "my-heads"), "dtype": "float32"}
    given = evaluated("medusa", tasks, model_args=arguments, batch_size=2, device="cpu")
    arguments = {"pretrained": str(base_folder), "dtype": "float32"}
    expected = evaluated("hf", tasks, model_args=arguments, batch_size=2, device="cpu")
    assert_equal(given, expected)


def test_the_harness_passes_on_how_to_accept(tasks, tokenizer):
    base = tiny("llama", torch.float32, vocab_size=len(tokenizer))
    model = MedusaLM(MedusaModel.from_base(base, num_heads=2), tokenizer=tokenizer)
    with pytest.raises(ValueError, match="acceptance='rejection' samples"):
        evaluated(model, tasks, gen_kwargs="acceptance=rejection")
