"""The interface clients program against: .proto files and the Python that tools.generate_protos makes from them."""
