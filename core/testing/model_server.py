"""A server that speaks chat completions and fails like a real one, for tests of what asks language models.

It is a real HTTP server on a free port of loopback. Its model is a function of the messages; the one given here says
of a text which "A works at B", "A lives in B", "A founded B" stand in it, in the format that was asked for, and
answers a question with the first passage of the context.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Messages = list[dict[str, str]]
_CLAIM = re.compile(r"([A-Z]\w*(?: [A-Z]\w*)*) (works at|lives in|founded) ([A-Z]\w*(?: [A-Z]\w*)*)")
_KINDS = {"works at": "Organization", "lives in": "Location", "founded": "Organization"}


def claims(messages: Messages) -> str:
    """Answer as the default model does."""
    system, user = messages[0]["content"], messages[-1]["content"]
    if "---Input Text---" not in user:
        if "---Task---" in user:
            return '{"entities": [], "relationships": []}' if "JSON" in system else "<|COMPLETE|>"
        found = re.search(r"^\[1\] (.*)$", system, re.MULTILINE)
        return f"{found[1]} [1]" if found else "I do not know."
    text = user.split("```")[1]
    entities: dict[str, str] = {}
    relations = []
    for one, verb, other in _CLAIM.findall(text):
        entities[one], entities[other] = "Person", _KINDS[verb]
        relations.append((one, other, verb, f"{one} {verb} {other}."))
    told = {name: f"{name} as the text tells." for name in entities}
    if "JSON" in system:
        value = {
            "entities": [{"name": n, "type": t, "description": told[n]} for n, t in entities.items()],
            "relationships": [
                {"source": a, "target": b, "keywords": k, "description": d} for a, b, k, d in relations
            ],
        }  # fmt: skip
        return json.dumps(value)
    lines = [f"entity<|#|>{name}<|#|>{kind}<|#|>{told[name]}" for name, kind in entities.items()]
    lines += ["relation<|#|>" + "<|#|>".join(relation) for relation in relations]
    return "\n".join([*lines, "<|COMPLETE|>"])


class ModelServer:
    """The server; a context manager.

    ``faults``: what happens to the next requests, in order, one each:

    ``{"status": 500}``, with ``retry_after`` if wanted; ``{"delay_s": 2}`` before the answer; ``{"text": "…"}`` instead
    of the model's; ``{"cut": 40}``: so many bytes of the body, then the connection ends; ``{"pieces": 2}``: so many
    pieces of a stream, then it ends. ``{}``: nothing. ``always``: a fault of every request for which it returns one.
    """

    def __init__(self, model: Callable[[Messages], str] = claims) -> None:
        self.model = model
        self.faults: deque[Mapping[str, Any]] = deque()
        self.always: Callable[[Mapping[str, Any]], Mapping[str, Any] | None] = lambda body: None
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    @property
    def texts(self) -> list[str]:
        """The passages that were asked about, in order."""
        asked = [body["messages"][1]["content"] for body in self.requests]
        return [one.split("```")[1].strip() for one in asked if "---Input Text---" in one]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> ModelServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with outer._lock:
                    outer.requests.append(body)
                    outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                    fault = outer.faults.popleft() if outer.faults else outer.always(body) or {}
                    outer._now += 1
                    outer.most_at_once = max(outer.most_at_once, outer._now)
                try:
                    time.sleep(fault.get("delay_s", 0))
                    if self.path != "/v1/chat/completions":
                        self._send(404, b'{"error": "no such path"}')
                    elif "status" in fault:
                        more = {"Retry-After": str(fault["retry_after"])} if "retry_after" in fault else {}
                        said = {"error": {"message": fault.get("message", "it fails")}}
                        self._send(fault["status"], json.dumps(said).encode(), more)
                    else:
                        self._answer(body, fault)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True
                finally:
                    with outer._lock:
                        outer._now -= 1

            def _answer(self, body: Mapping[str, Any], fault: Mapping[str, Any]) -> None:
                text = fault["text"] if "text" in fault else outer.model(body["messages"])
                usage = {"prompt_tokens": len(json.dumps(body["messages"])) // 4, "completion_tokens": len(text) // 4}
                if body.get("stream"):
                    self._stream(text, usage, fault)
                    return
                reason = fault.get("finish_reason", "stop")
                message = {"role": "assistant", "content": text}
                whole = {"choices": [{"index": 0, "message": message, "finish_reason": reason}], "usage": usage}
                self._send(200, json.dumps(whole).encode(), cut=fault.get("cut"))

            def _stream(self, text: str, usage: Mapping[str, int], fault: Mapping[str, Any]) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Connection", "close")
                self.end_headers()
                self.close_connection = True
                pieces = re.findall(r"\S+\s*", text)
                for number, piece in enumerate(pieces):
                    if number == fault.get("pieces"):
                        return
                    self._event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
                    time.sleep(fault.get("piece_s", 0))
                self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
                self._event({"choices": [], "usage": usage})
                self.wfile.write(b"data: [DONE]\n\n")

            def _event(self, value: Mapping[str, Any]) -> None:
                self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
                self.wfile.flush()

            def _send(
                self, status: int, content: bytes, more: Mapping[str, str] | None = None, *, cut: int | None = None
            ) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                for name, value in (more or {}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content if cut is None else content[:cut])
                self.close_connection = self.close_connection or cut is not None

        return Handler
