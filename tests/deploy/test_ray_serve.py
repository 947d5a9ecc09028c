"""Tests of the Ray Serve deployment: two replicas, of which one is killed under load."""

import asyncio
import json

import httpx2
import pytest
from running import prompts

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray[serve]'")
pytestmark = pytest.mark.slow

PORT = 18_431
URL = f"http://127.0.0.1:{PORT}/v1/chat/completions"
ERRORS = (httpx2.HTTPError, RuntimeError)


@pytest.fixture(scope="module")
def deployment():
    patch = pytest.MonkeyPatch()
    for name, value in {"MIN_REPLICAS": "2", "MAX_REPLICAS": "2", "CPUS": "1"}.items():
        patch.setenv(f"MEDUSA_{name}", value)
    serve = pytest.importorskip("ray.serve", reason="Ray is installed without ray[serve]")
    from deploy.ray_serve import application

    ray.init(num_cpus=4, include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    try:
        serve.run(application)
        yield serve
    finally:
        serve.shutdown()
        ray.shutdown()
        patch.undo()


def replicas():
    """Return the names of the replicas that live."""
    found = ray.util.list_named_actors(all_namespaces=True)
    return [each["name"] for each in found if "MedusaServer" in each["name"]]


def kill(name):
    """End a replica's process at once, without a word to anybody."""
    ray.kill(ray.get_actor(name, namespace="serve"), no_restart=True)


async def ask(client, prompt, tokens=40):
    """Return the text of a streamed answer; raise one of `ERRORS` if it does not end properly."""
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
    }
    text, ended = "", False
    async with client.stream("POST", URL, json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                ended = True
            elif line.startswith("data: "):
                piece = json.loads(line[len("data: ") :])
                if "error" in piece:
                    raise RuntimeError(piece["error"])
                text += "".join(each["delta"].get("content", "") for each in piece["choices"])
    if not ended:
        raise RuntimeError("the stream was cut off")
    return text


def all_answers(asked, during=None):
    """Return the text or the exception of each prompt; none takes longer than a minute."""

    async def run():
        async with httpx2.AsyncClient(timeout=60, limits=httpx2.Limits(max_connections=16)) as one:
            tasks = [asyncio.ensure_future(ask(one, prompt)) for prompt in asked]
            if during is not None:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                during()
            return await asyncio.gather(*tasks, return_exceptions=True)

    return asyncio.run(run())


def test_both_replicas_answer_as_generate_does(deployment, demo_model):
    model, tokenizer = demo_model
    asked = prompts(12)
    for prompt, text in zip(asked, all_answers(asked), strict=True):
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        output = model.generate(**inputs, max_new_tokens=40, do_sample=False)
        new = output[0, inputs["input_ids"].shape[1] :]
        assert text == tokenizer.decode(new, skip_special_tokens=True)
    assert len(replicas()) == 2


def test_a_killed_replica_loses_only_what_it_was_answering(deployment):
    asked = prompts(6) * 20
    first, second = replicas()
    expected = dict(zip(asked[:6], all_answers(asked[:6]), strict=True))
    found = all_answers(asked, during=lambda: kill(first))
    lost = [each for each in found if isinstance(each, BaseException)]
    assert all(isinstance(each, ERRORS) for each in lost)
    assert len(lost) <= 16  # those that were being answered, of which the other replica had some
    for prompt, text in zip(asked, found, strict=True):
        assert isinstance(text, BaseException) or text == expected[prompt]
    assert second in replicas()
    assert all(isinstance(each, str) for each in all_answers(asked[:12]))
