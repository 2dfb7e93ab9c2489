"""A small server of a real model, over HTTP: what vLLM's completions API does, as far as an online run asks for it.

Every answer is drawn by the model. `spoil` may bend a reply on its way out.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from luthier.adapters.stored import load_adapter
from luthier.bases.tokenizer import Tokenizer
from luthier.models.load import load_model
from luthier.models.sampler import LocalSampler


class ModelServer(ThreadingHTTPServer):
    """Serves `base`, and adapters that it is told to load. key: what it wants as bearer token. form: how it tells
    tokens. seen: (path, headers, body) of every request.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, base: Path, *, name: str = "served", key: str = "", form: str = "ids") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.base, self.name, self.key, self.form = base, name, key, form
        self.tokenizer, self.lock = Tokenizer.load(base), threading.Lock()
        self.models = {name: load_model(base)}
        self.seen: list[tuple[str, dict[str, str], Any]] = []
        self.spoil: Callable[[int, dict], Any] = lambda number, reply: reply
        self.num_completions = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def complete(self, body: dict) -> dict:
        with self.lock:
            sampler = LocalSampler(
                self.models[body["model"]], encode=list, decode=str, stop_ids=body["stop_token_ids"], name="served"
            )
            (one,) = sampler.sample_ids(
                [body["prompt"]], max_new_tokens=body["max_tokens"], temperature=body["temperature"], seed=body["seed"]
            )
        shown = one.ids[:-1] if one.finish == "stop" else one.ids
        choice = {"index": 0, "text": self.tokenizer.decode(shown), "finish_reason": one.finish}
        names = [f"token_id:{token}" if self.form == "names" else "?" for token in one.ids]
        if self.form == "content":  # as llama.cpp
            choice["logprobs"] = {
                "content": [{"id": i, "token": "?", "logprob": p} for i, p in zip(one.ids, one.logps, strict=True)]
            }
        elif self.form != "text":
            choice["logprobs"] = {"tokens": names, "token_logprobs": list(one.logps)}
        if self.form == "ids":
            choice["token_ids"] = list(one.ids)
        return {"object": "text_completion", "model": body["model"], "choices": [choice]}


class _Handler(BaseHTTPRequestHandler):
    server: ModelServer

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body: Any) -> None:
        server, path = self.server, self.path.removeprefix("/v1")
        server.seen.append((path, dict(self.headers), body))
        if server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
            given = self.headers.get("Authorization", "")
            return self._send(401, json.dumps({"error": f"Incorrect API key provided: {given}"}))
        if path == "/models":
            return self._send(200, json.dumps({"data": [{"id": name} for name in server.models]}))
        if path == "/load_lora_adapter":
            return self._load(body)
        if path == "/unload_lora_adapter":
            known = server.models.pop(body["lora_name"], None)
            return self._send(200 if known else 404, "Success" if known else "no such adapter")
        if path != "/completions" or body["model"] not in server.models:
            return self._send(404, json.dumps({"error": "not found"}))
        with server.lock:
            server.num_completions += 1
            number = server.num_completions
        reply = server.spoil(number, server.complete(body))
        if isinstance(reply, tuple):
            return self._send(*reply)
        if reply is None:
            return None  # the connection is closed without a word
        return self._send(200, json.dumps(reply))

    def _load(self, body: dict) -> None:
        if body["lora_name"] in self.server.models:
            return self._send(400, "already loaded")
        model = load_model(self.server.base)
        load_adapter(model, Path(body["lora_path"]))
        self.server.models[body["lora_name"]] = model
        return self._send(200, "Success: LoRA adapter added")

    def _send(self, status: int, text: str) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())
        except OSError:
            pass  # nobody waits any more


@contextmanager
def serving(base: Path, **settings: Any) -> Iterator[ModelServer]:
    """Inside, a server of `base` is up."""
    server = ModelServer(base, **settings)
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def slow(seconds: float) -> Callable[[int, dict], dict]:
    """Every third answer takes its time."""

    def spoil(number: int, reply: dict) -> dict:
        if number % 3 == 0:
            time.sleep(seconds)
        return reply

    return spoil
