"""Conversations of one and of two questions."""

from __future__ import annotations

from contracts.task_cases import TaskCase

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
SHORT = [
    [("user", f"how was the {thing}?"), ("assistant", f"the {thing} was {word}")]
    for thing in ("film", "soup", "plot")
    for word in ("long", "dull")
]
LONG = [
    [*short, ("user", "and the staff?"), ("assistant", word)]
    for short, word in zip(SHORT[:3], ("kind", "rude", "lovely and kind"), strict=True)
]
ROWS = [{"messages": [{"role": role, "content": text} for role, text in turns]} for turns in SHORT + LONG]
CASES = [
    TaskCase(
        model,
        {"name": "instruction_tuning", "max_new_tokens": 6, "chat_template": TEMPLATE},
        train=ROWS,
        validation=[ROWS[0], ROWS[-1]],
        inputs=["how was the soup?", ROWS[-1]["messages"][:3]],
        max_length=64,
    )
    for model in ("llama", "gpt2")
]
