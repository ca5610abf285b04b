"""The interface clients program against: .proto files and the Python made from them by `python -m tools.generate_protos`."""
