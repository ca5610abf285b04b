"""Development-only programs: the demonstration, generated code, golden fixtures."""
