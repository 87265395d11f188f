"""`python -m benchmarks.main_models` (`make bench-models`): half of each network's MACs, proven.

For each network with randomised weights: follow its channels, plan to 50 % of the MACs, remove
the channels, prove that the result equals the gated network, export both to ONNX, and compare each
file with its network. Prints a line a network and writes docs/models.md; a network that fails is
shown with its cause, and the exit code is then 1. Each network runs in a process of its own.

`python -m benchmarks.main_models NAME ...` runs these alone and leaves docs/models.md.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.tables import ROOT, markdown_table, measured_with

SEED = 0
KEEP = 0.5
PARITY_TOLERANCE = 1e-4
TIMEOUT_S = 900
DOCUMENT = ROOT / "docs" / "models.md"
COMMAND = "make bench-models"

CIFAR = ("cifar resnet20", "cifar resnet20_b", "cifar resnet56")
TORCHVISION = (
    *("vgg11", "vgg11_bn", "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small"),
    *("densenet121", "efficientnet_b0", "shufflenet_v2_x0_5", "googlenet", "regnet_y_400mf"),
)
NAMES = (*CIFAR, *TORCHVISION)
HEADER = (
    *("network", "input", "groups (frozen)", "trace, s", "MACs, M", "kept", "proof", "effect"),
    *("ONNX parity before", "after", "result"),
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one network; `measured` holds what its stages gave until `failure`."""

    name: str
    measured: dict[str, Any]
    failure: str | None

    def row(self) -> tuple[str, ...]:
        """The cells of `HEADER`; "-" for what was not reached."""
        found = self.measured
        groups = f"{found['groups']} ({found['frozen']})" if "groups" in found else "-"
        return (
            self.name,
            found.get("input", "-"),
            groups,
            _cell(found, "trace_s", "{:.2f}"),
            _cell(found, "macs_before", "{:.1f}", 1e-6),
            _cell(found, "kept", "{:.2f} %", 100),
            _cell(found, "proof", "{:.1e}"),
            _cell(found, "effect", "{:.1e}"),
            _cell(found, "parity_before", "{:.1e}"),
            _cell(found, "parity_after", "{:.1e}"),
            self.failure or "met",
        )


def _cell(found: dict[str, Any], key: str, form: str, factor: float = 1.0) -> str:
    return form.format(found[key] * factor) if key in found else "-"


def run_apart(name: str) -> Outcome:
    """Measure one network in a process of its own, which may fail in any way."""
    command = [sys.executable, "-m", "benchmarks.main_models", "--measure", name]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Outcome(name=name, measured={}, failure=f"FAILED: took more than {TIMEOUT_S} s")
    measured: dict[str, Any] = {}
    stage = "start"
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            found = json.loads(line)
            stage = found.pop("next_stage", stage)
            measured |= found
    if done.returncode == 0:
        return Outcome(name=name, measured=measured, failure=_judge(measured))
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return Outcome(name=name, measured=measured, failure=f"FAILED in {stage}: {last[:300]}")


def _judge(found: dict[str, Any]) -> str | None:
    """None where every promise is kept, else which is not."""
    broken = [
        text
        for holds, text in (
            (found["proof"] <= found["tolerance"], "the proof"),
            (found["effect"] > 0, "the proof is vacuous"),
            (found["parity_before"] <= PARITY_TOLERANCE, "parity of the original"),
            (found["parity_after"] <= PARITY_TOLERANCE, "parity of the pruned network"),
            (found["kept"] <= KEEP, "the target: too many MACs"),
            (found["kept"] >= KEEP - 0.02, "the target: more than 2 % under it"),
        )
        if not holds
    ]
    return f"FAILED: {', '.join(broken)}" if broken else None


