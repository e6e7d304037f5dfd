"""A Flower project of two apps that are Atoll's; what is set stands in `pyproject.toml`."""

from atoll.flower import client_app, server_app

server = server_app(model="mlp:32", classes=10, lr=0.1, save="model.safetensors")
client = client_app()  # its name, data and place are the SuperNode's to say
