"""A disk that is full. A limit on the size of files stands in for it: the system refuses to write in the same way."""

import pytest
from builders import write_run

from mobiler2l_ns.checkpoints import read_checkpoint


@pytest.fixture
def end(processes, capture, tmp_path):
    """Runs a victim that may not write large files; returns the sentence with which it ends."""

    def run(victim: str, largest_file: int) -> str:
        process, phases = processes(victim, tmp_path, capture, largest_file)
        try:
            while True:
                phases.recv()
        except EOFError:
            process.join()
        assert process.exitcode == 1
        sentence = (tmp_path / "error.txt").read_text()
        assert sentence.startswith("mobiler2l: ") and "File too large" in sentence and "\n" not in sentence
        return sentence

    return run


def test_a_training_goes_on_without_checkpoints_and_says_so_at_the_end(end, tmp_path):
    sentence = end("train_without_cache", 100_000)
    assert "the checkpoint of step 23 cannot be written" in sentence and "--load-dir" in sentence
    run = tmp_path / "outputs" / "faults" / "mobiler2l-small" / "run"
    assert (run / "config.yml").is_file() and not list(run.rglob("*.ckpt")) and not list(run.rglob("*.writing"))


def test_a_cache_takes_its_space_before_the_training(end, tmp_path):
    """Writing to a memory map of a full disk would kill the process."""
    assert "the cache folder" in end("train", 20_000)
    assert not (tmp_path / "cache" / "pool.json").exists()


def test_an_export_leaves_nothing(end, tmp_path):
    run = write_run(tmp_path / "mobiler2l-small" / "run").parent
    before = sorted(path.name for path in run.iterdir())
    assert "files cannot be written" in end("export", 20_000)
    assert not list(tmp_path.glob("*files*")) and sorted(path.name for path in run.iterdir()) == before
    (checkpoint,) = run.rglob("*.ckpt")
    assert read_checkpoint(checkpoint)["step"] == 7
