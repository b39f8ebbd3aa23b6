"""Stage 3: compute metrics from features, each beside the prediction of its theory."""

from Metrics import CacheConfig
from Metrics.registry import metrics_table, scope_of
from Utils.cli import parse
from Utils.errors import run_stage
from Utils.runs import open_run


def main() -> int:
    """Parse the command line, cache and print how far measurements are from theory."""
    config = parse(CacheConfig, epilog=metrics_table())
    scope = scope_of(config.metric_names(), config.expid)
    return _experiment(config) if scope == "experiment" else _run(config)


def _run(config: CacheConfig) -> int:
    with open_run(config) as run:
        from Metrics.caching import cache  # brings torch, for which errors need not wait
        from Metrics.summary import deviation_table

        caches = cache(config, run)
        if table := deviation_table([cache.path for cache in caches]):
            print(table)
    return 0


def _experiment(config: CacheConfig) -> int:
    from Metrics.width.command import cache_and_tell  # brings torch, too

    return cache_and_tell(config)


if __name__ == "__main__":
    run_stage(main)
