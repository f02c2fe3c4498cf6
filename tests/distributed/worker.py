"""Runs checks in every process of a group: `torchrun --nproc-per-node 2 worker.py FOLDER [NAME ...]`.

Each process writes FOLDER/RANK.json: name of the check -> what failed, "" where nothing did. A check that waits for
ever ends by the group's time limit, and what would come after it is not run.
"""

from __future__ import annotations

import datetime
import json
import sys
import time
import traceback
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent.parent))

from distributed.checks import CHECKS

LIMIT = datetime.timedelta(seconds=60)


def main(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    for text in ("`torch.jit.script", "FSDP is switching to use `NO_SHARD`", "FSDP.state_dict_type"):
        warnings.filterwarnings("ignore", text)
    dist.init_process_group("gloo", timeout=LIMIT)
    results: dict[str, str] = {}
    for name in names or CHECKS:
        try:
            with warnings.catch_warnings():
                CHECKS[name]()
            results[name] = ""
        except (Exception, pytest.fail.Exception):
            results[name] = traceback.format_exc()
        (folder / f"{dist.get_rank()}.json").write_text(json.dumps(results))
        dist.barrier()
    # ending the group holds Python's lock, which gloo's thread needs to let go of the last message
    time.sleep(0.1)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
