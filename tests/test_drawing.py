# SPDX-License-Identifier: Apache-2.0
"""The drawing: sound XML, everything on it and in its place, for any number of regions."""

import xml.etree.ElementTree as ET
from dataclasses import replace

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qhyvit_onnx.drawing import draw
from qhyvit_onnx.drawing.captions import Sizes, clean, shortened, work, work_label
from qhyvit_onnx.drawing.plan import LEFT, RIGHT, Plan
from qhyvit_onnx.drawing.strip import Box, box_widths, split_evenly
from qhyvit_onnx.drawing.tracks import Link, tracks
from qhyvit_onnx.errors import ModelError
from qhyvit_onnx.inspection import (
    BridgeView,
    Inspection,
    Observed,
    OneSided,
    Port,
    RegionView,
    Spread,
    inspect_model,
)
from qhyvit_onnx.targets import find_target
from tests.blocks import FAMILIES

TIMES = "\N{MULTIPLICATION SIGN}"
SVG = "{http://www.w3.org/2000/svg}"


def region(place, macs=1000, size="8x8"):
    side = ("local", "global")[place % 2]
    return RegionView(
        side=side, size=size, nodes=(f"first{place}", f"last{place}"), layers=2, products=0,
        macs=macs, shape_in=(1, 3, 8, 8), shape_out=(1, 16, 8, 8), channels_in=3, channels_out=16,
    )  # fmt: skip


def bridge(*crosses, direction="in", size="8x8"):
    return BridgeView(
        direction=direction, size=size, why=f"{size}: features reach attention at <a & b>",
        nodes=("a",), inputs=("x",), outputs=("y",), crosses=crosses, layers=1, macs=10,
    )  # fmt: skip


def inspection(regions, **more):
    fields = {
        "schema_version": 2, "path": "some/net.onnx", "file_bytes": 1, "ir_version": 8,
        "opsets": {"ai.onnx": 17}, "producer": "", "inputs": (Port("x", "float", (1, 3, 8, 8)),),
        "outputs": (Port("y", "float", (1, 10)),), "parameters": 10, "nodes": 9,
        "nodes_normalised": 9, "quantized": False, "families": {}, "target": "x64-vnni",
        "regions": tuple(regions), "macs": sum(r.macs or 0 for r in regions),
        "flows": tuple((at, at + 1) for at in range(len(regions) - 1)),
    }  # fmt: skip
    return Inspection(**fields | more)


def texts(svg):
    """Return what a reader can see, with ``x`` for the sign between dims."""
    root = ET.fromstring(svg.encode())
    return [(element.text or "").replace(TIMES, "x") for element in root.iter(f"{SVG}text")]


def titles(svg):
    return [item.text for item in ET.fromstring(svg.encode()).iter(f"{SVG}title")]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_drawn(tmp_path, family):
    onnx.save(FAMILIES[family](), tmp_path / "net.onnx")
    found = inspect_model(tmp_path / "net.onnx", find_target("arm64", frozenset()))
    svg = draw(found)
    shown = texts(svg)
    for number, item in enumerate(found.regions, 1):
        assert str(number) in shown
        assert item.size in shown
    for number in range(1, len(found.bridges) + 1):
        assert f"B{number}" in shown
    assert draw(found) == svg


def test_it_stands_alone():
    svg = draw(inspection([region(at) for at in range(4)], bridges=(bridge((0, 1)),)))
    root = ET.fromstring(svg.encode())
    assert {element.tag for element in root.iter() if "script" in element.tag} == set()
    outside = [
        value
        for element in root.iter()
        for name, value in element.attrib.items()
        if "href" in name or "url(" in value
    ]
    assert all(value.startswith("url(#") for value in outside)
    assert "@import" not in svg
    assert root.get("role") == "img"
    assert {element.get("id") for element in root} >= set(root.get("aria-labelledby").split())


def test_labels_of_a_region():
    shown = texts(draw(inspection([region(0, macs=3_000_000), region(1, macs=1_000_000)])))
    for text in ("8x8", "3→16 ch", "2 layers", "3.00 M, 75 %", "local", "global", "net"):
        assert text in shown


def test_names_that_xml_cannot_hold_are_replaced():
    seen = Observed(
        data="arrays", samples=1, one_sided=(), unwatched=0,
        spreads=(Spread(tensor="a<b>&\x00\x1b", region=0, channels=2, before=3.0, after=1.0,
                        cure="scale"),),
    )  # fmt: skip
    odd = replace(region(0), nodes=("<&>\x07",))
    svg = draw(inspection([odd, region(1)], bridges=(bridge((0, 1)),), observed=seen))
    assert "a<b>&��" in texts(svg)
    assert any("<&>�" in title for title in titles(svg))
    assert clean("\ttab and ü") == "\ttab and ü"


def test_without_regions_there_is_nothing_to_draw():
    with pytest.raises(ModelError, match="no regions"):
        draw(inspection([]))


def spots(count):
    wide = tuple(
        Spread(tensor=f"w{at}", region=1, channels=8, before=20.0 - at, after=2.0, cure="both")
        for at in range(count)
    )
    sided = tuple(
        OneSided(tensor=f"s{at}", region=None, low=1.0, high=2.0, cure="cover")
        for at in range(count)
    )
    return Observed(data="arrays", samples=4, spreads=wide, unwatched=0, one_sided=sided)


