"""Stage 4: draw the caches of a run or experiment, what was measured beside what is predicted."""

from Metrics.figures import PlotConfig
from Metrics.registry import metrics_table, scope_of
from Utils.cli import parse
from Utils.errors import run_stage


def main() -> None:
    """Parse the command line, draw, and print where each figure is."""
    config = parse(PlotConfig, epilog=metrics_table())
    names = config.metric_names()
    whole = not config.expid and (config.report or not names)
    scope = "experiment" if whole else scope_of(names, config.expid)

    # what draws brings matplotlib, for which errors need not wait
    if config.report:
        from Metrics.figures.report import write_report as write
    elif scope == "experiment":
        from Metrics.figures.experiment import plot_experiment as write
    else:
        from Metrics.figures.run import plot_run as write

    for line in write(config):
        print(line, flush=True)


if __name__ == "__main__":
    run_stage(main)
