"""``slipway generate``: ask a run, to see what it learned."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slipway.launch.cli.answer import Answer, Section, argument, command
from slipway.launch.cli.nemo import quiet
from slipway.launch.cli.printing import Style, Terminal, plural

if TYPE_CHECKING:
    from slipway.launch.weights.generate import Generated

SHOWN = 10  # answers to the prompts of a file


@dataclass(frozen=True)
class Continued(Answer):
    """The answers."""

    result: Generated

    @property
    def exact(self) -> int:
        return sum(answer.exact for answer in self.result.answers)

    @property
    def compared(self) -> int:
        return sum(answer.expected is not None for answer in self.result.answers)

    def as_json(self) -> dict[str, Any]:
        answers = [asdict(answer) | {"exact": answer.exact} for answer in self.result.answers]
        share = self.exact / self.compared if self.compared else None
        return {
            "answers": answers,
            "tokens": self.result.tokens,
            "seconds": self.result.seconds,
            "exact_match": share,
        }

    def show(self, terminal: Terminal) -> None:
        for answer in self.result.answers[:SHOWN]:
            terminal.parts([(answer.prompt, Style.DIM), (answer.answer, Style.GOOD)])
        rate = self.result.tokens / max(self.result.seconds, 1e-9)
        terminal.line(f"{plural(self.result.tokens, 'token')} in {self.result.seconds:.1f} s ({rate:,.0f} tokens/s)")
        if self.compared:
            terminal.line(f"{self.exact} of {plural(self.compared, 'answer')} as in the file", Style.BOLD)


@command(Section.RESULTS)
@argument("source", "A run, imported weights, or a Hugging Face folder.", metavar="RUN", type=Path)
@argument("prompts", "What to ask.", metavar="PROMPT", nargs=-1)
@click.option(
    "--examples", type=Path, metavar="FILE", help="Also ask the prompts of instructions, and compare the answers."
)
@click.option("--max-tokens", type=click.IntRange(min=1), default=64, show_default=True, help="Of an answer.")
@click.option("--raw", is_flag=True, help="Continue the prompts as they stand, without the chat template.")
def generate(source: Path, prompts: tuple[str, ...], examples: Path | None, max_tokens: int, raw: bool) -> Answer:
    """Ask a run's newest checkpoint, to see what it learned.

    Its weights are exported, with the adapter in them, and transformers generates, greedily. Of a large model, export
    the weights once and give their folder.
    """
    from slipway.configs import Refusal

    if not prompts and examples is None:
        raise Refusal("there is no prompt", 'Give one: slipway generate RUN "PROMPT", or --examples FILE.')
    with quiet():
        from slipway.launch.weights.generate import generate as answer

        return Continued(answer(source, list(prompts), examples, max_tokens, raw))
