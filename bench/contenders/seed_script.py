"""The hand-written XOR script that the project grew from, line by line, as one training step.

Its update is the gradient of half the summed squares, so its learning rate is 2 / rows times that of the mean.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.contenders.base import Contender
from bench.workloads import Array, Task


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def sigmoid_derivative(x: Any) -> Any:
    return x * (1 - x)


class SeedScript(Contender):
    def __init__(self, task: Task) -> None:
        super().__init__(task)
        hidden, hidden_bias, output, output_bias = (value.copy() for value in task.start)
        self.weights_input_hidden, self.bias_hidden = hidden, hidden_bias[None]
        self.weights_hidden_output, self.bias_output = output, output_bias[None]
        self.learning_rate = task.settings.lr * 2 / task.batch

    def step(self, x: Any, y: Any) -> Any:
        hidden_input = np.dot(x, self.weights_input_hidden) + self.bias_hidden
        hidden_output = sigmoid(hidden_input)
        final_input = np.dot(hidden_output, self.weights_hidden_output) + self.bias_output
        final_output = sigmoid(final_input)

        error = y - final_output
        d_output = error * sigmoid_derivative(final_output)

        error_hidden = d_output.dot(self.weights_hidden_output.T)
        d_hidden = error_hidden * sigmoid_derivative(hidden_output)

        self.weights_hidden_output += hidden_output.T.dot(d_output) * self.learning_rate
        self.bias_output += np.sum(d_output, axis=0, keepdims=True) * self.learning_rate
        self.weights_input_hidden += x.T.dot(d_hidden) * self.learning_rate
        self.bias_hidden += np.sum(d_hidden, axis=0) * self.learning_rate
        return error

    def predict(self, x: Any) -> Any:
        hidden_output = sigmoid(np.dot(x, self.weights_input_hidden) + self.bias_hidden)
        return sigmoid(np.dot(hidden_output, self.weights_hidden_output) + self.bias_output)

    def loss(self, result: Any) -> float:
        return float(np.mean(result**2))

    def parameters(self) -> list[Array]:
        return [self.weights_input_hidden, self.bias_hidden[0], self.weights_hidden_output, self.bias_output[0]]
