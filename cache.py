"""Stage 3: compute metrics from features, each beside the prediction of its theory."""

from Metrics import METRICS, CacheConfig
from Utils.cli import parse
from Utils.errors import run_stage
from Utils.runs import open_run


def main() -> None:
    """Parse the command line, cache and print how far measurements are from their laws."""
    config = parse(CacheConfig, epilog=f"metrics:\n{METRICS.table()}")
    config.metric_names()
    with open_run(config) as run:
        from Metrics.caching import cache  # brings torch, for which errors need not wait
        from Metrics.summary import deviation_table

        caches = cache(config, run)
        if table := deviation_table([cache.path for cache in caches]):
            print(table)


if __name__ == "__main__":
    run_stage(main)
