"""Networks for text."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["CharacterLSTM", "lstm"]


class CharacterLSTM(nn.Module):
    """Tokens [b, t] (integers) to logits [b, t, vocabulary]: at each position, the token that comes next."""

    def __init__(self, vocabulary: int, embedding: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        outputs, _ = self.lstm(self.embedding(tokens))
        logits: Tensor = self.head(outputs)
        return logits


def lstm(vocabulary: int = 65, embedding: int = 8, hidden: int = 256, layers: int = 2) -> CharacterLSTM:
    """The character LSTM of McMahan et al. (2017) for Shakespeare: embedding 8, two layers of 256."""
    return CharacterLSTM(vocabulary, embedding, hidden, layers)
