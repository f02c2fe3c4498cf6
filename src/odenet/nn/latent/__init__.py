"""Latent ODEs: generative models of series at irregular times."""

from .decoders import CategoricalDecoder, Decoder, GaussianDecoder
from .latent_ode import LatentODE
from .predictions import Prediction
from .variational import kl_warmup

__all__ = ["CategoricalDecoder", "Decoder", "GaussianDecoder", "LatentODE", "Prediction", "kl_warmup"]
