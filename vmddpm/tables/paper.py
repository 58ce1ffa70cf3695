"""The paper's printed results (Ju and Zhou, 2024, Tables I and II): FID of 50,000 synthetic images on its data sets.

Nothing here was measured by this program, and nothing is ever computed from it.
"""

SOURCE = "Ju and Zhou (2024)"
DATASETS = {"chestxray": "ChestXRay", "brats2018": "BraTS2018", "acdc": "ACDC"}

TABLE_I = {  # FID on ChestXRay, BraTS2018, ACDC
    "DCGAN": (98.216, 83.768, 89.473),
    "SAGAN": (42.753, 90.582, 79.037),
    "UNetGAN": (94.668, 60.097, 82.113),
    "DDPM": (23.679, 28.335, 66.630),
    "DDIM": (21.695, 22.391, 47.434),
    "VM-DDPM": (11.783, 12.513, 34.525),
}

TABLE_II = {
    "CSM": (16.783, 13.578, 40.691),
    "Regenerate CSM": (11.783, 12.513, 34.525),
}
