"""What made a result: library versions, commit, device, licences and hashes of the models."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import limbeck
from limbeck.models.base import VisionModel
from limbeck.models.detection.base import Detector
from limbeck.models.several import SeveralModels

LIBRARIES = ("torchvision", "timm", "lightning", "torchmetrics", "onnx", "onnxruntime", "transformers", "numpy")


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, commit and device, for the recipe's record."""
    return {
        "limbeck": limbeck.__version__,
        "git_commit": git_commit(Path(limbeck.__file__).parent),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{device.type}, {torch.get_num_threads()} threads",
        "torch": str(torch.__version__),
        **{name: version for name in LIBRARIES if (version := _version(name))},
    }


def git_commit(folder: Path) -> str | None:
    """The commit that a folder's files are from, with "+changes" where they differ from it; None outside a checkout."""
    try:
        _git(
            folder, "ls-files", "--error-unmatch", "__init__.py"
        )  # an installed copy inside somebody's repository is not of it
        commit = _git(folder, "rev-parse", "--short=12", "HEAD")
        return commit + ("+changes" if _git(folder, "status", "--porcelain", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def of_model(model: VisionModel | Detector) -> dict[str, Any]:
    """Licence, source and weights of one model; of several taken as one, also those of each."""
    members = model.members if isinstance(model, SeveralModels) else ()
    return {
        "name": model.facts.name,
        "licence": model.provenance.licence,
        "source": model.provenance.source,
        "weights_sha256": model.provenance.weights_sha256,
        "parameters": sum(p.numel() for p in model.parameters()),
    } | ({"members": [of_model(member) for member in members]} if members else {})


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
