"""Three small policies with one signature: a table, an MLP and a causal transformer.

    policy(states, completion_ids) → logits        int (…, T), int (…, T) → float (…, T, A)

Place t sees the states 0…t and the actions 0…t−1, never the action it predicts (the table and the MLP see state t
alone). So equal prefixes get equal probabilities, as the theorem asks, where the state follows from the prefix.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigrpo.checks import check_choice


class TabularPolicy(nn.Module):
    """One row of logits a state, uniform at first: θ ∈ ℝ^(S×A)."""

    def __init__(self, num_states: int, num_actions: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(num_states, num_actions))

    def forward(self, states: Tensor, completion_ids: Tensor) -> Tensor:
        return F.embedding(states, self.logits)


class MLPPolicy(nn.Module):
    """A two-layer perceptron on the one-hot state.

    logits = W₂ · tanh(W₁ · e_s) + b
    """

    def __init__(self, num_states: int, num_actions: int, width: int = 32) -> None:
        super().__init__()
        # An embedding is the one-hot state times the first weight matrix.
        self.hidden = nn.Embedding(num_states, width)
        self.head = nn.Linear(width, num_actions)

    def forward(self, states: Tensor, completion_ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(states)))


class TransformerPolicy(nn.Module):
    """A causal transformer (pre-norm, sinusoidal positions) over states and earlier actions.

        x_t = E_s[sₜ] + E_a[aₜ₋₁] + position(t);   logits = W · norm(blocks(x)) + b

    Source: Vaswani et al. 2017, arXiv 1706.03762; norms before each part: Xiong et al. 2020, arXiv 2002.04745.
    """

    def __init__(
        self,
        num_states: int,
        num_actions: int,
        width: int = 32,
        layers: int = 2,
        heads: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.state = nn.Embedding(num_states, width)
        self.action = nn.Embedding(num_actions + 1, width)  # the last one: no action yet
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_actions)

    def forward(self, states: Tensor, completion_ids: Tensor) -> Tensor:
        begin = torch.full_like(completion_ids[..., :1], self.action.num_embeddings - 1)
        earlier = torch.cat([begin, completion_ids[..., :-1]], dim=-1)  # (…, T)
        x = self.state(states) + self.action(earlier)  # (…, T, W)
        x = x + _positions(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Block(nn.Module):
    """Causal self-attention, then a perceptron, each on a residual.

    x ← x + W_o · softmax(QKᵀ/√d + causal mask)V,   then   x ← x + MLP(x),   Q, K, V and MLP of norm(x)
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x)).unflatten(
            -1, (3 * self.heads, -1)
        )  # (…, T, 3·heads, W/heads)
        q, k, v = qkv.transpose(-2, -3).chunk(3, dim=-3)  # each (…, heads, T, W/heads)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # (…, heads, T, T)
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        mixed = scores.masked_fill(later, -math.inf).softmax(dim=-1) @ v
        x = x + self.dropout(self.out(mixed.transpose(-2, -3).flatten(-2)))
        return x + self.dropout(self.mlp(self.norm2(x)))


def _positions(x: Tensor) -> Tensor:
    """Sinusoidal position encodings for x (…, T, W): (T, W)."""
    T, W = x.shape[-2:]
    place = torch.arange(T, dtype=x.dtype, device=x.device).unsqueeze(1)
    rate = torch.exp(torch.arange(0, W, 2, dtype=x.dtype, device=x.device) * (-math.log(1e4) / W))
    return torch.cat([torch.sin(place * rate), torch.cos(place * rate)], dim=1)


POLICIES = {"tabular": TabularPolicy, "mlp": MLPPolicy, "transformer": TransformerPolicy}


def make_policy(
    name: str,
    num_states: int,
    num_actions: int,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    **options,
) -> nn.Module:
    """Make a policy of POLICIES from a seed, without touching torch's global random state.

    Args:
        name: of POLICIES.
        num_states: of the task.
        num_actions: of the task.
        seed: of the weights.
        dtype: of the weights.
        options: of the policy, as layers, width.

    Raises: ValueError for an unknown name.
    """
    check_choice("policy", name, POLICIES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return POLICIES[name](num_states, num_actions, **options).to(dtype)
