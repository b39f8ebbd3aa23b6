"""Stage 1: train a model and save checkpoints, the laws of its symmetries and its metrics."""

from typing import Any

from Data import DATASETS
from Models import MODELS, NONLINEARITIES
from Models.parametrization import PARAMETRIZATIONS
from Training import BUFFERS, LOSSES, OPTIMIZERS, SCHEDULES, TrainConfig
from Utils.cli import parse
from Utils.errors import run_stage
from Utils.registry import Registry
from Utils.runs import open_run


def main() -> int:
    """Parse the command line and train; returns the exit code."""
    registries: tuple[Registry[Any], ...]
    registries = (
        DATASETS,
        *MODELS.values(),
        NONLINEARITIES,
        PARAMETRIZATIONS,
        LOSSES,
        OPTIMIZERS,
        SCHEDULES,
        BUFFERS,
    )
    config = parse(TrainConfig, epilog="\n\n".join(f"{r.kind}:\n{r.table()}" for r in registries))
    if config.list_laws:
        from Training.run import list_laws

        print(list_laws(config))
        return 0
    if config.explain:
        from Training.parametrized import explanation

        print(explanation(config))
        return 0
    run = open_run(config)

    from Training.run import train  # brings torch, which usage errors need not wait for

    return train(config, run)


if __name__ == "__main__":
    run_stage(main)
