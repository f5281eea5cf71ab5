# SPDX-License-Identifier: Apache-2.0
"""The movement that hybrids are made of, written as exporters write it: where do channels go?

Maps are looked at as expressions of output coordinates o0, o1, ...; the random tests hold the same
code to onnxruntime element by element.
"""

import numpy as np
import pytest
import sympy

from qhyvit_onnx.layout.index_map import coordinates
from qhyvit_onnx.layout.roles import Role, RoleKind

WHOLE, PART, SPLIT = RoleKind.WHOLE, RoleKind.PART, RoleKind.SPLIT
MERGED, MIXED, GONE = RoleKind.MERGED, RoleKind.MIXED, RoleKind.GONE

UNFOLD = """
    a = Reshape (s, to_blocks) b = Transpose <perm = [0, 2, 1, 3]> (a)
    c = Reshape (b, to_patches) d = Transpose <perm = [0, 3, 2, 1]> (c)
    {out} = Reshape (d, to_tokens)
"""
FOLD = """
    e = Reshape (t, from_tokens) f = Transpose <perm = [0, 3, 2, 1]> (e)
    g = Reshape (f, from_patches) h = Transpose <perm = [0, 2, 1, 3]> (g) y = Reshape (h, to_map)
"""
# (n, 24, 8, 12) in patches of 2 x 2: 24 of them, 4 pixels each
SIZES = {
    "to_blocks": [-1, 2, 6, 2], "to_patches": [-1, 24, 24, 4], "to_tokens": [-1, 24, 24],
    "from_tokens": [-1, 4, 24, 24], "from_patches": [-1, 6, 2, 2], "to_map": [-1, 24, 8, 12],
}  # fmt: skip
UNFOLD_SIZES = {name: np.int64(SIZES[name]) for name in ("to_blocks", "to_patches", "to_tokens")}
FOLD_SIZES = {name: np.int64(SIZES[name]) for name in ("from_tokens", "from_patches", "to_map")}


def roles(found):
    return [found.role(axis) for axis in range(len(found.source))]


@pytest.mark.parametrize("batch", ["n", "1", "3"])
def test_mobilevit_unfold(index_map, batch):
    found = index_map(f"{batch}, 24, 8, 12", UNFOLD.format(out="y"), **UNFOLD_SIZES)
    assert found.role(1) == Role(WHOLE, (2,))
    assert found.role(2) == Role(MERGED, (0, 1))
    assert found.role(3) == Role(MERGED, (0, 1))
    assert found.is_permutation
    # token (pixel p of the patch, patch k) is at row 2 * (k // 6) + p // 2 of the map
    _, channel, row, column = found.source_of_output()
    at = dict(zip(coordinates("o", 3), (3, 13, 17), strict=True))
    assert [part.subs(at) for part in (channel, row, column)] == [17, 2 * 2 + 1, 2 * 1 + 1]


def test_mobilevit_fold_undoes_unfold(index_map):
    found = index_map("n, 24, 8, 12", UNFOLD.format(out="t") + FOLD, **UNFOLD_SIZES, **FOLD_SIZES)
    assert roles(found) == [Role(WHOLE, (axis,)) for axis in range(4)]
    assert found.source_of_output() == coordinates("o", 4)
    assert found.output_of_source() == coordinates("i", 4)


def test_mobilevit_unfold_that_forgets_a_transpose_mixes_channels(index_map):
    """The shapes agree and the result is a permutation, but no channel axis comes out of it."""
    nodes = "a = Reshape (s, to_blocks) c = Reshape (a, to_patches) y = Reshape (c, to_tokens)"
    sizes = {**UNFOLD_SIZES, "to_patches": np.int64([-1, 24, 4, 24])}
    found = index_map("n, 24, 8, 12", nodes, **sizes)
    assert found.is_permutation
    assert found.role(1).kind is MERGED
    assert 2 not in found.role(1).axes


