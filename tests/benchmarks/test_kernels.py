from benchmarks.peers import Setting
from benchmarks.processes import Worker


def test_every_kernel_runs_at_sizes_of_a_small_model(setting: Setting) -> None:
    with Worker("lucid", setting) as worker:  # it sets the number of threads, for its process
        times = worker.call("kernels", seconds=0.0)["kernels"]
    names = [one["name"] for one in times]
    for name in ("linear (qkv)", "linear backward", "attention", "attention backward", "layer_norm + residual", "embedding", "AdamW"):
        assert name in names
    assert len({(one["name"], one["label"]) for one in times}) == len(times)
    for one in times:
        assert 0 < one["seconds"] < 60
        assert one["flops"] > 0
        assert one["n_bytes"] > 0
    qkv = next(one for one in times if one["name"] == "linear (qkv)" and one["label"].startswith("128 "))
    assert qkv["flops"] == 2 * 128 * 256 * 768
    assert qkv["n_bytes"] == 4 * (256 * 768 + 128 * 256 + 128 * 768)
