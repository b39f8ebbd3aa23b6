"""Stage 3: compute metrics from features, each beside the prediction of its theory."""

from Metrics import METRICS, CacheConfig
from Utils.cli import parse
from Utils.errors import run_stage
from Utils.rundir import RunFolder


def main() -> None:
    """Parse the command line, cache and print how far measurements are from their laws."""
    config = parse(CacheConfig, epilog=f"metrics:\n{METRICS.table()}")
    config.metric_names()
    run = RunFolder(config.run_path)

    from Metrics.caching import cache  # brings torch, which usage errors need not wait for
    from Metrics.summary import deviation_table

    caches = cache(config, run)
    if table := deviation_table([cache.path for cache in caches]):
        print(table)


if __name__ == "__main__":
    run_stage(main)