def test_mobilevitv2_patches(index_map):
    nodes = """a = Reshape (s, six) b = Transpose <perm = [0, 1, 3, 5, 2, 4]> (a)
               y = Reshape (b, four)"""
    sizes = {"six": np.int64([-1, 16, 4, 2, 6, 2]), "four": np.int64([-1, 16, 4, 24])}
    found = index_map("n, 16, 8, 12", nodes, **sizes)
    assert found.role(1) == Role(WHOLE, (1,))
    assert found.is_permutation
    o = coordinates("o", 4)
    assert found.source_of_output()[2] == sympy.floor(o[2] / 2) + 2 * sympy.floor(o[3] / 6)


QKV = """q5 = Reshape (s, split) q = Transpose <perm = [2, 0, 3, 1, 4]> (q5)"""
QKV_SIZE = np.int64([-1, 49, 3, 4, 8])


@pytest.mark.parametrize(
    ("pick", "arrays"),
    [
        ("y = Gather <axis = 0> (q, k)", {"k": np.int64(1)}),
        ("a = Slice (q, k, l) y = Squeeze (a, z)",
         {"k": np.int64([1]), "l": np.int64([2]), "z": np.int64([0])}),
        ("a, b, c = Split (q, sizes) y = Squeeze (b, z)",
         {"sizes": np.int64([1, 1, 1]), "z": np.int64([0])}),
    ],
    ids=["gather", "slice", "split"],
)  # fmt: skip
def test_qkv(index_map, pick, arrays):
    found = index_map("n, 49, 96", QKV + pick, split=QKV_SIZE, **arrays)
    assert found.role(2) == Role(SPLIT, (1, 3))
    assert found.role(1) == Role(WHOLE, (2,))
    assert not found.is_permutation
    channels = found.pull(np.arange(96)[None, None], -1)
    assert channels.shape == (1, 4, 1, 8)
    np.testing.assert_array_equal(channels.reshape(-1), np.arange(32, 64))  # k, of q, k, v


def test_qkv_with_the_three_inside_the_head(index_map):
    """(heads, 3, d) instead of (3, heads, d): the keys are not one range of the channels."""
    nodes = "a = Reshape (s, split) y = Gather <axis = 3> (a, k)"
    found = index_map("n, 49, 96", nodes, split=np.int64([-1, 49, 4, 3, 8]), k=np.int64(1))
    assert found.role(2) == Role(SPLIT, (2, 3))
    channels = found.pull(np.arange(96)[None, None], -1)
    np.testing.assert_array_equal(channels[0, 0, :, 0], [8, 32, 56, 80])


def test_transposed_keys_and_joined_heads(index_map):
    keys = index_map(
        "n, 49, 32", "a = Reshape (s, h) y = Transpose <perm = [0, 2, 3, 1]> (a)",
        h=np.int64([-1, 49, 4, 8]),
    )  # fmt: skip
    assert keys.role(2) == Role(SPLIT, (1, 2))
    joined = index_map(
        "n, 4, 49, 8", "a = Transpose <perm = [0, 2, 1, 3]> (s) y = Reshape (a, flat)",
        flat=np.int64([-1, 49, 32]),
    )  # fmt: skip
    assert joined.role(3) == Role(MERGED, (2,))
    assert joined.role(1) == Role(MERGED, (2,))


def test_heads_behind_their_channels_are_not_in_order(index_map):
    nodes = "a = Reshape (s, h) y = Transpose <perm = [0, 1, 3, 2]> (a)"
    found = index_map("n, 49, 32", nodes, h=np.int64([-1, 49, 4, 8]))
    assert found.role(2) == Role(MIXED, (2, 3))


WINDOWS = """
    p = Pad (s, pads) a = Reshape (p, six) b = Transpose <perm = [0, 1, 3, 2, 4, 5]> (a)
    {out} = Reshape (b, tokens)
"""
BACK = """
    c = Reshape (w, windows) d = Transpose <perm = [0, 1, 3, 2, 4, 5]> (c) e = Reshape (d, map)
    y = Slice (e, from, to, axes)
"""
# (n, 12, 10, 16) padded to (n, 14, 14, 16): 2 x 2 windows of 7 x 7 tokens
WINDOW_SIZES = {
    "pads": np.int64([0, 0, 0, 0, 0, 2, 4, 0]), "tokens": np.int64([-1, 49, 16]),
    "six": np.int64([-1, 2, 7, 2, 7, 16]),
}  # fmt: skip


