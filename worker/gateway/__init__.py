"""The one service that a guest reaches: the model, by connections whose cost is bounded."""
