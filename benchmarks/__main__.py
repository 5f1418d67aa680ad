"""`python -m benchmarks`, which is what `make bench` calls."""

import argparse
import os
import sys
from pathlib import Path

from benchmarks import results
from benchmarks.experiment import experiment_names, read_experiment
from benchmarks.pages import write_pages
from benchmarks.running import run
from polytask.core.errors import PolytaskError

BY_NAME = (
    *("merging", "balancing"),
    *("text_experts", "text_experts_rules", "text_experts_data", "text_experts_leaders", "text_experts_grafts"),
)
"""Not among all: `make bench-merging` and its like make environments of their own, and the experts take hours."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the experiments, and writes docs/benchmarks.md after each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=main.__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="experiments; all but the largest and those with an environment of their own if none is named",
    )
    parser.add_argument("--list", action="store_true", help="names, expected minutes and the newest result of each")
    parser.add_argument("--tables-only", action="store_true", help="only write the documentation from the results")
    parser.add_argument("--fresh", action="store_true", help="start anew instead of going on with interrupted runs")
    options = parser.parse_args(arguments)
    try:
        names = options.names or [name for name in experiment_names() if name not in BY_NAME]
        for name in names:
            read_experiment(name)  # a misspelt name ends before the first run
        if options.list:
            _list(names)
        elif options.tables_only:
            _write()
        else:
            _run(names if options.names else [name for name in names if not _has_result(name)], options.fresh)
    except PolytaskError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _run(names: list[str], fresh: bool) -> None:
    said = os.environ.get("POLYTASK_DATA")
    data_dir = Path(said) if said else None
    for name in names:
        print(f"{name}: expect {read_experiment(name).minutes:g} min on two idle cores", flush=True)
        path = run(name, data_dir, fresh=fresh, say=lambda line: print(line, flush=True))
        print(f"{name}: {path.relative_to(results.ROOT)}", flush=True)
        _write()


def _has_result(name: str) -> bool:
    """Whether a run of all experiments that was interrupted has measured this one already, at the same commit."""
    record = results.newest(name)
    done = record is not None and record["provenance"]["commit"] == results.commit()
    if done:
        print(f"{name}: has a result of this commit; name it to measure it again on another day", flush=True)
    return done


def _list(names: list[str]) -> None:
    for name in names:
        experiment, record = read_experiment(name), results.newest(name)
        last = f"{record['provenance']['date'][:10]} {record['provenance']['commit']}" if record else "no result yet"
        print(f"{name:18} {experiment.minutes:4g} min  {last:36} {experiment.title}")
    print(f"{'all':18} {sum(read_experiment(name).minutes for name in names):4g} min")


def _write() -> None:
    for path in write_pages():
        print(f"wrote {path.relative_to(results.ROOT)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
