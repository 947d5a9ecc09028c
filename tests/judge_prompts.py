"""Prompts of a judge, as in FastChat's file."""

import json

NAMES = [
    f"{base}{turns}" for base in ("single-v1", "single-math-v1") for turns in ("", "-multi-turn")
]


def write_prompts(tmp_path, names=NAMES):
    template = "{question}|{answer}|{ref_answer_1}|{question_1}|{answer_1}|{question_2}|{answer_2}"
    lines = [
        {
            "name": name,
            "type": "pairwise" if name.startswith("pair") else "single",
            "system_prompt": name,
            "prompt_template": template,
            "category": "general",
        }
        for name in names
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(file)
