"""The algebra of ids: what is one channel, what stays, what is a product."""

import numpy as np
import pytest

from gbn.equations import Products
from gbn.ids import FIXED, NONE, IdSpace


def atoms(space: IdSpace, rows: np.ndarray) -> list[frozenset[int]]:
    return space.resolve().columns(rows)


def test_fresh_ids_are_atoms_of_their_own():
    space = IdSpace()
    a, b = space.fresh(3, "a"), space.fresh(2, "b")
    assert a.tolist() == [[1, 2, 3]] and b.tolist() == [[4, 5]]
    columns = atoms(space, np.concatenate([a, b], axis=1))
    assert all(len(column) == 1 for column in columns)
    assert len(frozenset().union(*columns)) == 5


def test_ties_are_transitive():
    space = IdSpace()
    a, b, c = (space.fresh(2, name) for name in "abc")
    space.tie(a, b, "")
    space.tie(b[:, ::-1], c, "")
    resolved = space.resolve()
    assert resolved.columns(a) == resolved.columns(b)
    assert resolved.columns(c) == resolved.columns(a)[::-1]


def test_a_tie_with_a_fixed_position_freezes_that_position_alone():
    space = IdSpace()
    a = space.fresh(3, "a")
    space.tie(a, np.array([[FIXED, 99, FIXED]]) * 0 + np.array([[0, a[0, 1], 0]]), "meets fixed")
    resolved = space.resolve()
    assert [bool(column) for column in resolved.columns(a)] == [False, True, False]
    assert set(resolved.frozen.values()) == {"meets fixed"}


def test_the_first_reason_is_kept():
    space = IdSpace()
    a = space.fresh(1, "a")
    space.freeze(a, "first")
    space.freeze(a, "second")
    assert list(space.resolve().frozen.values()) == ["first"]


def test_freezing_spreads_over_ties():
    space = IdSpace()
    a, b = space.fresh(2, "a"), space.fresh(2, "b")
    space.tie(a, b, "")
    space.freeze(a[:, :1], "stays")
    columns = atoms(space, b)
    assert columns[0] == frozenset() and len(columns[1]) == 1


def test_a_product_survives_only_with_all_of_its_factors():
    space = IdSpace()
    whole, rows, cols = space.fresh(6, "x"), space.fresh(2, "r"), space.fresh(3, "c")
    space.tie(whole, np.stack([np.repeat(rows[0], 3), np.tile(cols[0], 2)]), "")
    resolved = space.resolve()
    r, c = resolved.columns(rows), resolved.columns(cols)
    assert resolved.columns(whole) == [r[i] | c[j] for i in range(2) for j in range(3)]


def test_a_frozen_factor_leaves_the_other_free():
    space = IdSpace()
    whole, rows, cols = space.fresh(6, "x"), space.fresh(2, "r"), space.fresh(3, "c")
    space.tie(whole, np.stack([np.repeat(rows[0], 3), np.tile(cols[0], 2)]), "")
    space.freeze(rows, "heads stay")
    resolved = space.resolve()
    c = resolved.columns(cols)
    assert resolved.columns(whole) == [c[0], c[1], c[2]] * 2


def test_a_frozen_product_freezes_what_cannot_go_without_it():
    space = IdSpace()
    whole, rows, cols = space.fresh(6, "x"), space.fresh(2, "r"), space.fresh(3, "c")
    space.tie(whole, np.stack([np.repeat(rows[0], 3), np.tile(cols[0], 2)]), "")
    space.freeze(whole, "is a model output")
    resolved = space.resolve()
    assert resolved.columns(rows) == [frozenset()] * 2
    assert resolved.columns(cols) == [frozenset()] * 3


def test_two_products_of_the_same_channels_share_their_factors():
    space = IdSpace()
    whole = space.fresh(6, "x")
    first = [space.fresh(2, "r1"), space.fresh(3, "c1")]
    second = [space.fresh(2, "r2"), space.fresh(3, "c2")]
    for rows, cols in (first, second):
        space.tie(whole, np.stack([np.repeat(rows[0], 3), np.tile(cols[0], 2)]), "")
    resolved = space.resolve()
    for one, other in zip(first, second, strict=True):
        assert resolved.columns(one) == resolved.columns(other)


def test_products_that_no_cut_keeps_rectangular_freeze_the_smallest_factor():
    """Six channels as 2 x 3 and as 3 x 2: what is left must be readable both ways."""
    space = IdSpace()
    whole = space.fresh(6, "x", "weight", 0)
    for height, width in ((2, 3), (3, 2)):
        rows, cols = space.fresh(height, "r"), space.fresh(width, "c")
        space.tie(whole, np.stack([np.repeat(rows[0], width), np.tile(cols[0], height)]), "")
    resolved = space.resolve()
    columns = resolved.columns(whole)
    alive_sets = {frozenset().union(*columns)}
    for atom in next(iter(alive_sets)):
        left = sum(atom not in column for column in columns)
        assert left % 2 == 0 and left % 3 == 0
    assert any("two ways" in reason for reason in resolved.frozen.values())


def test_empty_places_of_a_column_say_nothing():
    space = IdSpace()
    a = space.fresh(2, "a")
    padded = np.concatenate([a, np.full((1, 2), NONE)], axis=0)
    resolved = space.resolve()
    assert resolved.columns(padded) == resolved.columns(a)


@pytest.mark.parametrize(
    ("change", "whole"),
    [
        (lambda r: r, True),
        (lambda r: r[:, :3], False),
        (lambda r: r[:, 1:], False),
        (lambda r: np.concatenate([r, r]), False),
        (lambda r: r[:, :0], False),
    ],
)  # fmt: skip
def test_a_whole_block_of_a_tensor_is_recognised(change, whole):
    space = IdSpace()
    space.fresh(2, "op")
    rows = space.fresh(4, "conv", "conv.weight", 0)
    assert (space.block_start(change(rows)) == 3) is whole


def test_ids_issued_by_an_op_are_no_block_of_a_tensor():
    space = IdSpace()
    assert space.block_start(space.fresh(4, "op")) is None


def test_a_product_that_is_its_own_factor_defines_nothing():
    """Where no class has a definition yet, there is none to compare with."""
    products = Products(3)
    own, factors = np.array([0, 1]), np.array([[0, NONE], [1, 2]])
    assert products.define(own, factors).tolist() == [False, False]
    assert products.of(0) is None and len(products.owners()) == 0
    assert products.define(np.array([2]), np.array([[0, 1]])).tolist() == [True]
