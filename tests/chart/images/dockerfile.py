"""A Dockerfile as a list of stages with their instructions; knows the part of the syntax that ours use."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")


@dataclass(frozen=True)
class Instruction:
    """One instruction: RUN, COPY … and what follows it, with continued lines joined."""

    verb: str
    text: str

    @property
    def options(self) -> dict[str, str]:
        """Leading `--name=value` words."""
        words = self.text.split()
        leading = words[: next((i for i, word in enumerate(words) if not word.startswith("--")), len(words))]
        return dict(word[2:].split("=", 1) for word in leading if self.verb in ("RUN", "COPY"))

    @property
    def rest(self) -> str:
        """The text without leading options."""
        return re.sub(r"^(--\S+\s+)*", "", self.text)

    @property
    def assignments(self) -> dict[str, str]:
        """`name=value` pairs of ENV, LABEL and ARG; an ARG without value is left out."""
        return dict(word.split("=", 1) for word in shlex.split(self.text) if "=" in word)

    @property
    def words(self) -> list[str]:
        """The list of an instruction in JSON form."""
        words: list[str] = json.loads(self.rest)
        return words


@dataclass
class Stage:
    """What comes after one FROM."""

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, verb: str) -> list[Instruction]:
        """Every instruction with a verb."""
        return [one for one in self.instructions if one.verb == verb]

    def one(self, verb: str) -> Instruction:
        """The only instruction with a verb."""
        (found,) = self.all(verb)
        return found

    @property
    def environment(self) -> dict[str, str]:
        """All that ENV sets, as it is written."""
        return {name: value for one in self.all("ENV") for name, value in one.assignments.items()}


@dataclass(frozen=True)
class Dockerfile:
    """Arguments before the first FROM, and the stages by name."""

    arguments: dict[str, str]
    stages: dict[str, Stage]


def read(path: Path) -> Dockerfile:
    """A parsed file."""
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    for instruction in instructions(path.read_text(encoding="utf-8")):
        if instruction.verb == "FROM":
            base, _, name = instruction.text.partition(" AS ")
            stages[name] = Stage(name, base)
        elif stages:
            stages[list(stages)[-1]].instructions.append(instruction)
        else:
            arguments |= instruction.assignments
    return Dockerfile(arguments, stages)


def instructions(source: str) -> Iterator[Instruction]:
    """The instructions of a Dockerfile, without comments."""
    lines = [line for line in source.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            verb, _, text = line.partition(" ")
            yield Instruction(verb, re.sub(r" {2,}", " ", text.strip()))


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """`$NAME` and `${NAME}` replaced, as ENV and COPY do it."""
    return _VARIABLE.sub(lambda found: variables.get(found[1] or found[2], ""), text)
