"""Square patches cut out of pictures at random positions, fixed by a seed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from datasets.errors import DataError
from datasets.noise import keyed_generator
from datasets.sources.images import Images, check_fits
from recon.errors import at_least


def random_patches(
    images: Images,
    patch_size: int,
    n_patches: int,
    seed: int,
    names: Sequence[str] | None = None,
) -> torch.Tensor:
    """Cut square patches out of pictures, at positions that are uniform among all that fit.

    The pictures take turns in an order drawn from the seed, so each gives the same number of patches, give or take
    one. Patch i depends on the seed, i and the pictures alone: more patches only append.

    Parameters
    ----------
    images
        pictures of shape (C, H, W), of any sizes; each is read once, and only if it gives a patch.
    patch_size
        side of the patches in pixels.
    n_patches
        number of patches.
    seed
        at least 0.
    names
        of the pictures, for messages.

    Returns
    -------
    torch.Tensor
        Patches of shape (n_patches, C, patch_size, patch_size), in the pictures' type.

    Raises
    ------
    ValueError
        patch_size or n_patches is less than 1, the seed is negative.
    DataError
        no picture, a picture that is smaller than the patches, pictures in gray and in colour.
    """
    at_least(1, patch_size=patch_size, n_patches=n_patches)
    if len(images) == 0:
        raise DataError("there is no picture to cut patches out of")
    order = keyed_generator(seed).permutation(len(images)).tolist()
    patches: dict[int, torch.Tensor] = {}
    for turn, picture in enumerate(order[:n_patches]):
        image = images[picture]
        label = names[picture] if names is not None else f"picture {picture}"
        for number in range(turn, n_patches, len(order)):
            patches[number] = _cut(image, patch_size, seed, number, label)
    channels = {patch.shape[0] for patch in patches.values()}
    if len(channels) > 1:
        raise DataError(
            "pictures in gray and in colour cannot form one batch; leave one kind out, or read them with gray=True"
        )
    return torch.stack([patches[number] for number in range(n_patches)])


def _cut(image: torch.Tensor, side: int, seed: int, number: int, label: str) -> torch.Tensor:
    height, width = check_fits(image, side, label, f"a patch with patch_size {side}")
    draw = keyed_generator(seed, number)
    top, left = int(draw.integers(height - side + 1)), int(draw.integers(width - side + 1))
    return image[..., top : top + side, left : left + side].clone()
