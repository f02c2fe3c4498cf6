"""What continuous flows must show: densities, samplers, couplings, speed, gradients through the sampler."""
