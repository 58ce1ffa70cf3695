"""The systems that the paper compares VM-DDPM with: adversarial ones here, diffusion's UNet in `vmddpm.model.unet`."""
