"""Training of heads."""

from .medusa1 import Example, HeadMetrics, TrainingConfig, evaluate_heads, medusa1_loss, train_heads

__all__ = ["Example", "HeadMetrics", "TrainingConfig", "evaluate_heads", "medusa1_loss", "train_heads"]
