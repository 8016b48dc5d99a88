import pytest

from benchmarks.peers import Setting, version
from benchmarks.step import measure
from benchmarks.training import peaks, show_table, table


def test_the_table_adds_up() -> None:
    rows = table(8, 128, 12, is_recomputed=False)
    size = {what: mb for what, _, mb in rows}
    layer = [mb for what, _, mb in rows if what.startswith("a layer: ")]
    assert sum(layer) == pytest.approx(size["a layer, together"])
    assert size["all layers but the last"] == pytest.approx(11 * size["a layer, together"])
    assert size["weights"] == pytest.approx(438.06, abs=0.1)  # 109,514,298 numbers of 4 bytes
    moments = peaks(rows)
    assert max(moments.values()) > size["weights"] + size["moments m and v"]


def test_recomputation_keeps_less() -> None:
    kept, again = (max(peaks(table(32, 128, 12, is_recomputed)).values()) for is_recomputed in (False, True))
    assert again < 0.6 * kept


def test_the_table_is_shown() -> None:
    text = show_table(8, 128)
    assert "| weights | always | 438.1 |" in text
    assert "| within the loss |" in text


@pytest.mark.parametrize("is_recomputed", [False, True])
def test_a_step_beside_transformers(setting: Setting, is_recomputed: bool) -> None:
    if version("torch") is None or version("transformers") is None:
        pytest.skip("torch and transformers are not installed")
    text = measure(setting, 2, 24, 1, is_recomputed)
    heads = [line for line in text.splitlines() if "transformers-eager" in line]
    assert heads == ["| part | lucid | transformers-eager |", "| resident, MB | lucid | transformers-eager |"]
    for part in ("forward", "backward", "update", "between steps", "peak of the step"):
        assert f"| {part} |" in text
