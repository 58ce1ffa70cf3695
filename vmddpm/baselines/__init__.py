"""The GAN baselines of the paper; the UNet of its diffusion baselines is in `vmddpm.model.unet`."""
