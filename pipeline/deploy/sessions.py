"""Sessions and inputs of the files that are compared.

Enters: a `RuntimeConfig` and files. Leaves: sessions for measuring, each thread on a core of its
own, and the inputs they are run on. Refused: batches that a file does not take, and a baseline
whose inputs are not the candidate's.
"""

from collections.abc import Mapping
from pathlib import Path

import exporters
from exporters.inputs import Shape, fixed_batch, random_inputs
from exporters.session import Array, Session
from pipeline.deploy.config import RuntimeConfig, VerifyConfig
from pipeline.errors import UsageError

_WHOLE_BELOW = 256  # pixels; a table has fewer rows, or the first ones are looked up


class Runner:
    """Opens files for one provider, and makes inputs for them."""

    def __init__(self, runtime: RuntimeConfig) -> None:
        self._runtime = runtime

    def open(self, path: Path) -> Session:
        """A session for parity and accuracy, with the threads that onnxruntime chooses."""
        return exporters.open_session(path, self._runtime.provider)

    def open_timed(self, path: Path, cores: tuple[int, ...]) -> Session:
        """A session for latency: as many threads as stated, on these cores."""
        return exporters.open_session(
            path, self._runtime.provider, self._runtime.threads, cores=cores
        )

    def quiet_cores(self) -> tuple[int, ...]:
        """As many of the least busy cores as there are threads."""
        return exporters.quiet_cores(self._runtime.threads)

    def inputs(self, session: Session, batch: int, *, any_batch: bool = False) -> dict[str, Array]:
        """Random inputs of this batch; any_batch: of the file's own where it fixes one."""
        size = (fixed_batch(session) if any_batch else None) or batch
        return random_inputs(session, size, self.stated_sizes(session), self._runtime.seed)

    def varied_inputs(self, session: Session, batch: int) -> dict[str, Array]:
        """Random inputs whose whole numbers go as far up as the file takes them.

        They may be pixels, or indices of a table whose size nobody states. Raises ExportError.
        """
        best = self.inputs(session, batch)
        if all(values.dtype.kind == "f" for values in best.values()):
            return best
        sizes, seed = self.stated_sizes(session), self._runtime.seed
        taken, refused = 1, _WHOLE_BELOW + 1
        below = _WHOLE_BELOW
        while refused - taken > 1:
            inputs = random_inputs(session, batch, sizes, seed, below=below)
            try:
                session.run({n: session.as_input(n, v) for n, v in inputs.items()})
                taken, best = below, inputs
            except exporters.ExportError:
                refused = below
            below = (taken + refused) // 2
        return best

    def stated_sizes(self, session: Session) -> dict[str, Shape]:
        """Input name -> the size stated for it, without the batch. Raises UsageError."""
        stated = self._runtime.input_sizes
        if any(name is None for name, _ in stated) and len(stated) > 1:
            raise UsageError("--input-size: given several times, each needs a name: NAME:C,H,W")
        if stated and stated[0][0] is None and len(session.input_names) > 1:
            names = ", ".join(session.input_names)
            raise UsageError(f"--input-size: name the input, one of {names}: NAME:C,H,W")
        return {session.input_names[0] if name is None else name: size for name, size in stated}


def batches_of(runtime: RuntimeConfig, *sessions: Session | None) -> tuple[int, ...]:
    """The batch sizes to measure at: those stated, else the files' own, else 1."""
    fixed = {size for s in sessions if s is not None and (size := fixed_batch(s)) is not None}
    if len(fixed) > 1:
        raise UsageError(f"the files have different fixed batches, {sorted(fixed)}")
    own = next(iter(fixed), None)
    wrong = [batch for batch in runtime.batches if own is not None and batch != own]
    if wrong:
        raise UsageError(f"--batch-size {wrong[0]}: a file has a fixed batch of {own}")
    return runtime.batches or (own or 1,)


def same_inputs(one: Session, other: Session, runner: Runner) -> bool:
    """Whether both take inputs of the same names, kinds and sizes."""
    return _described(one, runner.stated_sizes(one)) == _described(
        other, runner.stated_sizes(other)
    )


def require_same_inputs(
    baseline: Session, candidate: Session, runner: Runner, config: VerifyConfig
) -> None:
    """Comparing speed or outputs on different inputs would compare nothing. Raises UsageError."""
    theirs, ours = (_described(s, runner.stated_sizes(s)) for s in (baseline, candidate))
    if theirs == ours:
        return
    advice = "they cannot be compared"
    if any("?" in sizes for inputs in (theirs, ours) for sizes in inputs.values()):
        advice += "; sizes that one of them leaves open (?) can be stated with --input-size"
    raise UsageError(
        f"--baseline '{config.baseline}' takes {_text(theirs)}, the candidate "
        f"'{config.candidate}' takes {_text(ours)}: {advice}"
    )


def _described(session: Session, stated: Mapping[str, Shape]) -> dict[str, tuple[str, ...]]:
    """Input name -> whether it holds floats, and its sizes without the batch, `?` if unstated."""
    found = {}
    for name, shape in session.input_shapes.items():
        kind = session.input_types[name]
        is_float = kind in ("tensor(float)", "tensor(float16)", "tensor(double)")
        own: tuple[int | str | None, ...] = shape[1:]
        if name in stated and len(stated[name]) == len(own):
            pairs = zip(own, stated[name], strict=True)
            own = tuple(size if isinstance(size, int) else asked for size, asked in pairs)
        sizes = [str(size) if isinstance(size, int) else "?" for size in own]
        found[name] = ("floats" if is_float else kind, *sizes)
    return found


def _text(inputs: dict[str, tuple[str, ...]]) -> str:
    return "; ".join(
        f"{name!r} {kind} (N, {', '.join(sizes)})" for name, (kind, *sizes) in inputs.items()
    )