def test_window_partition_with_pad(index_map):
    found = index_map("n, 12, 10, 16", WINDOWS.format(out="y"), **WINDOW_SIZES)
    assert found.role(3) == Role(WHOLE, (2,))
    assert not found.is_permutation
    scales = np.random.default_rng(0).random((1, 1, 1, 16)).astype(np.float32)
    assert found.pull(scales, 0.0) is None  # which tokens are padding depends on n
    single = index_map("1, 12, 10, 16", WINDOWS.format(out="y"), **WINDOW_SIZES)
    pulled = single.pull(scales, 0.0)
    assert pulled.shape == (4, 49, 1 * 16)
    assert (pulled != 0).all(axis=2).sum() == 12 * 10
    np.testing.assert_array_equal(pulled[0, 0], scales.reshape(-1))
    assert not pulled[3, 48].any()


def again(index_map, windows, height):
    """Return the map through windows and back to (n, height, 10, 16)."""
    arrays = {
        **WINDOW_SIZES, "windows": np.int64(windows), "map": np.int64([-1, 14, 14, 16]),
        "from": np.int64([0, 0]), "to": np.int64([height, 10]), "axes": np.int64([1, 2]),
    }  # fmt: skip
    return index_map("n, 12, 10, 16", WINDOWS.format(out="w") + BACK, **arrays)


def test_windows_put_together_again_are_where_they_were(index_map):
    found = again(index_map, [-1, 2, 2, 7, 7, 16], 12)
    assert roles(found) == [Role(WHOLE, (axis,)) for axis in range(4)]
    assert found.is_permutation  # no element is padding any more
    assert found.form.bounds == ()


def test_windows_cut_to_another_size_keep_their_padding(index_map):
    found = again(index_map, [-1, 2, 2, 7, 7, 16], 13)
    assert not found.is_permutation
    assert found.role(1) == Role(PART, (1,))
    assert found.role(2) == Role(WHOLE, (2,))


def test_windows_put_together_in_another_order_are_not(index_map):
    found = again(index_map, [-1, 2, 7, 2, 7, 16], 12)
    assert found.role(1).kind is MIXED
    assert found.role(2).kind is MIXED
    assert found.role(3) == Role(WHOLE, (3,))
    assert not found.is_permutation


def test_roll_is_two_parts_that_fill_the_axis(layout):
    nodes = """a = Slice (s, three, far, axis) b = Slice (s, zero, three, axis)
               y = Concat <axis = 1> (a, b)"""
    found = layout(
        "n, 14, 14, 16", nodes, zero=np.int64([0]), three=np.int64([3]),
        far=np.int64([2**63 - 1]), axis=np.int64([1]),
    )  # fmt: skip
    first, second = (chain.map for chain in found.chains)
    for part in (first, second):
        assert part.role(1) == Role(PART, (1,))
        assert part.role(3) == Role(WHOLE, (3,))
    rows = np.arange(14).reshape(1, 14, 1, 1)
    pulled = [part.pull(rows, -1).reshape(-1) for part in (first, second)]
    np.testing.assert_array_equal(pulled[0], [*range(3, 14), -1, -1, -1])
    np.testing.assert_array_equal(pulled[1], [-1] * 11 + [0, 1, 2])


def test_flat(index_map):
    nodes = "a = Reshape (s, flat) y = Transpose <perm = [0, 2, 1]> (a)"
    found = index_map("n, 24, 7, 7", nodes, flat=np.int64([0, 24, -1]))
    assert found.role(1) == Role(WHOLE, (2,))
    assert found.role(2) == found.role(3) == Role(MERGED, (1,))
    assert found.output_of_source()[1] == coordinates("i", 4)[3] + 7 * coordinates("i", 4)[2]


def test_reshape_in_the_place_of_a_transpose(index_map):
    """Same shapes as Flat, and channels end up all over the place."""
    found = index_map("n, 24, 7, 7", "y = Reshape (s, flat)", flat=np.int64([0, 49, 24]))
    assert found.role(1).kind is MIXED
    assert found.is_permutation  # still no element is lost
    assert found.role(0) == Role(WHOLE, (0,))


