"""Conversations: their forms, their order, and which tokens are learnt."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from peftkit.errors import CapabilityError, DataError
from peftkit.losses import losses
from peftkit.predictor import load
from peftkit.recipe import Recipe
from peftkit.tasks import Task, tasks
from peftkit.tasks.conversations import messages_of, problem_of, tools_of
from peftkit.training import RunOptions, run

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TURNS = [("system", "Be kind."), ("user", "soup?"), ("assistant", "cold"), ("user", "film?"), ("assistant", "long")]
MESSAGES = [{"role": role, "content": text} for role, text in TURNS]


@pytest.fixture
def tokenizer(checkpoint: Callable[[str], Path]) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint("llama"))
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


@pytest.fixture
def task(checkpoint: Callable[[str], Path]) -> Task:
    task = tasks.build({"name": "instruction_tuning", "chat_template": TEMPLATE, "max_new_tokens": 4})
    return task.suited(AutoConfig.from_pretrained(checkpoint("llama")))


def learnt(feature: dict[str, Any]) -> list[int]:
    return [label for label in feature["labels"] if label != -100]


def test_every_turn_of_the_assistant_is_learnt_with_its_end(task: Task, tokenizer: Any) -> None:
    feature = task.encode(Dataset.from_list([{"messages": MESSAGES}]), tokenizer, 128)[0]
    end = tokenizer.eos_token
    assert tokenizer.decode(learnt(feature)).replace(" ", "") == f"cold{end}long{end}"
    whole = "".join(f"<{role}>{text}{end}\n" for role, text in TURNS)
    assert tokenizer.decode(feature["input_ids"]).replace(" ", "") == whole.replace(" ", "")


def test_an_answer_is_asked_for_as_it_was_learnt(task: Task, tokenizer: Any) -> None:
    """The prompt of an application is the very beginning of the training row."""
    trained = task.encode(Dataset.from_list([{"messages": MESSAGES}]), tokenizer, 128)[0]["input_ids"]
    asked = task.encode(task.rows([MESSAGES[:-1]]), tokenizer, 128)[0]
    assert "labels" not in asked
    assert trained[: len(asked["input_ids"])] == asked["input_ids"]
    assert tokenizer.decode(trained[len(asked["input_ids"]) :]).strip().startswith("long")


def test_loss_is_that_of_transformers(task: Task, tokenizer: Any, checkpoint: Callable[[str], Path]) -> None:
    rows = Dataset.from_list([{"messages": MESSAGES}, {"messages": MESSAGES[:3]}])
    batch = task.collator(tokenizer)(task.encode(rows, tokenizer, 60).to_list())
    base = AutoModelForCausalLM.from_pretrained(checkpoint("llama")).eval()
    with torch.no_grad():
        wanted = base(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss
        output = task.forward(base, batch)
        found = task.loss(output, batch, criterion=losses.build("cross_entropy"), items=task.items(batch))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_long_conversations_lose_their_beginning(task: Task, tokenizer: Any) -> None:
    whole = task.encode(Dataset.from_list([{"messages": MESSAGES}]), tokenizer, 128)[0]
    cut = task.encode(Dataset.from_list([{"messages": MESSAGES}]), tokenizer, 20)[0]
    assert len(cut["input_ids"]) == len(cut["labels"]) == 20
    assert whole["input_ids"][-20:] == cut["input_ids"]
    assert whole["labels"][-20:] == cut["labels"]


def test_a_template_that_rewrites_earlier_text_is_refused(task: Task, tokenizer: Any) -> None:
    rewriting = "{{ messages | length }} turns: " + TEMPLATE
    task = task.model_copy(update={"chat_template": rewriting})
    with pytest.raises(DataError, match="row 0: the chat template changes earlier text once turn 2 follows"):
        task.encode(Dataset.from_list([{"messages": MESSAGES}]), tokenizer, 128)


@pytest.mark.parametrize(
    ("template", "refusal"),
    [
        ("{{ raise_exception('no system role') }}", "turn 1: no system role; change them, or give another template"),
        ("{% for", "refuses the turns up to turn 1: unexpected 'end of template'"),
        ("{{ messages[0].name.first }}", "refuses the turns up to turn 1: .* has no attribute 'name'"),
        ("{{ 1 + messages }}", "refuses the turns up to turn 1: unsupported operand"),
    ],
)
def test_what_a_template_refuses_is_told(task: Task, tokenizer: Any, template: str, refusal: str) -> None:
    task = task.model_copy(update={"chat_template": template})
    with pytest.raises(DataError, match=rf"row 0: the chat template .*{refusal}"):
        task.encode(task.rows([MESSAGES[:-1]]), tokenizer, 128)


CALL = {"type": "function", "function": {"name": "weigh", "arguments": {"what": "soup"}}}
CALLING = [
    {"role": "user", "content": "heavy?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "2 kg"},
    {"role": "assistant", "content": "yes"},
]
CALLED = "{% for c in m.tool_calls %}{{ c.function.name }}({{ c.function.arguments.what }}){% endfor %}"
OFFERED = "{% for t in tools %}[{{ t.name }}]{% endfor %}"


@pytest.mark.parametrize(
    ("template", "unwritten"),
    [
        (TEMPLATE, "tools"),
        (OFFERED + TEMPLATE, "tool_calls"),
        (TEMPLATE.replace("{{ m.content }}", "{{ m.content }}" + CALLED), "tools"),
    ],
)
def test_tools_that_a_template_leaves_out_are_told_of(
    task: Task, tokenizer: Any, template: str, unwritten: str
) -> None:
    rows = Dataset.from_list([{"messages": CALLING, "tools": '[{"name": "weigh"}]'}])
    task = task.model_copy(update={"chat_template": template})
    with pytest.raises(DataError, match=f"row 0: the chat template writes nothing of {unwritten}; give one that does"):
        task.encode(rows, tokenizer, 128)


def test_calls_are_learnt_and_what_tools_say_is_not(task: Task, tokenizer: Any) -> None:
    template = OFFERED + TEMPLATE.replace("{{ m.content }}", "{{ m.content }}" + CALLED)
    task = task.model_copy(update={"chat_template": template})
    rows = Dataset.from_list([{"messages": CALLING, "tools": '[{"name": "weigh"}]'}])
    feature = task.encode(rows, tokenizer, 128)[0]
    end = tokenizer.eos_token
    assert tokenizer.decode(learnt(feature)).replace(" ", "") == f"weigh(soup){end}yes{end}"
    assert tokenizer.decode(feature["input_ids"]).replace(" ", "").startswith("[weigh]<user>heavy?")


def test_an_end_is_learnt_where_the_template_has_none(task: Task, tokenizer: Any) -> None:
    task = task.model_copy(update={"chat_template": TEMPLATE.replace("{{ eos_token }}", "")})
    feature = task.encode(Dataset.from_list([{"messages": MESSAGES}]), tokenizer, 128)[0]
    assert learnt(feature)[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    "row",
    [
        {"messages": MESSAGES[1:]},
        {
            "conversations": [
                {"from": {"user": "human", "assistant": "gpt"}[role], "value": text} for role, text in TURNS[1:]
            ]
        },
        {"instruction": "film?", "output": "long", "history": [["soup?", "cold"]]},
        {"messages": [{**message, "tool_calls": None} for message in MESSAGES[1:]], "system": None},
    ],
)
def test_all_forms_give_the_same_messages(row: Any) -> None:
    assert messages_of(row) == MESSAGES[1:]
    assert messages_of({**row, "system": "Be kind."}) == MESSAGES


def test_alpaca_joins_its_input() -> None:
    row = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
    assert messages_of(row)[0]["content"] == "Add.\n\n1 and 2"


def test_tools_are_handed_on() -> None:
    said = [("human", "?"), ("function_call", "{}"), ("observation", "1")]
    turns = [{"from": who, "value": text} for who, text in said]
    assert [message["role"] for message in messages_of({"conversations": turns})] == ["user", "assistant", "tool"]
    assert tools_of({"tools": '[{"name": "f"}]'}) == [{"name": "f"}]
    assert tools_of({"tools": ""}) is None


def turns(*pairs: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in pairs]}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (turns(("user", "a"), ("assistant", "b"), ("system", "c")), "turn 2 is a system prompt, which may only stand"),
        (turns(("user", "a"), ("user", "b"), ("assistant", "c")), "turns 0 and 1 are both of the user; join them"),
        (turns(("user", "a"), ("assistant", "b"), ("assistant", "c")), "turns 1 and 2 are both of the assistant"),
        (turns(("assistant", "b")), "turn 0 is of the assistant, which nobody has asked"),
        (turns(("system", "s"), ("assistant", "b")), "turn 1 is of the assistant, which nobody has asked"),
        (turns(("user", "a"), ("tool", "b"), ("assistant", "c")), "turn 1 is of a tool, which the assistant has not"),
        (turns(("user", "a"), ("assistant", " ")), r"turn 1 \(assistant\) is empty"),
        (turns(("user", ""), ("assistant", "b")), r"turn 0 \(user\) is empty"),
        (turns(("user", "a")), "the last turn is of the user, so that there is no answer to learn"),
        (turns(("user", "a"), ("bard", "b")), "turn 1 has the role 'bard'; known are system, user, assistant, tool"),
        (turns(("user", 5), ("assistant", "b")), r"turn 0 \(user\) holds 5, not a text"),
        ({"messages": "hello"}, "messages is 'hello', not a list of turns"),
        ({"messages": []}, "messages is .*, not a list of turns"),
        ({"messages": ["a"]}, "turn 0 is 'a', not a mapping with 'role' and 'content'"),
        ({"conversations": [{"role": "user"}]}, "turn 0 is .*, not a mapping with 'from' and 'value'"),
        ({**turns(("user", "a"), ("assistant", "b")), "tools": "[x"}, "tools is .*, which is no JSON"),
        ({**turns(("user", "a"), ("assistant", "b")), "tools": '{"a": 1}'}, "tools is .*, not a list"),
    ],
)
def test_conversations_that_cannot_be_learnt(task: Task, row: Any, problem: str) -> None:
    class OneRow:
        """What the data check hands over, without Arrow, which would refuse some of these rows itself."""

        def __iter__(self) -> Any:
            return iter([turns(("user", "a"), ("assistant", "b")), row])

    found = task.row_problems(OneRow())  # type: ignore[arg-type] # only iterated over
    assert list(found) == [1]
    assert re.search(problem, found[1])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (5, "input 0 is 5; give a question, or a list of messages"),
        ("", r"input 0: turn 0 \(user\) is empty"),
        (MESSAGES, "input 0: the last turn is of the assistant, so that there is nothing to answer"),
        ([{"role": "system", "content": "x"}], "input 0: there is nothing but a system prompt"),
        ({"text": "a"}, "input 0: there is none of the columns messages, conversations, instruction"),
    ],
)
def test_inputs_that_cannot_be_answered(task: Task, value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        task.rows([value])


def test_rows_without_conversations_are_told_of() -> None:
    rows = DatasetDict(train=Dataset.from_dict({"question": ["a"], "answer": ["b"]}))
    with pytest.raises(
        DataError, match=r"split 'train' has no conversations \(it has: question, answer\); map a column"
    ):
        tasks.build("instruction_tuning").resolved(rows)
    lacking = DatasetDict(train=Dataset.from_dict({"instruction": ["a"]}))
    with pytest.raises(DataError, match="has no conversations"):
        tasks.build("instruction_tuning").resolved(lacking)


def test_models_that_cannot_converse_are_refused(checkpoint: Callable[[str], Path], tokenizer: Any) -> None:
    with pytest.raises(CapabilityError, match=r"base model \(t5\) is an encoder-decoder; use  task: text_generation"):
        tasks.build("instruction_tuning").suited(AutoConfig.from_pretrained(checkpoint("t5")))
    with pytest.raises(CapabilityError, match="the tokenizer has no chat template; use a model"):
        tasks.build("instruction_tuning").encode(Dataset.from_list([{"messages": MESSAGES}]), tokenizer, 64)


@pytest.mark.training
def test_merged_adapters_answer_alike(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """Merging compares logits on the run's worst examples, whose turns are kept as text."""
    (tmp_path / "train.jsonl").write_text(json.dumps({"messages": MESSAGES}) + "\n")
    values = {
        "model": {"id": str(checkpoint("llama")), "max_length": 64},
        "task": {"name": "instruction_tuning", "chat_template": TEMPLATE, "max_new_tokens": 4},
        "data": {"name": "files", "train": f"{tmp_path}/train.jsonl"},
        "method": "lora",
        "training": {"max_steps": 3, "learning_rate": 0.01},
    }
    run(Recipe.from_values(values, origin="test"), tmp_path / "run", options=RunOptions(show_progress=False))
    merged = load(tmp_path / "run", merge=True)
    assert merged.merge_difference is not None
    assert merged.merge_difference < 1e-4  # float32 sums in another order
    assert merged(["film?"]) == load(tmp_path / "run")(["film?"])
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "adapter").chat_template == TEMPLATE


def test_order_of_a_question_alone() -> None:
    assert problem_of(MESSAGES[:2], to_learn=False) is None
    assert problem_of([], to_learn=False) == "there are no turns"
