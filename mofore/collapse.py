"""Two measures of embeddings that fall when an encoder collapses: effective rank and deviation.

A collapsed encoder is perfectly stable and perfectly forecast, so neither the loss nor the cosine
of two views shows a collapse. Training logs both measures beside the loss, evaluation beside every
stability.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def effective_rank(embeddings: Tensor) -> Tensor:
    """RankMe: exp of the entropy of the normalised singular values, between 1 and min(N, D).

    Garrido et al., "RankMe", ICML 2023, arXiv 2210.02885, equation 1; embeddings are not centred.
    The number of rows bounds the rank, so compare only ranks of equally many rows. embeddings: f32
    [N, D]. Returns f32 []; 0 if all embeddings are zero, nan if one is not finite.
    """
    embeddings = embeddings.detach().double()
    if not torch.isfinite(embeddings).all():  # eigvalsh would raise, and a log must not stop a run
        return torch.full((), torch.nan, device=embeddings.device, dtype=torch.float32)
    # Eigenvalues of the smaller Gram matrix: much faster than an SVD, and accurate enough in f64.
    small = embeddings if embeddings.shape[0] <= embeddings.shape[1] else embeddings.T
    singular_values = torch.linalg.eigvalsh(small @ small.T).clamp(min=0).sqrt().float()
    if singular_values.sum() == 0:
        return singular_values.new_zeros(())
    return torch.special.entr(singular_values / singular_values.sum()).sum().exp()


@torch.no_grad()
def embedding_std(embeddings: Tensor) -> Tensor:
    """Mean standard deviation per dimension of L2-normalised embeddings, times sqrt(D).

    0 for collapsed, 1 for isotropic embeddings (Chen & He, "SimSiam", CVPR 2021, arXiv 2011.10566,
    section 4.1). embeddings: f32 [N, D]. Returns f32 [].
    """
    unit = F.normalize(embeddings.detach().float(), dim=-1)
    return unit.std(dim=0, correction=0).mean() * unit.shape[-1] ** 0.5
