"""With ``LUCID_REQUIRE_GPU=1`` a test that would be skipped for want of a GPU fails."""

import pytest

from gpu import conftest


@pytest.mark.parametrize(("is_required", "outcome"), [(False, pytest.skip.Exception), (True, pytest.fail.Exception)])
def test_a_missing_gpu(monkeypatch: pytest.MonkeyPatch, is_required: bool, outcome: type[BaseException]) -> None:
    monkeypatch.setattr(conftest, "IS_REQUIRED", is_required)
    monkeypatch.setattr(conftest, "missing_gpu", lambda: "no driver")
    with pytest.raises(outcome, match="no GPU here: no driver"):
        conftest.real_gpu()