@pytest.mark.parametrize("count", [0, 3, 25])
def test_trouble_spots_are_marked_and_listed(count):
    regions = [region(at) for at in range(3)]
    svg = draw(inspection(regions, observed=spots(count)))
    root, marked = ET.fromstring(svg.encode()), min(count, 10)
    (parent,) = [item for item in root if item.get("id") == "regions"]
    circles = list(parent.iter(f"{SVG}circle"))
    assert len(circles) == marked
    box = Plan.of(inspection(regions, observed=spots(count)))
    row, place = box.rows[0], box.boxes[1]
    for circle in circles:
        x, y = float(circle.get("cx")), float(circle.get("cy"))
        assert place.x < x - 9 < x + 9 < place.right
        assert row.top < y - 9 < y + 9 < row.top + row.height
    shown = texts(svg)
    assert sum(f"w{at}" in shown for at in range(count)) == marked
    assert sum(f"s{at}" in shown for at in range(count)) == marked
    assert any("(10 of 25)" in text for text in shown) == (count == 25)


@pytest.mark.parametrize("count", [1, 2, 7, 28, 300])
def test_regions_lie_on_the_page_in_order_and_apart(count):
    regions = [region(at, macs=1000 * (at * 37 % 11)) for at in range(count)]
    bridges = tuple(bridge((at, at + 1)) for at in range(0, count - 1, 3))
    plan = Plan.of(inspection(regions, bridges=bridges))
    assert [box.place for box in plan.boxes] == list(range(count))
    for box, following in zip(plan.boxes, plan.boxes[1:], strict=False):
        if box.row == following.row:
            assert box.right + following.gap == following.x
        else:
            assert following.row == box.row + 1
    assert all(LEFT <= box.x < box.right <= RIGHT for box in plan.boxes)
    assert all(a.bottom < b.top for a, b in zip(plan.rows, plan.rows[1:], strict=False))
    ET.fromstring(draw(inspection(regions, bridges=bridges)).encode())


def test_width_grows_with_work_or_else_with_nodes():
    known = box_widths([region(0, macs=macs) for macs in (0, 10, 90, 1000)])
    assert known == sorted(known)
    assert len(set(known)) == 4
    many = replace(region(0, macs=None), nodes=("a",) * 50)
    few, wide = box_widths([region(0, macs=10**9), many])
    assert few < wide


def test_a_long_way_over_is_a_line_of_its_own():
    regions = [region(at) for at in range(4)]
    svg = draw(inspection(regions, bridges=(bridge((0, 3), (1, 2), (2, 2)),)))
    root = ET.fromstring(svg.encode())
    rails = [item for item in root.iter(f"{SVG}path") if item.get("class") == "rail"]
    assert len(rails) == 1
    shown = texts(svg)
    assert "B1 in 8x8" in shown
    assert "1 → 4, 2 → 3, within 3" in shown


def test_a_line_into_another_row_ends_and_begins_with_a_number():
    regions = [region(at) for at in range(20)]
    found = inspection(regions)
    svg = draw(replace(found, flows=(*found.flows, (0, 19))))
    far = [
        item.text
        for item in ET.fromstring(svg.encode()).iter(f"{SVG}text")
        if item.get("class") == "far"
    ]
    assert far == ["20", "1"]


def test_long_names_of_free_dims_become_letters():
    port = Port("x", "float", ("N", 3, "max_height", "p.x.w"))
    sizes = Sizes.of([port])
    assert sizes.size("max_height/8xp.x.w/4") == f"a/8{TIMES}b/4"
    assert sizes.size("?/2xN") == f"?/2{TIMES}N"
    assert sizes.shape(port.shape) == TIMES.join("N3ab")
    assert sizes.shape((1, "floor(p.x.w/2)", 4)) == TIMES.join("1?4")
    assert sizes.legend == "a = max_height, b = p.x.w"
    regions = [region(0, macs=None, size="max_height/2xp.x.w/2"), region(1, macs=None)]
    shown = texts(draw(inspection(regions, inputs=(port,), macs=None)))
    assert "a/2xb/2" in shown
    assert any("a = max_height" in text for text in shown)
    assert shown.count("work unknown") == 2


def test_shares_too_small_to_round_are_still_there():
    assert work(1_000, 1_000_000_000) == "1.00 k, <1 %"
    assert work(0, 1_000) == "0"
    assert work_label(0, 1_000) == "no multiply-adds"
    assert work_label(None, None) == "work unknown"


@given(st.text(max_size=80), st.integers(4, 40))
def test_a_shortened_name_fits_and_keeps_its_end(text, length):
    short = shortened(text, length)
    assert len(short) <= length
    assert short == text or (short[-1] == text[-1] and "…" in short)


@given(st.lists(st.integers(50, 400), min_size=1, max_size=40))
def test_rows_hold_everything_in_order_and_none_is_too_long(lengths):
    rows = split_evenly(lengths, 1000)
    assert [place for row in rows for place in row] == list(range(len(lengths)))
    assert all(sum(lengths[at] for at in row) <= 1000 for row in rows)
    assert len(rows) <= 1 + 2 * sum(lengths) // 1000  # filling in order wastes under half a row


BOXES = [Box(at, at // 5, 100 + 150 * (at % 5), 120, 30) for at in range(15)]
LINKS = st.lists(st.tuples(st.integers(0, 14), st.integers(0, 14)), max_size=15)


@given(LINKS)
def test_no_two_lines_share_a_lane(pairs):
    links = [Link(min(pair), max(pair), "label") for pair in pairs if pair[0] != pair[1]]
    found = tracks(BOXES, links)
    expected = sum(1 if BOXES[a.source].row == BOXES[a.target].row else 2 for a in links)
    assert len(found) == expected
    for at, piece in enumerate(found):
        for other in found[:at]:
            if (piece.row, piece.lane) == (other.row, other.lane):
                assert piece.reach < other.x1 or other.reach < piece.x1
