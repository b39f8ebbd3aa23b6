"""The runs that a command line names, in a folder or in a bucket."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from Utils.buckets.places import BucketPlace, bucket_place
from Utils.config import RunConfig
from Utils.errors import StorageError, UserError
from Utils.registry import unknown
from Utils.rundir import ExperimentFolder, Folder, RunFolder

_MANY = 12
"""Experiments that are named in a message."""


def open_run(config: RunConfig) -> AbstractContextManager[RunFolder]:
    """The run that a stage works on, once it is entered.

    Errors that leave the block name files as the user did.

    Raises:
        UserError: a name is missing; when it is entered, the bucket cannot be used.
    """
    path, place = config.run_path, bucket_place(config.save_dir)
    if place is None:
        return nullcontext(RunFolder(path))
    return _opened(path, place / config.experiment / config.expid)


@contextmanager
def _opened(path: Path, place: BucketPlace) -> Iterator[RunFolder]:
    run = _run_in_bucket(path, place)
    with _shown(run):
        yield run


@contextmanager
def open_experiment(config: RunConfig) -> Iterator[tuple[ExperimentFolder, list[RunFolder]]]:
    """An experiment and its runs, likewise."""
    path, place = config.experiment_path, bucket_place(config.save_dir)
    if place is None:
        experiment = ExperimentFolder(path)
        if not path.is_dir():
            raise UserError(_nowhere(config))
        yield experiment, [RunFolder(run) for run in experiment.runs()]
        return
    from Utils.buckets.working_copy import Layout, WorkingCopy

    whole = place / config.experiment
    experiment = ExperimentFolder(path, WorkingCopy(whole, Layout()))
    with _shown(experiment):
        yield experiment, [_run_in_bucket(run, whole / run.name) for run in experiment.runs()]


def _nowhere(config: RunConfig) -> str:
    found = sorted(each.name for each in config.experiment_path.parent.glob("[!.]*/"))
    if not found:
        return f"{config.experiment_path} has no runs; train one"
    listing = f"see {config.save_dir}" if len(found) > _MANY else ""
    return f"--experiment: {unknown('experiment', config.experiment, found, listing=listing)}"


def _run_in_bucket(path: Path, place: BucketPlace) -> RunFolder:
    # brings the client of Cloud Storage, which folders of this machine do without
    from Utils.buckets.working_copy import Layout, WorkingCopy

    layout = Layout(
        identity="hyperparameters.json",
        wanted=("hyperparameters.json", "symmetries.h5", "feats/probe.h5"),
        evictable=("ckpt/step*.tar", "feats/step*.h5"),
        appended="logs/run.log",
    )
    remote = WorkingCopy(place, layout)
    remote.refresh()
    return RunFolder(path, remote)


@contextmanager
def _shown(folder: Folder) -> Iterator[None]:
    try:
        yield
    except StorageError:  # about the disk of this machine
        raise
    except UserError as error:
        raise type(error)(folder.remote.shown(str(error))) from error
