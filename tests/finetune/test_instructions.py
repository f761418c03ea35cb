"""Instructions as tokens: every format, what is learned of it, what is refused, and how examples share a sequence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slipway.configs import Data, Refusal, load
from slipway.configs.schema import Template, TooLong
from slipway.recipes.finetune.examples import Unusable, files_of, read_example
from slipway.recipes.finetune.packing import pack
from slipway.recipes.finetune.template import Tokenization
from slipway.recipes.finetune.tokenized import packed, tokenized

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>{% generation %}{{ m.content }}<eos>"
    "{% endgeneration %}{% else %}<|{{ m.role }}|>{{ m.content }}{% endif %}{% endfor %}"
)
FORGETFUL = CHATML.replace("{{ m.content }}", "{{ m.content if m.role != 'assistant' else '...' }}")
DATA = Data(name="instructions")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tests.weights.tiny import tokenizer

    return tokenizer()


def _made(
    tokenizer: Any, line: dict[str, Any], chat_template: str = CHATML, template: Template = Template.auto
) -> tuple[str, str]:
    """The text of a line, and what of it is learned."""
    tokenizer.chat_template = chat_template or None
    tokens = Tokenization(tokenizer, Data(name="instructions", template=template))(read_example(json.dumps(line)))
    return tokenizer.decode(tokens.ids), tokenizer.decode(tokens.ids[tokens.answer])


USER, ASSISTANT = {"role": "user", "content": "a ship"}, {"role": "assistant", "content": "is built"}


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_of_a_conversation_every_answer_is_learned_and_nothing_else(tokenizer: Any, template: str) -> None:
    more = [USER, ASSISTANT, {"role": "user", "content": "and"}, {"role": "assistant", "content": "launched"}]
    _, learned = _made(tokenizer, {"messages": [{"role": "system", "content": "be brief"}, *more]}, template)
    assert learned == "is built<eos>launched<eos>"


@pytest.mark.parametrize(
    "line",
    [
        {"messages": [USER, ASSISTANT]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a ship"}]}, ASSISTANT]},
        {"conversations": [{"from": "human", "value": "a ship"}, {"from": "gpt", "value": "is built"}]},
        {"system": "", "conversations": [{"from": "User", "value": "a ship"}, {"from": "bot", "value": "is built"}]},
        {"instruction": "a ship", "output": "is built"},
        {"prompt": [USER], "completion": [ASSISTANT]},
    ],
)  # fmt: skip
def test_every_format_is_the_same_conversation(tokenizer: Any, line: dict[str, Any]) -> None:
    assert _made(tokenizer, line) == ("<|user|>a ship<eos>\n<|assistant|>is built<eos>\n", "is built<eos>")


def test_a_prompt_and_its_completion_stand_as_they_are(tokenizer: Any) -> None:
    line = {"prompt": "a ship", "completion": " is built"}
    assert _made(tokenizer, line) == ("a ship is built<eos>", " is built<eos>")
    assert _made(tokenizer, {"input": "a ship", "output": "is built"}) == ("a ship is built<eos>", " is built<eos>")


def test_a_completion_is_an_answer_of_a_conversation_where_the_data_say_so(tokenizer: Any) -> None:
    line = {"prompt": "a ship", "completion": " is built"}
    assert _made(tokenizer, line, template=Template.chat)[1] == " is built<eos>"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("[1]", "is not a JSON object"),
        ('{"messages": []}', "has no list of messages"),
        ('{"text": "a"}', "has the keys text"),
        ('{"prompt": "a", "completion": " "}', "has an empty answer"),
        ('{"prompt": " ", "completion": "b"}', "has an empty prompt"),
        ('{"messages": [{"role": "robot", "content": "a"}]}', "has the unknown role 'robot'"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "has no answer"),
        (
            '{"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]}',
            "does not end with",
        ),
        ('{"prompt": 1, "completion": "b"}', "has no text under 'prompt'"),
        ("{", "is not JSON"),
    ],
)
def test_a_line_that_is_no_example_says_why(line: str, why: str) -> None:
    with pytest.raises(Unusable, match=why.replace("[", r"\[")):
        read_example(line)


def test_a_template_that_loses_answers_is_refused(tokenizer: Any) -> None:
    with pytest.raises(Unusable, match="loses an answer in the chat template"):
        _made(tokenizer, {"messages": [USER, ASSISTANT]}, FORGETFUL)
    with pytest.raises(Unusable, match="the tokenizer has no chat template"):
        _made(tokenizer, {"messages": [USER, ASSISTANT, USER, ASSISTANT]}, "")
    with pytest.raises(Refusal, match=r"data\.template=chat, and the tokenizer .* has no chat template"):
        _made(tokenizer, {"messages": [USER, ASSISTANT]}, "", template=Template.chat)


def test_too_long_examples_are_refused_or_left_out(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    lines = [{"prompt": "a", "completion": "b"}, {"prompt": "a " * 50, "completion": "b"}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tokenizer.chat_template = None
    tokenize = Tokenization(tokenizer, DATA)
    with pytest.raises(Refusal, match=r"line 2 of .*a\.jsonl is longer than a sequence") as refused:
        tokenized([file], tokenize, DATA, 16, 0, (0.0, 1.0))
    assert "data.too_long=drop" in refused.value.fix
    kept = tokenized([file], tokenize, Data(name="x", too_long=TooLong.drop), 16, 0, (0.0, 1.0))
    assert kept.num_examples == 1


def test_packs_hold_every_example_once_and_none_is_too_full() -> None:
    dice = np.random.default_rng(3)
    for _ in range(50):
        size = int(dice.integers(8, 200))
        lengths = dice.integers(1, size + 1, int(dice.integers(1, 400)))
        packs = pack(lengths, size, seed=1)
        assert sorted(np.concatenate(packs)) == list(range(len(lengths)))
        assert all(lengths[members].sum() <= size for members in packs)
        assert len(packs) <= 1.25 * lengths.sum() / size + 2, "a good packing wastes little"


def test_a_sequence_restarts_its_positions_and_has_no_loss_between_examples() -> None:
    """The loss of an example's first token, and of the padding, is never counted."""
    from slipway.recipes.finetune.data import Sequences
    from slipway.recipes.finetune.template import Tokens

    examples = [
        Tokens(np.arange(1, 5, dtype=np.int32), np.array([False, False, True, True])),
        Tokens(np.arange(11, 14, dtype=np.int32), np.array([False, True, True])),
    ]
    made = packed(examples, together=True, seq_length=8, seed=0)
    (item,) = [Sequences(made, 8, 1, None, together=True, padding=9)[i] for i in range(1)]
    by_start = {4: [1, 2, 3, 11, 12], 3: [11, 12, 1, 2, 3]}[int(item["cu_seqlens"][1]) + 1]
    assert item["tokens"].tolist() == [*by_start, 9, 9, 9]
    assert item["labels"][item["loss_mask"] > 0].tolist() == ([3, 4, 12, 13] if by_start[0] == 1 else [12, 13, 3, 4])
    assert item["cu_seqlens"].tolist()[-2:] == [5, 8]
    assert item["position_ids"].tolist()[5:] == [0, 1, 2]


