"""A sweep on this machine: a server that an agent of W&B asks for runs, and the arguments that it makes of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from tests.support.processes import PATIENCE, with_checkout

_VIEWER = {"id": "id", "username": "me", "entity": "me", "email": "", "flags": "{}", "teams": {"edges": []}}


def sent_arguments(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an agent makes of the parameters of a run, by the name of the macro in the command of the sweep."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    return create_sweep_command_args({"args": {name: {"value": value} for name, value in parameters.items()}})


class SweepServer:
    """Server of one sweep with runs of given parameters, one after the other."""

    def __init__(self, sweep: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> None:
        self.sweep = sweep
        self.waiting = [
            {
                "type": "run",
                "run_id": f"run{number}",
                "program": sweep["program"],
                "args": {name: {"value": value} for name, value in parameters.items()},
            }
            for number, parameters in enumerate(runs)
        ]

    def __enter__(self) -> SweepServer:
        answer = self.answer

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                content = json.dumps({"data": answer(asked["query"], asked.get("variables") or {})}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Return the data that a request of an agent asks for."""
        if "SweepWithRuns" in query:
            found = {"id": "id", "name": "sweep", "config": yaml.safe_dump(dict(self.sweep)), "runs": {"edges": []}}
            return {"project": {"sweep": found}}
        if "createAgent" in query:
            return {"createAgent": {"agent": {"id": "agent"}}}
        if "agentHeartbeat" in query:
            busy = any(json.loads(variables["runState"]).values())
            commands = [] if busy else [self.waiting.pop(0) if self.waiting else {"type": "exit"}]
            return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}
        return {"viewer": _VIEWER}

    def run_agent(self, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run ``wandb agent`` in a folder until the server has no more runs."""
        environment = with_checkout(
            {
                "WANDB_BASE_URL": f"http://127.0.0.1:{self.server.server_port}",
                "WANDB_API_KEY": "k" * 40,
                "WANDB_ERROR_REPORTING": "false",
                "WANDB_MODE": "online",
            }
        )
        program = shutil.which("wandb", path=str(Path(sys.executable).parent)) or "wandb"
        return subprocess.run(
            [program, "agent", "me/project/sweep"],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
