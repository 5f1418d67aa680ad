"""Runs `polytask` commands, each in a process of its own, without importing torch anew for each.

Reads one JSON object a line: {"arguments", "cwd", "environment", "limit"}; forks; the child calls the command line's
entry point with stdout and stderr in files; answers {"status", "stdout", "stderr"}. The parent computes nothing, so no
thread is lost in the fork.
"""

import json
import os
import resource
import sys
import tempfile
import traceback


def main() -> None:
    import torch

    torch.set_num_threads(1)
    import polars  # noqa: F401
    import torchmetrics.functional  # noqa: F401

    import polytask.cli
    import polytask.recipes.run  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = os.fork()
            if child == 0:
                run(request, out.fileno(), err.fileno())
            _, ended = os.waitpid(child, 0)
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode())
        answer = {"status": os.waitstatus_to_exitcode(ended), "stdout": texts[0], "stderr": texts[1]}
        print(json.dumps(answer), flush=True)


def run(request: dict, out: int, err: int) -> None:
    status = 1
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        os.chdir(request["cwd"])
        os.environ.update(request["environment"])
        if request["limit"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"], request["limit"]))
        sys.argv = ["polytask", *request["arguments"]]
        import polytask.cli

        polytask.cli.main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 (an error of ours ends the child as it would end a process)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
