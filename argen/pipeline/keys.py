"""Which random key each image of a call has."""

from __future__ import annotations

from argen.data.draws import hash_seed

KEY_BITS = 48  # few enough digits to type; 50,000 images share a key once in 200,000 calls


def image_keys(seed: int, count: int) -> list[int]:
    """Return the key of each of `count` images: the first has `seed`, image i a hash of (seed, i).

    A key alone names an image: `seed=KEY` with one image samples it again. Calls with neighbouring
    seeds share no image, and a longer call begins with the images of a shorter one.
    """
    return [seed, *(hash_seed("image", seed, i) >> (63 - KEY_BITS) for i in range(1, count))]