def test_files_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="holds 0 .jsonl files"):
        files_of(str(tmp_path))
    for name in ("training", "validation", "other"):
        (tmp_path / f"{name}.jsonl").write_text("{}\n")
    assert files_of(str(tmp_path)) == (tmp_path / "training.jsonl", tmp_path / "validation.jsonl")
    assert files_of(str(tmp_path / "other.jsonl")) == (tmp_path / "other.jsonl", None)


def test_short_forms_of_the_overrides(tmp_path: Path) -> None:
    spec = load("llama31_8b", ["peft=dora", "base=/b", f"data={tmp_path}"]).spec
    assert (spec.task.name, spec.run.base, spec.data.paths) == ("dora", "/b", [str(tmp_path)])
    assert (spec.data.kind, spec.optim.name, spec.layout.mbs, spec.seq_length) == ("instructions", "lora", 1, 4096)
    assert load("llama31_8b", ["peft=none", "optim.lr=1e-5"]).spec.optim.lr == 1e-5
    assert load("llama31_8b", [f"data={tmp_path}"]).spec.data.kind == "indexed"
    with pytest.raises(Refusal, match="unknown peft 'qlora'"):
        load("llama31_8b", ["peft=qlora"])
    with pytest.raises(Refusal, match="data=instructions is for finetuning"):
        load("llama31_8b", ["data=instructions", f"data.paths=[{tmp_path}]"])