def measure(name: str) -> None:
    """Print one JSON object after each stage; whatever goes wrong ends the process."""
    import torch

    import exporters
    import gbn

    model, size = build(name)
    example = torch.randn(1, *size)
    batch = torch.randn(2, *size)
    _say("trace", input="x".join(str(n) for n in size))
    start = time.perf_counter()
    groups = gbn.trace(model, example)
    seconds = time.perf_counter() - start
    frozen = sum(group.frozen for group in groups.groups)
    _say("plan", trace_s=seconds, groups=len(groups.groups), frozen=frozen)
    plan = gbn.plan(groups, gbn.magnitude_scores(model, groups), flops=KEEP)
    _say("prune")
    small = gbn.prune(model, plan)
    _say("prove")
    proof = gbn.prove(model, plan, small, batch)
    _say("export", proof=proof.max_abs_diff, tolerance=proof.tolerance, effect=proof.effect)
    macs = {}
    with tempfile.TemporaryDirectory() as folder:
        for when, network in (("before", model), ("after", small)):
            path = Path(folder, f"{when}.onnx")
            request = exporters.ExportRequest(example_inputs=(example,), path=path)
            exporters.export_onnx(network, request)
            session = exporters.open_session(path)
            parity = exporters.check_parity(network, session, [batch], PARITY_TOLERANCE)
            macs[when] = exporters.count_macs(path).num_macs
            _say("export", **{f"parity_{when}": parity.max_abs_diff, f"macs_{when}": macs[when]})
    _say("end", kept=macs["after"] / macs["before"])


def _say(next_stage: str, **found: object) -> None:
    print(json.dumps({"next_stage": next_stage, **found}), flush=True)


def build(name: str) -> tuple[Any, tuple[int, int, int]]:
    """The network in eval mode with randomised norms and biases, and its input (C, H, W).

    As they are initialised, norms and biases are ones and zeros, on which a proof proves little.
    """
    import torch
    import torchvision

    from benchmarks import cifar_models

    torch.manual_seed(SEED)
    kind, _, cifar_name = name.partition(" ")
    if cifar_name:
        model, size = getattr(cifar_models, cifar_name)(), (3, 32, 32)
    else:
        model, size = torchvision.models.get_model(kind, weights=None), (3, 224, 224)
    model.eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                state = module.state_dict()
                for name in ("running_var", "weight"):
                    state[name].uniform_(0.5, 1.5)
                state["running_mean"].normal_(0, 0.1)
            if isinstance(getattr(module, "bias", None), torch.Tensor):
                torch.nn.init.normal_(module.bias, 0, 0.1)
    return model, size


def main(arguments: list[str]) -> int:
    """Measure all networks, or those named; 1 where any failed."""
    if arguments[:1] == ["--measure"]:
        measure(arguments[1])
        return 0
    # Threads that wait for each other on a busy machine would be timed in the tracer's place.
    os.environ["OMP_NUM_THREADS"] = "1"
    outcomes = []
    for name in arguments or NAMES:
        outcomes.append(run_apart(name))
        print("  ".join(outcomes[-1].row()), flush=True)
    failed = sum(outcome.failure is not None for outcome in outcomes)
    print(f"{len(outcomes) - failed} of {len(outcomes)} networks met every promise")
    if not arguments:
        DOCUMENT.write_text(document(outcomes))
        print(f"wrote {DOCUMENT.relative_to(ROOT)}")
    return 1 if failed else 0


def document(outcomes: list[Outcome]) -> str:
    """The content of docs/models.md."""
    failed = sum(outcome.failure is not None for outcome in outcomes)
    return (
        "# Networks that are pruned, proven and exported\n\n"
        f"Measured by `{COMMAND}` with {measured_with()}.\n\n"
        f"{len(outcomes) - failed} of {len(outcomes)} networks met every promise. Each has random "
        f"weights (seed {SEED}), its norms and biases randomised too, and is cut to "
        f"{KEEP:.0%} of its MACs by magnitude.\n\n"
        "- trace: wall-clock seconds to follow all channels, once, at batch 1 and on one thread.\n"
        "- kept: MACs of the exported pruned file over those of the exported original; must be at "
        "most 50 % and at least 48 %.\n"
        "- proof: largest difference between the gated and the smaller network in float64, "
        "relative to the largest output; at most 1e-6. effect: how far the removed channels moved "
        "the output, in the same unit; with 0 the proof would say nothing.\n"
        f"- ONNX parity: torch against onnxruntime on the CPU, at most {PARITY_TOLERANCE:.0e}, of "
        "the original and of the pruned network.\n\n"
        f"{markdown_table(HEADER, (outcome.row() for outcome in outcomes))}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
