"""Which sizes of a Reshape are sizes of its input: what a file has written down, followed back.

What enters: the input's sizes in each trial run and the sizes written in the file. What leaves:
for each written size that is a product or a part of the input's own, which. Those stay dynamic, so
that the network still runs after its channels are pruned.

Equal numbers in corresponding places are taken as the same size: that changes nothing for the file
as it is. A place corresponds when the products of all sizes before it are equal on both sides.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """The product of the input's sizes of `dims` over `divisor`."""

    dims: tuple[int, ...]
    divisor: int = 1


def follow_sizes(shapes: list[tuple[int, ...]], written: list[int | None]) -> dict[int, Source]:
    """Place in the Reshape -> source. `written` has None for sizes that are dynamic already."""
    found = [_follow(shape, written) for shape in shapes]
    # What holds for one batch only is a coincidence of numbers.
    return {
        place: source
        for place, source in found[0].items()
        if all(other.get(place) == source for other in found[1:])
    }


def _follow(shape: tuple[int, ...], written: list[int | None]) -> dict[int, Source]:
    result: dict[int, Source] = {}
    front = _walk(list(enumerate(shape)), list(enumerate(written)), result)
    if not front:  # a -1 or a dynamic size in the way: go on from the end
        _walk(
            list(reversed(list(enumerate(shape)))), list(reversed(list(enumerate(written)))), result
        )
    return result


def _walk(
    dims: list[tuple[int, int]], places: list[tuple[int, int | None]], result: dict[int, Source]
) -> bool:
    """Match from one side as far as written sizes go; whether all were matched."""
    i = k = 0
    while i < len(dims) and k < len(places):
        size = places[k][1]
        if size is None or size < 0:
            # A dynamic size takes the place of one dimension where that leaves as many on both
            # sides; otherwise nothing corresponds from here on.
            if size is None and len(dims) - i == len(places) - k:
                i, k = i + 1, k + 1
                continue
            if len(dims) - i == len(places) - k and _rest_equal(dims[i + 1 :], places[k + 1 :]):
                i, k = i + 1, k + 1
                continue
            return False
        step = _group(dims, places, i, k, result)
        if step is None:
            return False
        i, k = step
    return i == len(dims) and k == len(places)


def _rest_equal(dims: list[tuple[int, int]], places: list[tuple[int, int | None]]) -> bool:
    return all(p[1] is None or p[1] == d[1] for d, p in zip(dims, places, strict=True))


def _group(
    dims: list[tuple[int, int]],
    places: list[tuple[int, int | None]],
    i: int,
    k: int,
    result: dict[int, Source],
) -> tuple[int, int] | None:
    """One smallest group of dimensions and places of equal product; where the next begins."""
    have, want = dims[i][1], places[k][1] or 0
    first_i, first_k = i, k
    i, k = i + 1, k + 1
    while have != want:
        if have < want and i < len(dims):
            have *= dims[i][1]
            i += 1
        elif have > want and k < len(places) and (places[k][1] or 0) > 0:
            want *= places[k][1] or 0
            k += 1
        else:
            return None
    taken_dims = tuple(sorted(d for d, _ in dims[first_i:i]))
    taken = sorted(places[first_k:k])
    sizes = [size or 0 for _, size in taken]
    if len(taken) == 1 and (sizes[0] > 1 or len(taken_dims) == 1):
        result.setdefault(taken[0][0], Source(taken_dims))
    elif len(taken) == 2 and len(taken_dims) == 1 and min(sizes) > 1:
        # (heads, channels of each): the count of heads is written, what each holds is the rest
        result.setdefault(taken[1][0], Source(taken_dims, sizes[0]))
    return i, k
