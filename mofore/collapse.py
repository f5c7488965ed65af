"""Embeddings in, two numbers out that fall when an encoder collapses.

A collapsed encoder is perfectly stable and forecasts perfectly, so neither the loss nor a cosine between
views shows it. Training logs these two beside the loss, evaluation prints them beside every stability.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def effective_rank(embeddings: Tensor) -> Tensor:
    """RankMe: exp of the entropy of the normalised singular values, between 1 and min(N, D).

    Garrido et al., "RankMe", ICML 2023, arXiv 2210.02885, equation 1: on the embeddings as they are,
    not centred. It is bounded by the number of rows, so compare only values taken over as many.
    embeddings: f32 [N, D]. Returns f32 []. All-zero embeddings have rank 0; anything not finite gives nan.
    """
    embeddings = embeddings.detach().double()
    if not torch.isfinite(embeddings).all():  # the decomposition would raise, and stop a training over a log
        return torch.full((), torch.nan, device=embeddings.device, dtype=torch.float32)
    # Through the smaller of the two products: many times faster, and in f64 exact enough for a sum over values.
    small = embeddings if embeddings.shape[0] <= embeddings.shape[1] else embeddings.T
    values = torch.linalg.eigvalsh(small @ small.T).clamp(min=0).sqrt().float()
    if values.sum() == 0:
        return values.new_zeros(())
    share = values / values.sum()
    return torch.special.entr(share).sum().exp()


@torch.no_grad()
def embedding_std(embeddings: Tensor) -> Tensor:
    """Mean deviation of a dimension of the L2-normalised embeddings, times sqrt(D): 0 collapsed, about 1 spread.

    Chen and He, "SimSiam", CVPR 2021, arXiv 2011.10566, section 4.1: isotropic embeddings have 1 / sqrt(D).
    embeddings: f32 [N, D]. Returns f32 [].
    """
    unit = F.normalize(embeddings.detach().float(), dim=-1)
    return unit.std(dim=0, correction=0).mean() * unit.shape[-1] ** 0.5
