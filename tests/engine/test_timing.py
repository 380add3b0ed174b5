"""What --mode time prints of what it has measured."""

from pycls.report.summary import timing

TIMES = {"test_step_s": 0.01, "train_step_s": 0.03, "loader_s": 0.04, "both_s": 0.04}


def test_what_limits() -> None:
    text = timing(TIMES, 256, decodes_on_gpu=False)
    assert text.splitlines()[2].split() == ["loader", "40.00", "ms", "6,400", "img/s"]
    assert text.endswith("the loader is what limits training here") and "GPU" not in text
    quick = timing({**TIMES, "loader_s": 0.02}, 256, decodes_on_gpu=False)
    assert quick.endswith("the training step is what limits training here")


def test_on_a_gpu() -> None:
    text = timing({**TIMES, "gpu_waits": 0.25}, 256, decodes_on_gpu=True)
    assert "\n  loader, JPEGs on GPU       40.00 ms" in text
    assert "\n  the GPU waits for data      25.0 % of the time\n" in text
