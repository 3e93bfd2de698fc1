"""Images per second of the image networks: inference and training steps.

Expected before measuring (one CPU thread with AVX-512 BF16, against the eager module)
---------------------------------------------------------------------------------------
Inference, CIFAR networks, 64 images: at least 1.4 times in float32 and 3 times in bfloat16.
ResNet-50, one image of 224 x 224: at least 2 times in bfloat16. Nothing was promised for float32
there, for training, and for accelerators: they are measured and reported.

The eager module takes some hundred megabytes from the system for each call of a CIFAR network,
until the allocator of the process has learned to keep them, which a few training steps teach it.
*inference* is a process that only predicts; *inference_after_training* one that has trained before.
The goals are about the first; the second is printed because it differs by a factor of 1.5. Each
network and task is measured in a process of its own.

Contestants
-----------
* eager: the module of `sknn_resid.engine.resnet` as anyone would call it: evaluation mode, no
  gradients, float32, memory laid out as torch lays it out by default.
* torchvision, timm: their modules of the same depth with the same weights, where installed and
  where they have the network (the ImageNet forms), called the same way.
* ours, ours_bfloat16: the folded form in which `ResNetClassifier` predicts.

For training: one step of forward, backward and SGD with momentum on the same images, for the eager
module, torchvision's and timm's, and for ours with channels last, as `ResNetClassifier` trains.

What is equal
-------------
Weights, images, thread count. All logits are compared with the eager module's: by norm, and by how
many of the images have another first class. Weights are drawn at random unless ``--weights`` names
files; with random weights the logits of all classes lie close together, so that rounding to
bfloat16 changes the first class more often than with trained ones.

Usage: ``python benchmarks/resnet.py [--threads 1] [--nets cifar20 cifar56 imagenet50]
[--tasks inference inference_after_training training] [--device cpu] [--weights FILE ...]
[--repeats 5]``.
About three minutes a thread count.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

import _harness as harness

SEED = 0
# Name to (depth, stem, pixels of a side, images of an inference call, of a training step).
NETS = {
    "cifar20": (20, "cifar", 32, 64, 64),
    "cifar56": (56, "cifar", 32, 64, 64),
    "imagenet18": (18, "imagenet", 224, 1, 4),
    "imagenet50": (50, "imagenet", 224, 1, 4),
}
DEFAULT_NETS = ("cifar20", "cifar56", "imagenet50")
TASKS = ("inference", "inference_after_training", "training")
WARMING_STEPS = 3
# Times the eager module's speed in inference, one CPU thread.
GOALS = {
    ("cifar20", "ours"): 1.4,
    ("cifar56", "ours"): 1.4,
    ("cifar20", "ours_bfloat16"): 3.0,
    ("cifar56", "ours_bfloat16"): 3.0,
    ("imagenet50", "ours_bfloat16"): 2.0,
}
NEEDS_BFLOAT16 = "bfloat16 is not computed in hardware here: its goals do not apply"

Run = Callable[[], Any]


def build_model(net: str, files: list[str]) -> Any:
    """Make the module; weights from the file of its depth, else drawn."""
    import torch

    from sknn_resid.engine.resnet import ResNet, build, load_arrays
    from sknn_resid.engine.resnet_spec import ResNetSpec, default_shortcut, default_width
    from sknn_resid.neural_network._weight_files import read_weights
    from sknn_resid.neural_network._weight_specs import infer_spec

    depth, stem, *_ = NETS[net]
    for path in files:
        file = read_weights(path)
        spec = infer_spec(file.arrays, source=str(file))
        if (spec.depth, spec.stem) == (depth, stem):
            model = ResNet(spec)
            load_arrays(model, file.arrays)
            return model
    spec = ResNetSpec(
        depth=depth,
        n_outputs=10 if stem == "cifar" else 1000,
        width=default_width(stem),
        stem=stem,
        shortcut=default_shortcut(stem),
    )
    return build(spec, torch.Generator().manual_seed(SEED))


def others(model: Any, net: str) -> dict[str, Any]:
    """Modules of other packages with the same weights, by package."""
    found: dict[str, Any] = {}
    if model.spec.stem != "imagenet":
        return found
    name, n_outputs = f"resnet{model.spec.depth}", model.spec.n_outputs
    if importlib.util.find_spec("torchvision"):
        import torchvision

        found["torchvision"] = getattr(torchvision.models, name)(num_classes=n_outputs)
    if importlib.util.find_spec("timm"):
        import timm

        found["timm"] = timm.create_model(name, num_classes=n_outputs)
    for other in found.values():
        other.load_state_dict(model.state_dict(), strict=True)
    return found


def inference_runs(model: Any, net: str, images: Any, device: str) -> dict[str, Run]:
    """Functions that give the logits of all images."""
    import torch

    from sknn_resid.engine.resnet_inference import InferenceNetwork

    modules = {"eager": model, **others(model, net)}

    def eager(module: Any) -> Run:
        module = module.to(device).eval()

        def run() -> Any:
            with torch.no_grad():
                return module(images)

        return run

    runs = {name: eager(module) for name, module in modules.items()}
    sizes = (images.shape[0], *images.shape[2:])
    for name, dtype in (("ours", torch.float32), ("ours_bfloat16", torch.bfloat16)):
        network = InferenceNetwork(model, dtype, sizes)
        runs[name] = lambda network=network: network(images)
    return runs


def training_runs(model: Any, net: str, images: Any, device: str) -> dict[str, Run]:
    """Functions that take one step."""
    import copy

    import torch

    y = torch.arange(len(images), device=device) % model.spec.n_outputs
    last = images.contiguous(memory_format=torch.channels_last)

    def step(module: Any, x: Any) -> Run:
        module = module.to(device).train()
        optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)

        def run() -> float:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(module(x), y)
            loss.backward()
            optimizer.step()
            return loss.item()

        return run

    runs = {"eager": step(copy.deepcopy(model), images)}
    runs |= {name: step(module, images) for name, module in others(model, net).items()}
    ours = copy.deepcopy(model).to(memory_format=torch.channels_last)
    return runs | {"ours": step(ours, last)}


def compare(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """How far logits are from the eager module's, and how many images have another first class."""
    reference = results["eager"].float()
    found = {}
    for name, logits in results.items():
        logits = logits.float()
        found[name] = {
            "relative_error": float((logits - reference).norm() / reference.norm()),
            "other_class": int((logits.argmax(1) != reference.argmax(1)).sum()),
        }
    return found


