"""What `helm test` runs in the cluster: the list of models, one completion and one stream of a release.

Reads BASE_URL, MODEL (empty: the first listed), TIMEOUT_S and, where there is one, API_KEY. Knows nothing of
Kubernetes.
"""

from __future__ import annotations

import json
import os
import sys

import httpx


def main() -> int:
    """Ask three questions; returns the exit status."""
    key = os.environ.get("API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout_s = float(os.environ["TIMEOUT_S"])
    with httpx.Client(base_url=os.environ["BASE_URL"], headers=headers, timeout=timeout_s) as client:
        names = models(client)
        model = os.environ["MODEL"] or names[0]
        completion(client, model)
        stream(client, model)
    return 0


def models(client: httpx.Client) -> list[str]:
    """The names of all models that the server offers."""
    answer = client.get("/v1/models").raise_for_status().json()
    names: list[str] = [entry["id"] for entry in answer["data"]]
    if not names:
        raise SystemExit("FAILED: the server lists no model; see models.yaml in the release's ConfigMap")
    say("models", ", ".join(names))
    return names


def completion(client: httpx.Client, model: str) -> None:
    """One answer in one piece."""
    answer = client.post("/v1/chat/completions", json=question(model)).raise_for_status().json()
    if answer["usage"]["completion_tokens"] < 1:
        raise SystemExit(f"FAILED: {model} answered without a token: {answer}")
    say("completion", f"{answer['usage']['completion_tokens']} tokens from {model}")


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
