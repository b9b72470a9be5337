"""How the events of a step are shown on the standard error (bars, lines, warnings), and the JSON of
what a verb returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .. import console
from ..distributed import current_process_group, is_first_process
from ..pipeline.progress import (
    Event,
    Finished,
    HeldOutEval,
    Notice,
    OnEvent,
    Progress,
    Section,
    StepSkipped,
    TrainingStep,
)
from .verb_result import VerbResult


def to_json(result: VerbResult | Sequence[VerbResult] | None) -> object:
    """The JSON that a verb prints with `--json`: that of its result, below the folder or page that
    was written.
    """
    if result is None:
        return None
    if isinstance(result, Sequence):
        return [to_json(one) for one in result]
    return {**_written_place(result), **result.to_dict()}


def _written_place(result: VerbResult) -> dict[str, str]:
    """What a verb wrote, by the verb's word for it; empty for results that are only shown."""
    from ..evaluation.results import EvaluationReport
    from ..pipeline.results import FolderResult

    match result:
        case FolderResult():
            return {result.PLACE: str(result.folder)}
        case EvaluationReport(page=Path() as page):
            return {"report": str(page)}
    return {}


def print_as_json(result: VerbResult | Sequence[VerbResult]) -> None:
    """Print the JSON of a verb's result to the standard output."""
    console.print_json(to_json(result))


@contextmanager
def events(
    on_result: Callable[[object], None] | None = None, *, headings: bool = True
) -> Iterator[OnEvent]:
    """The `on_event` of a verb: progress as bars, all else as lines.

    `on_result` shows what the steps of a longer procedure return, below a heading for each of its
    sections; without it, or without `headings`, the standard output is left to JSON. Of several
    processes under torchrun the first one shows them.
    """
    with ExitStack() as bars:
        shown: OnEvent | None = None
        if not console.err.is_terminal and is_first_process():
            # from the beginning: also a step that has reported nothing yet writes into a log
            shown = shown_by(bars.enter_context(console.progress_bars()))

        def on_event(event: Event) -> None:
            nonlocal shown
            if isinstance(event, Section | Finished):
                bars.close()  # bars are drawn anew at each refresh: nothing may be printed between
                shown = None
                if on_result is not None and current_process_group().is_main:
                    _show_section(event, on_result, headings)
                return
            if shown is None:
                shown = shown_by(bars.enter_context(console.progress_bars()))
            shown(event)

        yield on_event


def _show_section(
    event: Section | Finished, on_result: Callable[[object], None], headings: bool
) -> None:
    if isinstance(event, Section):
        if headings:
            console.out.rule(event.title, align="left")
    else:
        on_result(event.result)


def shown_by(bar: console.ProgressBars) -> OnEvent:
    """An `on_event` that shows progress on `bar`."""
    return lambda event: _show(event, bar)


def _show(event: Event, bar: console.ProgressBars) -> None:
    match event:
        case Progress(task, done, total, unit, detail):
            bar(task, done, total, detail, unit)
        case Notice(text, warning):
            console.err.print(text, style="yellow" if warning else None, soft_wrap=True)
        case TrainingStep(stage, step, steps):
            bar(stage, step, steps, _rates(event))
        case StepSkipped(stage, step, why):
            console.err.print(
                f"{stage} {step}: {why}; metrics.jsonl names the conversations", style="yellow"
            )
        case HeldOutEval(stage, step, _, accuracy, blind, questions, answers):
            without = "" if blind is None else f", {blind:.0%} without the picture"
            console.err.print(
                f"{stage} {step}: {accuracy:.0%} of {questions} held-out questions right{without}"
            )
            for one in answers:
                console.err.print(
                    f"  {one.question} -> {one.said} (right: {one.right})", soft_wrap=True
                )


def _rates(event: TrainingStep) -> str:
    parts = [] if event.loss is None else [f"loss {event.loss:.3f}"]
    parts += [] if event.learning_rate is None else [f"lr {event.learning_rate:.1e}"]
    parts.append(f"{event.tokens_per_second:,.0f} tokens/s")
    parts += [f"{event.memory / 1e9:.1f} GB"] if event.memory else []
    return "  ".join(parts)
