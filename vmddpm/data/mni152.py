"""A brain without a download: the MNI152 T1 template, an average of 152 adults, which nilearn includes."""

import nibabel as nib

from vmddpm.data.config import DataError


def mni152_template(resolution: int) -> nib.Nifti1Image:
    """The template with voxels of `resolution` mm. Raises DataError if nilearn is not installed."""
    try:
        from nilearn.datasets import load_mni152_template
    except ModuleNotFoundError as error:
        raise DataError(
            f"the MNI152 brain comes with nilearn, but {error.name} is missing; `pip install \".[demo]\"` in the "
            "source tree installs it"
        ) from error
    template: nib.Nifti1Image = load_mni152_template(resolution=resolution)
    return template
