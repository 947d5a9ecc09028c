"""Test of a base model that is split over two processes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from running import prompts

from medusa import demo
from medusa.text import encode_text

SCRIPT = Path(__file__).parents[2] / "deploy" / "tensor_parallel.py"


@pytest.mark.slow
def test_two_processes_give_the_tokens_of_one(demo_model):
    model, tokenizer = demo_model
    asked = prompts(6)
    run = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", str(SCRIPT), str(demo.heads_folder())),
            *("--base", str(demo.FOLDER / "base"), "--dtype", "float32"),
            *("--max-new-tokens", "60"),
            *(part for prompt in asked for part in ("--prompt", prompt)),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    share = int(re.search(r"holds (\d+)% of the weights", run.stderr).group(1))
    assert 50 <= share < 75  # embeddings are whole in each process
    expected = []
    for prompt in asked:
        ids = encode_text(tokenizer, prompt)
        output = model.generate(ids, max_new_tokens=60, do_sample=False)
        expected.append(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
    assert run.stdout.splitlines() == "\n".join(expected).splitlines()
