"""The GANs that the paper compares VM-DDPM with; the UNet of its diffusion baselines is in `vmddpm.model.unet`."""
