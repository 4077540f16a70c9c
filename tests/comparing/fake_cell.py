"""Stands in for `limbeck distill` in tests of what runs it: reads the same command line, leaves the same files, learns nothing.

The method's name says what becomes of it: crash, refuse and silent fail, slow waits until it is asked to stop, and
anything else has a score at once.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

words = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
options = yaml.safe_load(Path(words["--config"]).read_text())
out = Path(words["--out"])
method, seed = options["method"].lower(), options["seed"]
checkpoint = out / "checkpoints" / "last.ckpt"
print(
    f"Options {words.get('--resume', 'anew')}, GPU {os.environ.get('CUDA_VISIBLE_DEVICES')}, process {os.getpid()}",
    flush=True,
)
(out / "recipe.yaml").write_text(yaml.safe_dump(options))

if "crash" in method:
    raise RuntimeError("the network fell over")
if "refuse" in method:
    print("limbeck distill: The teacher is near chance. Add --trust_teacher.", file=sys.stderr)
    sys.exit(1)
if "silent" in method:
    sys.exit(3)
if "killed" in method:
    os.kill(os.getpid(), signal.SIGKILL)
if "slow" in method and "--resume" not in words:
    child = subprocess.Popen(["sleep", "600"])
    print(f"child {child.pid}", flush=True)

    def stop(number: int, frame: object) -> None:
        checkpoint.parent.mkdir(exist_ok=True)
        checkpoint.write_text("everything")
        print("limbeck distill: Stopped on request; go on with --resume.", file=sys.stderr)
        sys.exit(130)

    signal.signal(signal.SIGTERM, stop)
    (out / "ready").touch()
    time.sleep(600)

weights = {"kd": 0.9} if "kd" in method else {}
score = {"none": 0.6, "kd": 0.7}.get(method.partition("(")[0], 0.5) + 0.01 * seed
if method.startswith("kd"):
    # The best temperature of this world is 8, and 4 is the default.
    temperature = float(method.partition("temperature=")[2].split(",")[0].rstrip(")") or 4)
    score -= 0.05 * abs(temperature - 8) / 8
rows = [{"kind": "train", "epoch": 0, "step": step, "images_per_second": 1000.0} for step in range(5)]
rows.append({"kind": "val", "epoch": options.get("epochs", 1) - 1, "step": 5, "accuracy": score, "seconds": 1.0})
(out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
provenance = {"data": {"train_images": 200}, "loss_weights": weights, "loss_warmup_epochs": dict.fromkeys(weights, 4.0)}
(out / "provenance.yaml").write_text(yaml.safe_dump(provenance))
summary = {
    "verb": "distill",
    "method": method,
    "accuracy": {"last": score, "best": score, "best_epoch": 0},
    "teacher_accuracy": 0.9,
    "agreement": 0.8,
    "class_names": None,
    "seconds": 0.5,
    "training_seconds": 0.25,
    "peak_memory": 1_000_000,
}
(out / "summary.json").write_text(json.dumps(summary))