def measure(net: str, task: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time all contestants of one network and task; one JSON row for each."""
    import torch

    _, _, side, *counts = NETS[net]
    n_images, side = counts[task == "training"], 16 if options.smoke else side
    if options.device != "cpu":
        n_images = 256
    model = build_model(net, options.weights).to(options.device)
    generator = torch.Generator().manual_seed(SEED + 1)
    images = torch.randn(n_images, 3, side, side, generator=generator).to(options.device)
    if task == "inference_after_training":
        train = training_runs(model, net, images, options.device)["eager"]
        for _ in range(WARMING_STEPS):
            train()
    make = training_runs if task == "training" else inference_runs
    threads = options.threads[0]
    clock_name, clock = harness.clock_for(threads, options.device)
    seconds, results = harness.time_interleaved(
        make(model, net, images, options.device),
        repeats=options.repeats,
        clock=clock,
        calls=1 if options.smoke else 2,
        warm_up=True,
    )
    agreement = {} if task == "training" else compare(results)
    return [
        {
            "net": net,
            "task": task,
            "contestant": name,
            "images": n_images,
            "pixels": side,
            "device": options.device,
            "threads": threads,
            "clock": clock_name,
            "seconds": times,
            "images_per_second": n_images / statistics.median(times),
            "versus_eager": harness.ratio(seconds, name, "eager"),
            **agreement.get(name, {}),
        }
        for name, times in seconds.items()
    ]


def work(options: argparse.Namespace) -> None:
    """Measure everything asked of this worker and write the rows to ``--worker-output``."""
    notes = []
    [net], [task] = options.nets, options.tasks
    missing = [p for p in ("torchvision", "timm") if importlib.util.find_spec(p) is None]
    notes += [f"{package} is not installed: its rows are missing" for package in missing]
    if not harness.has_bfloat16_products():
        notes.append(NEEDS_BFLOAT16)
    with harness.pinned_threads(options.threads[0]):
        print(f"  {net} {task} ...", file=sys.stderr, flush=True)
        rows = measure(net, task, options)
    options.worker_output.write_text(json.dumps({"rows": rows, "notes": notes}))


def goal(row: dict[str, Any], notes: list[str]) -> str:
    """Say what was expected of a row and whether it was reached; empty where nothing was."""
    wanted = GOALS.get((row["net"], row["contestant"]))
    promised = row["task"] == "inference" and row["threads"] == 1 and row["device"] == "cpu"
    if not promised or wanted is None or row["versus_eager"] is None:
        return ""
    if NEEDS_BFLOAT16 in notes and "bfloat16" in row["contestant"]:
        return ""
    return f"{wanted:g}x {'met' if row['versus_eager']['median'] >= wanted else 'MISSED'}"


def report(rows: list[dict[str, Any]], notes: list[str]) -> str:
    """Lay out the rows of one worker."""
    headers = ["net", "task", "images", "contestant", "one call", "images/s"]
    headers += ["x eager (rounds)", "rel. error", "other class", "goal"]
    table = [
        [
            row["net"],
            row["task"],
            f"{row['images']} x {row['pixels']}px",
            row["contestant"],
            harness.format_seconds(statistics.median(row["seconds"])),
            f"{row['images_per_second']:.3g}",
            harness.format_ratio(row["versus_eager"]),
            f"{row['relative_error']:.1g}" if "relative_error" in row else "",
            str(row.get("other_class", "")),
            goal(row, notes),
        ]
        for row in rows
    ]
    return harness.format_table(headers, table)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    harness.add_common_options(parser, "resnet")
    parser.set_defaults(threads=[1])
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(DEFAULT_NETS))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--weights", nargs="*", default=[], help="files of weights")
    options = parser.parse_args(arguments)
    if options.smoke and options.worker_output is None:
        options.repeats = min(options.repeats, 2)
    return options


def main() -> None:
    """Measure at each thread count, print a table for each, write the JSON."""
    options = parse()
    if options.worker_output is not None:
        work(options)
        return
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for threads in options.threads:
        measured: list[dict[str, Any]] = []
        for net, task in itertools.product(options.nets, options.tasks):
            arguments = ["--threads", str(threads), "--repeats", str(options.repeats)]
            arguments += ["--nets", net, "--tasks", task, "--device", options.device]
            arguments += [*(["--smoke"] * options.smoke), "--weights", *options.weights]
            found = harness.run_worker(__file__, arguments, threads)
            measured += found["rows"]
            notes += [note for note in found["notes"] if note not in notes]
        rows += measured
        clock = "CPU seconds" if measured[0]["clock"] == "cpu" else "wall seconds"
        print(f"\n{threads} thread{'s' * (threads > 1)}, {clock}, median of rounds\n")
        print(report(measured, notes), flush=True)
    print("\n".join(["", *notes]))
    harness.write_results(options.output, "resnet", rows, notes)
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
