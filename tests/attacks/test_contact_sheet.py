"""The contact sheet."""

import numpy as np
import pytest

from refine_jax.attacks.contact_sheet import contact_sheet


@pytest.mark.parametrize(("side", "zoom"), [(32, 3), (100, 1)])
def test_clean_triggered_and_difference_stand_side_by_side(side, zoom):
    clean = np.random.default_rng(0).integers(0, 200, (2, side, side, 3), dtype=np.uint8)
    triggered = clean.copy()
    triggered[:, :5] += 7
    triggered[:, 5:10] += 50
    sheet = np.asarray(contact_sheet(clean, triggered, factor=10))
    tile = side * zoom
    assert sheet.shape == (16 + 2 * tile + 4, 3 * tile + 2 * 4, 3)
    second_row = sheet[16 + tile + 4 :][::zoom, :]
    columns = [second_row[:, start : start + tile : zoom] for start in (0, tile + 4, 2 * (tile + 4))]
    np.testing.assert_array_equal(columns[0], clean[1])
    np.testing.assert_array_equal(columns[1], triggered[1])
    assert (columns[2][:5] == 70).all()
    assert (columns[2][5:10] == 255).all()
    assert not columns[2][10:].any()
