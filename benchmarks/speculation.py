"""What prompt lookup is worth at one stream: rewriting and extraction, with it and without, on the same text.

Starts two servers at once that differ in `speculation` only, and sends each task to both in turn, greedily.
Goal: at least 1.5 times the output tokens per second. Says how many answers differed: none in float32; in
other formats the last bits depend on how many tokens a step computes, which may turn a near tie.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml

from inference_server.bench.server_process import free_port
from inference_server.bench.target import HelixFlowLaunch, first_model, own_server

REPOSITORY = Path(__file__).parent.parent
TEXT = REPOSITORY / "benchmarks" / "quality.txt"
GOAL = 1.5
TASKS = {
    "repeat": "Repeat the following text word for word, and add nothing.\n\n{text}",
    "rewrite": "Rewrite the following text with its spelling corrected. Change nothing else.\n\n{text}",
    "extract": "Copy from the following text every sentence that holds a number.\n\n{text}",
}
MODES = ("none", "prompt-lookup")


@dataclass(slots=True)
class Sums:
    """Tokens and seconds of one task in one mode."""

    num_tokens: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Output tokens per second."""
        return self.num_tokens / max(self.seconds, 1e-9)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer and how long it took, prompt included."""

    text: str
    num_tokens: int
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=REPOSITORY / "models.yaml")
    parser.add_argument("--model", help="default: the configuration's first that is loaded")
    parser.add_argument("--max-tokens", type=int, default=150)
    parser.add_argument("--passages", type=int, default=6, help="paragraphs of the text; default: 6")
    arguments = parser.parse_args(argv)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="helixflow-bench-")))
        urls = {
            mode: stack.enter_context(own_server(launch(arguments.config, mode, folder))).base_url
            for mode in MODES
        }
        model = arguments.model or first_model(urls["none"], None)
        http = stack.enter_context(httpx.Client(timeout=600.0))
        sums, num_different = compare(http, urls, model, arguments)
    print(table(sums))
    print(f"Answers that differed: {num_different}.")
    return 0


def launch(config: Path, mode: str, folder: Path) -> HelixFlowLaunch:
    """A server of the configuration in which every model has this `speculation`."""
    document = yaml.safe_load(config.read_text("utf-8"))
    for entry in document["models"].values():
        entry["speculation"] = mode
    file = folder / f"{mode}.yaml"
    file.write_text(yaml.safe_dump(document), "utf-8")
    return HelixFlowLaunch(free_port(), ("--config", str(file)))


def compare(
    http: httpx.Client, urls: dict[str, str], model: str, arguments: argparse.Namespace
) -> tuple[dict[str, dict[str, Sums]], int]:
    """Sums by task and mode, and how many pairs of answers were not the same."""
    sums = {task: {mode: Sums() for mode in MODES} for task in TASKS}
    num_different = 0
    for url in urls.values():
        ask(http, url, model, "Say hello.", 4)  # unmeasured
    for task, prompt in prompts(arguments.passages):
        answers = {mode: ask(http, url, model, prompt, arguments.max_tokens) for mode, url in urls.items()}
        num_different += len({answer.text for answer in answers.values()}) - 1
        for mode, answer in answers.items():
            sums[task][mode].num_tokens += answer.num_tokens
            sums[task][mode].seconds += answer.seconds
    return sums, num_different


def prompts(num_passages: int) -> Iterator[tuple[str, str]]:
    """(task, prompt) for each of the first paragraphs."""
    passages = [part.strip() for part in TEXT.read_text("utf-8").split("\n\n") if part.strip()]
    for passage in passages[:num_passages]:
        for task, wording in TASKS.items():
            yield task, wording.format(text=passage)


def ask(http: httpx.Client, base_url: str, model: str, prompt: str, max_tokens: int) -> Answer:
    """One greedy answer."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    start_s = time.perf_counter()
    response = http.post(f"{base_url}/v1/chat/completions", json=body)
    seconds = time.perf_counter() - start_s
    found = response.raise_for_status().json()
    text = found["choices"][0]["message"]["content"]
    return Answer(text, found["usage"]["completion_tokens"], seconds)


def table(sums: dict[str, dict[str, Sums]]) -> str:
    """A row for each task, and one for all."""
    lines = [
        "| task | output tokens | without, tok/s | with, tok/s | ratio |",
        "|---|---|---|---|---|",
    ]
    total = {mode: Sums() for mode in MODES}
    for task, modes in sums.items():
        lines.append(_row(task, modes))
        for mode, found in modes.items():
            total[mode].num_tokens += found.num_tokens
            total[mode].seconds += found.seconds
    ratio = total["prompt-lookup"].rate / max(total["none"].rate, 1e-9)
    verdict = "met" if ratio >= GOAL else "missed"
    lines.append(_row("all", total))
    return "\n".join([*lines, "", f"Ratio over all tasks {ratio:.2f} (goal {GOAL:g}: {verdict})."])


def _row(task: str, modes: dict[str, Sums]) -> str:
    without, with_ = modes["none"], modes["prompt-lookup"]
    ratio = with_.rate / max(without.rate, 1e-9)
    return f"| {task} | {with_.num_tokens} | {without.rate:.1f} | {with_.rate:.1f} | {ratio:.2f} |"


if __name__ == "__main__":
    sys.exit(main())
