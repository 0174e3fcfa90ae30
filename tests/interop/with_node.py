#!/usr/bin/env python3
"""Runs a command beside a real `tidepool serve` on free ports.

usage: with_node.py TIDEPOOL COMMAND...

The command finds the server in TIDEPOOL_HTTP (a URL), TIDEPOOL_GRPC (host:port) and TIDEPOOL_METRICS (a URL). It serves two models:
`picture` (FP32 image) and `words` (INT64 input_ids). The exit code is the command's, or 1 if the server did not start or end as it should.
"""
import json
import os
import select
import signal
import subprocess
import sys
import tempfile

START_LIMIT = 120  # seconds, on a machine that does other things as well
STOP_LIMIT = 60
MODELS = {
    "picture": "resnet18:classes=4,image=32,width=16,small_stem=true",
    "words": "gpt2:layers=2,width=64,heads=2,vocab=256,context=16,sequence=16",
}


def start(tidepool, repository):
    server = subprocess.Popen(
        [tidepool, "serve", "-o", "json", "--model-repository", repository, "--capacity", "256MiB",
         "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"],
        stdout=subprocess.PIPE)
    readable, _, _ = select.select([server.stdout], [], [], START_LIMIT)
    line = server.stdout.readline() if readable else b""
    if not line:
        server.kill()
        sys.exit(f"the server said nothing within {START_LIMIT} s")
    return server, json.loads(line)


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    tidepool, command = sys.argv[1], sys.argv[2:]
    with tempfile.TemporaryDirectory() as repository:
        for name, spec in MODELS.items():
            subprocess.run([tidepool, "model", "create", name, spec, "--model-repository", repository], check=True,
                           stdout=subprocess.DEVNULL)
        server, ready = start(tidepool, repository)
        try:
            environment = dict(os.environ, TIDEPOOL_HTTP=ready["http"], TIDEPOOL_GRPC=ready["grpc"],
                               TIDEPOOL_METRICS=ready["metrics"])
            code = subprocess.run(command, env=environment).returncode
        finally:
            alive = server.poll() is None
            server.send_signal(signal.SIGTERM)
            try:
                end = server.wait(STOP_LIMIT)
            except subprocess.TimeoutExpired:
                server.kill()
                sys.exit(f"the server did not end within {STOP_LIMIT} s of SIGTERM")
        if not alive or end != 0:
            sys.exit(f"the server ended {'by itself ' if not alive else ''}with code {end}")
        sys.exit(code)


if __name__ == "__main__":
    main()
