"""Two processes on the CPU, started by torchrun, against one process with the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from neural_network.parallel_script import BASE, data, fit_all

from sknn_resid import ResNetClassifier
from sknn_resid.engine.processes import Processes, is_first, own_device

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="torch was built without gloo",
)


def test_two_processes_are_one(tmp_path):
    script = Path(__file__).with_name("parallel_script.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", str(script), str(tmp_path)]
    environment = dict(os.environ) | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    alone = fit_all()
    for rank in (0, 1):
        with np.load(tmp_path / f"rank{rank}.npz") as found:
            assert set(found.files) == set(alone)
            for name, want in alone.items():
                np.testing.assert_allclose(
                    found[name], want, rtol=1e-7, atol=1e-9, err_msg=f"{rank} {name}"
                )


def test_a_group_that_the_caller_made_is_used_and_left(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1
    )
    try:
        a = ResNetClassifier(**BASE, data_parallel=True, dtype="float64").fit(*data())
        assert torch.distributed.is_initialized()
        assert is_first()
    finally:
        torch.distributed.destroy_process_group()
    b = ResNetClassifier(**BASE, dtype="float64").fit(*data())
    for name, want in b.state_dict_.items():
        np.testing.assert_allclose(a.state_dict_[name], want, rtol=1e-7, atol=1e-9)


def test_without_torchrun(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with pytest.raises(RuntimeError, match=r"data_parallel: .* started by torchrun"):
        ResNetClassifier(**BASE, data_parallel=True).fit(*data())


def test_all_processes_have_to_draw_the_same():
    with pytest.raises(ValueError, match=r"data_parallel: .* Set random_state to an int"):
        ResNetClassifier(data_parallel=True).fit(*data())


@pytest.mark.parametrize(("n_rows", "size"), [(10, 1), (10, 3), (2, 4), (128, 8), (7, 7)])
def test_shares_are_all_rows_once(n_rows, size):
    shares = [Processes(rank, size).share(n_rows) for rank in range(size)]
    rows = [row for share in shares for row in range(n_rows)[share]]
    assert rows == list(range(n_rows))
    lengths = [share.stop - share.start for share in shares]
    assert max(lengths) - min(lengths) <= 1


def test_each_process_has_its_own_gpu(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert own_device(torch.device("cuda")) == torch.device("cuda:3")
    assert own_device(torch.device("cuda:1")) == torch.device("cuda:1")
    assert own_device(torch.device("cpu")) == torch.device("cpu")