@pytest.mark.parametrize("free", ["n, 24, h, w", "n, 24, 7, w"])
def test_flat_of_a_map_of_free_size(layout, free):
    nodes = """d = Shape (s) head = Gather (d, front) shape = Concat <axis = 0> (head, rest)
               a = Reshape (s, shape) y = Transpose <perm = [0, 2, 1]> (a)"""
    found = layout(free, nodes, front=np.int64([0, 1]), rest=np.int64([-1]))
    (chain,) = found.chains
    assert chain.map.role(1) == Role(WHOLE, (2,))
    assert chain.map.is_permutation


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(index_map, mode):
    nodes = f'y = DepthToSpace <blocksize = 2, mode = "{mode}"> (s)'
    found = index_map("n, 12, h, w", nodes)
    assert found.role(1) == Role(MERGED, (1, 2, 3))
    assert found.is_permutation


def test_space_to_depth_is_undone(index_map):
    nodes = "a = SpaceToDepth <blocksize = 2> (s) y = DepthToSpace <blocksize = 2> (a)"
    found = index_map("n, 3, 8, 6", nodes)
    assert found.source_of_output() == coordinates("o", 4)


def test_col2im_of_tiles(index_map):
    nodes = "y = Col2Im <strides = [2, 3]> (s, image, block)"
    sizes = {"image": np.int64([8, 6]), "block": np.int64([2, 3])}
    found = index_map("n, 30, 8", nodes, **sizes)
    assert found.is_permutation
    assert found.role(1) == Role(MERGED, (1, 2, 3))


@pytest.mark.parametrize(
    ("attrs", "reason"),
    [
        ("", "blocks overlap or leave gaps"),
        ("<strides = [2, 2], pads = [1, 0, 1, 0]>", "blocks hang over the border"),
        ("<strides = [2, 2], dilations = [2, 1]>", "blocks are dilated"),
    ],
)
def test_col2im_that_adds_is_refused(layout, attrs, reason):
    sizes = {"image": np.int64([8, 8]), "block": np.int64([2, 2])}
    found = layout("1, 12, 16", f"y = Col2Im {attrs} (s, image, block)", **sizes)
    assert found.chains == ()
    assert found.misses == {f"Col2Im: {reason}": 1}


def test_channel_shuffle(index_map):
    nodes = """a = Reshape (s, groups) b = Transpose <perm = [0, 2, 1, 3, 4]> (a)
               y = Reshape (b, map)"""
    sizes = {"groups": np.int64([0, 3, 4, 5, 6]), "map": np.int64([0, 12, 5, 6])}
    found = index_map("n, 12, 5, 6", nodes, **sizes)
    assert found.role(1) == Role(MIXED, (1,))
    assert found.alone(1) == 1
    shuffled = found.pull(np.arange(12).reshape(1, 12, 1, 1), -1)
    np.testing.assert_array_equal(shuffled.reshape(-1), np.arange(12).reshape(3, 4).T.reshape(-1))


def test_two_maps_in_one_concat(layout):
    found = layout("n, 8, 5, 5", "t = Relu (s) y = Concat <axis = 1> (s, t, s)")
    maps = [(c.source, c.map) for c in found.chains]
    assert [source for source, _ in maps] == ["s", "s", "t"]
    assert {part.role(1) for _, part in maps} == {Role(PART, (1,))}
    assert {part.role(2) for _, part in maps} == {Role(WHOLE, (2,))}
    starts = [int(np.argmax(p.pull(np.arange(8).reshape(1, 8, 1, 1), -1) == 0)) for _, p in maps]
    assert starts == [0, 16, 8]


def test_what_a_concat_put_beside_is_not_reached_by_a_later_split(layout):
    nodes = "t = Relu (s) c = Concat <axis = 1> (s, t) a, y = Split <axis = 1> (c, sizes)"
    found = layout("n, 8, 5, 5", nodes, sizes=np.int64([8, 8]))
    assert [(c.source, c.map.is_permutation) for c in found.chains] == [("t", True)]
