"""What queries to come will attend to, by how queries have been."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from videollm.eviction.base import EvictionPolicy, Row


@dataclass(frozen=True)
class ExpectedAttentionPolicy(EvictionPolicy):
    """Expected Attention (Devoto et al., 2025): queries without their rotation are taken for normal, with
    mean and covariance of the newest `observation`; turned to the positions to come, on average over the next
    `horizon`, they expect of a key k the weight exp(mean k + k covariance k / 2), which counts as much as its
    value is long.
    """

    observation: int = 32
    horizon: int = 512
    epsilon: float = 0.02  # added to the expected attention, so that long values count everywhere

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.observation < 2 or self.horizon < 1:
            raise ValueError(
                "observation must be at least 2 and horizon at least 1, "
                f"got {self.observation} and {self.horizon}"
            )

    @property
    def observed(self) -> int:
        return self.observation

    def scores(self, row: Row) -> Tensor:
        assert row.queries is not None
        kv_heads, _, head_dim = row.keys.shape
        ages = row.positions[-1] + 1 - row.positions[-row.queries.shape[1] :]
        ahead = row.rotary.turn(row.queries.float(), ages)  # all at the next position
        mean = ahead.mean(1)  # [heads, head_dim]
        apart = ahead - mean[:, None]
        covariance = apart.mT @ apart / (ahead.shape[1] - 1)  # [heads, head_dim, head_dim]
        mean = row.rotary.turn_on_average(mean, self.horizon).view(kv_heads, -1, head_dim)
        covariance = row.rotary.turn_on_average(covariance, self.horizon).mT
        covariance = row.rotary.turn_on_average(covariance, self.horizon).mT.unflatten(0, (kv_heads, -1))
        keys = row.keys.float()[:, None] * row.scaling  # [kv_heads, 1, entries, head_dim]
        spread = ((keys @ covariance) * keys).sum(-1)  # [kv_heads, group, entries]
        weights = (keys @ mean[..., None]).squeeze(-1) + spread / 2
        expected = weights.softmax(-1).mean(1)  # [kv_heads, entries]
        return (expected + self.epsilon) * row.values.float().norm(dim=-1)
