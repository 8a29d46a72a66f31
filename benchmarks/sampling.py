"""Where the CPU time of a program goes: a clock that looks at the stack, and kinds of work by the functions in it.

A profiler that is told every call makes short functions look long. Here a signal comes after every few milliseconds of
CPU time, and what has passed since the last one belongs to the innermost function on the stack of the main thread that
has a kind. Programs are two per cent slower.
"""

from __future__ import annotations

import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType

ROOT = Path(__file__).resolve().parents[1]

KERNELS, OPERATORS, NETWORKS = "kernels", "operators", "networks"
#: what a training is for; everything else is what it costs beside that
WORK = (KERNELS, "around kernels", OPERATORS, "data term", NETWORKS)
START, OTHER, THREADS = "start", "other", "other threads"

#: kind, files, and functions of them (all if none are named); the first line that fits decides
KINDS: tuple[tuple[str, str, str], ...] = (
    (KERNELS, "models/regularizers/kernels/", "share"),
    ("around kernels", "models/regularizers/kernels/", ""),
    (
        "theta",
        "models/regularizers/",
        "current effective kernels profile_parameters knot_curvatures concavity_budget chain response "
        "spectral_bound weighted_supremum frequency_response smoothness convexity rounding_gain rounding_offset _sizes "
        "curvature_bound hessian_variation jacobian_bounds weights convolutions compiled_profiles",
    ),
    ("around kernels", "models/regularizers/ridge.py", "_bank"),
    (KERNELS, "models/regularizers/", ""),
    (KERNELS, "models/saddle_points/", ""),
    ("theta", "recon/lower_level/saddle/norms.py", ""),
    (OPERATORS, "recon/operators/", ""),
    (OPERATORS, "recon/lower_level/solvers/preconditioner.py", "__call__"),
    (NETWORKS, "models/networks/", ""),
    (NETWORKS, "core/module.py", "backward"),
    (NETWORKS, "models/training/critic.py", ""),
    ("data term", "recon/lower_level/fidelity.py", ""),
    ("data term", "recon/lower_level/energy.py", "value_and_grad hessian apply"),
    ("theta", "recon/lower_level/energy.py", "__init__ preconditioner _made_preconditioner"),
    ("theta", "recon/lower_level/solvers/preconditioner.py", ""),
    ("theta", "recon/lower_level/regularizer.py", "is_at <genexpr>"),
    ("checks", "recon/lower_level/contract.py", ""),
    ("checks", "recon/lower_level/watch.py", ""),
    ("solvers", "recon/lower_level/", ""),
    ("metrics", "recon/metrics.py", ""),
    ("upper level", "recon/bilevel/", ""),
    ("upper level", "torch/optim/", ""),
    ("reconstruction", "recon/reconstruction/", ""),
    ("data", "datasets/", ""),
    ("data", "torch/utils/data/", ""),
    ("pictures", "models/training/callbacks.py", "on_validation_batch_end on_validation_epoch_end _write draw_filters"),
    ("pictures", "recon/plotting/", ""),
    ("pictures", "matplotlib/", ""),
    ("logs", "models/training/callbacks.py", "on_train_batch_end"),
    ("logs", "recon/commands/fit/metrics.py", ""),
    ("logs", "models/training/module.py", "_to_loggers _summarize"),
    ("logs", "tensorboard/", ""),
    ("logs", "torch/utils/tensorboard/", ""),
    ("logs", "logger_connector/", ""),
    ("checkpoints", "models/training/callbacks.py", "_save on_train_epoch_end on_train_end"),
    ("checkpoints", "models/files/", ""),
    ("checkpoints", "callbacks/model_checkpoint.py", ""),
    ("checkpoints", "connectors/checkpoint_connector.py", ""),
    ("checkpoints", "recon/commands/fit/cli.py", "after_fit _metadata _report _summary"),
    ("networks", "models/training/", ""),
    ("Lightning", "pytorch_lightning/", ""),
)
#: an import in the middle of a run, and the function that a training is in
IMPORT, TRAINING = "<frozen importlib._bootstrap>", ("trainer/trainer.py", "fit")


class Sampler:
    """CPU seconds of the main thread by kind of work.

    Parameters
    ----------
    every : float
        CPU seconds between two looks.

    Attributes
    ----------
    seconds : dict
        By kind; START is what comes before and after the training, and imports.
    places : dict
        By kind and innermost place with this kind, for those who look closer.
    """

    def __init__(self, every: float = 0.004) -> None:
        self.every, self.seconds = every, defaultdict[str, float](float)
        self.places = defaultdict[tuple[str, str], float](float)
        self._kinds: dict[CodeType, str | None] = {}
        self._last = self._all = 0.0

    def start(self) -> None:
        """From now on, in this thread, the main one."""
        signal.signal(signal.SIGPROF, self._look)
        self._last, self._all = time.thread_time(), time.process_time()
        signal.setitimer(signal.ITIMER_PROF, self.every, self.every)

    def stop(self) -> None:
        """Until now."""
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        own = sum(self.seconds.values())
        self.seconds[THREADS] = max(0.0, time.process_time() - self._all - own)

    def _look(self, number: int, frame: FrameType | None) -> None:
        now = time.thread_time()
        kind, place = self._place(frame)
        self.seconds[kind] += now - self._last
        self.places[kind, place] += now - self._last
        self._last = now

    def _place(self, frame: FrameType | None) -> tuple[str, str]:
        """The kind of the innermost function that has one, and where it is."""
        found, training = (OTHER, ""), False
        for code, line in _stack(frame):
            if code.co_filename == IMPORT:
                return START, "import"
            if code not in self._kinds:
                self._kinds[code] = kind_of(code.co_filename, code.co_name)
            kind = self._kinds[code]
            if kind is not None and found[0] == OTHER:
                found = kind, f"{Path(code.co_filename).name}:{line} {code.co_name}"
            training = training or (code.co_name == TRAINING[1] and code.co_filename.endswith(TRAINING[0]))
        return found if training else (START, found[1])


def _stack(frame: FrameType | None) -> Iterator[tuple[CodeType, int]]:
    while frame is not None:
        yield frame.f_code, frame.f_lineno
        frame = frame.f_back


def kind_of(file: str, function: str) -> str | None:
    """The kind of a function, or ``None`` where that of its caller counts."""
    inside = file.removeprefix(f"{ROOT}/")
    for kind, part, functions in KINDS:
        own = part.startswith(("models/", "recon/", "datasets/"))
        if (inside.startswith(part) if own else part in file) and (not functions or function in functions.split()):
            return kind
    return None
