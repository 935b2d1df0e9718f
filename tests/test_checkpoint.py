"""``mmnetaug.checkpoint``: files load without running what they contain, unless the user vouches for them."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader

from mmnetaug.checkpoint import ReadOnce, read_checkpoint, unpickling
from mmnetaug.errors import CheckpointError

WEIGHTS = {"state_dict": {"conv.weight": torch.arange(12.0).reshape(3, 4)}, "meta": {"epoch": 3, "classes": ["1", "2"]}}


class Exploit:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.fixture(params=["zip", "legacy"])
def exploit(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """A checkpoint that runs a command when fully unpickled, and the path which that command creates."""
    path, ran = tmp_path / "foreign.pth", tmp_path / "ran"
    torch.save({"state_dict": {}, "meta": Exploit(ran)}, path, _use_new_zipfile_serialization=request.param == "zip")
    return path, ran


@pytest.fixture
def training_checkpoint(tmp_path: Path) -> Path:
    """A checkpoint with what the original line's restricted load refuses and MMEngine saves."""
    path = tmp_path / "epoch_1.pth"
    torch.save({**WEIGHTS, "message_hub": {"log_scalars": {"train/loss": HistoryBuffer([1.0], [1])}}}, path)
    return path


@pytest.mark.parametrize("new_format", [True, False])
def test_tensors_and_plain_types_load(tmp_path: Path, new_format: bool):
    path = tmp_path / "epoch_1_tiny.pth"
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=new_format)
    loaded = read_checkpoint(path)
    torch.testing.assert_close(loaded["state_dict"], WEIGHTS["state_dict"], rtol=0, atol=0)
    assert loaded["meta"] == WEIGHTS["meta"]


def test_exploit_is_refused(exploit):
    path, ran = exploit
    with pytest.raises(CheckpointError, match=r"pickled objects.*_tiny\.pth.*--trust-checkpoint"):
        read_checkpoint(path)
    assert not ran.exists()
    torch.load(path, weights_only=False)
    assert ran.exists()  # so the file was dangerous indeed


def test_training_checkpoint_is_refused_with_advice(training_checkpoint: Path):
    with pytest.raises(CheckpointError, match=r"_tiny\.pth.*--trust-checkpoint"):
        read_checkpoint(training_checkpoint)


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:30],
        lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        lambda whole: b"<html>not found</html>",
        lambda whole: b"hello world",
        lambda whole: b"torch",
    ],
    ids=["empty", "half", "start", "git-lfs pointer", "web page", "text", "a word"],
)
@pytest.mark.parametrize("new_format", [True, False])
def test_damaged_file_is_called_damaged(tmp_path: Path, damage, new_format: bool):
    path = tmp_path / "epoch_1_tiny.pth"
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=new_format)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(path)


def test_missing_file_folder_and_bare_tensor(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        read_checkpoint(tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        read_checkpoint(tmp_path)
    torch.save(torch.ones(2), tmp_path / "tensor.pth")
    with pytest.raises(CheckpointError, match="holds a Tensor"):
        read_checkpoint(tmp_path / "tensor.pth")


def load_with_mmengine(path: Path) -> dict:
    return CheckpointLoader.load_checkpoint(str(path), map_location="cpu")


def test_nothing_is_unpickled_in_full_within_tensors_only(exploit, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # whatever the user's shell says
    path, ran = exploit
    with unpickling(anything=False), pytest.raises(pickle.UnpicklingError):
        load_with_mmengine(path)
    assert not ran.exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"


def test_a_misspelt_name_of_a_download_is_an_error_of_the_user():
    with pytest.raises(CheckpointError, match="checkpoint torchvision://resnet5 cannot be loaded: KeyError"):
        read_checkpoint("torchvision://resnet5", trusted=False)


@pytest.mark.filterwarnings("ignore:Environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
def test_trusted_load_lets_mmengine_read_its_own(exploit, training_checkpoint: Path):
    with unpickling(anything=True):
        loaded = load_with_mmengine(training_checkpoint)
    assert loaded["message_hub"]["log_scalars"]["train/loss"].current() == 1.0
    path, ran = exploit
    with unpickling(anything=False):
        # as a decorator it covers one call and nothing after it
        unpickling(anything=True)(load_with_mmengine)(training_checkpoint)
        with pytest.raises(pickle.UnpicklingError):
            load_with_mmengine(path)
        assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ
    assert not ran.exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_a_file_that_is_exchanged_after_its_check_is_not_loaded(tmp_path: Path, exploit):
    """With any loader that a run uses, and though what was checked is trusted to hold objects."""
    checked = tmp_path / "checked.pth"
    torch.save({**WEIGHTS, "hub": HistoryBuffer([1.0], [1])}, checked)
    path, ran = exploit
    with unpickling(anything=False), ReadOnce() as checkpoints:
        checkpoints.read(str(checked), trusted=True)
        os.replace(path, checked)
        for _ in range(2):  # who loads may change what it was given
            loaded = load_with_mmengine(checked)
            assert loaded["hub"].current() == 1.0
            assert loaded["state_dict"].popitem()[1].equal(WEIGHTS["state_dict"]["conv.weight"])
        checkpoints.forget()
        with pytest.raises(CheckpointError, match=r"checked\.pth holds pickled objects"):
            load_with_mmengine(checked)
    assert not ran.exists()
    with unpickling(anything=True):
        load_with_mmengine(checked)  # MMEngine's own loader is back, which runs it
    assert ran.exists()
