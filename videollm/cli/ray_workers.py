"""The same work on the machines of a Ray cluster, by Ray Data."""

from __future__ import annotations

import logging
import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Generic, TypeVar

from videollm.cli.errors import CommandError

Task = TypeVar("Task")
Result = TypeVar("Result")
MakeWorker = Callable[[], Callable[[Task], Result]]

AGAIN = 3  # times that a task is done again whose worker died; Ray's own are without end


class Worker(Generic[Task, Result]):
    """A process of the cluster: made once, it does one task after the other."""

    def __init__(self, make: MakeWorker[Task, Result]) -> None:
        self._make = make

    @cached_property
    def _work(self) -> Callable[[Task], Result]:
        return self._make()

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        """Pickled, as all rows: Arrow, which carries them, knows no objects of Python's."""
        result: Result | Exception
        try:
            result = self._work(pickle.loads(row["task"]))
        except Exception as error:  # as it is: Ray would wrap it in its own
            result = error
        return {"result": pickle.dumps(result)}


def on_ray(address: str, make: MakeWorker[Task, Result], tasks: Sequence[Task]) -> Iterator[Result]:
    """What workers give for the tasks, in the order in which they are finished; the first error is raised.

    There are as many workers as the cluster has GPUs, else CPUs, each with one. What a worker that dies had
    in hand is done again by another. Paths must be the same on every machine, and videollm installed there.
    CommandError where no cluster answers, and where a task has ended every worker that took it.
    """
    if not tasks:
        return
    # Ray reports its use to its makers unless it is told not to, and the workers of a cluster that it starts
    # here would get only the time that no other program wants.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise CommandError("Ray is not installed; run: pip install -e '.[ray]'") from error
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise CommandError(
            f"no Ray cluster answers at {address}; start one with ray start --head, or use --ray local"
        ) from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # max_task_retries goes there; nothing has taken its place yet.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        resources = ray.cluster_resources()
        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        rows = ray.data.from_items(
            [{"task": pickle.dumps(task)} for task in tasks], override_num_blocks=len(tasks)
        )
        done = rows.map(
            Worker,  # type: ignore[arg-type]  # Ray's type knows functions alone
            fn_constructor_args=(make,),
            compute=ray.data.ActorPoolStrategy(
                size=min(gpus or cpus, len(tasks)), max_tasks_in_flight_per_actor=1
            ),
            num_gpus=1 if gpus else 0,
            num_cpus=0 if gpus else 1,
            max_task_retries=AGAIN,
        )
        for row in done.iter_rows():
            result = pickle.loads(row["result"])
            if isinstance(result, Exception):
                raise result
            yield result
    except ray.exceptions.RayActorError as error:
        raise CommandError(
            f"a worker of the cluster died, {AGAIN + 1} times over the same work; what is done is kept: run "
            "the same command again without --ray to see at which video"
        ) from error
    finally:
        ray.shutdown()
