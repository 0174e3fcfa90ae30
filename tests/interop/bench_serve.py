#!/usr/bin/env python3
"""`tidepool bench serve` against a real server: the figures add up, and the same seed plans the same load."""
import json
import os
import subprocess
import sys
import tempfile

TIDEPOOL = sys.argv[1]


def bench(*flags, code=0):
    run = subprocess.run([TIDEPOOL, "bench", "serve", "--target", os.environ["TIDEPOOL_GRPC"], "-o", "json", *flags],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120)
    assert run.returncode == code, f"exit code {run.returncode}: {run.stderr.decode()}"
    return json.loads(run.stdout) if code == 0 else run.stderr.decode()


def counts(result):
    return [(model["model"], model["requests"]) for model in result["models"]]


load = ["--models", "all", "--arrivals", "bursty", "--rate", "10", "--burst-rate", "60", "--calm-length", "300ms",
        "--burst-length", "200ms", "--seconds", "2", "--seed", "3", "--zipf", "0.5"]
first, second = bench(*load), bench(*load)
assert counts(first) == counts(second), "one seed, two loads"
assert [model["model"] for model in first["models"]] == ["picture", "words"]
overall = first["overall"]
assert overall["requests"] > 10
assert overall["errors"] == 0 and overall["dropped"] == 0, overall
assert overall["succeeded"] == overall["requests"] == sum(model["requests"] for model in first["models"])
assert sum(s["requests"] for s in first["seconds"]) == overall["requests"]
assert 0 < overall["p50_ms"] <= overall["p99_ms"] <= overall["max_ms"]
assert 0 <= overall["slo_attainment"] <= 1
for model in first["models"]:
    assert model["slo_source"] == "server", "the node measured its models at start"

with tempfile.TemporaryDirectory() as folder:
    trace = os.path.join(folder, "trace.csv")
    with open(trace, "w") as out:
        out.write("seconds,model\n0.0,words\n0.1,picture\n0.1,words\n")
    report = os.path.join(folder, "load.json")
    traced = bench("--arrivals", "trace", "--trace", trace, "--json", report)
    assert counts(traced) == [("picture", 1), ("words", 2)]
    with open(report) as written:
        assert json.load(written) == traced

assert "nothing" in bench("--models", "nothing", code=1)
assert "allowed" in bench("--arrivals", "sine", code=2)
print("ok")
