"""What `helm test` runs in the cluster: the list of models, one completion and one stream of a release.

Reads BASE_URL, MODEL (empty: the first that generates text), TIMEOUT_S and, where there is one, API_KEY. A
model that makes embeddings is asked for one. Knows nothing of Kubernetes.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import httpx


def main() -> int:
    """Ask three questions; returns the exit status."""
    key = os.environ.get("API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout_s = float(os.environ["TIMEOUT_S"])
    with httpx.Client(base_url=os.environ["BASE_URL"], headers=headers, timeout=timeout_s) as client:
        tasks = models(client)
        model = os.environ["MODEL"] or likely_to_talk(tasks)
        if tasks.get(model) == "embed":
            embedding(client, model)
        else:
            completion(client, model)
            stream(client, model)
    return 0


def models(client: httpx.Client) -> dict[str, str]:
    """The task of every model that the server offers: generate, embed or, perhaps, auto before a load."""
    answer = client.get("/v1/models").raise_for_status().json()
    tasks: dict[str, str] = {entry["id"]: entry["task"] for entry in answer["data"]}
    if not tasks:
        raise SystemExit("FAILED: the server lists no model; see models.yaml in the release's ConfigMap")
    say("models", ", ".join(tasks))
    return tasks


def likely_to_talk(tasks: dict[str, str]) -> str:
    """The first model that generates text, else the first that may."""
    return min(tasks, key=lambda name: ("generate", "auto", "embed").index(tasks[name]))


def completion(client: httpx.Client, model: str) -> None:
    """One answer in one piece."""
    answer = asked(client, "/v1/chat/completions", question(model))
    if answer["usage"]["completion_tokens"] < 1:
        raise SystemExit(f"FAILED: {model} answered without a token: {answer}")
    say("completion", f"{answer['usage']['completion_tokens']} tokens from {model}")


def embedding(client: httpx.Client, model: str) -> None:
    """One vector."""
    answer = asked(client, "/v1/embeddings", {"model": model, "input": "Say hello."})
    say("embedding", f"{len(answer['data'][0]['embedding'])} numbers from {model}")


def asked(client: httpx.Client, path: str, body: dict[str, object]) -> Any:
    """The answer; ends the test with what the server says against the request."""
    response = client.post(path, json=body)
    if response.is_error:
        raise SystemExit(f"FAILED: {path} answered {response.status_code}: {response.text}")
    return response.json()


def stream(client: httpx.Client, model: str) -> None:
    """One answer as server-sent events, which must end with [DONE]."""
    body = question(model) | {"stream": True}
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    if events[-1:] != ["[DONE]"]:
        raise SystemExit(f"FAILED: the stream of {model} did not end with [DONE] but with {events[-1:]}")
    pieces = [json.loads(event) for event in events[:-1]]
    if not any(choice["delta"].get("content") for piece in pieces for choice in piece["choices"]):
        raise SystemExit(f"FAILED: the stream of {model} held no text")
    say("stream", f"{len(pieces)} events from {model}")


def question(model: str) -> dict[str, object]:
    """A short question with a short answer."""
    return {"model": model, "max_tokens": 8, "messages": [{"role": "user", "content": "Say hello."}]}


def say(what: str, text: str) -> None:
    """One line of the test's log."""
    sys.stdout.write(f"ok: {what}: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
