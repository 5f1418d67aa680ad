"""Rules that act while training, and the engine that supplies what they need."""

from polytask.balancing.balancer import Balancer, balancer
from polytask.balancing.report import BackwardReport

__all__ = ["BackwardReport", "Balancer", "balancer"]
